"""Rows of notebook 12 -> its tables, the data of its figures, and verdicts: whether shared latents
are easier to explain than others (Paulo and Belrose 2025), and whether those of the model's own
text are.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.features.groups import by_sharing, frequency_matched, selected_pairs
from faithful_sae.metrics.uncertainty import Values, jackknife, mean_over_seeds
from faithful_sae.paper.estimates import values_by
from faithful_sae.paper.names import heading, named
from faithful_sae.paper.tables import Record, cell
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.rows import measured, read_rows
from faithful_sae.runs.schema import Run
from faithful_sae.stages.evaluating import KNOWN
from faithful_sae.stages.judging import OFFLINE

Rows = dict[str, pd.DataFrame]
# of the scored latents of one seed
Measure = Callable[[pd.DataFrame], float]
# the judge whose scores figures and selected pairs are of, and the score
JUDGE, SCORE = "ngram", "detection_random"
SCORES = {
    "detection_random": "detection",
    "detection_hard": "detection, hard",
    "fuzz_random": "fuzzing",
    "fuzz_wrong": "fuzzing, hard",
    "detection_random_permuted": "detection, permuted",
    "detection_random_token": "detection, best token",
}
ABLATED = 10  # latents, of TPP and SCR
# by position and by model
MEASURED = {"l0": "L0", "explained_variance": "EV", "ce_diff": "CE difference"}
# numbers of the summary: the rows, and the column that each is a mean of
SUMMARY = {
    "EV": ("structure", "explained_variance"),
    "CE difference": ("structure", "ce_diff"),
    "one-latent probe": ("sparse_probes", "accuracy"),
    "detection": ("interpretation", SCORE),
    "by output": ("descriptions", "output"),
    "absorbed": ("absorption", "fraction"),
    "unlearned": ("unlearning", "unlearned"),
}
SAID = 60  # characters of an explanation in a table
# balanced accuracies that differ by less are the same
SAME = 0.01
# "many" orphans are as easy to explain as the middle one of the shared latents
MANY = 0.25


def _table(run: Run, columns: dict[str, dict[str, Values]]) -> pd.DataFrame:
    """One row per kind of SAE: {column: {corpus: {seeds: number}}} with halves of intervals."""
    corpora = dict.fromkeys(corpus for values in columns.values() for corpus in values)
    records: list[Record] = []
    for corpus in corpora:
        record: Record = {"trained on": _called(run, corpus)}
        for name, values in columns.items():
            if corpus in values:
                record |= cell(name, mean_over_seeds(values[corpus]))
        records.append(record)
    return pd.DataFrame(records)


def _means(table: pd.DataFrame, column: str) -> dict[str, Values]:
    """{corpus: {(seed,): mean over the rows of an SAE}}."""
    mean = table.groupby(["corpus", "seed"], sort=False)[[column]].mean()
    return values_by(pd.DataFrame(mean).reset_index(), ["corpus"], column)


def _called(run, name):
    """What has no text is called by its name."""
    return heading(run, name) if name in run.sae_names else name


def structure(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per kind of SAE: SAEBench's core with halves of intervals over seeds; of what has no
    seed, the number alone.
    """
    shown = {
        "explained_variance": "EV",
        # with sae.max_norm
        "explained_variance_moderate": "EV, moderate",
        "cosine": "cosine",
        "l2_ratio": "L2 ratio",
        "relative_reconstruction_bias": "bias",
        "ce_score": "CE score",
        "ce_diff": "CE difference",
        "ce_diff_moderate": "CE difference, moderate",
        "kl_score": "KL score",
        "kl": "KL",
        "l0": "L0",
        "frac_alive": "alive",
        "over_10_percent": "over 10 %",
        "decoder_nearest": "nearest row",
        "decoder_random": "nearest, random",
    }
    table = rows["structure"]
    there = {name: at for at, name in shown.items() if at in table}
    return _table(run, {name: values_by(table, ["corpus"], at) for name, at in there.items()})


