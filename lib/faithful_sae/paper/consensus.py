"""Rows of notebook 17 -> its table, the data of its figures, and verdicts: whether features that
seeds agree on make a better dictionary than a single SAE, and whether that is the better way to
features that are found again.

A consensus depends on all its seeds: its error is the jackknife's, from the consensuses that lack
one of them. A difference from single SAEs leaves the seed out of both; where there are single ones
of some seeds alone, their part of the error comes out too large rather than too small. EV and CE
difference add the bootstrap over rows of text. Of coupled SAEs the unit is not the seed but the
group.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pandas as pd

from faithful_sae.metrics.uncertainty import (
    Estimate,
    Values,
    bootstrap_error,
    jackknife,
    mean_over_seeds,
    mean_within,
)
from faithful_sae.paper.estimates import on_moderate, row_sums
from faithful_sae.paper.evaluation import SAME
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import NATS, PERCENT, SHARE, Case, Difference, judge, table_of
from faithful_sae.runs.catalogue import HALF
from faithful_sae.runs.schema import Run
from faithful_sae.stages.s17_consensus import KINDS, Which, least_seeds, single_seeds

Rows = dict[str, pd.DataFrame]
# of the seeds that are kept
Number = Callable[[Sequence[int]], float]
SHOWN = {
    "consensus": "consensus",
    "trained": "trained with as many",
    "frequent": "cut down to the most active",
    "random": "cut down at random",
    "whole": "whole",
    "mutual": "whole, coupled",
}
# kinds that there are of every size
SIZES = ("consensus", "frequent", "random")
FIDELITY = {"EV": "explained_variance", "CE difference": "ce_diff"}
ELSEWHERE = ", other text"
TOO_FEW = "two consensuses that have no seed in common need four seeds"
# {question: (measure, the kind of SAE that the consensus is compared with)}
QUESTIONS = {
    "The consensus explains more variance than an SAE cut down to its most active latents": (
        "EV",
        "frequent",
    ),
    "It explains more than an SAE cut down at random": ("EV", "random"),
    "It explains more than an SAE trained with as many latents": ("EV", "trained"),
    "It raises CE by less than an SAE trained with as many": ("CE difference", "trained"),
    "Fewer of its latents are fake than of an SAE trained with as many": ("ffr", "trained"),
    "Its latents are easier to explain than those of an SAE trained with as many": (
        "detection",
        "trained",
    ),
    "A larger share of its features is found again by other seeds than of an SAE trained with as "
    "many": ("sfr", "trained"),
    "More of its features, by their number, are found again than of a whole SAE": (
        "alike",
        "whole",
    ),
}
# of which less is better
LESS = ("CE difference", "ffr")
# within which there is no difference; of numbers of features that is 0
MARGINS = {"EV": SHARE, "CE difference": NATS, "ffr": PERCENT, "detection": SAME, "sfr": SHARE}
DIGITS = {"ffr": 2, "alike": 0}
ABSENT = {"sfr": TOO_FEW, "alike": TOO_FEW, "detection": "no latent of it fires often enough"}


def _columns(rows: Rows) -> dict[str, str]:
    """{measure: column}, of moderate tokens where SAEs were trained on these alone."""
    there = rows["consensus_fidelity"]
    return {name: on_moderate(there, at) for name, at in FIDELITY.items()}


def measured(run: Run, rows: Rows) -> pd.DataFrame:
    """Every SAE with its latents, L0, FFR (percent), fake latents, detection, and its EV and CE
    difference (nats) on its own text and on evaluation.text.
    """
    columns = _columns(rows)
    keys = [*Which._fields]
    table = rows["consensus_saes"]
    fidelity = rows["consensus_fidelity"]
    there = fidelity.evaluated_on == run.evaluation.text
    for part, suffix in ((fidelity.loc[~there], ""), (fidelity.loc[there], ELSEWHERE)):
        names = {at: f"{name}{suffix}" for name, at in columns.items()}
        table = table.merge(part[[*keys, *names]].rename(columns=names), on=keys, how="left")
    # as they are before they are in a file
    return table.astype(dict.fromkeys(("least", "seed", "without"), "Int64"))


def of_size(run: Run, table: pd.DataFrame, least: int | None = None) -> pd.DataFrame:
    """Those with as many latents as the consensus of features that so many seeds find, or (None) of
    the one that the run is about; and whole SAEs.
    """
    same = table.least.eq(least or least_seeds(run)).fillna(False)
    return table.loc[table.least.isna() | same]


def _values(run: Run, part: pd.DataFrame, column: str) -> Values:
    """A column of single SAEs, or of pairs of dictionaries, by what it depends on: seeds, or the
    groups of coupled ones.
    """
    values: dict[tuple[int, ...], float] = {}
    for row in part.to_dict("records"):
        seeds = map(int, str(row["seed"]).split())
        values[tuple(seeds)] = float(row[column])
    if not part.kind.eq("mutual").any():
        return values
    group = {seed: i // run.consensus.group for i, seed in enumerate(single_seeds(run))}
    found: dict[tuple[int, ...], list[float]] = {}
    for seeds, value in values.items():
        found.setdefault(tuple(sorted(group[seed] for seed in seeds)), []).append(value)
    return {groups: math.fsum(of) / len(of) for groups, of in found.items()}


def _number(run: Run, part: pd.DataFrame, column: str) -> Number:
    """The same as a number of those seeds that are kept; of a consensus, of all or all but one."""
    if part.kind.eq("consensus").any() and "without" in part:
        without = (None if pd.isna(seed) else int(seed) for seed in part.without)
        of = dict(zip(without, part[column].astype(float), strict=True))

        def consensus(kept: Sequence[int]) -> float:
            left_out = [seed for seed in run.sae.seeds if seed not in kept]
            return of.get(left_out[0] if left_out else None, math.nan)

        return consensus
    values = _values(run, part, column)
    return lambda kept: mean_within(values, kept)


def _estimate(run: Run, part: pd.DataFrame, column: str) -> Estimate:
    """Of SAEs, or pairs, of one corpus, kind and size."""
    if part.kind.eq("consensus").any() and "without" in part:
        return jackknife(_number(run, part, column), run.sae.seeds)
    return mean_over_seeds(_values(run, part, column))


def _above(run: Run, part: pd.DataFrame, other: pd.DataFrame, column: str) -> Estimate:
    """What SAEs, or pairs, of one kind have more than those of another."""
    numbers = [_number(run, each, column) for each in (part, other)]
    return jackknife(lambda kept: numbers[0](kept) - numbers[1](kept), run.sae.seeds)


class Study:
    """The rows of a run, and estimates from them.

    Attributes:
        saes: as `measured`.
        pairs: rows `consensus_pairs`, with the seeds of both in one column.
    """

    def __init__(self, run: Run, rows: Rows) -> None:
        self.run = run
        self.rows = rows
        self.saes = measured(run, rows)
        pairs = rows["consensus_pairs"]
        self.pairs = pairs.assign(seed=pairs.seeds_a + " " + pairs.seeds_b)

    def _part(self, measure, corpus, kind, least=None):
        table = self.pairs if measure in self.pairs else of_size(self.run, self.saes, least)
        return table.loc[(table.corpus == corpus) & (table.kind == kind)]

    def has(self, measure: str, corpus: str, kind: str) -> bool:
        """Whether there is a number: not all kinds have all, and few seeds have no pairs."""
        return bool(self._part(measure, corpus, kind)[measure].notna().any())

    def estimate(self, measure: str, corpus: str, kind: str, least: int | None = None) -> Estimate:
        """A column of `saes` or of `pairs`.

        Args:
            least: as of_size.
        """
        found = _estimate(self.run, self._part(measure, corpus, kind, least), measure)
        if measure.removesuffix(ELSEWHERE) not in FIDELITY:
            return found
        sums, counts = self._row_sums(measure, corpus, kind, least)
        return replace(found, text_error=bootstrap_error(sums, counts))

    def above(self, measure: str, corpus: str, kind: str, other: str) -> Estimate:
        """What one kind of SAE has more of than another, on the same rows of text."""
        one, beside = (self._part(measure, corpus, k) for k in (kind, other))
        found = _above(self.run, one, beside, measure)
        if measure.removesuffix(ELSEWHERE) not in FIDELITY:
            return found
        parts = [self._row_sums(measure, corpus, k) for k in (kind, other)]
        error = bootstrap_error(parts[0][0] - parts[1][0], parts[0][1])
        return replace(found, text_error=error)

    def _row_sums(self, measure, corpus, kind, least=None):
        rows = of_size(self.run, self.rows["consensus_fidelity_rows"], least)
        on = self.run.evaluation.text if measure.endswith(ELSEWHERE) else corpus
        here = (rows.corpus == corpus) & (rows.kind == kind) & (rows.evaluated_on == on)
        return row_sums(rows.loc[here], _columns(self.rows)[measure.removesuffix(ELSEWHERE)])


def table(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per corpus and kind of SAE, with halves of intervals: what `measured` has; SFR of
    dictionaries that have no seed in common, `alike` the number of features that they share, and
    `size` how many they have.
    """
    study = Study(run, rows)
    shown = {name: name for name in ("latents", *FIDELITY, *(f + ELSEWHERE for f in FIDELITY))}
    shown |= {"l0": "L0", "ffr": "FFR", "detection": "detection"}
    shown |= {"sfr": "SFR", "alike": "alike", "size": "size"}
    records: list[Record] = []
    for corpus, kind in itertools.product(run.consensus.corpora, KINDS):
        record: Record = {"trained on": heading(run, corpus), "SAE": SHOWN[kind]}
        for measure, name in shown.items():
            if study.has(measure, corpus, kind):
                record |= cell(name, study.estimate(measure, corpus, kind))
        if kind != "consensus":
            # as many as the consensus has, which alone would have others with other seeds
            del record[f"latents{HALF}"]
        records.append(record)
    return pd.DataFrame(records)


