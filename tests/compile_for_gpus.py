"""Triton's kernels compile to machine code for an A100 and an H100, in both dtypes, which needs no
GPU: what the interpreter allows and a GPU does not. Of a minute of one core, and so not among the
tests of every change.
"""

import os
import subprocess
import sys

import pytest

from faithful_sae.kernels import backend

COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from faithful_sae.kernels import (
    cosine_tiles, firing_counts, latent_sums, one_token_attention, sparse_decode, topk_encode,
)

class Driver:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", {capability}, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

compiled, run = [], JITFunction.run
def compile_only(self, *args, **kwargs):
    kernel = run(self, *args, **kwargs | {{"warmup": True}})
    compiled.append(len(kernel.asm["cubin"]))

triton.runtime.driver.set_active(Driver())
JITFunction.run = compile_only
torch.empty = torch.zeros    # nothing is written to results
k = 16
x = torch.zeros(4, 96, dtype=torch.{dtype})
weight = torch.zeros(2048, 96, dtype=torch.{dtype})
values, indices = topk_encode.by_triton(x, weight, weight[:, 0].contiguous(), x[0], k)
sparse_decode.by_triton(values, indices, weight)
sparse_decode.by_triton_values_gradient(x, values, indices, weight)
active = latent_sums.by_latent(values.double(), indices, 2048)
for rows in (x, x[:, :1].contiguous()):
    latent_sums.by_triton(values, *active, rows, weight[:, :rows.shape[1]].contiguous())
firing_counts.by_triton(values, indices, 2048, 0.0)
codes = torch.zeros(64, 96, dtype=torch.int8)
for terms in (torch.zeros(3, 50), torch.zeros(4, 50)):
    list(cosine_tiles.by_triton(codes, codes, terms, terms, 7, lambda n: None))
kept = torch.zeros(3, 2, 2, 80, 64, dtype=torch.{dtype})
of_row = torch.tensor([0, 2])
query = torch.zeros(2, 6, 80, dtype=torch.{dtype})
new = torch.zeros(2, 2, 80, dtype=torch.{dtype})
for softcap, window in ((None, None), (30.0, 7)):
    one_token_attention.by_triton(
        query, new, new, kept, kept.clone(), of_row, of_row, 0.1, softcap, window
    )
assert len(compiled) == 12 and min(compiled) > 0, compiled
"""


def compile_for(capability: int, dtype: str, cache) -> None:
    """Compile all kernels to machine code for a GPU, which needs none."""
    environment = {
        name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
    } | {"TRITON_CACHE_DIR": str(cache)}
    subprocess.run(
        [sys.executable, "-c", COMPILE.format(capability=capability, dtype=dtype)],
        check=True,
        env=environment,
    )


@pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_triton_compiles(capability, dtype, tmp_path):
    compile_for(capability, dtype, tmp_path)
