"""The findings of Paulo and Belrose (2025) as statements that a run's rows hold or do not hold.
Nothing is tuned until one holds.

How much is noise: the standard deviation over pairs of seeds, and at least that of F independent
latents. Pairs that have a seed in common are not independent, so S seeds count as S // 2 pairs. A
difference that is not above twice its standard error is *open*; so is equality where a difference
of half the size could have gone unseen.
"""

import math

import numpy as np
import pandas as pd
from scipy.stats import hypergeom, spearmanr

from faithful_sae.runs.schema import Run

HOLDS = "holds"
FAILS = "does not hold"
OPEN = "open"
NOT_TESTABLE = "not testable"
SIGNIFICANCE = 0.05
COLUMNS = ["finding", "theirs", "measured", "verdict"]


def findings(run: Run, rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per finding: the statement, what they found and where, what was measured, the
    verdict.

    Args:
        run: one with the sections `sae` and `seed_dependence`.
        rows: {name: rows} as study_seeds (stages.s08_seed_dependence) returns them.
    """
    pairs = rows["seed_pairs"]
    latents = rows["seed_latents"]
    sweep = {name: pairs.loc[pairs.sweep == name] for name in ("d_sae", "k", "tokens", "layer")}
    plain = pairs.loc[pairs.sweep == "seeds"]
    sae = run.sae
    study = run.seed_dependence
    assert sae and study, "notebook 08 does not run without them"
    n = len(sae.seeds)
    top, rare = _extremes(latents, n - 1)
    table = [
        (
            "Fewer than half of the latents are shared between two seeds",
            "42 % (Pythia 160M, 32K latents), 30 % (Llama 3 8B, 131K); sections 3 and 1",
            *_below(plain.shared, 0.5, n, sae.d_sae, "shared"),
        ),
        (
            "Matched latents are of two kinds, hits and misses: cosines have two modes",
            "seen in Figure 1",
            *_modes(rows["seed_modes"]),
        ),
        (
            "Encoder and decoder cosines are strongly correlated: above 0.7",
            "Figure 1, section 4",
            *_above(plain.correlation, 0.7, n, "correlation"),
        ),
        (
            "Latents on which both matchings agree are more similar",
            "0.72 against 0.33; Figure A2",
            *_difference(plain.alignment_agree, plain.alignment_disagree, n, "agree", "disagree"),
        ),
        (
            "With many seeds, over a third of the latents are still in one SAE only",
            "35 % with nine seeds; section 4.1",
            *_remaining(rows["seed_curve"]),
        ),
        (
            "A power law with an offset fits that share better than one without",
            "Figure A1",
            *_laws(rows["seed_fits"]),
        ),
        (
            "Most latents are matched with their nearest: matched cosine = maximum cosine",
            "the vast majority; section 3, Figure A3",
            *_above(plain.at_maximum, 0.5, n, "matched with the nearest"),
        ),
        (
            "The share is the same with nearest instead of matched latents",
            "essentially unchanged; section 3, Figure A2",
            *_same(plain.shared, plain.shared_maximum, n, sae.d_sae),
        ),
        (
            "The latents that fire most are shared by all seeds more often than others",
            "these are the shared ones; section 4.1, Figure 2",
            *top,
        ),
        (
            "The latents that fire least are shared by none more often than others",
            "these are the unshared ones; section 4.1, Figure 2",
            *rare,
        ),
        (
            "Among all, more similar latents fire less often",
            "section 4.1, Figure 2",
            *_frequency(latents),
        ),
        ("More latents, less overlap", "Figure 5", *_trend(sweep["d_sae"], -1, study.sweep_seeds)),
        (
            "More active latents, less overlap",
            "Figure 5",
            *_trend(sweep["k"], -1, study.sweep_seeds),
        ),
        (
            "Longer training, more overlap",
            "Figure 5",
            *_trend(sweep["tokens"], 1, study.sweep_seeds),
        ),
        *_layers(sweep["layer"], study.sweep_seeds),
        (
            "SAEs with ReLU and L1 overlap more than TopK SAEs",
            "Figure 4",
            "only TopK SAEs are trained here",
            NOT_TESTABLE,
        ),
        (
            "Overlap depends on where in a block the SAE sits (MLP, residual stream)",
            "Figure 4",
            "only residual streams are hooked here",
            NOT_TESTABLE,
        ),
        (
            "Shared latents are more interpretable, yet many unshared ones are interpretable too",
            "section 4.2, Figure 3",
            "no latent is explained here",
            NOT_TESTABLE,
        ),
    ]
    return pd.DataFrame(table, columns=COLUMNS)


def noise(shares: pd.Series, n_seeds: int, d_sae: int | None = None) -> float:
    """Standard error of a mean over all pairs of n_seeds seeds (see the top of this file); NaN if
    nothing tells it.

    Args:
        shares: one number per pair.
        n_seeds: of which these are the pairs.
        d_sae: with it the numbers are shares of so many latents, which vary at least binomially.
    """
    p = shares.mean()
    binomial = math.sqrt(max(p * (1 - p), 0) / d_sae) if d_sae else np.nan
    # the larger of the two, or the one that is known
    return float(np.fmax(shares.std(), binomial) / math.sqrt(max(n_seeds // 2, 1)))


def _decide(holds, fails):
    if holds:
        return HOLDS
    return FAILS if fails else OPEN


def _verdict(excess, error):
    """For a quantity that should be above 0; open where excess or error is NaN."""
    return _decide(excess > 2 * error, excess < -2 * error)


def _equality(difference, limit, size):
    """Verdict on two things being equal, whose size is given: nothing found counts only if half of
    it would have been found.
    """
    return _decide(difference <= limit < size / 2, difference > limit)


def _number(values, error):
    return f"{values.mean():.3f} ± {error:.3f}"


def _below(values, limit, n_seeds, d_sae, what):
    error = noise(values, n_seeds, d_sae)
    text = f"{what} {_number(values, error)}, pairs from {values.min():.3f} to {values.max():.3f}"
    return text, _verdict(limit - values.mean(), error)


def _above(values, limit, n_seeds, what):
    error = noise(values, n_seeds)
    return f"{what} {_number(values, error)}", _verdict(values.mean() - limit, error)


def _modes(rows):
    rejected = rows.p < SIGNIFICANCE
    several = rows.modes > 1
    text = (
        f"one mode rejected (p < {SIGNIFICANCE}) for {rejected.sum()} of {len(rows)} pairs; more "
        f"than one mode in {several.sum()}"
    )
    verdict = _decide(rejected.mean() > 0.5, several.mean() < 0.5 and not rejected.any())
    return f"{text}; median p {rows.p.median():.2f}", verdict


def _difference(a, b, n_seeds, name_a, name_b):
    difference = (a - b).dropna()
    error = noise(difference, n_seeds)
    text = (
        f"{name_a} {a.mean():.3f}, {name_b} {b.mean():.3f}; difference {_number(difference, error)}"
    )
    return text, _verdict(difference.mean(), error)


def _same(a, b, n_seeds, d_sae):
    difference = b - a
    error = noise(a, n_seeds, d_sae)
    text = (
        f"matched {a.mean():.3f}, nearest {b.mean():.3f}; difference {difference.mean():+.3f}, "
        f"noise of the share {error:.3f}"
    )
    return text, _equality(abs(difference.mean()), 2 * error, a.mean())


def _remaining(curve):
    last = curve.loc[curve.seeds == curve.seeds.max(), "only_in_base"]
    # over bases: all have the same SAEs in common, so their number does not shrink it
    error = last.std()
    shares = curve.groupby("seeds").only_in_base.mean()
    text = (
        f"{shares.iloc[0]:.3f} with {shares.index[0]} seeds, {last.mean():.3f} ± {error:.3f} with "
        f"{shares.index[-1]}"
    )
    return text, _verdict(last.mean() - 1 / 3, error)


def _laws(fits):
    fits = fits.set_index("law")
    plain = fits.loc["power law"]
    offset = fits.loc["with offset"]
    if np.isnan([offset.aicc, offset.loo, plain.aicc, plain.loo]).any():
        return "too few seeds to tell two laws apart", OPEN
    text = (
        f"offset {offset.c:.3f}, exponent {offset.b:.2f} (without: {plain.b:.2f}); AICc "
        f"{offset.aicc:.1f} against "
        f"{plain.aicc:.1f}; error at a point left out {offset.loo:.4f} against {plain.loo:.4f}"
    )
    predicts = plain.loo > offset.loo
    gain = plain.aicc - offset.aicc
    return text, _decide(gain > 2 and predicts and offset.c > 0, gain < -2 and not predicts)


def _extremes(latents, others):
    """Of the twentieth of the living latents that fire most, how many all share; of those that fire
    least, how many none shares.
    """
    alive = latents.loc[latents.firing > 0].sort_values(["firing", "latent"])
    size = min(max(len(alive) // 20, 10), len(alive))
    verdicts = []
    for part, count, name in (
        (alive.iloc[-size:], others, f"by all {others} others"),
        (alive.iloc[:size], 0, "by none"),
    ):
        overall = int((alive.seeds_sharing == count).sum())
        found = int((part.seeds_sharing == count).sum())
        more = hypergeom.sf(found - 1, len(alive), overall, size)
        fewer = hypergeom.cdf(found, len(alive), overall, size)
        text = (
            f"shared {name}: {found} of these {size}, {overall} of all {len(alive)} that fire (p "
            f"{more:.2g} for so many)"
        )
        verdicts.append((text, _decide(more < SIGNIFICANCE, fewer < SIGNIFICANCE)))
    return verdicts


def _frequency(latents):
    alive = latents.loc[latents.firing > 0]
    rank, p = map(float, spearmanr(alive.mean_cosine, alive.firing))
    text = f"rank correlation of mean cosine with firing {rank:+.2f} (p {p:.2g})"
    return text, _decide(p < SIGNIFICANCE and rank < 0, p < SIGNIFICANCE)


def _settings(rows, n_seeds):
    """(mean share per value, standard error of one mean): the spread is pooled over the values, as
    each has few pairs.
    """
    groups = rows.groupby("value")
    means = groups.shared.mean()
    pooled = math.sqrt(groups.shared.var().mean())
    binomial = math.sqrt((means * (1 - means) / groups.d_sae.first()).mean())
    return means, np.fmax(pooled, binomial) / math.sqrt(max(n_seeds // 2, 1))


def _listing(means, error):
    values = ", ".join(f"{value}: {mean:.3f}" for value, mean in means.items())
    return f"{values}; each ± {error:.3f}"


def _trend(rows, sign, n_seeds):
    """Whether the overlap moves in one direction: from first to last value, and in no step the
    other way.
    """
    if rows.empty:
        return "not swept", NOT_TESTABLE
    means, error = _settings(rows, n_seeds)
    limit = 2 * math.sqrt(2) * error
    steps = sign * means.diff().iloc[1:]
    whole = sign * (means.iloc[-1] - means.iloc[0])
    back = (steps < -limit).any()
    verdict = _decide(whole > limit and not back, whole < -limit or back)
    return _listing(means, error), verdict


def _layers(rows, n_seeds):
    """Their three statements on layers, about the first and last of those trained on and the ones
    between.
    """
    statements = (
        "Overlap is nearly constant over middle layers",
        "Overlap is lower in the first layer than in the middle ones",
        "Overlap is lower in the last layer than in the middle ones",
    )
    n_layers = rows.value.nunique()
    if n_layers < 3:
        return [
            (statement, "Figure 4", f"layers trained on: {n_layers}", NOT_TESTABLE)
            for statement in statements
        ]
    means, error = _settings(rows, n_seeds)
    middle = means.iloc[1:-1]
    limit = 2 * math.sqrt(2) * error
    constant = NOT_TESTABLE
    if len(middle) > 1:
        constant = _equality(middle.max() - middle.min(), limit, middle.mean())
    lower = [_verdict(middle.mean() - means.iloc[end], math.sqrt(2) * error) for end in (0, -1)]
    text = f"{_listing(means, error)} (residual stream entering the layer)"
    return [
        (statement, "Figure 4", text, verdict)
        for statement, verdict in zip(statements, (constant, *lower), strict=True)
    ]
