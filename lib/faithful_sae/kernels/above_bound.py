"""The latents of each token that are not below bounds of their own, without the others.

    p = (x - b_dec) W_enc + b_enc
    values, indices = p_f and f where p_f >= bound_f, by rising f

On a CPU the product p is only a screen (screen.py): a latent with p~ + e < bound is left out, and
the others are computed again in float32. Elsewhere all of p is made. Whether they are too many is
decided on those that the screen leaves, which are a few more.

A token has as many slots as the one with most. Those that it does not need hold BELOW, a number
that nothing is above, and latent 0. B tokens, K slots, F latents, D model.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from faithful_sae.kernels.backend import compiled, dot, loop, over_rows
from faithful_sae.kernels.screen import Screen, screened

# finite, so that its product with 0 is 0
BELOW = -1e30
# times as many as on average a token may have: slots are as many as those of the one with most
MOST = 4


def compact(p: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is chosen of p [B, N], in slots.

    Args:
        chosen: bool [B, N].

    Returns:
        (values [B, K], places in a row of p int64 [B, K], how many of a row's slots are in use
        int64 [B]).
    """
    counts = chosen.sum(1)
    shape = len(p), max(int(counts.max()), 1)
    t, place = chosen.nonzero(as_tuple=True)
    slot = torch.arange(len(t), device=p.device) - (counts.cumsum(0) - counts)[t]
    values, places = p.new_full(shape, BELOW), place.new_zeros(shape)
    values[t, slot], places[t, slot] = p[t, place], place
    return values, places, counts


def few(p: Tensor, chosen: Tensor, most: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """`compact`, or None where more than `most` are chosen as in `above`."""
    counts = chosen.sum(1)
    too_many = int(counts.sum()) > most * len(p) or int(counts.max()) > MOST * most
    return None if too_many else compact(p, chosen)


@loop
def _count(row, b_enc, bound, error, norm, column_norm, column_error, rounding):
    """How many latents of a row the screen leaves; on its own, so that the compiler sees to it that
    it is vectorised.
    """
    count = np.int32(0)
    for f in range(len(row)):
        p, e = screened(row[f], b_enc[f], error, norm, column_norm[f], column_error[f], rounding)
        count += np.int32(p + e >= bound[f])
    return count


@loop
def _count_loop(
    first, last, screen, rounding, row_error, row_norm, b_enc, bound, column_norm, column_error, out
):
    for t in range(first, last):
        out[t] = _count(
            screen[t],
            b_enc,
            bound,
            row_error[t],
            row_norm[t],
            column_norm,
            column_error,
            rounding,
        )


@loop
def _fill_loop(
    first,
    last,
    screen,
    rounding,
    row_error,
    row_norm,
    b_enc,
    bound,
    column_norm,
    column_error,
    counts,
    x,
    weight,
    values,
    indices,
):
    """Of the latents that the screen leaves, the float32 dot products that are not below their
    bounds; `counts` become those of these.
    """
    left = np.empty(len(weight), np.int64)
    for t in range(first, last):
        error = row_error[t]
        norm = row_norm[t]
        row = screen[t]
        count = 0
        for f in range(len(row)):
            p, e = screened(
                row[f], b_enc[f], error, norm, column_norm[f], column_error[f], rounding
            )
            left[count] = f
            count += p + e >= bound[f]
        slot = 0
        for i in range(count):
            f = left[i]
            product = dot(x[t], weight[f]) + b_enc[f]
            # the other loop may round a sum in another way
            if product >= bound[f] and slot < values.shape[1]:
                values[t, slot], indices[t, slot] = product, f
                slot += 1
        counts[t] = slot


def _by_screening(x, weight, b_enc, b_dec, bound, most):
    x = x - b_dec
    screen = Screen(x, weight)
    found = []
    left = 0
    for part, products, rows in screen.parts():
        n = len(x[part])
        counts = torch.empty(n, dtype=torch.int64)
        given = (*products, *rows, b_enc, bound, *screen.columns, counts)
        over_rows(_count_loop, n, *given)
        left += int(counts.sum())
        shape = n, int(counts.max())
        if left > most * len(x) or shape[1] > MOST * most:
            return None
        values, indices = torch.full(shape, BELOW), torch.zeros(shape, dtype=torch.int64)
        over_rows(_fill_loop, n, *given, x[part], weight, values, indices)
        found.append((values, indices, counts))
    slots = max(1, *(int(counts.max()) for *_, counts in found))
    values, indices = (
        torch.cat([F.pad(one[i], (0, slots - one[i].shape[1]), value=fill) for one in found])
        for i, fill in enumerate((BELOW, 0))
    )
    return values, indices, torch.cat([counts for *_, counts in found])


def above(
    x: Tensor, weight: Tensor, b_enc: Tensor, b_dec: Tensor, bound: Tensor, most: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """values and indices of the equation above, by whatever suits the device; without autograd.

    Args:
        x: [B, D].
        weight: W_enc^T [F, D], contiguous.
        b_enc: [F].
        b_dec: [D].
        bound: [F].
        most: latents of a token, on average; no token may have more than MOST times as many.

    Returns:
        (values [B, K], indices int64 [B, K], how many of a token's slots are in use int64 [B]);
        None where there are more.
    """
    if compiled(x, weight, b_enc, b_dec, bound):
        return _by_screening(x, weight, b_enc, b_dec, bound.contiguous(), most)
    p = (x - b_dec) @ weight.T + b_enc
    return few(p, p >= bound, most)
