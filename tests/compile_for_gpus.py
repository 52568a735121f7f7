"""Triton's kernels compile to machine code for an A100 and an H100, in both dtypes."""

import pytest

from faithful_sae.kernels import backend
from test_kernels import compile_for


@pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_triton_compiles(capability, dtype, tmp_path):
    compile_for(capability, dtype, tmp_path)
