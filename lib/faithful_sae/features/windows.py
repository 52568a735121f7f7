"""Windows of text from which latents are explained, and others on which explanations are judged
(sizes and strata after Paulo et al. 2024, arXiv 2410.13928; what is disjoint and silent is ours).

A window is W tokens of one document. Windows do not overlap, and BOS is in none.

**Two sides.** Rows are cut into sections, in turn for explanation and for test. No document has
windows on both sides. Where the side changes, between rows h - 1 and h, rows are left out from h to
the second one, h included, that has a BOS behind its first token. `pack` holds back less than a row
of tokens. So what it still has of documents begun before h is at the beginning of the next row that
it joins, and of a document that was cut off, whose whole rows stand alone, of the next two. Such a
row goes on with BOS and another document. What goes on without BOS is in rows without one.

**Of each latent** and side, windows of three kinds:

    active   it fires there. As many from each tenth of its windows by their largest activation
    random   drawn from those where it is silent on every token
    hard     silent, too, and its top token is there: the one on which it fires most often on the
             explanation side. Telling these from active ones takes more than a token

R rows of T tokens, F latents, W tokens of a window, n windows.
"""

from dataclasses import dataclass

import numpy as np

from faithful_sae.features.codes import Codes
from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Windows
from faithful_sae.text.packing import is_content

STRATA = 10


@dataclass(frozen=True)
class Pieces:
    """All windows of token rows, in their order; made by `cut`.

    Attributes:
        ids: int32 [n, W].
        start: int64 [n], row x T + place of the first token.
        test: bool [n], whether it is on the test side.
        window_at: int32 [R T], which window a position is in; -1: none.
        token: int32, and `holder`, int32: the windows that have each token, sorted by token.
    """

    ids: np.ndarray
    start: np.ndarray
    test: np.ndarray
    window_at: np.ndarray
    token: np.ndarray
    holder: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def containing(self, token: int) -> np.ndarray:
        """The windows that have a token."""
        first, last = np.searchsorted(self.token, [token, token + 1])
        return self.holder[first:last]


def cut(rows: np.ndarray, bos_id: int, width: int = 32, sections: int = 16) -> Pieces:
    """Windows of packed rows, on two sides that have no document in common; see the module.

    What is left of a document in a row, less than a window, is in none.

    Args:
        rows: int [R, T], in the order in which `pack` made them; some may be missing.
        width: W, tokens of a window.
        sections: of rows, in turn for explanation and for test.

    Raises:
        FeatureError: a width that no row has room for, fewer than two sections, or no window on
            one of the sides.
    """
    rows = np.asarray(rows, np.int32)
    n_rows, n_tokens = rows.shape
    if not 1 <= width < n_tokens:
        raise FeatureError(
            f"windows of {width} tokens do not fit rows of {n_tokens}, BOS included: take 1 to "
            f"{n_tokens - 1}"
        )
    if sections < 2:
        raise FeatureError(f"sections = {sections} must be at least 2: one for each side")
    content = is_content(rows, bos_id)
    place = np.arange(n_tokens)
    bos = np.maximum.accumulate(np.where(content, -1, place), axis=1)
    last = n_tokens - width + 1
    begins = (place - bos - 1)[:, :last] % width == 0
    begins &= content[:, :last] & (bos[:, :last] == bos[:, width - 1 :])
    test, kept = _sides(~content, sections)
    row, column = (begins & kept[:, None]).nonzero()
    start = row * n_tokens + column
    on_test = test[row]
    for side, some in (("explanation", ~on_test), ("test", on_test)):
        if not some.any():
            raise FeatureError(
                f"{n_rows} rows of {n_tokens} tokens have no window of {width} on the {side} side, "
                "where sides may have no document in common: give more rows, or rows with shorter "
                "documents"
            )
    places = start[:, None] + np.arange(width)
    ids = rows.ravel()[places]
    window_at = np.full(rows.size, -1, np.int32)
    window_at[places] = np.arange(len(ids))[:, None]
    # a token that a window has twice is listed once
    pairs = np.unique(ids.astype(np.int64) * len(ids) + np.arange(len(ids))[:, None])
    token, holder = (part.astype(np.int32) for part in np.divmod(pairs, len(ids)))
    return Pieces(ids, start, on_test, window_at, token, holder)


