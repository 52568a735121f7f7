"""The cosines of two dictionaries that can matter to a matching, without the matrix of all of them.

    { (i, j, a_i . b_j)  with  a_i . b_j > min(row_threshold[i], column_threshold[j]) }

A [n, D] and B [m, D] have unit rows. The product is made tile by tile and only what passes is kept: memory grows with the result,
not with n m.
"""

import torch

from faithful_sae.kernels.backend import jit, on_triton, tl, triton

BLOCK_ROWS = 1024          # of the reference: memory is BLOCK_ROWS m
TILE, TILE_D = 64, 32      # of the kernel
EXPECTED_PER_ROW = 64      # room for the result at first; if it does not do, the kernel runs once more with enough


def reference(a, b, row_threshold, column_threshold):
    parts = []
    for start in range(0, len(a), BLOCK_ROWS):
        cosine = a[start:start + BLOCK_ROWS] @ b.T
        i, j = (cosine > torch.minimum(row_threshold[start:start + BLOCK_ROWS, None], column_threshold)).nonzero(as_tuple=True)
        parts.append((i + start, j, cosine[i, j]))
    return tuple(torch.cat(part) for part in zip(*parts))


@jit
def _kernel(a, b, row_threshold, column_threshold, used, places, cosines, ROOM, N, M, D, TILE: tl.constexpr, TILE_D: tl.constexpr):
    """One program makes one tile and appends what passes; `used` counts entries, written or not."""
    i, j = tl.program_id(0) * TILE + tl.arange(0, TILE), tl.program_id(1) * TILE + tl.arange(0, TILE)
    cosine = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, D, TILE_D):
        d = start + tl.arange(0, TILE_D)
        rows = tl.load(a + i[:, None].to(tl.int64) * D + d[None, :], mask=(i[:, None] < N) & (d[None, :] < D), other=0)
        columns = tl.load(b + j[:, None].to(tl.int64) * D + d[None, :], mask=(j[:, None] < M) & (d[None, :] < D), other=0)
        cosine = tl.dot(rows, tl.trans(columns), cosine, input_precision="ieee")
    row_limit = tl.load(row_threshold + i, mask=i < N, other=float("inf"))
    column_limit = tl.load(column_threshold + j, mask=j < M, other=float("inf"))
    inside = (i[:, None] < N) & (j[None, :] < M)
    passes = (inside & (cosine > tl.minimum(row_limit[:, None], column_limit[None, :]))).reshape(TILE * TILE)
    count = tl.sum(passes.to(tl.int32))
    if count > 0:
        place = tl.atomic_add(used, count) + tl.cumsum(passes.to(tl.int32), 0) - 1
        kept = passes & (place < ROOM)
        tl.store(places + place, (i[:, None].to(tl.int64) * M + j[None, :]).reshape(TILE * TILE), mask=kept)
        tl.store(cosines + place, cosine.reshape(TILE * TILE), mask=kept)


def by_triton(a, b, row_threshold, column_threshold):
    room, used = EXPECTED_PER_ROW * len(a), torch.zeros(1, dtype=torch.int32, device=a.device)
    while True:
        places = torch.empty(room, dtype=torch.int64, device=a.device)
        cosines = torch.empty(room, dtype=torch.float32, device=a.device)
        _kernel[(triton.cdiv(len(a), TILE), triton.cdiv(len(b), TILE))](
            a, b, row_threshold, column_threshold, used.zero_(), places, cosines, room, len(a), len(b), a.shape[1], TILE, TILE_D)
        if (count := int(used)) <= room:
            break
        room = count
    places, order = places[:count].sort()   # programs append in any order
    return places // len(b), places % len(b), cosines[:count][order].to(a.dtype)


def cosine_tiles(a, b, row_threshold, column_threshold):
    """(i int64, j int64, cosine), each [entries], by i and then j.

    Args:
        a, b: [n, D] and [m, D], unit rows. row_threshold, column_threshold: [n] and [m].
    """
    tensors = [t.contiguous() for t in (a, b, row_threshold, column_threshold)]
    return (by_triton if on_triton(a) else reference)(*tensors)
