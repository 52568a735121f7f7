"""What the kernels share: Triton if it is installed, and loops over rows in as many threads as
PyTorch uses.

On a GPU the kernels are Triton's. On a CPU they are loops compiled by numba: PyTorch's built-ins
either make dense temporaries or need MKL. Each loop is given a range of rows and writes those rows
alone, so that no result depends on the number of threads.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numba import config, njit

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # not on every platform, and only a GPU needs it
    triton = None
    tl = type("tl", (), {"constexpr": None})
    jit = lambda function: function

FOLDER = Path(__file__).resolve().parent
if not config.CACHE_DIR and os.access(FOLDER, os.W_OK):
    # numba asks whether the file of a loop has changed, not those of the functions it calls: one
    # cache for each state of all files
    state = hashlib.sha256(
        b"".join(file.read_bytes() for file in sorted(FOLDER.glob("*.py")))
    ).hexdigest()[:12]
    config.CACHE_DIR = str(FOLDER / "__pycache__" / f"numba-{state}")

TRITON_DEVICES = {"cuda"}
ROWS_PER_THREAD = 64  # fewer are not worth a thread

# Sums may be taken in vector registers: in another order than written, but in the same one every
# time.
loop = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})


@loop
def dot(a, b):
    """Sum of a[i] b[i]."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@loop
def add_rows(total, weights, rows, numbers):
    """total += sum of weights[i] rows[numbers[i]]; four at a time, so that `total` is read and
    written a quarter as often.
    """
    whole = len(weights) - len(weights) % 4
    for i in range(0, whole, 4):
        a, b, c, d = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        p = rows[numbers[i]]
        q = rows[numbers[i + 1]]
        r = rows[numbers[i + 2]]
        s = rows[numbers[i + 3]]
        for x in range(len(total)):
            total[x] += a * p[x] + b * q[x] + c * r[x] + d * s[x]
    for i in range(whole, len(weights)):
        a = weights[i]
        p = rows[numbers[i]]
        for x in range(len(total)):
            total[x] += a * p[x]


def on_triton(tensor):
    """Whether the Triton kernels take tensors of this device: GPUs of compute capability 8.0 or
    more (NVIDIA's since 2020).
    """
    return (
        triton is not None
        and tensor.device.type in TRITON_DEVICES
        and (not tensor.is_cuda or torch.cuda.get_device_capability(tensor.device) >= (8, 0))
    )


def compiled(*tensors):
    """Whether the numba loops take these tensors: float32 (or integers) on the CPU."""
    return not on_triton(tensors[0]) and all(
        t.device.type == "cpu" and t.dtype in (torch.float32, torch.int64) for t in tensors
    )


def over_rows(function, n_rows, *arguments):
    """function(start, stop, *arguments) for ranges that make up n_rows, side by side; tensors are
    handed over as arrays.
    """
    arguments = [a.detach().numpy() if isinstance(a, torch.Tensor) else a for a in arguments]
    threads = max(min(torch.get_num_threads(), n_rows // ROWS_PER_THREAD), 1)
    if threads == 1:
        return function(0, n_rows, *arguments)
    bounds = [n_rows * i // threads for i in range(threads + 1)]
    for result in [
        _pool(threads).submit(function, *pair, *arguments) for pair in zip(bounds, bounds[1:])
    ]:
        result.result()


@cache
def _pool(threads):
    return ThreadPoolExecutor(threads)


os.register_at_fork(after_in_child=_pool.cache_clear)  # whose threads do not come along
