"""Rows of notebook 14 -> its tables, the data of its figures, and verdicts: does the text or the
seed decide which features an SAE finds?
"""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from faithful_sae.metrics.data_or_seed import OF_SEED, OF_TEXT, OWN_KIND
from faithful_sae.metrics.uncertainty import Estimate, Values, jackknife, mean_over_seeds
from faithful_sae.paper.names import heading, named
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run

Rows = dict[str, pd.DataFrame]
MEASURES = {"sfr": "SFR", "mean_cosine": "PW-MCC"}
# what two SAEs have in common, and what not
SEED, TEXT, BOTH = "other seed", "other text", "other seed and text"
# SFR that differ by less are the same
SAME = 0.01


def _kind(pairs):
    """What the two SAEs of each pair differ in."""
    same_text = pairs.corpus_a == pairs.corpus_b
    same_seed = pairs.seed_a == pairs.seed_b
    return same_text.map({True: SEED, False: BOTH}).where(~same_seed, TEXT)


def _values(pairs: Any, measure: str) -> Values:
    """{seeds: mean over corpora}; of pairs of one seed the key is that seed."""
    seeds = [tuple(sorted({a, b})) for a, b in zip(pairs.seed_a, pairs.seed_b, strict=True)]
    return pairs[measure].groupby(pd.Series(seeds, pairs.index)).mean().to_dict()


def pairs_table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per corpus: how much its SAEs share with those of another seed, of another text, and
    of both, mean over the other texts, with halves of intervals.
    """
    pairs = rows["source_pairs"]
    kind = _kind(pairs)
    records: list[Record] = []
    for corpus in dict.fromkeys(pairs.corpus_a):
        mine = (pairs.corpus_a == corpus) | (pairs.corpus_b == corpus)
        record: Record = {"trained on": heading(run, corpus)}
        for measure, name in MEASURES.items():
            for differs in (SEED, TEXT, BOTH):
                values = _values(pairs[mine & (kind == differs)], measure)
                record |= cell(f"{name}, {differs}", mean_over_seeds(values))
        records.append(record)
    return pd.DataFrame(records)


def between(run: Run, rows: Rows) -> pd.DataFrame:
    """SFR between SAEs of every two corpora and of two seeds, mean over pairs: a row for each two,
    in both orders, `sfr` and the half of its interval.
    """
    pairs = rows["source_pairs"]
    pairs = pairs[pairs.seed_a != pairs.seed_b]
    found: list[dict[str, Any]] = []
    names: Any
    for names, part in pairs.groupby(["corpus_a", "corpus_b"], sort=False):
        a, b = names
        estimate = mean_over_seeds(_values(part, "sfr"))
        for row, column in dict.fromkeys([(a, b), (b, a)]):
            which = {"row": heading(run, row), "column": heading(run, column)}
            found.append({**which, "sfr": estimate.value, "half": estimate.half_width()})
    order = [heading(run, name) for name in dict.fromkeys(pairs.corpus_a)]
    place = {name: i for i, name in enumerate(order)}
    table = pd.DataFrame(found)
    return table.sort_values(
        ["row", "column"], key=lambda names: names.map(place), kind="stable", ignore_index=True
    )


def _over_seeds(part: Any, value: str) -> Estimate:
    """Of a number that was measured again without each seed: a row per `left_out`."""
    found = part.groupby("left_out")[value].sum(min_count=1)
    seeds = [seed for seed in found.index if seed >= 0]

    def statistic(kept: Sequence[int]) -> float:
        missing = {*seeds} - {*kept}
        return float(found[missing.pop() if missing else -1])

    return jackknife(statistic, seeds)


def kinds_data(run: Run, rows: Rows) -> pd.DataFrame:
    """Share of the latents of each corpus that are of each kind, with the half of its interval."""
    found = []
    names: Any
    for names, part in rows["source_kinds"].groupby(["corpus", "kind"], sort=False):
        corpus, kind = names
        estimate = _over_seeds(part, "share")
        number = {"share": estimate.value, "half": estimate.half_width()}
        found.append({"corpus": heading(run, corpus), "kind": kind, **number})
    return pd.DataFrame(found)


def components_table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per corpus: variance components of matched cosines, of its latents in the SAEs of
    every corpus and seed, in percent of their sum, with halves of intervals.
    """
    table = rows["source_components"]
    total = table.groupby(["corpus", "left_out"]).variance.transform("sum", min_count=1)
    table = table.assign(share=100 * table.variance / total)
    records: list[Record] = []
    for corpus, part in table.groupby("corpus", sort=False):
        record: Record = {"trained on": heading(run, str(corpus))}
        for name, one in part.groupby("component", sort=False):
            record |= cell(str(name), _over_seeds(one, "share"))
        records.append(record)
    return pd.DataFrame(records)