def sparse_probes(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per kind of SAE or representation of x: accuracy of probes on k columns and on all,
    mean over tasks, and TPP and SCR (known to be unreliable: Chanin 2026).
    """
    table = rows["sparse_probes"]
    named = table.assign(
        corpus=table.corpus.astype(object).fillna(table.representation),
        seed=table.seed.fillna(0).astype(int),
    )
    # of all columns, it is the representation that says how many
    names = named.form + (", k = " + named.k.astype(str)).where(named.form != "all", "")
    columns = {}
    for name, part in named.groupby(names, sort=False):
        columns[name] = _means(part, "accuracy")
    for what, name in (("TPP", "ablated_probes"), ("SCR", "crossed_probes")):
        ablated = rows[name].loc[rows[name].n == ABLATED]
        if len(ablated):
            columns[f"{what} {ABLATED} (unreliable)"] = _means(ablated, "score")
    return _table(run, columns)


def scores(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per judge and kind of SAE: mean scores over latents with halves of intervals over
    seeds, the share of latents that are scored, and the answers that failed. The offline judges
    score all that fire often enough, and others some of these.
    """
    tables = []
    # a row per latent, of offline judges
    last = rows["interpretation"].groupby("corpus").latent.max()
    for name, part in rows["interpretation"].groupby("judge", sort=False):
        per_sae = part.groupby(["corpus", "seed"], sort=False)
        means = pd.DataFrame(per_sae[[*SCORES]].mean()).reset_index()
        latents = means.corpus.map(last).to_numpy() + 1
        # an explanation that failed has no score
        means["scored"] = per_sae[SCORE].count().to_numpy() / latents
        columns = {
            shown: values_by(means, ["corpus"], column)
            for column, shown in {"scored": "scored", **SCORES}.items()
        }
        failed = part.groupby("corpus", sort=False).failed.sum()
        table = _table(run, columns).assign(failed=failed.to_numpy(int))
        table.insert(0, "judge", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _compared(absorption):
    """Classes that every SAE has latents for: others have no mean to compare. Principal components
    have them for few.
    """
    known = absorption.passes & (absorption.fraction.notna() | absorption.corpus.isin(KNOWN))
    return absorption.loc[known.groupby(absorption["name"]).transform("all")]


def features(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per kind of SAE: descriptions by input and output, absorption, unlearning; RAVEL's
    disentanglement, of a model that knows cities.
    """

    def means(name: str, column: str) -> dict[str, Values]:
        return _means(_compared(rows["absorption"]) if name == "absorption" else rows[name], column)

    return _table(
        run,
        {
            "by input": means("descriptions", "input"),
            "rival by input": means("descriptions", "input_rival"),
            "choice by input": means("descriptions", "input_choice"),
            "by output": means("descriptions", "output"),
            "absorbed": means("absorption", "fraction"),
            "fully absorbed": means("absorption", "full"),
            "unlearned": means("unlearning", "unlearned"),
            "cost of unlearning": means("unlearning", "retain_cost"),
        }
        | ({"RAVEL": means("ravel", "disentanglement")} if len(rows["ravel"]) else {}),
    )


def fine_tuned(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per kind of SAE: on the language model as it was, and on what it became when it was
    trained further, with halves of intervals.
    """
    table = rows["fine_tuned"]
    columns = {}
    for model, part in table.groupby("model", sort=False):
        for at, name in MEASURED.items():
            columns[f"{name}, {model}"] = values_by(part, ["corpus"], at)
    return _table(run, columns)


def summary(runs: list[Run]) -> pd.DataFrame:
    """One row per language model and SAE that notebook 12 measured: a number of each evaluation. An
    SAE is one seed, so there are no intervals: the tables of notebook 12 have them. What is known
    beforehand has no seed.
    """
    tables = [_summary_of(run) for run in measured(runs, "positions")]
    if not tables:
        return pd.DataFrame(columns=["model", "trained on", "seed", *SUMMARY])
    return pd.concat(tables, ignore_index=True)


def _summary_of(run):
    keys = ["corpus", "seed"]
    rows = {name: read_rows(run, name) for name in {name for name, _ in SUMMARY.values()}}
    rows["sparse_probes"] = rows["sparse_probes"].query("form == 'means' and k == 1")
    rows["interpretation"] = rows["interpretation"].query("judge == @JUDGE")
    rows["absorption"] = _compared(rows["absorption"])
    columns = {
        name: pd.Series(rows[table].dropna(subset=keys).groupby(keys)[column].mean())
        for name, (table, column) in SUMMARY.items()
    }
    table = pd.DataFrame(columns).rename_axis(keys).reset_index()
    order = {name: place for place, name in enumerate(run.sae_names)}
    table = table.sort_values("corpus", key=lambda c: c.map(order), kind="stable")
    seeds = table.pop("seed").astype("Int64").mask(table.corpus.isin(KNOWN))
    corpus = table.pop("corpus").map(lambda name: _called(run, name))
    first = {"model": run.label, "trained on": corpus, "seed": seeds}
    return pd.DataFrame(first).join(table)


def _scored(rows: Rows, name: str = JUDGE) -> pd.DataFrame:
    """Latents that one judge has scored, with how many seeds share them and whether they are fake,
    of the SAEs that are compared.
    """
    table = rows["interpretation"]
    table = table.loc[(table.judge == name) & table.scored]
    table = table.merge(rows["latent_groups"], on=["corpus", "seed", "latent"])
    return table.assign(seeds_sharing=_shared_by(table))


def _shared_by(table: pd.DataFrame, without: Iterable[int] = ()) -> pd.Series:
    """In how many other seeds each latent is found, some seeds left out; NaN of one seed alone."""
    left_out = {str(seed) for seed in without}
    shared = table.found_in.map(lambda seeds: len({*seeds.split()} - left_out), na_action="ignore")
    return shared.astype(float)


def sharing(run: Run, rows: Rows) -> pd.DataFrame:
    """Scores of latents by how many other seeds share them: a row per corpus and number, all seeds
    together.
    """
    scored = _scored(rows)
    tables = [
        by_sharing(part, SCORE).assign(corpus=heading(run, str(corpus)))
        for corpus, part in scored.groupby("corpus", sort=False)
    ]
    columns = ["seeds_sharing", "latents", "mean", "lower", "median", "upper", "corpus"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def pairs(run: Run, rows: Rows) -> pd.DataFrame:
    """Matched latents of two seeds, both scored: alignment, score_1, score_2, and what was said of
    each.
    """
    table = rows["latent_pairs"]
    # of one seed there are none
    if table.empty:
        return table.assign(score_1=math.nan, score_2=math.nan, text_1="", text_2="")
    scored = _scored(rows).set_index(["corpus", "seed", "latent"])[[SCORE, "text"]]
    for number, columns in enumerate((["seed_a", "latent"], ["seed_b", "match"]), 1):
        on = ["corpus", *columns]
        found = pd.DataFrame(scored).set_axis([f"score_{number}", f"text_{number}"], axis=1)
        table = table.merge(found, left_on=on, right_index=True)
    return named(run, table)


def selected(run: Run, rows: Rows) -> pd.DataFrame:
    """Paulo and Belrose's Table 1 of each corpus, and the same selection from shuffled pairs."""
    tables = []
    for corpus, part in pairs(run, rows).groupby("corpus", sort=False):
        if len(part.dropna(subset=["alignment", "score_1", "score_2"])):
            chosen = selected_pairs(part.drop(columns="corpus"), seed=run.evaluation.seed)
            chosen.insert(0, "trained on", corpus)
            for text in ("text_1", "text_2"):
                chosen[text] = chosen[text].map(lambda said: shorten(said, SAID, placeholder=" …"))
            tables.append(chosen)
    columns = ["trained on", "low", "high", "n", "alignment", "score_1", "score_2"]
    columns += ["shuffled_1", "shuffled_2", "p", "seed_a", "latent", "seed_b", "match"]
    columns += ["text_1", "text_2"]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return table.reindex(columns=columns)


def positions(run: Run, rows: Rows) -> pd.DataFrame:
    """By position: a row per kind of SAE and part of the rows, with halves of intervals."""
    table = rows["positions"]
    columns = MEASURED
    records: list[Record] = []
    part_of_rows: Any
    for part_of_rows, part in table.groupby(["start", "stop"], sort=False):
        start, stop = part_of_rows
        found = {column: values_by(part, ["corpus"], column) for column in columns}
        for corpus in dict.fromkeys(part.corpus):
            record: Record = {"trained on": _called(run, corpus), "positions": f"{start}-{stop}"}
            for column, name in columns.items():
                record |= cell(name, mean_over_seeds(found[column][corpus]))
            records.append(record)
    return pd.DataFrame(records)


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question that the paper leaves open, or that Paulo and Belrose (2025, section
    4.2) answer of latents that seeds share, with its verdict (paper.verdicts). Scores are of
    detection against random windows, by each offline judge. Groups are compared among latents that
    fire about as often; of a corpus whose latents have both kinds in no tenth by density, nothing
    can be said.

    Seeds are left out one at a time, as SAEs that are scored and as ones that share a latent.
    """
    corpora = run.evaluation.corpora
    if len(run.sae.seeds) > 1:
        # a csv holds no empty text: a latent that no other seed has is read as one nobody looked at
        rows = rows | {"latent_groups": rows["latent_groups"].fillna({"found_in": ""})}
    fake = _within(run, rows, "fake below the rest", _fake)
    table = [{"question": "Fake latents are harder to explain"} | judge(fake, margin=SAME)]
    if len(corpora) > 1:
        own, other = corpora
        cases = [_case(at, part, "own above", _own(own)) for at, part in _by_judge(rows)]
        question = f"Latents of its own text are easier to explain than {heading(run, other)}'s"
        table.append({"question": question} | judge(cases, margin=SAME))
    shared = _within(run, rows, "shared above orphans", _shared)
    question = "Shared latents are more interpretable than others that fire as often"
    table.append({"question": question} | judge(shared, margin=SAME))
    orphans = _within(run, rows, f"share of orphans, above {MANY:.0%}", _orphans)
    many = f"over {MANY:.0%} of them score above half of the shared that fire as often"
    question = f"Yet many unshared latents are interpretable, too: {many}"
    table.append({"question": question} | judge(orphans))
    return table_of(table)


def _by_judge(rows):
    """Others judge too few latents for groups of them."""
    return [(name, _scored(rows, name)) for name in OFFLINE]


def _within(run, rows, what, difference):
    """A case for each offline judge and corpus."""
    return [
        _case(f"{heading(run, at)}, {name}", part.loc[part.corpus == at], what, difference)
        for name, part in _by_judge(rows)
        for at in run.evaluation.corpora
    ]


def _case(name: str, scored: pd.DataFrame, what: str, difference: Measure) -> Case:
    """The mean over SAEs of a difference, and its error over seeds."""
    seeds = sorted(scored.seed.unique())

    def mean(kept: Sequence[int]) -> float:
        left_out = [seed for seed in seeds if seed not in kept]
        counted = scored.assign(seeds_sharing=_shared_by(scored, left_out))
        found = [difference(counted.loc[counted.seed == seed]) for seed in kept]
        return float(np.nanmean(found)) if np.isfinite(found).any() else math.nan

    estimate = jackknife(mean, seeds) if seeds else None
    if estimate is None or math.isnan(estimate.value):
        return Case(name, excluded="no latents of both kinds that fire about as often")
    return Case(name, (Difference(what, estimate),))


def _shared(part: pd.DataFrame) -> float:
    known = part.dropna(subset=["seeds_sharing"])
    known = known.assign(shared=known.seeds_sharing.gt(0).astype(bool))
    return frequency_matched(known, SCORE, "shared").difference


def _orphans(part: pd.DataFrame) -> float:
    """Share of orphans above the middle of the shared latents of their own tenth by density."""
    known = part.dropna(subset=["seeds_sharing", SCORE])
    shared = known.seeds_sharing > 0
    tenth = (known.density.rank(pct=True) * 10).clip(upper=9.99).astype(int)
    middle = tenth.map(known.loc[shared, SCORE].groupby(tenth[shared]).median())
    orphans = ~shared & middle.notna()
    return (known[SCORE] > middle)[orphans].mean() - MANY


def _fake(part: pd.DataFrame) -> float:
    part = part.assign(fake=part.fake.astype(bool))
    return -frequency_matched(part, SCORE, "fake").difference


def _own(corpus: str) -> Measure:
    def difference(part: pd.DataFrame) -> float:
        part = part.assign(own=part.corpus == corpus)
        return frequency_matched(part, SCORE, "own").difference

    return difference
