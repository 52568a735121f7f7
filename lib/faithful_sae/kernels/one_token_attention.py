"""Attention of one new token per row over the tokens before it, read where they were written.

    K[n] = k, V[n] = v               after the n tokens that the row has so far
    s[t] = scale q . K[t]            or cap tanh(scale q . K[t] / cap), Gemma 2
    out  = sum_t softmax(s)[t] V[t]  over the last `window` tokens where there is one

Keys and values are kept in tiles of 64 tokens, [rows, tiles, G, d, 64]: a row is one stretch of
memory, whatever its length, and the tokens of a tile lie side by side, as vector registers want
them where d is small. transformers' cache grows by concatenation, a copy of everything for every
token, and its attention repeats the keys of grouped heads and takes rows of one length alone.

H heads share G heads of keys, width d.
"""

import math

import numpy as np
import torch
from torch import Tensor

from faithful_sae.kernels.backend import compiled, jit, loop, on_triton, over_rows, tl, triton

# tokens
TILE = 64
LOG2_E = math.log2(math.e)
# a score
LOWEST = np.float32(-1e9)
# what numba takes as an index without asking whether it is negative, which it could not do 16 at a
# time
U = np.uint64


def one_token_attention(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    lengths: Tensor,
    longest: int,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Append k and v to their rows, and attend to the whole of each row.

    Args:
        query: [B, H, d], of the new tokens.
        k, v: [B, G, d], of the new tokens.
        keys, values: [rows, tiles, G, d, TILE], of zeros at first, written in place.
        slots: int64 [B], increasing: the row of each new token.
        lengths: int64 [B], tokens already in it.
        longest: the largest of `lengths`.
        scale: of the scores, which may be as large as 1e9.
        softcap: None where the model has none.
        window: tokens; None where the model has none.

    Returns:
        [B, H, d]. 2 G d numbers per token of a row are read, once.
    """
    if compiled(query, keys) and softcap is None and window is None and query.shape[2] % 4 == 0:
        out = query.new_empty(query.shape)
        flat = [t.reshape(-1) for t in (query, k, v)] + [t.view(-1) for t in (keys, values, out)]
        over_rows(
            _loop,
            len(slots),
            *flat,
            slots,
            lengths,
            np.float32(scale * LOG2_E),
            query.shape[1],
            *keys.shape[1:],
        )
        return out
    if on_triton(query):
        return by_triton(
            query.contiguous(),
            k.contiguous(),
            v.contiguous(),
            keys,
            values,
            slots,
            lengths,
            scale,
            softcap,
            window,
        )
    return reference(query, k, v, keys, values, slots, lengths, longest, scale, softcap, window)


def reference(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    lengths: Tensor,
    longest: int,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    keys[slots, lengths // TILE, :, :, lengths % TILE] = k
    values[slots, lengths // TILE, :, :, lengths % TILE] = v
    tiles = longest // TILE + 1
    keys, values = (
        t[:, :tiles] if len(slots) == len(t) else t[slots, :tiles] for t in (keys, values)
    )
    q = query.unflatten(1, (keys.shape[2], -1)) * scale
    scores = torch.einsum("bgrd,btgdp->bgrtp", q, keys).flatten(3).float()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    token = torch.arange(tiles * TILE, device=scores.device)
    last = lengths[:, None]
    hidden = token > last if window is None else (token > last) | (token <= last - window)
    weights = torch.softmax(scores.masked_fill(hidden[:, None, None], -torch.inf), -1).to(
        values.dtype
    )
    return torch.einsum("bgrtp,btgdp->bgrd", weights.unflatten(3, (tiles, TILE)), values).flatten(
        1, 2
    )


@loop
def _power_of_2(x):
    """2^x in float32 to 2e-7, for x up to 127; 2^-126 below that. Taylor's series around the
    nearest integer.
    """
    x = max(x, np.float32(-126))
    whole = np.floor(x + np.float32(0.5))
    y = (x - whole) * np.float32(math.log(2))
    p = np.float32(1 / 5040)
    p = p * y + np.float32(1 / 720)
    p = p * y + np.float32(1 / 120)
    p = p * y + np.float32(1 / 24)
    p = p * y + np.float32(1 / 6)
    p = p * y + np.float32(0.5)
    p = p * y + np.float32(1)
    p = p * y + np.float32(1)
    return p * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@loop
def _loop(
    first,
    last,
    query,
    k,
    v,
    keys,
    values,
    out,
    slots,
    lengths,
    scale,
    n_heads,
    n_tiles,
    n_groups,
    width,
    tile_size,
):
    """All tensors flat: a view of a tile would cost more than the tile. Sixteen tokens more than
    needed at most, since what is left over by vector registers is done number by number; four
    dimensions at a time. Scores in units of log 2.
    """
    H, G, D, P = U(n_heads), U(n_groups), U(width), U(tile_size)
    R = H // G
    room = U(n_tiles) * P
    scores, totals = np.empty(H * room, np.float32), np.empty(H, np.float32)
    for b in range(U(first), U(last)):
        row = U(slots[b]) * room * G * D
        n = U(lengths[b])
        new = row + n // P * G * D * P + n % P
        for i in range(G * D):
            keys[new + i * P] = k[b * G * D + i]
            values[new + i * P] = v[b * G * D + i]
        n += U(1)
        tiles = (n + P - U(1)) // P
        padded = (n + U(15)) // U(16) * U(16)
        # goes nowhere; but a plain sum brings the row into the cache at the speed of memory, which
        # the rest does not
        near = np.float32(0)
        for i in range(row, row + tiles * G * D * P):
            near += keys[i] + values[i]
        out[b * H * D] = near
        for t in range(tiles):
            m = min(P, padded - t * P)
            for g in range(G):
                tile = row + (t * G + g) * D * P
                for h in range(g * R, g * R + R):
                    q = (b * H + h) * D
                    s = h * room + t * P
                    for c in range(m):
                        scores[s + c] = 0
                    for i in range(U(0), D, U(4)):
                        q0 = query[q + i]
                        q1 = query[q + i + U(1)]
                        q2 = query[q + i + U(2)]
                        q3 = query[q + i + U(3)]
                        k0 = tile + i * P
                        k1 = k0 + P
                        k2 = k0 + P + P
                        k3 = k0 + P + P + P
                        for c in range(m):
                            scores[s + c] += scale * (
                                q0 * keys[k0 + c]
                                + q1 * keys[k1 + c]
                                + q2 * keys[k2 + c]
                                + q3 * keys[k3 + c]
                            )
        for h in range(H):
            s = h * room
            for c in range(n, padded):
                scores[s + c] = LOWEST
            # the largest score's whole part is as good as it, and integers are compared 16 at a
            # time
            top = np.int32(LOWEST)
            for c in range(padded):
                top = max(top, np.int32(scores[s + c]))
            shift, total = np.float32(top), np.float32(0)
            for c in range(padded):
                power = _power_of_2(scores[s + c] - shift)
                scores[s + c] = power
                total += power
            for c in range(n, padded):
                scores[s + c] = 0
            totals[h] = total
        for i in range(b * H * D, (b + U(1)) * H * D):
            out[i] = 0
        for t in range(tiles):
            m = min(P, padded - t * P)
            for g in range(G):
                tile = row + (t * G + g) * D * P
                for h in range(g * R, g * R + R):
                    o = (b * H + h) * D
                    s = h * room + t * P
                    for i in range(U(0), D, U(4)):
                        v0 = tile + i * P
                        v1 = v0 + P
                        v2 = v0 + P + P
                        v3 = v0 + P + P + P
                        o0, o1, o2, o3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
                        for c in range(m):
                            weight = scores[s + c]
                            o0 += weight * values[v0 + c]
                            o1 += weight * values[v1 + c]
                            o2 += weight * values[v2 + c]
                            o3 += weight * values[v3 + c]
                        out[o + i] += o0
                        out[o + i + U(1)] += o1
                        out[o + i + U(2)] += o2
                        out[o + i + U(3)] += o3
        for h in range(H):
            for i in range((b * H + h) * D, (b * H + h + U(1)) * D):
                out[i] /= totals[h]


@jit
def _kernel(
    query,
    k,
    v,
    keys,
    values,
    slots,
    lengths,
    out,
    scale,
    softcap,
    window,
    room,
    G,
    R,
    D,
    CAPPED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
    P: tl.constexpr,
):
    """One program attends for the R heads of one row that share keys, tile by tile, with the
    softmax kept up to date in float32. It starts from the new token, which therefore need not be
    read back.
    """
    b = tl.program_id(0).to(tl.int64)
    g = tl.program_id(1)
    r, d, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D), tl.arange(0, P)
    heads = ((b * G + g) * R + r[:, None]) * D + d[None, :]
    mask = (r < R)[:, None] & (d < D)[None, :]
    q = tl.load(query + heads, mask=mask, other=0).to(tl.float32) * scale
    new_k = tl.load(k + (b * G + g) * D + d, mask=d < D, other=0)
    new_v = tl.load(v + (b * G + g) * D + d, mask=d < D, other=0)
    n = tl.load(lengths + b)
    row = tl.load(slots + b) * room * G * D
    new = row + ((n // P * G + g) * D + d) * P + n % P
    tl.store(keys + new, new_k, mask=d < D)
    tl.store(values + new, new_v, mask=d < D)
    top = tl.sum(q * new_k.to(tl.float32)[None, :], 1)
    if CAPPED:
        top = softcap * (2 * tl.sigmoid(2 * top / softcap) - 1)  # tanh
    total = tl.full([BLOCK_R], 1.0, tl.float32)
    sums = tl.zeros([BLOCK_R, BLOCK_D], tl.float32) + new_v.to(tl.float32)[None, :]
    first = tl.maximum(n + 1 - window, 0)
    for t in range(first // P, (n + P - 1) // P):
        token = t * P + p
        seen = (token >= first) & (token < n)
        tile = row + ((t * G + g) * D + d[:, None]) * P + p[None, :]
        there = (d < D)[:, None] & seen[None, :]
        tile_k = tl.load(keys + tile, mask=there, other=0).to(tl.float32)
        tile_v = tl.load(values + tile, mask=there, other=0).to(tl.float32)
        scores = tl.sum(q[:, :, None] * tile_k[None, :, :], 1)
        if CAPPED:
            scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights, less = tl.exp(scores - higher[:, None]), tl.exp(top - higher)
        total = total * less + tl.sum(weights, 1)
        sums = sums * less[:, None] + tl.sum(weights[:, None, :] * tile_v[None, :, :], 2)
        top = higher
    tl.store(out + heads, (sums / total[:, None]).to(out.dtype.element_ty), mask=mask)


def by_triton(
    query: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    lengths: Tensor,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    _, tiles, groups, width, _ = keys.shape
    shared = query.shape[1] // groups
    out = torch.empty_like(query)
    _kernel[(len(slots), groups)](
        query,
        k,
        v,
        keys,
        values,
        slots,
        lengths,
        out,
        scale,
        softcap or 1.0,
        window or tiles * TILE,
        tiles * TILE,
        groups,
        shared,
        width,
        softcap is not None,
        triton.next_power_of_2(shared),
        triton.next_power_of_2(width),
        TILE,
    )
    return out
