"""Rows of notebook 16 -> its tables, the data of its figures, and verdicts: whether a corpus whose
SAEs share more features is only learnt faster, and what it costs SAEs to share no initialisation,
order or sample.

Over training the seed is the unit, and one is left out at a time at all numbers of tokens at once.
Of SAEs that share something the unit is the replicate: each draws its own initialisations, orders
and samples, so that its interval speaks of all three.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from faithful_sae.metrics.learning import difference_at_equal
from faithful_sae.metrics.uncertainty import (
    Estimate,
    Values,
    jackknife,
    mean_over_seeds,
    mean_within,
)
from faithful_sae.paper.estimates import values_by
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s16_learning import FACTORS

Rows = dict[str, pd.DataFrame]
# of some seeds
Statistic = Callable[[Sequence[int]], float]
# statements and their cases
Stated = Iterator[tuple[str, Iterable[Case]]]
# shares that differ by less are the same, as in the other findings
SAME = 0.02
# how far a training has come, by what falls meanwhile
YARDSTICKS = {
    "tokens_to_come": "training tokens",
    "fvu_own": "FVU on own text",
    "fvu_text": "FVU on the same text",
    "start": "distance from the start",
}
END, THROUGHOUT = range(2)
# of SAEs that share something, as columns of tables
SHARED = {
    "sfr": "SFR",
    "cosine": "cosine",
    "sfr_by_number": "SFR by number",
    "cosine_by_number": "cosine by number",
    "kept": "matched to its own number",
}
NOTHING = "nothing"
# what a pair has in common that has all but one, by that one
OTHERS = {
    "initialisation": "order + sample",
    "order": "initialisation + sample",
    "sample": "initialisation + order",
}


# --- over training --------------------------------------------------------------------------------


def curves(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per corpus and number of tokens: SFR, mean matched cosine, FVU on both texts, and
    mean cosine to what a row was before training, with halves of intervals.
    """
    by = ["corpus", "tokens"]
    columns = {name: values_by(rows["learning_pairs"], by, name) for name in ("sfr", "cosine")}
    for name in ("fvu_own", "fvu_text", "start"):
        columns[name] = values_by(rows["learning_saes"], by, name)
    records: list[Record] = []
    for corpus, tokens in columns["sfr"]:
        record: Record = {"corpus": heading(run, corpus), "tokens": tokens}
        for name, values in columns.items():
            record |= cell(name, mean_over_seeds(values[corpus, tokens]))
        records.append(record)
    return pd.DataFrame(records)


def _ahead(rows: Rows, one: str, other: str, yardstick: str, where: int = END) -> Estimate:
    """By how much more SAEs of one corpus share than those of another that have come as far."""
    saes = rows["learning_saes"]
    saes = saes.assign(tokens_to_come=saes.tokens.max() - saes.tokens)
    far = values_by(saes, ["corpus", "tokens"], yardstick)
    shared = values_by(rows["learning_pairs"], ["corpus", "tokens"], "sfr")

    def curves_of(chosen: Sequence[int]) -> Iterator[list[float]]:
        for corpus in (one, other):
            points = sorted(point for point in shared if point[0] == corpus)
            for values in (far, shared):
                yield [mean_within(values[point], chosen) for point in points]

    def statistic(chosen: Sequence[int]) -> float:
        return difference_at_equal(*curves_of(chosen))[where]

    return jackknife(statistic, sorted(saes.seed.unique().tolist()))