def found(run: Run, rows: Rows) -> pd.DataFrame:
    """How many features at least so many seeds of a corpus find, with half of its interval."""
    counts = rows["consensus_found"].assign(kind="consensus")
    records: list[Record] = []
    for corpus, least in itertools.product(run.consensus.corpora, sorted({*counts.least})):
        part = counts.loc[(counts.corpus == corpus) & (counts.least == least)]
        record = {"corpus": heading(run, corpus), "least": least}
        records.append(record | cell("features", _estimate(run, part, "features")))
    return pd.DataFrame(records)


def variance(run: Run, rows: Rows) -> pd.DataFrame:
    """EV on the SAEs' own text against their latents: the consensus of features that at least so
    many seeds find, and what stands beside each, with halves of intervals.
    """
    study = Study(run, rows)
    seeds = len(run.sae.seeds)
    records: list[Record] = []
    for corpus, kind in itertools.product(run.consensus.corpora, KINDS):
        for least in range(2, seeds + 1) if kind in SIZES else (least_seeds(run),):
            part = of_size(run, study.saes, least)
            part = part.loc[(part.corpus == corpus) & (part.kind == kind)]
            # of no features there is no consensus, and no SAE is cut down to more than it has
            whole = part.loc[part.without.isna()]
            if len(whole):
                record = {"corpus": heading(run, corpus), "kind": SHOWN[kind], "least": least}
                record["latents"] = int(whole.latents.iloc[0])
                records.append(record | cell("EV", study.estimate("EV", corpus, kind, least)))
    return pd.DataFrame(records)


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question, with its verdict (paper.verdicts). A case is a corpus."""
    study = Study(run, rows)
    table = []
    for question, (measure, other) in QUESTIONS.items():
        less = measure in LESS
        cases = []
        for corpus in run.consensus.corpora:
            name = heading(run, corpus)
            if study.has(measure, corpus, "consensus"):
                estimate = study.above(measure, corpus, "consensus", other)
                said = f"consensus {'below' if less else 'above'}"
                signed = estimate.negative() if less else estimate
                cases.append(Case(name, (Difference(said, signed, DIGITS.get(measure, 3)),)))
            else:
                cases.append(Case(name, excluded=ABSENT.get(measure)))
        table.append({"question": question} | judge(cases, margin=MARGINS.get(measure, 0.0)))
    table.append(_consensus_or_text(study))
    return table_of(table)


def _consensus_or_text(study):
    """SFR that the consensus adds on the other text, less what the model's own text adds to single
    SAEs: the single SAEs of the other text, from which both begin, cancel out.
    """
    run = study.run
    own, other = run.consensus.corpora
    agreed, single = (
        study.pairs.loc[(study.pairs.corpus == corpus) & (study.pairs.kind == kind)]
        for corpus, kind in ((other, "consensus"), (own, "whole"))
    )
    question = (
        f"Taking the consensus of SAEs of {heading(run, other)} raises SFR by more than training "
        "on the model's own text does"
    )
    if len(agreed) and len(single):
        estimate = _above(run, agreed, single, "sfr")
        case = Case(run.label, (Difference("consensus above own text", estimate),))
    else:
        case = Case(run.label, excluded=TOO_FEW)
    return {"question": question} | judge([case], margin=SHARE)
