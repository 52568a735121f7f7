"""Measured rows of a run -> numbers with their uncertainty (metrics.uncertainty), by corpus.
Tables, figures and claims all take them from here.

Seeds are left out one at a time; what is measured on rows of text, or on labelled texts, adds the
bootstrap over these. A difference of two corpora is taken seed by seed, row by row, text by text.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy

from faithful_sae.metrics.uncertainty import (
    Estimate,
    Values,
    bootstrap_error,
    mean_over_seeds,
)
from faithful_sae.runs.rows import read_rows
from faithful_sae.runs.schema import Run

# worlds in which each number is drawn again
REDRAWN = 2000
# what is summed over a row of tokens, over what
RATIOS: dict[str, Callable[[pd.DataFrame], tuple[Any, Any]]] = {
    "ce_diff": lambda rows: (rows.ce_sae - rows.ce, rows.scored),
    "ce_recovered": lambda rows: (rows.ce_zero - rows.ce_sae, rows.ce_zero - rows.ce),
    "kl": lambda rows: (rows.kl, rows.scored),
    "explained_variance": lambda rows: (rows.error, rows.variance),
    # of a row, if anything in it is measured
    "ev_authors": lambda rows: (rows.ev_authors, rows.measured > 0),
    "ev_legacy": lambda rows: (rows.ev_legacy, rows.measured),
    # per dimension: of a row of 512 tokens the number of dimensions is not known here
    "l2": lambda rows: (rows.error, rows.measured),
}
# behind what is measured, and summed, on moderate positions alone (metrics/fidelity.py)
ON_MODERATE = "_moderate"
# these are measured so, too, with sae.max_norm
MODERATE = tuple(measure + ON_MODERATE for measure in ("ce_diff", "l2", "explained_variance"))


def on_moderate(table: pd.DataFrame, measure: str) -> str:
    """The column of a measure on moderate positions, where a table has it (with sae.max_norm, which
    SAEs were trained with): massive ones rule the other.
    """
    return measure + ON_MODERATE if measure + ON_MODERATE in table else measure


def values_by(rows: pd.DataFrame, by: Sequence[str], column: str) -> dict[Any, Values]:
    """{value of the columns `by`: {seeds: number}}; pairs have two seeds, SAEs one."""
    seeds = ["seed_a", "seed_b"] if "seed_a" in rows else ["seed"]
    found: dict[Any, Values] = {}
    names: Any
    for names, part in rows.groupby([*by], sort=False):
        keys = part[seeds].astype(int).itertuples(index=False, name=None)
        name = names[0] if len(by) == 1 else names
        found[name] = dict(zip(keys, part[column].astype(float), strict=True))
    return found


def pair_values(run: Run, column: str = "sfr") -> dict[str, Values]:
    """{corpus: {pair of seeds: SFR, or another column}}."""
    return values_by(read_rows(run, "sfr"), ["corpus"], column)


def sfr_estimates(run: Run, column: str = "sfr") -> dict[str, Estimate]:
    """{corpus: SFR, or another column, over all pairs of seeds}."""
    return {name: mean_over_seeds(values) for name, values in pair_values(run, column).items()}


def ffr_values(run: Run, column: str = "ffr") -> dict[str, Values]:
    """{corpus: {seed: FFR in percent}}."""
    return values_by(read_rows(run, "ffr"), ["corpus"], column)


def ffr_estimates(run: Run, column: str = "ffr") -> dict[str, Estimate]:
    """{corpus: FFR in percent}."""
    return {name: mean_over_seeds(values) for name, values in ffr_values(run, column).items()}


# --- fidelity -------------------------------------------------------------------------------------


def _of_mode(run, include_bos):
    """The rows `fidelity` and `fidelity_rows` with BOS, or without."""
    both = (read_rows(run, name) for name in ("fidelity", "fidelity_rows"))
    return [rows.loc[rows.include_bos == include_bos] for rows in both]


def fidelity_cells(
    run: Run, measures: Iterable[str] | None = None, include_bos: bool = False
) -> dict[str, dict[tuple, Estimate]]:
    """{measure: {(trained on, evaluated on): estimate}} of every cell of the matrices, for some or
    all measures, with or without BOS.
    """
    by = ["trained_on", "evaluated_on"]
    table, by_row = _of_mode(run, include_bos)
    if measures is None:
        measures = [*RATIOS, *(name for name in MODERATE if name in table)]
    return cells_by(table, by_row, by, measures)


def cells_by(
    table: pd.DataFrame, by_row: pd.DataFrame, by: Sequence[str], measures: Iterable[str] = RATIOS
) -> dict[str, dict[tuple, Estimate]]:
    """{measure: {values of the columns `by`: estimate}}, over seeds and token rows.

    Args:
        table: rows `fidelity`, one per SAE and corpus, all with BOS or all without.
        by_row: rows `fidelity_rows` of the same.
    """
    # a list of one column would call groups by tuples
    of_cell = dict(iter(by_row.groupby(by[0] if len(by) == 1 else [*by], sort=False)))
    cells: dict[str, dict[tuple, Estimate]] = {}
    for measure in measures:
        cells[measure] = {}
        for cell, values in values_by(table, by, measure).items():
            over_seeds = mean_over_seeds(values)
            sums, counts = row_sums(of_cell[cell], measure)
            error = bootstrap_error(sums, counts)
            if measure.removesuffix(ON_MODERATE) == "l2":
                error *= over_seeds.value / (sums.sum() / counts.sum())
            cells[measure][cell] = replace(over_seeds, text_error=error)
    return cells


def weighted_sum(
    table: pd.DataFrame,
    by_row: pd.DataFrame,
    by: str,
    weights: Mapping[Any, float],
    measure: str = "ce_diff",
) -> Estimate:
    """Sum over cells of weight x measure, taken seed by seed and row by row: a difference of two of
    them, or the slope of a line through several.

    Args:
        table, by_row: as cells_by, all on the same token rows.
        by: the column that tells cells apart.
        weights: {its value: weight}.
    """
    cells = values_by(table, [by], measure)
    values = weighted_values(cells, weights)
    sums, counts = zip(
        *(row_sums(by_row.loc[by_row[by] == name], measure) for name in weights), strict=True
    )
    total = sum(weight * part for weight, part in zip(weights.values(), sums, strict=True))
    return replace(mean_over_seeds(values), text_error=bootstrap_error(total, counts[0]))


def weighted_values(cells: Mapping[Any, Values], weights: Mapping[Any, float]) -> Values:
    """{seeds: sum over cells of weight x number}; the cells have the same seeds."""
    first = next(iter(weights))
    return {
        seeds: math.fsum(weight * cells[name][seeds] for name, weight in weights.items())
        for seeds in cells[first]
    }


def rise_weights(places: Mapping[Any, float]) -> dict[Any, float]:
    """{cell: weight}: the weighted sum is what the straight line of least squares through some
    numbers rises by, from the lowest of their places to the highest.

    A sum is what seeds have an interval of. Of a rank correlation leaving out a seed tells little:
    either nothing changes or all does.

    Args:
        places: {cell: where it lies}, not all in one place.
    """
    x = np.array([*places.values()], float)
    centred = x - x.mean()
    weights = centred / (centred**2).sum() * (x.max() - x.min())
    return dict(zip(places, weights.tolist(), strict=True))


def row_sums(rows, measure):
    """(sums, counts) [R] of each token row, mean over seeds."""
    if measure in MODERATE:
        names = (name for name in rows if name.endswith(ON_MODERATE))
        rows = rows.assign(**{name.removesuffix(ON_MODERATE): rows[name] for name in names})
    sums, counts = RATIOS[measure.removesuffix(ON_MODERATE)](rows)
    table = pd.DataFrame({"row": rows.row, "sum": sums, "count": counts})
    table = pd.DataFrame(table.groupby("row")[["sum", "count"]].mean())
    return table["sum"].to_numpy(float), table["count"].to_numpy(float)


def ce_difference(run: Run, corpora: Iterable[str], trained_on: str, other: str) -> Estimate:
    """By how many nats more the SAEs of one corpus raise CE than those of another, mean over some
    evaluation corpora.
    """
    table, rows = _of_mode(run, include_bos=False)
    corpora = list(corpora)
    errors = []
    per_seed = table.loc[table.evaluated_on.isin(corpora)].groupby(
        ["trained_on", "seed"], sort=False
    )
    per_seed = per_seed.ce_diff.mean().reset_index()
    values = values_by(per_seed, ["trained_on"], "ce_diff")
    for corpus in corpora:
        here = rows.loc[rows.evaluated_on == corpus]
        parts = [
            row_sums(here.loc[here.trained_on == name], "ce_diff") for name in (trained_on, other)
        ]
        errors.append(bootstrap_error(parts[0][0] - parts[1][0], parts[0][1]))
    error = float(np.sqrt(np.square(errors).sum()) / len(errors))
    return replace(mean_over_seeds(values[trained_on], values[other]), text_error=error)


# --- probes ---------------------------------------------------------------------------------------


def read_probes(run: Run, task: str, representation: str) -> tuple[dict[str, Values], dict]:
    """({corpus: {seed: accuracy}}, {corpus: share of seeds [N] that got each test text right}).

    A representation that has no SAE (`baseline`) is under the corpus "".
    """
    accuracy, right = {}, {}
    for corpus, part in _probes_of(run, "probing_texts", task, representation):
        texts = np.array([[digit == "1" for digit in text] for text in part.correct])
        seeds = ((int(seed),) for seed in part.seed)
        accuracy[corpus] = dict(zip(seeds, texts.mean(1).tolist(), strict=True))
        right[corpus] = texts.mean(0)
    return accuracy, right


def _probes_of(run, name, task, representation):
    """(corpus, its rows) of the rows `name`; "" and seed 0 where there is no SAE."""
    rows = read_rows(run, name)
    rows = rows.loc[(rows.task == task) & (rows.representation == representation)]
    named = rows.assign(corpus=rows.corpus.astype(object).fillna(""), seed=rows.seed.fillna(0))
    return [(str(corpus), part) for corpus, part in named.groupby("corpus", sort=False)]


def probe_estimates(
    run: Run, task: str, representation: str, score: str = "accuracy"
) -> dict[str, Estimate]:
    """{corpus: accuracy, f1 or auc of its SAEs' probes}; the interval of one without seeds is that
    of texts alone.

    Which texts are right is known of each, so that the error of the mean accuracy over texts is
    too. That of F1 and AUC is taken to be a single seed's, which is no less.
    """
    right = read_probes(run, task, representation)[1] if score == "accuracy" else {}
    found = {}
    for corpus, part in _probes_of(run, "probing", task, representation):
        (values,) = values_by(part, ["corpus"], score).values()
        texts = int(part.test.iloc[0])
        if score == "accuracy":
            error = bootstrap_error(right[corpus], np.ones(texts))
        else:
            error = float(part[f"{score}_error"].mean())
        if corpus:
            found[corpus] = replace(mean_over_seeds(values), text_error=error)
        else:
            # measured once, on so many texts: these are the degrees of freedom
            (value,) = values.values()
            found[corpus] = Estimate(value, texts, 0.0, error)
    return found


def guesses(run: Run, task: str) -> dict[str, float]:
    """What naming a label without looking at the text gets right: one at random, or the larger."""
    rows = read_rows(run, "probing")
    first = rows.loc[rows.task == task].iloc[0]
    return {"chance": first.chance, "majority": first.majority}


def probe_difference(run: Run, task: str, corpus: str, other: str) -> Estimate:
    """Accuracy of probes on the reconstruction by the SAEs of one corpus, above another's."""
    accuracy, right = read_probes(run, task, "reconstruction")
    paired = right[corpus] - right[other]
    error = bootstrap_error(paired, np.ones(len(paired)))
    return replace(mean_over_seeds(accuracy[corpus], accuracy[other]), text_error=error)


# --- the model's own cross-entropy against SFR ----------------------------------------------------


def rank_correlation(run: Run) -> Estimate:
    """Spearman's rank correlation, over corpora, of the model's CE with SFR.

    Its error is the spread of the correlation where each SFR and each CE is drawn again around what
    was measured, with its own standard error. That is no test: where nothing is, it would see a
    trend in 9 % of cases instead of 5 %. What is tested is `sfr_along_ce`. The corpora are given.
    Baselines are no texts, and not among them.
    """
    ce, pairs = _ce_and_pairs(run)
    found = {name: mean_over_seeds(values) for name, values in pairs.items()}
    sfr = np.array([estimate.value for estimate in found.values()])
    errors = np.array([estimate.error for estimate in found.values()])
    seeds = next(iter(found.values())).seeds
    rng = np.random.default_rng(0)
    shape = (REDRAWN, len(found))
    drawn = [
        values + spread * rng.standard_normal(shape)
        for values, spread in ((ce.ce.to_numpy(), ce.error.to_numpy()), (sfr, errors))
    ]
    spread = math.nan if np.isnan(errors).any() else float(np.std(_spearman(*drawn), ddof=1))
    (observed,) = _spearman(ce.ce.to_numpy()[None], sfr[None])
    return Estimate(float(observed), seeds, spread)


def sfr_along_ce(run: Run) -> Estimate:
    """What SFR rises by along the straight line of least squares over the corpora in the order of
    the model's CE, from the text that it predicts best to that which it predicts worst: below 0
    where it falls. By ranks, so that one corpus far from all others does not decide.
    """
    ce, pairs = _ce_and_pairs(run)
    weights = rise_weights(ce.ce.rank().to_dict())
    return mean_over_seeds(weighted_values(pairs, weights))


def _ce_and_pairs(run):
    """(rows `corpus_ce`, {corpus: its pair_values}) of the corpora, in one order."""
    of_all = pair_values(run)
    found = {name: of_all[name] for name in run.sae.train_on}
    return read_rows(run, "corpus_ce").set_index("corpus").loc[list(found)], found


def _spearman(x, y):
    """Rank correlations [N] of rows [N, corpora]; ties share their rank."""
    a, b = (scipy.stats.rankdata(values, axis=1) for values in (x, y))
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
