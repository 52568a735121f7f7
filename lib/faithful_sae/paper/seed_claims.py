"""The findings of Paulo and Belrose (2025) as statements that a run's rows agree or disagree with.
Nothing is tuned until one holds.

The rule is that of paper/verdicts.py, with a case each: the language model of the run. A number of
a pair of SAEs is a mean over all pairs, and its error is that of leaving out one seed at a time; so
is the error of what all SAEs say together (metrics.seed_dependence.over_seeds).

That two numbers are *the same* agrees where their difference lies within a margin by its 90 %
interval (two one-sided tests), and disagrees where it lies beyond by one of its bounds: the margin
less the difference and the margin plus the difference are both to be above 0.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from faithful_sae.lm.architectures import Hook
from faithful_sae.metrics.seed_dependence import HORIZON, SIGNIFICANCE, by_pair
from faithful_sae.metrics.uncertainty import Estimate, mean_over_seeds
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run

# shares of latents that differ by less are the same
SAME = 0.02
# and nearly the same: they say "nearly constant"
NEARLY = 0.05
# what the SAEs of a layer are for
WORDS: dict[Hook, tuple[str, str]] = {
    "residual": ("residual stream", "entering"),
    "mlp": ("MLP output", "of"),
    "attention": ("attention output", "of"),
}


def findings(run: Run, rows: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per finding: the statement, what they found and where, and the columns of
    paper.verdicts.judge.

    Args:
        run: one with the sections `sae` and `seed_dependence`.
        rows: {name: rows} as study_seeds (stages.s08_seed_dependence) returns them.
    """
    pairs = rows["seed_pairs"]
    sweep = {name: pairs.loc[pairs.sweep == name] for name in ("d_sae", "k", "tokens", "layer")}
    plain = pairs.loc[pairs.sweep == "seeds"]
    assert run.sae and run.seed_dependence, "notebook 08 does not run without them"
    estimates = {
        row["number"]: Estimate(row["value"], row["seeds"], row["error"])
        for row in rows["seed_estimates"].to_dict("records")
    }
    n = len(run.sae.seeds)
    cases = [
        (
            "Fewer than half of the latents are shared between two seeds",
            "42 % (Pythia 160M, 32K latents), 30 % (Llama 3 8B, 131K); sections 3 and 1",
            _side(plain, -plain.shared, -0.5, "below a half", _range(plain.shared, "shared")),
        ),
        (
            "Matched latents are of two kinds, hits and misses: for most pairs of seeds, "
            "Silverman's test finds more than one mode in the cosines",
            "two modes are seen in Figure 1",
            _modes(rows["seed_modes"]),
        ),
        (
            "Encoder and decoder cosines are strongly correlated: above 0.7",
            "Figure 1, section 4",
            _side(
                plain,
                plain.correlation,
                0.7,
                "above 0.7",
                _range(plain.correlation, "correlation"),
            ),
        ),
        (
            "Latents on which both matchings agree are more similar",
            "0.72 against 0.33; Figure A2",
            _agreement(plain),
        ),
        (
            "With many seeds, over a third of the latents are still in one SAE only",
            "35 % with nine seeds; section 4.1",
            _remaining(rows["seed_curve"], estimates["only_in_base"]),
        ),
        (
            "A power law with an offset fits that share better than one without, "
            f"on 2 to {n} seeds",
            "Figure A1",
            _laws(rows["seed_fits"], estimates["loo_gain"]),
        ),
        (
            "Most latents are matched with their nearest: matched cosine = maximum cosine",
            "the vast majority; section 3, Figure A3",
            _side(
                plain,
                plain.at_maximum,
                0.5,
                "above a half",
                _range(plain.at_maximum, "with the nearest"),
            ),
        ),
        (
            f"The share is the same with nearest instead of matched latents (within {SAME})",
            "essentially unchanged; section 3, Figure A2",
            _same_share(plain),
        ),
        (
            "The latents that fire most are shared by all seeds more often than others",
            "these are the shared ones; section 4.1, Figure 2",
            _extremes(rows["seed_who"], "most", "all", estimates["most_excess"]),
        ),
        (
            "The latents that fire least are shared by none more often than others",
            "these are the unshared ones; section 4.1, Figure 2",
            _extremes(rows["seed_who"], "least", "none", estimates["least_excess"]),
        ),
        (
            "Among all, more similar latents fire less often",
            "section 4.1, Figure 2",
            _frequency(rows["seed_who"], estimates["rank"]),
        ),
        ("More latents, less overlap", "Figure 5", _trend(sweep["d_sae"], -1)),
        ("More active latents, less overlap", "Figure 5", _trend(sweep["k"], -1)),
        ("Longer training, more overlap", "Figure 5", _trend(sweep["tokens"], 1)),
        *((said, "Figure 4", case) for said, case in _layers(sweep["layer"], run.hook)),
        (
            "SAEs with ReLU and L1 overlap more than TopK SAEs",
            "Figure 4",
            _untested("only TopK SAEs are trained here"),
        ),
        (
            "Overlap depends on where in a block the SAE sits (MLP, residual stream)",
            "Figure 4",
            _untested(f"only {WORDS[run.hook][0]}s are hooked here"),
        ),
    ]
    table = []
    for finding, theirs, case in cases:
        row = {"finding": finding, "theirs": theirs} | judge([case])
        # there is one case, of the run
        table.append(row | {"measured": str(case).removeprefix(f"{case.name}: ")})
    return table_of(table)