def _sides(bos, sections):
    """(whether each row is on the test side, whether it is kept), bool [R] each. bos: [R, T]."""
    test = np.arange(len(bos)) * min(sections, len(bos)) // len(bos) % 2 == 1
    joined = bos[:, 1:].any(1).nonzero()[0]
    kept = np.ones(len(bos), bool)
    for change in np.flatnonzero(np.diff(test)) + 1:
        second = np.searchsorted(joined, change) + 1
        kept[change : joined[second] + 1 if second < len(joined) else None] = False
    return test, kept


@dataclass(frozen=True)
class LatentWindows:
    """The windows of one latent.

    Attributes:
        density: share of tokens on which it fires, 0 to 1.
        top_token: the id on which it fires most often on the explanation side.
        explanation: active, random and hard ones, in the order of the text, each once.
        active, random, hard: of the test side; random and hard ones are silent.
    """

    latent: int
    density: float
    top_token: int
    explanation: Windows
    active: Windows
    random: Windows
    hard: Windows


def windows_of(
    codes: Codes, pieces: Pieces, latent: int, n: int = 50, least: int | None = None, seed: int = 0
) -> LatentWindows | None:
    """Windows of one latent: of each side at most n active, n random and n hard ones.

    Args:
        codes: of the rows that `pieces` were cut from.
        least: active windows that there must be on each side; None: n, so that there are twice as
            many as are tested.
        seed: of what is drawn. It and the latent decide.

    Returns:
        None where a side has fewer than `least` active windows, or no silent one.

    Raises:
        FeatureError: n or least below 1; no such latent.
    """
    least = n if least is None else least
    if min(n, least) < 1:
        raise FeatureError(f"n = {n} and least = {least} must be at least 1 window")
    if not 0 <= latent < codes.d_sae:
        raise FeatureError(f"latent {latent} is out of range: there are 0 to {codes.d_sae - 1}")
    position, value = codes.of(latent)
    at = pieces.window_at[position]
    inside = at >= 0
    position, value, at = position[inside], value[inside], at[inside]
    largest = np.zeros(len(pieces), np.float32)
    np.maximum.at(largest, at, value)
    silent = largest == 0
    shown = ~pieces.test[at]
    sides = (~pieces.test, pieces.test)
    if any((side & ~silent).sum() < least or not (side & silent).any() for side in sides):
        return None
    tokens = pieces.ids[at, position - pieces.start[at]]
    top_token = int(np.bincount(tokens[shown]).argmax())
    has_top = np.zeros(len(pieces), bool)
    has_top[pieces.containing(top_token)] = True
    rng = np.random.default_rng([seed, latent])

    def windows(chosen: np.ndarray) -> Windows:
        slot = np.full(len(pieces), -1)
        slot[chosen] = np.arange(len(chosen))
        here = slot[at] >= 0
        activations = np.zeros((len(chosen), pieces.ids.shape[1]), np.float32)
        row, window = slot[at[here]], at[here]
        activations[row, position[here] - pieces.start[window]] = value[here]
        return Windows(pieces.ids[chosen], activations)

    def kinds(side: np.ndarray) -> list[np.ndarray]:
        return [
            _stratified((side & ~silent).nonzero()[0], largest, n, rng),
            _drawn((side & silent).nonzero()[0], n, rng),
            _drawn((side & silent & has_top).nonzero()[0], n, rng),
        ]

    explanation, test = map(kinds, sides)
    parts = [np.unique(np.concatenate(explanation)), *test]
    return LatentWindows(latent, float(codes.density[latent]), top_token, *map(windows, parts))


def _drawn(windows, n, rng):
    return np.sort(rng.choice(windows, min(n, len(windows)), replace=False))


def _stratified(windows, largest, n, rng):
    """n of them, as many of each tenth by their largest activation; all, where there are fewer."""
    if len(windows) <= n:
        return windows
    ordered = windows[largest[windows].argsort(kind="stable")]
    # the first strata have the odd ones of both, so none has fewer than are asked of it
    quotas = map(len, np.array_split(np.arange(n), STRATA))
    strata = np.array_split(ordered, STRATA)
    return np.sort(np.concatenate([_drawn(s, q, rng) for s, q in zip(strata, quotas, strict=True)]))
