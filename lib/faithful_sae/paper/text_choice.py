"""Rows of notebook 18 -> its table, the data of its figures, and verdicts: how should faithful text
be made?
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import scipy

from faithful_sae.metrics.uncertainty import Estimate, Values, bootstrap_error, mean_over_seeds
from faithful_sae.paper.estimates import (
    ON_MODERATE,
    cells_by,
    rise_weights,
    values_by,
    weighted_sum,
    weighted_values,
)
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import NATS, PERCENT, SHARE, Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s18_text_choice import PLAIN, shares

Rows = dict[str, pd.DataFrame]
# of all texts, what the table shows beside its SAEs
SHOWN = {
    "tokens": "tokens",
    "all_token_coverage": "coverage",
    "first_token_coverage": "first tokens",
    "kl": "KL of the first",
    "ce": "CE",
    **{f"distinct_{n}": f"distinct {n}-grams" for n in (1, 2, 3, 4)},
    "near_copies": "near-copies",
}
# what figures show of SAEs
MEASURES = {"sfr": "SFR", "ffr": "FFR (%)", "ce_diff": "CE difference (nats)"}
# what should rise (1) or fall (-1), and within which margin nothing does
SHARES_MORE = ("sfr", 1, SHARE)
COSTS_LESS = ("ce_diff", -1, NATS)


def called(name: str, share: float) -> str:
    """A text in tables: plain text of another size by that."""
    return name if share == 1 else f"{PLAIN} x {Fraction(share).limit_denominator(64)}"


def estimates(rows: Rows) -> dict[str, dict[Any, Estimate]]:
    """{measure: {text: estimate}}: sfr, mean_cosine, ffr and fvu over seeds, ce_diff and
    explained_variance over seeds and rows, accuracy over seeds and texts.
    """
    found: dict[str, dict[Any, Estimate]] = {
        measure: _over_seeds(table, measure)
        for table, measures in (
            (rows["text_pairs"], ("sfr", "mean_cosine")),
            (rows["text_saes"], ("ffr", "fvu")),
        )
        for measure in measures
    }
    fidelity = rows["text_fidelity"]
    wanted = ("ce_diff", "explained_variance")
    # without sae.max_norm all tokens are moderate
    measures = [m for m in (*wanted, *(m + ON_MODERATE for m in wanted)) if m in fidelity]
    found |= cells_by(fidelity, rows["text_fidelity_rows"], ["text"], measures)
    found["accuracy"] = {}
    for name, part in rows["text_probes"].groupby("text", sort=False):
        right = np.array([[digit == "1" for digit in text] for text in part.correct]).mean(0)
        (estimate,) = _over_seeds(part, "accuracy").values()
        error = bootstrap_error(right, np.ones(len(right)))
        found["accuracy"][str(name)] = replace(estimate, text_error=error)
    return found


def _over_seeds(table, column) -> dict[str, Estimate]:
    values = values_by(table, ["text"], column)
    return {name: mean_over_seeds(numbers) for name, numbers in values.items()}


def table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per text: what it is like, and what its SAEs are, with halves of intervals."""
    found = estimates(rows)
    names = {
        **{"sfr": "SFR", "mean_cosine": "PW-MCC", "ffr": "FFR", "fvu": "FVU"},
        **{"explained_variance": "EV", "ce_diff": "CE difference"},
        f"explained_variance{ON_MODERATE}": "EV, moderate",
        f"ce_diff{ON_MODERATE}": "CE difference, moderate",
        "accuracy": "probe",
    }
    records: list[Record] = []
    for text in rows["texts"].to_dict("records"):
        record: Record = {"text": called(text["text"], text["share"])}
        record |= {said: text[column] for column, said in SHOWN.items()}
        for measure, said in names.items():
            if text["text"] in found.get(measure, {}):
                record |= cell(said, found[measure][text["text"]])
        records.append(record)
    return pd.DataFrame(records)


def _long(rows: Rows, measures: dict[str, str], names: Iterable[str]) -> pd.DataFrame:
    """A row per measure and text: `measure`, `text`, `value` and `half` of its interval."""
    found = estimates(rows)
    share = dict(zip(rows["texts"].text, rows["texts"].share, strict=True))
    return pd.DataFrame(
        {
            "measure": said,
            "name": name,
            "text": called(name, share[name]),
            "value": found[measure][name].value,
            "half": found[measure][name].half_width(),
        }
        for measure, said in measures.items()
        for name in names
    )


def ways_data(run: Run, rows: Rows) -> pd.DataFrame:
    """SFR, FFR and CE difference of each way of sampling, at one size."""
    return _long(rows, MEASURES, _ways(run)).drop(columns="name")


def curves_data(run: Run, rows: Rows) -> pd.DataFrame:
    """The same of the texts that differ in temperature alone, and of plain text in sizes: `against`
    says which, `x` is the temperature, or the size as a multiple of `sampled`.
    """
    parts = []
    for against, places in {"temperature": temperatures(run), "size": sizes(run)}.items():
        part = _long(rows, MEASURES, sorted(places, key=places.__getitem__))
        x = [places[name] for name in part["name"]]
        parts.append(part.drop(columns="name").assign(against=against, x=x))
    return pd.concat(parts, ignore_index=True)