def _case(words, *differences):
    """What cannot be computed is not testable."""
    if any(math.isnan(difference.estimate.value) for difference in differences):
        return Case("run", words=words, excluded="too few seeds or latents for it")
    return Case("run", differences, words=words)


def _untested(why):
    return Case("run", excluded=why)


def _range(values, what):
    return f"{what} {values.mean():.3f}, pairs from {values.min():.3f} to {values.max():.3f}"


def _side(pairs, values, limit, name, words):
    """On which side of a limit the mean over pairs is."""
    return _case(words, Difference(name, mean_over_seeds(by_pair(pairs, values)).minus(limit)))


def _modes(rows):
    """Where all pairs say the same their spread is none, yet seeds are few: the error is at least
    that of S // 2 pairs that have no seed in common, by Agresti and Coull's (1998) share.
    """
    rejected = (rows.p < SIGNIFICANCE).astype(float)
    several = int((rows.modes > 1).sum())
    text = (
        f"one mode rejected (p < {SIGNIFICANCE}) for {rejected.sum():.0f} of {len(rows)} pairs, "
        f"median p {rows.p.median():.2f}; at the usual bandwidth {several} have more than one"
    )
    estimate = mean_over_seeds(by_pair(rows, rejected))
    apart = estimate.seeds // 2
    share = (apart * estimate.value + 2) / (apart + 4)
    floor = math.sqrt(share * (1 - share) / (apart + 4))
    # of two seeds it stays NaN
    error = float(np.maximum(estimate.seed_error, floor))
    estimate = Estimate(estimate.value - 0.5, estimate.seeds, error)
    return _case(text, Difference("share of pairs, above a half", estimate))


def _agreement(pairs):
    values = by_pair(pairs, pairs.alignment_agree - pairs.alignment_disagree)
    if not values:
        return _untested("both matchings agree on all latents, or on none")
    text = f"agree {pairs.alignment_agree.mean():.3f}, "
    text += f"disagree {pairs.alignment_disagree.mean():.3f}"
    return _case(text, Difference("difference", mean_over_seeds(values)))


def _remaining(curve, estimate):
    """At the largest number of seeds that has an error: without one of all, there is no set of
    all.
    """
    shares = curve.groupby("seeds").only_in_base.mean()
    known = shares.index[max(len(shares) - 2, 0)]
    text = ", ".join(
        f"{shares[n]:.3f} with {n} seeds" for n in dict.fromkeys((2, known, shares.index[-1]))
    )
    return _case(text, Difference(f"with {known}, above a third", estimate.minus(1 / 3)))


def _laws(fits, gain):
    fits = fits.set_index("law")
    plain = fits.loc["power law"]
    offset = fits.loc["with offset"]
    if math.isnan(gain.value):
        return _untested("too few seeds to tell two laws apart")
    text = (
        f"error at a point left out {plain.loo:.4f} without, {offset.loo:.4f} with; offset "
        f"{offset.c:.3f} [{offset.c_low:.3f}, {offset.c_high:.3f}]. With {HORIZON} seeds "
    )
    text += ", ".join(f"{law} {share:.3f}" for law, share in fits.at_100.items())
    return _case(text, Difference("better by", gain, digits=4))


