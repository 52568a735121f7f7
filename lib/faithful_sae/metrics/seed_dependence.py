"""How far an SAE's features depend on its seed, by the measures of Paulo and Belrose (2025),
"Sparse Autoencoders Trained on the Same Data Learn Different Features".

A latent of one SAE is *shared* with another if the decoder matching and the encoder matching give
it the same counterpart and both cosines reach the threshold (their section 3). SAEs in, numbers
out; S SAEs, F latents.

What depends on all SAEs at once (which latents no other has, how that share falls with their
number) is computed again without each of them: the jackknife of metrics.uncertainty.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit, minimize
from scipy.special import betaln
from scipy.stats import betabinom, hypergeom, spearmanr

from faithful_sae.matching import Matching
from faithful_sae.metrics.sfr import shared
from faithful_sae.metrics.uncertainty import Estimate, jackknife, mean_over_seeds
from faithful_sae.sae.sae import TopKSAE


def _missed_by_all(n, alpha, beta):
    """E[(1 - p)^(n - 1)] of p ~ Beta(alpha, beta)."""
    return np.exp(betaln(alpha, beta + n - 1) - betaln(alpha, beta))


LAWS: dict[str, Callable[..., Any]] = {
    "power law": lambda n, a, b: a * n**-b,
    "with offset": lambda n, a, b, c: a * n**-b + c,
    "beta-binomial": _missed_by_all,
}
# a share is never negative
BOUNDS = {"power law": ([0, 0], [10, 10]), "with offset": ([0, 0, 0], [10, 10, 1])}
PARAMETERS = {
    "power law": ("a", "b"),
    "with offset": ("a", "b", "c"),
    "beta-binomial": ("alpha", "beta"),
}
# of log alpha and log beta
WIDEST = 8.0
# a number of SAEs that nobody trains, for which the laws say different things
HORIZON = 100
# at which the laws are drawn
NUMBERS = np.unique(np.geomspace(2, HORIZON, 60).round()).astype(int)
SIGNIFICANCE = 0.05


# --- pairs of SAEs --------------------------------------------------------------------------------


def maximum_cosine(
    A: torch.Tensor | np.ndarray, B: torch.Tensor | np.ndarray, tile: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """For every row of A the row of B nearest to it; the mean of the cosines is MMCS.

    Memory: `tile` x m float32. Time: one product of n x d with d x m.

    Args:
        A: [n, d].
        B: [m, d].
        tile: rows of A at a time.

    Returns:
        (index int64 [n], cosine float64 [n]).
    """
    a, b = (F.normalize(torch.as_tensor(matrix).detach().float(), dim=-1) for matrix in (A, B))
    index = torch.cat([(part @ b.T).argmax(1) for part in a.split(tile)])
    return index.cpu().numpy(), (a.double() * b[index].double()).sum(1).cpu().numpy()


def compare_latents(
    sae_a: TopKSAE, sae_b: TopKSAE, decoder: Matching, encoder: Matching
) -> pd.DataFrame:
    """One row per latent of the first SAE: its matched and its nearest latents in the second, by
    decoder and by encoder.
    """
    maximum, max_cosine = maximum_cosine(sae_a.W_dec, sae_b.W_dec)
    maximum_encoder, max_encoder_cosine = maximum_cosine(sae_a.W_enc.T, sae_b.W_enc.T)
    return pd.DataFrame(
        {
            "latent": np.arange(len(maximum)),
            "match": decoder.permutation,
            "decoder_cosine": decoder.cosine,
            "encoder_match": encoder.permutation,
            "encoder_cosine": encoder.cosine,
            "agree": decoder.permutation == encoder.permutation,
            "maximum": maximum,
            "max_cosine": max_cosine,
            "maximum_encoder": maximum_encoder,
            "max_encoder_cosine": max_encoder_cosine,
        }
    )


def shared_by_maximum(latents: pd.DataFrame, threshold: float) -> np.ndarray:
    """bool [F]: shared if, instead of matched, each latent goes to its nearest one, by decoder and
    encoder alike (Figure A2).
    """
    return (
        (latents.maximum == latents.maximum_encoder)
        & (latents.max_cosine >= threshold)
        & (latents.max_encoder_cosine >= threshold)
    ).to_numpy()


def compare_pair(
    latents: pd.DataFrame, decoder: Matching, encoder: Matching, threshold: float
) -> dict[str, float]:
    """A pair of SAEs in numbers: all are means over the first one's latents, fractions 0-1 or
    cosines.

    `shared` by encoder and decoder, `shared_decoder` by the decoder alone (SFR), `shared_maximum`
    by nearest latents; `agree`: both matchings give one counterpart; `alignment`: mean of the two
    matched cosines, and where they agree and where not (NaN if nowhere); `correlation` of decoder
    with encoder cosines; `at_maximum`: matched with the nearest.
    """
    alignment = (latents.decoder_cosine + latents.encoder_cosine) / 2
    agree = latents.agree
    return {
        "shared": shared(decoder, encoder, threshold).mean(),
        "shared_decoder": shared(decoder, None, threshold).mean(),
        "shared_maximum": shared_by_maximum(latents, threshold).mean(),
        "agree": agree.mean(),
        "alignment": alignment.mean(),
        "alignment_agree": alignment[agree].mean(),
        "alignment_disagree": alignment[~agree].mean(),
        "correlation": latents.decoder_cosine.corr(latents.encoder_cosine),
        "matched_cosine": latents.decoder_cosine.mean(),
        "mmcs": latents.max_cosine.mean(),
        "at_maximum": (latents.match == latents.maximum).mean(),
    }


def thresholds(
    latents: pd.DataFrame, decoder: Matching, encoder: Matching, values: Iterable[float]
) -> pd.DataFrame:
    """Share of shared latents at every threshold in `values`, under the three definitions of
    compare_pair (Figure A2).
    """
    return pd.DataFrame(
        [
            {
                "threshold": t,
                "shared": shared(decoder, encoder, t).mean(),
                "shared_decoder": shared(decoder, None, t).mean(),
                "shared_maximum": shared_by_maximum(latents, t).mean(),
            }
            for t in values
        ]
    )


def means_over_seeds(pairs: pd.DataFrame, by: list[str], columns: Sequence[str]) -> pd.DataFrame:
    """The mean over pairs of SAEs of some columns, with its interval over seeds.

    Args:
        pairs: one row per pair, with seed_a and seed_b.
        by: columns that tell groups of pairs apart.

    Returns:
        one row per group: its `by`, and of each column the mean, <column>_low and <column>_high
        (95 %; NaN where two seeds are all there are).
    """
    rows = []
    for group, part in pairs.groupby(by, sort=False):
        row = list(cast(tuple, group))
        for column in columns:
            estimate = mean_over_seeds(by_pair(part, part.loc[:, column]))
            row += [estimate.value, *estimate.interval()]
        rows.append(row)
    named = [f"{column}{end}" for column in columns for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=[*by, *named])


def by_pair(pairs: pd.DataFrame, values: Iterable[float]) -> dict[tuple[int, int], float]:
    """{(seed_a, seed_b): value} of rows that each stand for a pair; those that are NaN are left
    out.
    """
    found = zip(pairs.seed_a, pairs.seed_b, values, strict=True)
    return {(int(a), int(b)): float(value) for a, b, value in found if not math.isnan(value)}


# --- many seeds -----------------------------------------------------------------------------------


def hit_masks(
    matchings: Mapping[tuple, tuple[Matching, Matching]], threshold: float
) -> dict[Any, np.ndarray]:
    """{base: bool [S-1, F]}: which latents of each SAE are shared with each of the others, in the
    order of the pairs of match_seeds.
    """
    masks = defaultdict(list)
    for (a, b), (decoder, encoder) in matchings.items():
        hit = shared(decoder, encoder, threshold)
        masks[a].append(hit)
        # seen from b: latent permutation[i] is a hit where i is
        masks[b].append(hit[np.argsort(decoder.permutation)])
    return {base: np.stack(hits) for base, hits in masks.items()}


def only_in_base(masks: Mapping[Any, np.ndarray]) -> pd.DataFrame:
    """Share of latents found in the base SAE alone, for every base and every number of seeds n =
    2..S (their 4.1, Figure A1).

    They average over all sets of n SAEs. A latent that misses m of the S-1 others is alone in C(m,
    n-1) of the C(S-1, n-1) sets with its base, which gives that average without going through the
    sets.
    """
    rows = []
    for base, hits in masks.items():
        others = len(hits)
        misses = (~hits).sum(0)
        for n in range(2, others + 2):
            sets = np.array([math.comb(m, n - 1) for m in range(others + 1)])
            alone = sets / math.comb(others, n - 1)
            rows.append({"base": base, "seeds": n, "only_in_base": alone[misses].mean()})
    return pd.DataFrame(rows)


def power_laws(n: ArrayLike, share: ArrayLike) -> pd.DataFrame:
    """Fit a n^-b and a n^-b + c to the share of latents found in the base alone, and say which
    predicts better.

    The points are averages over the same SAEs, not independent draws: aicc flatters whichever law
    fits closer, so a verdict asks for loo.

    Args:
        n: numbers of SAEs.
        share: at each of them.

    Returns:
        a row per law: a, b, c (0 without offset); rmse of the fit; aicc, Akaike's criterion for
        small samples; loo, the root mean square error at points left out of the fit one at a time.
        aicc and loo are NaN with too few points for them.
    """
    n = np.asarray(n, float)
    share = np.asarray(share, float)
    rows = []
    for name in BOUNDS:
        law = LAWS[name]
        size = len(PARAMETERS[name])
        # as many numbers as points fit anything
        if len(n) <= size:
            rows.append(
                {"law": name} | dict.fromkeys(("a", "b", "c", "rmse", "aicc", "loo"), np.nan)
            )
            continue
        found = _fit(name, n, share)
        # an exact fit has no logarithm
        squares = max(float(((law(n, *found) - share) ** 2).sum()), 1e-30)
        aicc = np.nan
        # the law's and the variance
        parameters = size + 1
        if len(n) > parameters + 1:
            aicc = (
                len(n) * math.log(squares / len(n))
                + 2 * parameters
                + 2 * parameters * (parameters + 1) / (len(n) - parameters - 1)
            )
        loo = np.nan
        if len(n) > size + 1:
            left_out = [
                law(n[i], *_fit(name, np.delete(n, i), np.delete(share, i))) - share[i]
                for i in range(len(n))
            ]
            loo = float(np.sqrt(np.mean(np.square(left_out))))
        a, b, c = (*found, 0.0)[:3]
        rows.append(
            {
                "law": name,
                "a": a,
                "b": b,
                "c": c,
                "rmse": math.sqrt(squares / len(n)),
                "aicc": aicc,
                "loo": loo,
            }
        )
    return pd.DataFrame(rows)


def _fit(name, n, share):
    start = [share[0] / 2, 1.0, share[-1] / 2][: len(BOUNDS[name][0])]
    return curve_fit(
        LAWS[name],
        n,
        share,
        p0=np.clip(start, 1e-6, 1),
        bounds=BOUNDS[name],
        max_nfev=20_000,
        ftol=1e-12,
        xtol=1e-12,
    )[0]


def beta_binomial(histogram: ArrayLike) -> tuple[float, float]:
    """(alpha, beta) of latents without a seed of their own (ours): each is found by another SAE
    with a probability p of its own, drawn from Beta(alpha, beta), and p = 0 has no weight.

    By maximum likelihood, of latents as if they were independent.

    Args:
        histogram: [S], how many latents 0, 1, .., S-1 other SAEs found.

    Returns:
        NaN, NaN where they do not tell: with one other SAE, or no latent.
    """
    counts = np.asarray(histogram, float)
    others = len(counts) - 1
    if others < 2 or not counts.sum():
        return np.nan, np.nan
    hits = np.arange(others + 1)
    # where all are found or none is, the likelihood has no maximum
    mean = np.clip(counts @ hits / (others * counts.sum()), 0.01, 0.99)

    def surprise(logs):
        return -counts @ betabinom.logpmf(hits, others, *np.exp(logs)) / counts.sum()

    found = minimize(
        surprise,
        np.log([mean, 1 - mean]),
        bounds=[(-WIDEST, WIDEST)] * 2,
        method="L-BFGS-B",
        options={"ftol": 1e-14, "gtol": 1e-9},
    )
    alpha, beta = np.exp(found.x)
    return float(alpha), float(beta)


def fit_laws(masks: Mapping[Any, np.ndarray]) -> pd.DataFrame:
    """Three laws of the share of latents found in the base alone, as power_laws has them: the two
    power laws, fitted to the mean over bases of only_in_base, and the beta-binomial law, fitted to
    how many others found each latent of all bases.

    The first and the last end at 0, the second at c. Where few SAEs were seen all may fit, so that
    they do not tell c.

    Returns:
        a row per law, with alpha and beta and at_100, what it says of a hundred SAEs.
    """
    mean = only_in_base(masks).groupby("seeds").only_in_base.mean()
    hits = np.concatenate([mask.sum(0) for mask in masks.values()])
    histogram = np.bincount(hits, minlength=len(masks))
    alpha, beta = beta_binomial(histogram)
    beyond = {"law": "beta-binomial", "alpha": alpha, "beta": beta, "c": 0.0}
    fits = pd.concat([power_laws(mean.index, mean), pd.DataFrame([beyond])], ignore_index=True)
    error = share_alone(beyond, mean.index.to_numpy()) - mean.to_numpy()
    fits.loc[fits.law == "beta-binomial", "rmse"] = math.sqrt(np.square(error).mean())
    fits["at_100"] = [float(share_alone(fit, HORIZON)) for fit in fits.to_dict("records")]
    return fits


def share_alone(fit: Mapping[str, Any], n: Any) -> Any:
    """The share of latents found in the base alone among n SAEs (an array of numbers of SAEs gives
    one), by a record of fit_laws.
    """
    return LAWS[fit["law"]](n, *(fit[name] for name in PARAMETERS[fit["law"]]))


def sharing(
    matchings: Mapping[tuple, tuple[Matching, Matching]],
    firing: Mapping[Any, np.ndarray],
    threshold: float,
) -> pd.DataFrame:
    """One row per SAE (base) and latent: how often it fires, the mean over the other SAEs of its
    matched decoder cosine, and how many of them share it.

    Args:
        matchings: of match_seeds.
        firing: {SAE: float [F]}.
        threshold: least cosine.
    """
    cosines = defaultdict(list)
    for (a, b), (decoder, _) in matchings.items():
        cosines[a].append(decoder.cosine)
        cosines[b].append(decoder.cosine[np.argsort(decoder.permutation)])
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "base": base,
                    "latent": np.arange(hits.shape[1]),
                    "firing": firing[base],
                    "mean_cosine": np.mean(cosines[base], axis=0),
                    "seeds_sharing": hits.sum(0),
                }
            )
            for base, hits in hit_masks(matchings, threshold).items()
        ],
        ignore_index=True,
    )


def who_is_shared(latents: pd.DataFrame, others: int) -> pd.DataFrame:
    """Do latents that fire often, or seldom, have another share in other SAEs? Their section 4.1.

    Of the living latents of each base, the twentieth that fires most is held against all, and so is
    the twentieth that fires least (at least ten).

    Args:
        latents: of `sharing`.
        others: number of other SAEs.

    Returns:
        one row per base: alive, size (of a twentieth); most, how many of those that fire most are
        shared by all others, and all, how many of the living are; most_p, hypergeometric, of so
        many; least, none and least_p the same of those that fire least and are shared by none;
        most_excess and least_excess, the share in the twentieth less that among the living; rank
        and rank_p, Spearman's correlation of mean_cosine with firing.
    """
    rows = []
    for base, part in latents.groupby("base", sort=False):
        alive = part.loc[part.firing > 0].sort_values(["firing", "latent"])
        size = min(max(len(alive) // 20, 10), len(alive))
        row = {"base": base, "alive": len(alive), "size": size}
        for name, chosen, everywhere, count in (
            ("most", alive.iloc[len(alive) - size :], "all", others),
            ("least", alive.iloc[:size], "none", 0),
        ):
            overall = int((alive.seeds_sharing == count).sum())
            found = int((chosen.seeds_sharing == count).sum())
            row |= {name: found, everywhere: overall}
            row[f"{name}_p"] = hypergeom.sf(found - 1, len(alive), overall, size)
            row[f"{name}_excess"] = np.nan
            if size:
                row[f"{name}_excess"] = found / size - overall / len(alive)
        # of numbers that are all the same there is none
        varied = min(alive.mean_cosine.nunique(), alive.firing.nunique()) > 1
        rank = spearmanr(alive.mean_cosine, alive.firing) if varied else (np.nan, np.nan)
        rows.append(row | dict(zip(("rank", "rank_p"), map(float, rank), strict=True)))
    return pd.DataFrame(rows)


def over_seeds(
    matchings: Mapping[tuple, tuple[Matching, Matching]],
    numbers: Callable[[dict[tuple, tuple[Matching, Matching]]], Mapping[str, float]],
) -> dict[str, Estimate]:
    """Numbers that all pairs of SAEs have together, each with its error over seeds: they are
    computed again without each SAE.

    Args:
        matchings: of match_seeds.
        numbers: of the pairs of some of the SAEs, by name; one that is missing without an SAE has
            no error.
    """
    seeds = tuple(dict.fromkeys(seed for pair in matchings for seed in pair))

    @functools.cache
    def of(chosen):
        pairs = {pair: found for pair, found in matchings.items() if {*pair} <= {*chosen}}
        return numbers(pairs) if pairs else {}

    return {
        name: jackknife(lambda chosen, name=name: of(tuple(chosen)).get(name, math.nan), seeds)
        for name in of(seeds)
    }


def many_seeds(
    matchings: Mapping[tuple, tuple[Matching, Matching]],
    firing: Mapping[Any, np.ndarray],
    threshold: float,
) -> tuple[dict[str, pd.DataFrame], dict[str, Estimate]]:
    """All that depends on more than two SAEs at once.

    Args:
        matchings: of match_seeds.
        firing: {SAE: float [F]}.
        threshold: least cosine.

    Returns:
        (tables, estimates). Tables: `sharing`; `who` of who_is_shared; `curve` of only_in_base;
        `fits` of fit_laws, with 95 % intervals over seeds of c and at_100; `extrapolated`, the
        measured curve and each law's with theirs: series, seeds, only_in_base, low, high, and label
        of the series. A number of SAEs that takes all there are has no interval. Estimates:
        only_in_base (at the largest number that has one), loo_gain (by how much a point left out is
        better predicted with an offset), c, and the means over bases of most_excess, least_excess
        and rank.
    """
    others = len({seed for pair in matchings for seed in pair}) - 1

    def numbers(pairs):
        masks = hit_masks(pairs, threshold)
        fits = fit_laws(masks)
        loo = fits.set_index("law").loo
        seen = only_in_base(masks).groupby("seeds").only_in_base.mean()
        # "all others" are one fewer then, which moves all bases alike, and not their spread
        latents = sharing(pairs, {base: firing[base] for base in masks}, threshold)
        who = who_is_shared(latents, len(masks) - 1)
        found = {f"measured {n}": value for n, value in seen.items()}
        for fit in fits.to_dict("records"):
            for n, value in zip(NUMBERS, share_alone(fit, NUMBERS), strict=True):
                found[f"{fit['law']} {n}"] = value
        found |= {"c": fits.set_index("law").c["with offset"]}
        found |= {"loo_gain": loo["power law"] - loo["with offset"]}
        return found | who[["most_excess", "least_excess", "rank"]].mean().to_dict()

    estimates = over_seeds(matchings, numbers)
    masks = hit_masks(matchings, threshold)
    latents = sharing(matchings, firing, threshold)
    fits = fit_laws(masks)
    for law in fits.law:
        low, high = estimates[f"{law} {HORIZON}"].interval()
        fits.loc[fits.law == law, ["at_100_low", "at_100_high"]] = low, high
    low, high = estimates["c"].interval()
    fits.loc[fits.law == "with offset", ["c_low", "c_high"]] = low, high
    curves = []
    labels = {"measured": "measured: mean over bases and sets of seeds"}
    labels |= {fit["law"]: _label(fit) for fit in fits.to_dict("records")}
    for series, label in labels.items():
        for n in range(2, others + 2) if series == "measured" else NUMBERS:
            estimate = estimates[f"{series} {n}"]
            low, high = estimate.interval()
            row = {"series": series, "seeds": n, "only_in_base": estimate.value}
            curves.append(row | {"low": low, "high": high, "label": label})
    tables = {
        "sharing": latents,
        "who": who_is_shared(latents, others),
        "curve": only_in_base(masks),
        "fits": fits,
        "extrapolated": pd.DataFrame(curves),
    }
    kept = ("c", "loo_gain", "most_excess", "least_excess", "rank")
    last = estimates[f"measured {max(others, 2)}"]
    return tables, {"only_in_base": last} | {name: estimates[name] for name in kept}


def _label(fit):
    """A law in a legend, as a formula."""
    if math.isnan(fit["at_100"]):
        return f"{fit['law']}: too few seeds"
    if fit["law"] == "beta-binomial":
        numbers = rf"$\alpha$ = {fit['alpha']:.2f}, $\beta$ = {fit['beta']:.2f}"
        return f"beta-binomial, no latent private: {numbers}"
    offset = f" + {fit['c']:.2f}" if fit["law"] == "with offset" else ""
    return f"{fit['law']}: {fit['a']:.2f} $n^{{-{fit['b']:.2f}}}${offset}"


# --- one or two kinds of latents ------------------------------------------------------------------


def count_modes(values: ArrayLike, bandwidth: float) -> int:
    """Number of maxima of the Gaussian kernel density estimate of `values` [n]."""
    values = np.asarray(values, float)
    grid = np.linspace(values.min() - 2 * bandwidth, values.max() + 2 * bandwidth, 256)
    density = np.exp(-(((grid[:, None] - values) / bandwidth) ** 2) / 2).sum(1)
    return int(((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])).sum())


def modes_test(values: ArrayLike, seed: int = 0, resamples: int = 200) -> tuple[int, float]:
    """Are there two kinds of latents? Silverman's (1981) test of one mode.

    A small p speaks against one mode. The test is known to be cautious.

    Args:
        values: cosines [n].
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        (modes, p): the number of modes at the normal-reference bandwidth, and the share of smoothed
        bootstrap samples from the smoothest-needed one-mode density that need at least as much
        smoothing to have one mode; (0, NaN) for fewer than two different values.
    """
    values = np.asarray(values, float)
    spread = values.std()
    if len(values) < 2 or spread == 0:
        return 0, np.nan
    low = spread / 100
    high = 2 * spread
    # the least bandwidth with one mode
    for _ in range(16):
        middle = (low + high) / 2
        if count_modes(values, middle) > 1:
            low = middle
        else:
            high = middle
    rng = np.random.default_rng(seed)
    more = 0
    for _ in range(resamples):
        sample = rng.choice(values, len(values)) + high * rng.standard_normal(len(values))
        # of the values' variance
        widened = math.sqrt(1 + (high / spread) ** 2)
        sample = values.mean() + (sample - values.mean()) / widened
        more += count_modes(sample, high) > 1
    return count_modes(values, 1.06 * spread * len(values) ** -0.2), more / resamples
