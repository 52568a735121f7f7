"""What there is to say of every latent after one pass over token rows, in memory that does not grow
with their number.

Of each latent: how often it fires (activation above 0), the sum and the largest of its activations,
their histogram, the tokens it fires on, and where it fires. Of each row only the *peak* counts as a
place: the largest activation, the first among equal ones.

    top      the N largest peaks, the earlier row first among equal ones
    sample   m peaks of each stratum, a uniform sample without replacement: those with the smallest
             of keys that are pseudo-random in (seed, latent, row). Stratum s holds peaks whose
             power of two lies s below that of the largest, the last all that are weaker. When a
             larger power of two comes, strata move down; the smallest keys of two strata are the
             smallest keys of their union, so the sample stays uniform.
    tokens   either a count for every token of the vocabulary, which is exact, or M counters (Misra
             and Gries 1982): a token without a counter takes one from every counter where none is
             free. So a count is too low by at most `lost`, itself at most the number of firings /
             (M + 1), and exact where that is 0. Counts of one latent are too low by different
             amounts, and a token may have lost all of its own: neither their order nor which
             tokens are there is that of the exact counts.

Histogram bins are the upper bits of a float32: four to each power of two from LOWEST on, BINS in
all, the rest in the outermost.

Latents are independent of each other: no result depends on the number of threads. B rows, T
positions, K latents per token, F latents.
"""

import numpy as np
from torch import Tensor

from faithful_sae.kernels.backend import loop, over_rows
from faithful_sae.kernels.latent_sums import by_latent