def _same_share(pairs):
    difference = mean_over_seeds(by_pair(pairs, pairs.shared_maximum - pairs.shared))
    text = (
        f"matched {pairs.shared.mean():.3f}, nearest {pairs.shared_maximum.mean():.3f}; "
        f"{Difference('difference', difference)}"
    )
    return _case(text, *_within(difference, SAME))


def _within(difference: Estimate, margin: float, name: str = "") -> Iterator[Difference]:
    """A difference that should be none, as two that should be above 0."""
    yield Difference(f"{name}below +{margin} by", difference.negative().minus(-margin))
    yield Difference(f"{name}above -{margin} by", difference.minus(-margin))


def _extremes(who, part, everywhere, estimate):
    shared = "shared by all others" if part == "most" else "shared by none"
    ps = who[f"{part}_p"]
    text = (
        f"{shared}: {who[part].mean():.1f} of the {who['size'].mean():.0f} that fire {part}, "
        f"{who[everywhere].mean():.1f} of all {who.alive.mean():.0f} that fire (mean over bases); "
        f"p < {SIGNIFICANCE} for {(ps < SIGNIFICANCE).sum()} of {len(who)} bases, p from "
        f"{ps.min():.2g} to {ps.max():.2g}"
    )
    return _case(text, Difference("share higher by", estimate))


def _frequency(who, estimate):
    negative = ((who["rank"] < 0) & (who.rank_p < SIGNIFICANCE)).sum()
    text = (
        f"rank correlation of mean cosine with firing {who['rank'].mean():+.2f}, bases from "
        f"{who['rank'].min():+.2f} to {who['rank'].max():+.2f}; below 0 with p < {SIGNIFICANCE} "
        f"for {negative} of {len(who)}"
    )
    return _case(text, Difference("below 0 by", estimate.negative()))


def _means(rows):
    return ", ".join(
        f"{value}: {m:.3f}" for value, m in rows.groupby("value").shared.mean().items()
    )


def _between(rows, low, high, sign=1):
    """The overlap at one swept value less that at another, over the seeds they have in common."""
    at = [by_pair(part, part.shared) for part in (rows[rows.value == v] for v in (high, low))]
    both = at[0].keys() & at[1].keys()
    one, other = ({pair: sign * values[pair] for pair in sorted(both)} for values in at)
    return mean_over_seeds(one, other)


def _trend(rows, sign):
    """Whether the overlap moves in one direction: from first to last value, and in no step the
    other way, by an error of 5 % over all steps.
    """
    if rows.empty:
        return _untested("not swept")
    values = sorted(rows.value.unique())
    whole = Difference(f"{values[0]} to {values[-1]}", _between(rows, values[0], values[-1], sign))
    steps = [
        Difference(f"{low} to {high}", _between(rows, low, high, sign))
        for low, high in itertools.pairwise(values)
    ]
    level = 1 - SIGNIFICANCE / len(steps)
    back = [step for step in steps if step.estimate.bounds(level)[1] < 0]
    return _case(_means(rows), *dict.fromkeys((whole, *back)))


def _layers(rows, hook: Hook) -> Sequence[tuple[str, Case]]:
    """Their three statements on layers, about the first and last of those trained on and the ones
    between.
    """
    statements = (
        f"Overlap is nearly constant over middle layers (within {NEARLY})",
        "Overlap is lower in the first layer than in the middle ones",
        "Overlap is lower in the last layer than in the middle ones",
    )
    layers = sorted(rows.value.unique())
    if len(layers) < 3:
        why = _untested(f"layers trained on: {len(layers)}")
        return [(statement, why) for statement in statements]
    first, *middle, last = layers
    text = f"{_means(rows)} ({' '.join(WORDS[hook])} the layer)"
    constant = _untested(f"{text}; one layer is between the first and the last")
    if len(middle) > 1:
        same = [
            difference
            for low, high in itertools.combinations(middle, 2)
            for difference in _within(_between(rows, low, high), NEARLY, f"{low} to {high}, ")
        ]
        constant = _case(text, *same)
    between = rows[rows.value.isin(middle)].groupby(["seed_a", "seed_b"]).shared.mean()
    between = {pair: float(value) for pair, value in between.items()}
    lower = []
    for name, layer in (("first", first), ("last", last)):
        part = rows[rows.value == layer]
        difference = mean_over_seeds(between, by_pair(part, part.shared))
        lower.append(_case(text, Difference(f"middle above {name}", difference)))
    return list(zip(statements, (constant, *lower), strict=True))
