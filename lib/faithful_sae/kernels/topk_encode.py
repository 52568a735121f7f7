"""The k largest latents of each token, without the others.

    p                = (x - b_dec) W_enc + b_enc
    values, indices  = the k largest of ReLU(p), the lower index first among equals
    dL/dW_enc^T      = latent_sums(dL/dvalues, x - b_dec)
    dL/db_enc        = latent_sums(dL/dvalues, 1)
    dL/db_dec        = -dL/db_enc W_enc^T
    dL/dx[t]         = sum_j dL/dvalues[t, j] W_enc^T[indices[t, j]]

`weight` is W_enc^T, one latent per row. A slot whose value is 0 is (0, 0): no gradient passes it. B
tokens, F latents, D model.

**On a CPU** the product p is only a screen (screen.py): a latent whose p~ + e lies below the k-th
largest p~ - e cannot be among the k largest. The latents that remain (about 1.5 k of them) are
computed again in float32, and chosen from exactly.
"""

import numpy as np
import torch
from torch import Tensor

from faithful_sae.kernels.backend import compiled, dot, jit, loop, on_triton, over_rows, tl, triton
from faithful_sae.kernels.screen import Screen, screened

# groups of latents that share a bound, per slot: at fewer, more latents pass with the best of their
# group
GROUPS_PER_SLOT = 16
# of the Triton kernel: work is cut by tokens and latents
TOKENS_PER_PROGRAM = 16
PARTS = 8
LEAST_LATENTS = 1024
# that it sorts in registers: 512 do not fit, and take minutes to compile
MOST_SLOTS = 256