def coverage_data(run: Run, rows: Rows) -> pd.DataFrame:
    """SFR and CE difference of each way of sampling, beside its `coverage` in percent: `of` the
    tokens that the pretraining text has, where it is known, or else of the vocabulary.
    """
    texts = rows["texts"].set_index("text").loc[_ways(run)]
    known = bool(texts.relative_coverage.notna().all())
    column = "relative_coverage" if known else "all_token_coverage"
    measures = {name: said for name, said in MEASURES.items() if name != "ffr"}
    part = _long(rows, measures, _ways(run))
    of = "the pretraining text's tokens" if known else "the vocabulary"
    return part.assign(coverage=part["name"].map(texts[column]), of=of).drop(columns="name")


def _ways(run: Run) -> list[str]:
    """Texts of one size."""
    return [name for name, share in shares(run).items() if share == 1]


def temperatures(run: Run) -> dict[str, float]:
    """{text: its temperature} of those that differ from plain text in nothing else."""
    alone = {
        name: text.temperature
        for name, text in run.text_choice.texts.items()
        if text.model_dump(exclude_none=True).keys() == {"temperature"}
    }
    return {PLAIN: run.generate.temperature, **alone}


def sizes(run: Run) -> dict[str, float]:
    """{text: its size} of plain text."""
    return {name: share for name, share in shares(run).items() if name not in run.text_choice.texts}


# --- findings -------------------------------------------------------------------------------------


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question, with its verdict (paper.verdicts)."""
    on = heading(run, run.text_choice.on)
    covered, varied, ce = (
        _ranks(run, rows, column) for column in ("all_token_coverage", "distinct_4", "ce")
    )
    heat, size = temperatures(run), {name: math.log2(share) for name, share in sizes(run).items()}
    table = [
        {"question": question} | judge([_trend(run, rows, places, measure, sign)], margin=margin)
        for question, places, measure, sign, margin in (
            ("Text that covers more of the vocabulary shares more features", covered, *SHARES_MORE),
            ("More varied text shares more features", varied, *SHARES_MORE),
            ("Text that the model predicts worse shares fewer features", ce, "sfr", -1, SHARE),
            ("A higher temperature shares fewer features", heat, "sfr", -1, SHARE),
            ("More text shares more features, at as many activations", size, *SHARES_MORE),
            (
                f"Text that covers more of the vocabulary costs less CE on {on}",
                covered,
                *COSTS_LESS,
            ),
            (f"A higher temperature costs less CE on {on}", heat, *COSTS_LESS),
            (f"More text costs less CE on {on}", size, *COSTS_LESS),
        )
    ]
    for question, measure, sign, margin, digits in (
        ("Plain sampling shares more features than every other way", *SHARES_MORE, 3),
        ("Plain sampling has fewer fake features than every other way", "ffr", -1, PERCENT, 2),
        (f"Plain sampling costs less CE on {on} than every other way", *COSTS_LESS, 3),
    ):
        said = "plain above" if sign > 0 else "plain below"
        cases = [
            Case(name, (Difference(said, _sum(rows, measure, weights), digits),))
            for name in run.text_choice.texts
            for weights in [{PLAIN: sign, name: -sign}]
        ]
        table.append({"question": question} | judge(cases, margin=margin))
    return table_of(table)


def _ranks(run: Run, rows: Rows, column: str) -> dict[str, float]:
    """{text: its rank} among the ways of sampling, by a number of the text; ties share theirs."""
    texts = rows["texts"].set_index("text").loc[_ways(run)]
    return texts[column].rank().to_dict()


def _trend(run: Run, rows: Rows, places: dict[str, float], measure: str, sign: int) -> Case:
    """What the straight line through some texts rises by (estimates.rise_weights), and beside it,
    in words, their rank correlation, which is 1 however little it rises.

    Args:
        places: {text: where it lies}.
        sign: 1 where it should rise, -1 where it should fall.
    """
    if (different := len({*places.values()})) < 3:
        return Case(run.label, excluded=f"texts of {different} kinds: too few for a line")
    rise = rise_weights(places)
    estimate = _sum(rows, measure, {name: sign * weight for name, weight in rise.items()})
    cells = _cells(rows, measure)
    values = [math.fsum(cells[name].values()) / len(cells[name]) for name in places]
    words = ""
    # of numbers that are all alike there is none
    if len({*values}) > 1:
        words = (
            f"rank correlation {scipy.stats.spearmanr([*places.values()], values).statistic:+.2f}"
        )
    said = f"{MEASURES[measure]} {'rises' if sign > 0 else 'falls'} by"
    return Case(run.label, (Difference(said, estimate),), words=words)


def _sum(rows: Rows, measure: str, weights: Mapping[str, float]) -> Estimate:
    """Weighted sum over texts, seed by seed."""
    if measure == "ce_diff":
        return weighted_sum(rows["text_fidelity"], rows["text_fidelity_rows"], "text", weights)
    return mean_over_seeds(weighted_values(_cells(rows, measure), weights))


def _cells(rows: Rows, measure: str) -> dict[str, Values]:
    """{text: {seeds: number}}."""
    written = {"sfr": "text_pairs", "ffr": "text_saes", "ce_diff": "text_fidelity"}
    return values_by(rows[written[measure]], ["text"], measure)
