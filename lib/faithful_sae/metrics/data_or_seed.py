"""Which features an SAE owes to its text, and which to its seed.

SAEs of every corpus and seed are matched with each other (matching/). A latent of one is found in
another where its matched cosine reaches a threshold, as in the shared feature ratio. For a latent l
of an SAE, z(l, c, t) is its matched cosine in the SAE of corpus c and seed t, its own corpus among
them and its own seed not.

Variance components: a crossed random model of z,

    z(l, c, t) = mean + L(l) + C(c) + T(t) + LC(l, c) + LT(l, t) + CT(c, t) + rest(l, c, t)

by the method of moments: each mean square equals its expectation (analysis of variance of balanced
data; Searle, Casella and McCulloch 1992, chapter 4). An estimate may be below 0. What belongs to
the text is C + LC: the part of z that changes with the corpus and is the same for all its seeds.
What belongs to the seed is T + LT + CT + rest: two seeds of one corpus differ by it.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from faithful_sae.matching import Matching, match_pairs
from faithful_sae.sae.sae import TopKSAE

Name = tuple[str, int]  # corpus and seed of an SAE
# {(of, in): cosines float64 [F], in the order of the latents of the first}
Cosines = dict[tuple[Name, Name], np.ndarray]

COMPONENTS = {
    "latent": "L",
    "text": "C",
    "seed": "T",
    "latent x text": "LC",
    "latent x seed": "LT",
    "text x seed": "CT",
    "rest": "LCT",
}
OF_TEXT = ("text", "latent x text")
OF_SEED = ("seed", "latent x seed", "text x seed", "rest")
# where a latent is found: the kinds of a text's SAEs add up to 1
UNSTABLE, EVERYWHERE, OWN_KIND, BETWEEN = "unstable", "everywhere", "own kind alone", "between"
KINDS = (EVERYWHERE, BETWEEN, OWN_KIND, UNSTABLE)


def match_all(saes: Mapping[Name, TopKSAE]) -> tuple[dict[tuple[Name, Name], Matching], Cosines]:
    """Match the decoders of every two SAEs.

    Args:
        saes: of one size.

    Returns:
        (matchings, cosines): the matching of every pair, once; and the matched cosines of the
        latents of every SAE in every other, in both directions.
    """
    matchings = match_pairs({name: sae.W_dec for name, sae in saes.items()})
    cosines = {}
    for (a, b), matching in matchings.items():
        back = np.empty_like(matching.cosine)
        back[matching.permutation] = matching.cosine
        cosines |= {(a, b): matching.cosine, (b, a): back}
    return matchings, cosines


def cosines_of(
    cosines: Cosines, name: Name, corpora: Sequence[str], seeds: Sequence[int]
) -> np.ndarray:
    """z of one SAE, float64 [F, C, T]: in the SAEs of each corpus and of the seeds that are not its
    own, in their order.
    """
    others = [seed for seed in seeds if seed != name[1]]
    return np.stack(
        [np.stack([cosines[name, (at, seed)] for seed in others], 1) for at in corpora], 1
    )


def variance_components(z: np.ndarray) -> dict[str, float]:
    """{component: its variance} of z [L, C, T], one number for each of L latents, C corpora and T
    seeds.

    Raises:
        ValueError: fewer than two of one of them, which has no variance.
    """
    if min(z.shape) < 2:
        raise ValueError(f"{z.shape}: variances need at least two latents, corpora and seeds")
    sizes = dict(zip("LCT", z.shape, strict=True))
    axes = dict(zip("LCT", range(3), strict=True))
    squares = {}  # {effect: mean square}
    parts = {"": z.mean()}
    for effect in ("L", "C", "T", "LC", "LT", "CT", "LCT"):
        rest = tuple(axes[factor] for factor in "LCT" if factor not in effect)
        part = z.mean(rest, keepdims=True)
        below = (name for name in parts if name != effect and {*name} < {*effect})
        part = part - sum(parts[name] for name in below)
        parts[effect] = part
        freedom = np.prod([sizes[factor] - 1 for factor in effect])
        squares[effect] = z.size / part.size * float(np.square(part).sum() / freedom)
    return {name: _component(effect, squares, sizes) for name, effect in COMPONENTS.items()}


def _component(effect, squares, sizes):
    """A mean square expects its own component and all with its factors among theirs, each as often
    as it is repeated: inclusion and exclusion leaves its own.
    """
    others = [factor for factor in "LCT" if factor not in effect]
    total = 0.0
    for n in range(len(others) + 1):
        for more in itertools.combinations(others, n):
            name = "".join(f for f in "LCT" if f in effect or f in more)
            total += (-1) ** n * squares[name]
    return total / float(np.prod([sizes[factor] for factor in others]))


def origins(
    z: np.ndarray, own: int, other_kind: Collection[int], threshold: float, stable: float
) -> np.ndarray:
    """Where each latent of an SAE is found, one of KINDS.

    Args:
        z: [F, C, T], as cosines_of.
        own: which of C is its own corpus.
        other_kind: which of C are of the other kind of text.
        threshold: least cosine of a latent that is found.
        stable: a latent is one of a corpus if so large a share of its seeds finds it, at least.

    Returns:
        str [F]: unstable, not one of its own corpus; everywhere, one of all corpora; own kind
        alone, found by no seed of any corpus of the other kind; between, all others.
    """
    found = (z >= threshold).mean(2)
    kinds = np.full(len(z), BETWEEN, dtype=object)
    kinds[(found >= stable).all(1)] = EVERYWHERE
    if other_kind:
        kinds[(found[:, [*other_kind]] == 0).all(1)] = OWN_KIND
    kinds[found[:, own] < stable] = UNSTABLE
    return kinds