# powers of two: 0.001 to 65,536
LOWEST = -10
OCTAVES = 26
BINS = 4 * OCTAVES
EDGES = [(1 + i % 4 / 4) * 2.0 ** (LOWEST + i // 4) for i in range(BINS + 1)]
NO_KEY = np.int64(2**63 - 1)
# of a latent that has not fired; float exponents are 0 and more
NO_LEVEL = -1


def empty(
    n_latents: int,
    *,
    top: int,
    strata: int,
    samples: int,
    window: int,
    tokens: int,
    exact: bool = False,
) -> dict[str, np.ndarray]:
    """The state before any row: {name: array}.

    Args:
        n_latents: F.
        top: N.
        strata: S.
        samples: m.
        window: positions kept around a peak.
        tokens: M; exact: the size of the vocabulary.
        exact: whether counter i is that of token i, and `token`, which says whose a counter is, is
            empty.
    """
    places = {"top": (n_latents, top), "sample": (n_latents, strata, samples)}
    state = {
        "fired": np.zeros(n_latents, np.int64),
        "total": np.zeros(n_latents),
        "largest": np.zeros(n_latents, np.float32),
        "histogram": np.zeros((n_latents, BINS), np.int64),
        "level": np.full(n_latents, NO_LEVEL, np.int32),
        "token": np.full((n_latents, 0 if exact else tokens), -1, np.int32),
        "token_count": np.zeros((n_latents, tokens), np.int64),
        "lost": np.zeros(n_latents, np.int64),
    }
    for name, shape in places.items():
        state |= {
            f"{name}_value": np.zeros(shape, np.float32),
            f"{name}_row": np.full(shape, -1, np.int64),
            f"{name}_position": np.zeros(shape, np.int32),
            f"{name}_window": np.zeros((*shape, window), np.float32),
        }
    return state | {"sample_key": np.full(places["sample"], NO_KEY)}


def add_rows_of_tokens(
    state: dict[str, np.ndarray],
    values: Tensor,
    indices: Tensor,
    ids: np.ndarray,
    first_row: int,
    left: int,
    seed: int,
) -> None:
    """Add rows to the state, in place.

    Args:
        state: from `empty`.
        values: float32 [B T, K] on the CPU; a value of 0 is not active.
        indices: int64 [B T, K] on the CPU.
        ids: int64 [B, T].
        first_row: number of ids[0] in the corpus; rows come in order.
        left: positions of a window before its peak.
        seed: of the sample.
    """
    start, order = by_latent(values, indices, len(state["fired"]))
    s = state
    over_rows(
        _loop,
        len(s["fired"]),
        values.contiguous(),
        start,
        order,
        ids,
        first_row,
        left,
        np.uint64(seed),
        s["fired"],
        s["total"],
        s["largest"],
        s["histogram"],
        s["level"],
        s["token"],
        s["token_count"],
        s["lost"],
        s["top_value"],
        s["top_row"],
        s["top_position"],
        s["top_window"],
        s["sample_key"],
        s["sample_value"],
        s["sample_row"],
        s["sample_position"],
        s["sample_window"],
    )


@loop
def _loop(
    first,
    last,
    values,
    start,
    order,
    ids,
    first_row,
    left,
    seed,
    fired,
    total,
    largest,
    histogram,
    level,
    token,
    token_count,
    lost,
    top_value,
    top_row,
    top_position,
    top_window,
    key,
    sample_value,
    sample_row,
    sample_position,
    sample_window,
):
    K = values.shape[1]
    T = ids.shape[1]
    flat = values.ravel()
    window = np.zeros(top_window.shape[-1], np.float32)
    for f in range(first, last):
        i = start[f]
        while i < start[f + 1]:
            row = order[i] // K // T
            end = i
            peak = 0
            best = np.float32(0)
            while end < start[f + 1] and order[end] // K // T == row:
                v = flat[order[end]]
                position = order[end] // K % T
                total[f] += v
                histogram[f, _bin(v)] += 1
                _count(ids[row, position], token[f], token_count[f], lost, f)
                if v > best:
                    best = v
                    peak = position
                end += 1
            fired[f] += end - i
            largest[f] = max(largest[f], best)
            window[:] = 0
            for j in range(i, end):
                place = order[j] // K % T - peak + left
                if 0 <= place < len(window):
                    window[place] = flat[order[j]]
            _insert_top(
                best,
                first_row + row,
                peak,
                window,
                top_value[f],
                top_row[f],
                top_position[f],
                top_window[f],
            )
            exponent = np.float32(best).view(np.int32) >> 23
            if exponent > level[f]:
                if level[f] != NO_LEVEL:
                    _move_down(
                        exponent - level[f],
                        key[f],
                        sample_value[f],
                        sample_row[f],
                        sample_position[f],
                        sample_window[f],
                    )
                level[f] = exponent
            s = min(level[f] - exponent, key.shape[1] - 1)
            _offer(
                _random(seed, f, first_row + row),
                best,
                first_row + row,
                peak,
                window,
                key[f, s],
                sample_value[f, s],
                sample_row[f, s],
                sample_position[f, s],
                sample_window[f, s],
            )
            i = end


@loop
def _bin(v):
    return min(max((np.float32(v).view(np.int32) >> 21) - 4 * (127 + LOWEST), 0), BINS - 1)


@loop
def _random(seed, latent, row):
    """63 bits that look random: splitmix64's mixing (Steele et al. 2014), once per argument."""
    z = np.uint64(0)
    for part in (seed, np.uint64(latent), np.uint64(row)):
        z += part + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return np.int64(z >> np.uint64(1))


@loop
def _count(t, token, count, lost, f):
    if len(token) == 0:  # exact
        count[t] += 1
        return
    free = -1
    for j in range(len(token)):
        if token[j] == t:
            count[j] += 1
            return
        if count[j] == 0:
            free = j
    if free >= 0:
        token[free], count[free] = t, 1
        return
    lost[f] += 1
    for j in range(len(token)):
        count[j] -= 1
        if count[j] == 0:
            token[j] = -1


@loop
def _insert_top(value, row, position, window, top_value, top_row, top_position, top_window):
    """In place of the smallest, or of the latest among equal ones; rows come in order, so an equal
    value comes too late.
    """
    worst = 0
    for j in range(1, len(top_value)):
        if top_value[j] < top_value[worst] or (
            top_value[j] == top_value[worst] and top_row[j] > top_row[worst]
        ):
            worst = j
    if value > top_value[worst]:
        top_value[worst], top_row[worst], top_position[worst] = value, row, position
        top_window[worst] = window


@loop
def _offer(
    new, value, row, position, window, key, sample_value, sample_row, sample_position, sample_window
):
    """Keep what is offered if its key is among the smallest."""
    worst = 0
    for j in range(1, len(key)):
        if key[j] > key[worst]:
            worst = j
    if new < key[worst]:
        key[worst], sample_value[worst], sample_row[worst], sample_position[worst] = (
            new,
            value,
            row,
            position,
        )
        sample_window[worst] = window


@loop
def _move_down(by, key, value, row, position, window):
    last = len(key) - 1
    for s in range(last - 1, -1, -1):
        target = min(s + by, last)
        for j in range(key.shape[1]):
            if key[s, j] != NO_KEY:
                _offer(
                    key[s, j],
                    value[s, j],
                    row[s, j],
                    position[s, j],
                    window[s, j],
                    key[target],
                    value[target],
                    row[target],
                    position[target],
                    window[target],
                )
                key[s, j], row[s, j] = NO_KEY, -1