def listed(run: Run, latents: pd.DataFrame) -> pd.DataFrame:
    """Rows of the latents that are listed (stages/s14_data_or_seed.py), as a table."""
    own = {name: corpus.faithful is not None for name, corpus in run.corpora.items()}
    alone = latents.corpus.map(own).map({True: "the model's own text", False: "other text"})
    kind = alone.where(latents.kind == OWN_KIND, "everywhere")
    table = named(run, latents.assign(kind=kind))
    order = ["kind", "corpus", "seed", "latent", "cosine", "in_own", "in_others", "promotes"]
    shown = {"kind": "found on", "corpus": "trained on", "in_own": "its text"}
    shown["in_others"] = "other texts"
    return pd.DataFrame(table[order]).rename(columns=shown)


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question, with its verdict (paper.verdicts)."""
    pairs = rows["source_pairs"]
    kind = _kind(pairs)
    sfr = {differs: _values(pairs[kind == differs], "sfr") for differs in (SEED, TEXT, BOTH)}
    components = rows["source_components"]
    of_text = components.component.isin(OF_TEXT)
    of_seed = components.component.isin(OF_SEED)
    sign = of_text.astype(int) - of_seed.astype(int)
    each = [
        _case(run, corpus, "text above seed", _over_seeds(part, "variance"))
        for corpus, part in components.assign(variance=sign * components.variance).groupby(
            "corpus", sort=False
        )
    ]
    text = mean_over_seeds(sfr[SEED], sfr[TEXT])
    start = mean_over_seeds(sfr[TEXT], sfr[BOTH])
    table = [
        {"question": "Another text costs more shared features than another seed"}
        | judge([_case(run, None, "SFR of another seed above another text", text)], margin=SAME),
        {"question": "SAEs of two texts share more where they began alike"}
        | judge([_case(run, None, "SFR of one seed above two", start)], margin=SAME),
        {"question": "The text decides more than the seed how exactly a latent is found again"}
        | judge(each),
    ]
    if common := _common(run, pairs[kind == BOTH]):
        question = "SAEs of the model's own text share more with other texts' than these do"
        table.append({"question": question} | judge(common, margin=SAME))
    return table_of(table)


def _case(run: Run, corpus: Any, what: str, estimate: Estimate) -> Case:
    name = run.label if corpus is None else heading(run, str(corpus))
    if math.isnan(estimate.value):
        return Case(name, excluded="too few seeds")
    return Case(name, (Difference(what, estimate, 4),))


def _common(run: Run, pairs: Any) -> list[Case]:
    """For each text of a language model: its SAEs with those of other text, above these with each
    other.
    """
    own = {name for name, corpus in run.corpora.items() if corpus.faithful is not None}
    a_own, b_own = pairs.corpus_a.isin(own), pairs.corpus_b.isin(own)
    others = _values(pairs[~a_own & ~b_own], "sfr")
    cases = []
    for name in dict.fromkeys([*pairs.corpus_a, *pairs.corpus_b]):
        if name in own and others:
            mine = ((pairs.corpus_a == name) & ~b_own) | ((pairs.corpus_b == name) & ~a_own)
            estimate = mean_over_seeds(_values(pairs[mine], "sfr"), others)
            cases.append(_case(run, name, "SFR above that of the others", estimate))
    return cases