def reference(
    x: Tensor, weight: Tensor, b_enc: Tensor, b_dec: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    values, indices = torch.relu((x - b_dec) @ weight.T + b_enc).sort(
        dim=-1, descending=True, stable=True
    )
    values = values[:, :k]
    indices = indices[:, :k]
    return values, torch.where(values > 0, indices, 0)


@loop
def _raise_to(low, high, block, b_enc, error, norm, column_norm, column_error, rounding):
    """low = max(low, p~ - e) and high = max(high, p~ + e) for a block of latents; on its own, so
    that the compiler sees to it that it is vectorised.
    """
    for j in range(len(block)):
        p, e = screened(block[j], b_enc[j], error, norm, column_norm[j], column_error[j], rounding)
        low[j] = max(low[j], p - e)
        high[j] = max(high[j], p + e)


@loop
def _group_bounds(low, high, row, b_enc, error, norm, column_norm, column_error, rounding):
    """low[j] and high[j] = the largest p~ - e and p~ + e of latents j, j + len(low), ..."""
    low[:] = -np.inf
    high[:] = -np.inf
    for i in range(0, len(row), len(low)):
        j = i + len(low)
        _raise_to(
            low,
            high,
            row[i:j],
            b_enc[i:j],
            error,
            norm,
            column_norm[i:j],
            column_error[i:j],
            rounding,
        )


@loop
def _kth_largest(bits, k):
    """A number that k of these float32 (given by their bits) are not below: the k-th largest, or a
    little less if that leaves no other in; 0 when fewer than k are positive. Positive floats are in
    the order of their bits, so halving 31 times finds it.
    """
    low, high = np.int32(0), np.int32(0x7F800000)
    while low < high:
        middle, count = np.int32(low + (high - low + 1) // 2), np.int32(0)
        for i in range(len(bits)):
            count = np.int32(count + (bits[i] >= middle))
        if count == k:
            return middle
        if count > k:
            low = middle
        else:
            high = np.int32(middle - 1)
    return low


@loop
def _select_loop(
    first,
    last,
    screen,
    rounding,
    x,
    row_error,
    row_norm,
    weight,
    b_enc,
    column_norm,
    column_error,
    k,
    n_groups,
    values,
    indices,
):
    """The k largest float32 dot products of each row of x, among the latents that the screen
    leaves.
    """
    n_latents = len(weight)
    low, high = np.empty(n_groups, np.float32), np.empty(n_groups, np.float32)
    groups = np.empty(n_groups, np.int64)
    latents, products = np.empty(n_latents, np.int64), np.empty(n_latents, np.float32)
    low_bits = low.view(np.int32)
    products_bits = products.view(np.int32)
    for t in range(first, last):
        error = row_error[t]
        norm = row_norm[t]
        row = screen[t]
        _group_bounds(low, high, row, b_enc, error, norm, column_norm, column_error, rounding)
        low_bits[0] = _kth_largest(low_bits, k)
        least = low[0]  # k groups hold a latent above it, so k latents are
        n_left = 0
        for j in range(n_groups):
            groups[n_left] = j
            n_left += high[j] >= least
        count = 0
        for base in range(0, n_latents, n_groups):
            for i in range(n_left):
                f = base + groups[i]
                if f >= n_latents:
                    continue
                p, e = screened(
                    row[f], b_enc[f], error, norm, column_norm[f], column_error[f], rounding
                )
                if p + e >= least:
                    product = dot(x[t], weight[f]) + b_enc[f]
                    if product > 0:
                        latents[count], products[count] = f, product
                        count += 1
        kth = _kth_largest(products_bits[:count], k)
        slot = 0
        equal = k
        for i in range(count):
            equal -= products_bits[i] > kth
        for i in range(count):
            if products_bits[i] > kth or (products_bits[i] == kth and equal > 0):
                equal -= products_bits[i] == kth
                values[t, slot], indices[t, slot] = products[i], latents[i]
                slot += 1
        values[t, slot:], indices[t, slot:] = 0, 0


def by_screening(
    x: Tensor, weight: Tensor, b_enc: Tensor, b_dec: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The compiled way, on a CPU."""
    x = x - b_dec
    d_sae = len(weight)
    values, indices = torch.empty(len(x), k), torch.empty(len(x), k, dtype=torch.int64)
    n_groups = min(d_sae, max(GROUPS_PER_SLOT * k, 64))
    screen = Screen(x, weight)
    for part, products, rows in screen.parts():
        over_rows(
            _select_loop,
            len(x[part]),
            *products,
            x[part],
            *rows,
            weight,
            b_enc,
            *screen.columns,
            k,
            n_groups,
            values[part],
            indices[part],
        )
    return values, indices


@jit
def _kernel(
    x,
    weight,
    b_enc,
    b_dec,
    keys,
    B,
    D,
    F,
    WIDTH,
    N_SLOTS: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    DOT: tl.constexpr,
):
    """One program keeps the N_SLOTS largest latents of BLOCK_B tokens, out of WIDTH latents, tile
    by tile.

    A latent is an int64 whose upper half holds the bits of ReLU(p) and whose lower half counts its
    index down, so that one order serves both. Of two falling sequences, the larger elements of one
    and the other reversed are the largest of both.
    """
    t = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    part = tl.program_id(1)
    best = tl.zeros([BLOCK_B, N_SLOTS], tl.int64)
    for first in range(part * WIDTH, tl.minimum(part * WIDTH + WIDTH, F), BLOCK_F):
        f = first + tl.arange(0, BLOCK_F)
        p = tl.zeros([BLOCK_B, BLOCK_F], tl.float32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            tokens = tl.load(
                x + t[:, None].to(tl.int64) * D + d[None, :],
                mask=(t[:, None] < B) & (d[None, :] < D),
                other=0,
            )
            mean = tl.load(b_dec + d, mask=d < D, other=0)
            rows = tl.load(
                weight + f[:, None].to(tl.int64) * D + d[None, :],
                mask=(f[:, None] < F) & (d[None, :] < D),
                other=0,
            )
            centred = (tokens.to(tl.float32) - mean[None, :].to(tl.float32)).to(rows.dtype)
            p = tl.dot(centred.to(DOT), tl.trans(rows).to(DOT), p, input_precision="ieee")
        p = tl.maximum(p + tl.load(b_enc + f, mask=f < F, other=0)[None, :].to(tl.float32), 0)
        key = (p.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (0x7FFFFFFF - f).to(tl.int64)[
            None, :
        ]
        key = tl.where((f[None, :] < F) & (p > 0), key, 0)
        if tl.max(tl.max(key, 1) - tl.min(best, 1)) > 0:
            best = tl.sort(tl.maximum(best, tl.flip(tl.topk(key, N_SLOTS), 1)), descending=True)
    slot = tl.arange(0, N_SLOTS)
    out = (t[:, None].to(tl.int64) * tl.num_programs(1) + part) * N_SLOTS + slot[None, :]
    tl.store(keys + out, best, mask=t[:, None] < B)


def by_triton(
    x: Tensor, weight: Tensor, b_enc: Tensor, b_dec: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The kernel over pieces of TOKENS_PER_PROGRAM tokens and about d_sae / PARTS latents, then the
    k largest of all parts.
    """
    n_tokens, n_dims = x.shape
    d_sae = len(weight)
    n_slots = triton.next_power_of_2(max(k, 16))
    parts = min(PARTS, triton.cdiv(d_sae, LEAST_LATENTS))
    block_f = max(64, n_slots)
    # whole tiles: a latent belongs to one part
    width = triton.cdiv(d_sae, parts * block_f) * block_f
    halves = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    # the interpreter has no bfloat16
    dot = tl.float32 if triton.knobs.runtime.interpret else halves.get(x.dtype, tl.float32)
    keys = torch.empty(n_tokens, parts, n_slots, dtype=torch.int64, device=x.device)
    _kernel[(triton.cdiv(n_tokens, TOKENS_PER_PROGRAM), parts)](
        x,
        weight,
        b_enc,
        b_dec,
        keys,
        n_tokens,
        n_dims,
        d_sae,
        width,
        n_slots,
        TOKENS_PER_PROGRAM,
        block_f,
        32,
        dot,
        num_warps=8 if n_slots > 64 else 4,
    )
    keys = keys.flatten(1).topk(k).values
    values = (keys >> 32).to(torch.int32).view(torch.float32)
    return values.to(x.dtype), torch.where(values > 0, 0x7FFFFFFF - (keys & 0x7FFFFFFF), 0)


def encode(
    x: Tensor, weight: Tensor, b_enc: Tensor, b_dec: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k largest latents of each token, by whatever suits the device; without autograd.

    Args:
        x: [B, D], contiguous.
        weight: W_enc^T [F, D], contiguous.
        b_enc: [F].
        b_dec: [D].
        k: 1 to F.

    Returns:
        (values [B, k], indices int64 [B, k]), in no particular order; (0, 0) fills up tokens with
        fewer than k positive latents.
    """
    if on_triton(x) and k <= MOST_SLOTS:
        return by_triton(x, weight, b_enc, b_dec, k)
    return (by_screening if compiled(x, weight, b_enc, b_dec) else reference)(
        x, weight, b_enc, b_dec, k
    )
