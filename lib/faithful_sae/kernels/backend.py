"""What the kernels share: Triton if it is installed, and loops over rows in as many threads as
PyTorch uses.

On a GPU the kernels are Triton's. On a CPU they are loops compiled by numba: PyTorch's built-ins
either make dense temporaries or need MKL. Each loop is given a range of rows and writes those rows
alone, so that no result depends on the number of threads.
"""

import hashlib
import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numba import config, njit
from torch import Tensor

try:
    import triton.language as tl

    # Any: no type checker follows how Triton's functions are called
    triton: Any = importlib.import_module("triton")
except ImportError:  # not on every platform, and only a GPU needs it
    triton = None
    tl = type("tl", (), {"constexpr": None})

FOLDER = Path(__file__).resolve().parent
# numba asks whether the file of a loop has changed, not those of the functions it calls: one cache
# for each state of all files. Its settings are made at run time, where no type checker finds them.
if not config.CACHE_DIR and os.access(FOLDER, os.W_OK):  # pyright: ignore[reportAttributeAccessIssue]
    state = hashlib.sha256(
        b"".join(file.read_bytes() for file in sorted(FOLDER.glob("*.py")))
    ).hexdigest()[:12]
    config.CACHE_DIR = str(FOLDER / "__pycache__" / f"numba-{state}")  # pyright: ignore


def jit(function: Callable) -> Any:
    """A Triton kernel; where there is no Triton, the function, which nobody calls."""
    return triton.jit(function) if triton else function


TRITON_DEVICES = {"cuda"}
# fewer are not worth a thread
ROWS_PER_THREAD = 64

# [n, D] and [D, m] int8 -> [n, m] int32; torch has no public name for it
int8_product = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]

# Sums may be taken in vector registers: in another order than written, but in the same one every
# time.
loop = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})


@loop
def dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Sum of a[i] b[i]."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@loop
def add_rows(total: np.ndarray, weights: np.ndarray, rows: np.ndarray, numbers: np.ndarray) -> None:
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


def on_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels take tensors of this device: GPUs of compute capability 8.0 or
    more (NVIDIA's since 2020).
    """
    return (
        triton is not None
        and tensor.device.type in TRITON_DEVICES
        and (not tensor.is_cuda or torch.cuda.get_device_capability(tensor.device) >= (8, 0))
    )


def compiled(*tensors: Tensor) -> bool:
    """Whether the numba loops take these tensors: float32 (or integers) on the CPU."""
    return not on_triton(tensors[0]) and all(
        t.device.type == "cpu" and t.dtype in (torch.float32, torch.int64) for t in tensors
    )


def over_rows(function: Callable[..., None], n_rows: int, *arguments: Any) -> None:
    """function(start, stop, *arguments) for ranges that make up n_rows, side by side; tensors are
    handed over as arrays.
    """
    arrays = [a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments]
    threads = max(min(torch.get_num_threads(), n_rows // ROWS_PER_THREAD), 1)
    if threads == 1:
        return function(0, n_rows, *arrays)
    bounds = [n_rows * i // threads for i in range(threads + 1)]
    for result in [_pool(threads).submit(function, *pair, *arrays) for pair in pairwise(bounds)]:
        result.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


# threads do not come along into a child
os.register_at_fork(after_in_child=_pool.cache_clear)