def equal(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per other corpus and yardstick: by how much more the SAEs of the model's own text
    share when both have come as far, as far as both come, and on average over all of the way that
    both go, with halves of intervals.
    """
    own, *others = run.learning.corpora
    records: list[Record] = []
    for other in others:
        for yardstick, said in YARDSTICKS.items():
            record: Record = {"compared with": heading(run, other), "at equal": said}
            for where, column in ((END, "at the end"), (THROUGHOUT, "throughout")):
                record |= cell(column, _ahead(rows, own, other, yardstick, where))
            records.append(record)
    return pd.DataFrame(records)


# --- what two SAEs share --------------------------------------------------------------------------


def _kinds(rows: Rows) -> pd.DataFrame:
    """Rows `learning_shared`, a mean per replicate, number of passes and kind of pair, the kind in
    words: what the two have in common.
    """
    table = rows["learning_shared"]
    flags = table[[*FACTORS]].to_numpy(bool)
    said = [" + ".join(np.array(FACTORS)[row]) or NOTHING for row in flags]
    table = table.assign(common=said).groupby(["passes", "common", "seed"], sort=False)
    return pd.DataFrame(table[[*SHARED]].mean()).reset_index()


def in_common(rows: Rows) -> pd.DataFrame:
    """One row per number of passes and kind of pair, those with least in common first: what the
    two share, with halves of intervals over replicates.
    """
    kinds = _kinds(rows)
    columns = {name: values_by(kinds, ["passes", "common"], name) for name in SHARED}
    order = sorted({*kinds.common}, key=lambda said: (said != NOTHING, said.count("+"), said))
    records: list[Record] = []
    for passes in kinds.passes.unique():
        for common in order:
            record: Record = {"passes": passes, "in common": common}
            for name, said in SHARED.items():
                record |= cell(said, mean_over_seeds(columns[name][passes, common]))
            records.append(record)
    return pd.DataFrame(records)


# --- findings -------------------------------------------------------------------------------------


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per statement, with its verdict (paper.verdicts)."""
    stated = [*_over_training(run, rows), *_on_pairs(rows)]
    return table_of([{"question": said} | judge([*cases], margin=SAME) for said, cases in stated])


def _over_training(run: Run, rows: Rows) -> Stated:
    own, *others = run.learning.corpora
    called = {name: heading(run, name) for name in run.learning.corpora}
    by = ["corpus", "tokens"]
    shared, fvu = (
        values_by(rows["learning_pairs"], by, "sfr"),
        values_by(rows["learning_saes"], by, "fvu_own"),
    )
    first, last = (
        {name: at(p for p in shared if p[0] == name) for name in called} for at in (min, max)
    )
    yield (
        "SAEs of every corpus share more features the longer they are trained",
        [
            _case(
                said, "last above first", mean_over_seeds(shared[last[name]], shared[first[name]])
            )
            for name, said in called.items()
        ],
    )
    yield (
        "The model's own text is learnt faster: after all tokens FVU on own text is lower",
        [
            _case(called[name], "lower by", mean_over_seeds(fvu[last[name]], fvu[last[own]]))
            for name in others
        ],
    )
    for yardstick, said in YARDSTICKS.items():
        yield (
            f"At equal {said}, SAEs of the model's own text share more features",
            [
                _case(called[name], "own above", _ahead(rows, own, name, yardstick))
                for name in others
            ],
        )


def _on_pairs(rows: Rows) -> Stated:
    kinds = _kinds(rows)
    by = {name: values_by(kinds, ["passes", "common"], name) for name in ("sfr", "cosine")}
    first, *_, last = sorted({*kinds.passes} - {0})
    for one, other in (
        ("initialisation", "sample"),
        ("initialisation", "order"),
        ("sample", "order"),
    ):
        values = (by["sfr"][last, OTHERS[factor]] for factor in (other, one))
        case = _case("pairs", f"another {one} costs more by", mean_over_seeds(*values))
        yield f"Another {one} costs more shared features than another {other}", [case]

    def added(name: str, passes: int) -> Values:
        """What a common initialisation alone adds, by replicate."""
        alone, nothing = (by[name][passes, common] for common in ("initialisation", NOTHING))
        return {seed: alone[seed] - nothing[seed] for seed in alone}

    yield (
        "A common start makes SAEs agree that have neither order nor sample in common",
        [_case(SHARED[name], "higher by", mean_over_seeds(added(name, last))) for name in by],
    )
    fades = {name: mean_over_seeds(added(name, first), added(name, last)) for name in by}
    yield (
        "What a common start adds fades with training",
        [_case(SHARED[name], "less by", estimate) for name, estimate in fades.items()],
    )
    cosine = {passes: by["cosine"][passes, NOTHING] for passes in (0, first, last)}
    before = {"than untrained": cosine[0], "than after the fewest passes": cosine[first]}
    yield (
        "SAEs with nothing in common converge: their matched cosine grows with training",
        [
            _case(said, "higher by", mean_over_seeds(cosine[last], earlier))
            for said, earlier in before.items()
        ],
    )


def _case(name: str, what: str, estimate: Estimate) -> Case:
    """What cannot be computed is not testable."""
    if math.isnan(estimate.value):
        return Case(name, excluded="their trainings come nowhere as far")
    return Case(name, (Difference(what, estimate),))
