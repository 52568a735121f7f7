"""Rows of notebook 12 -> its tables, the data of its figures, and verdicts on what it asks: whether
shared latents are easier to explain than others (Paulo and Belrose 2025), and whether those of the
model's own text are.
"""

from collections.abc import Iterator
from textwrap import shorten

import pandas as pd

from faithful_sae.features.groups import by_sharing, frequency_matched, selected_pairs
from faithful_sae.metrics.uncertainty import Estimate, Values, mean_over_seeds
from faithful_sae.paper.estimates import values_by
from faithful_sae.paper.tables import Record, cell, heading
from faithful_sae.paper.verdicts import Case, Difference, judge, table_of
from faithful_sae.runs.schema import Run

Rows = dict[str, pd.DataFrame]
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
TPP_LATENTS = 10
SAID = 60  # characters of an explanation in a table
# balanced accuracies that differ by less are the same
SAME = 0.01
# "many" orphans are as easy to explain as the middle one of the shared latents
MANY = 0.25


def _table(run: Run, columns: dict[str, dict[str, Values]], first: str = "trained on"):
    """One row per kind of SAE: {column: {corpus: {seeds: number}}} with halves of intervals."""
    corpora = dict.fromkeys(corpus for values in columns.values() for corpus in values)
    records: list[Record] = []
    for corpus in corpora:
        record: Record = {first: _called(run, corpus)}
        for name, values in columns.items():
            if corpus in values:
                record |= cell(name, mean_over_seeds(values[corpus]))
        records.append(record)
    return pd.DataFrame(records)


def _called(run, name):
    """What has no text is called by its name."""
    return heading(run, name) if name in run.sae_names else name


def structure(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per kind of SAE: SAEBench's core with halves of intervals over seeds; of what has no
    seed, the number alone.
    """
    shown = {
        "explained_variance": "EV",
        "cosine": "cosine",
        "l2_ratio": "L2 ratio",
        "relative_reconstruction_bias": "bias",
        "ce_score": "CE score",
        "ce_diff": "CE difference",
        "kl_score": "KL score",
        "kl": "KL",
        "l0": "L0",
        "frac_alive": "alive",
        "over_10_percent": "over 10 %",
        "decoder_nearest": "nearest row",
        "decoder_random": "nearest, random",
    }
    table = rows["structure"]
    return _table(run, {name: values_by(table, ["corpus"], at) for at, name in shown.items()})


def sparse_probes(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per kind of SAE or representation of x: accuracy of probes on k columns and on all,
    mean over tasks, and TPP (known to be unreliable: Chanin 2026).
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
        mean = part.groupby(["corpus", "seed"], sort=False).accuracy.mean().reset_index()
        columns[name] = values_by(mean, ["corpus"], "accuracy")
    ablated = rows["ablated_probes"]
    ablated = ablated.loc[ablated.n == TPP_LATENTS]
    if len(ablated):
        mean = ablated.groupby(["corpus", "seed"], sort=False).score.mean().reset_index()
        columns[f"TPP {TPP_LATENTS} (unreliable)"] = values_by(mean, ["corpus"], "score")
    return _table(run, columns)


def scores(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per judge and kind of SAE: mean scores over latents with halves of intervals over
    seeds, the share of latents that fire often enough to be scored, and the answers that failed.
    """
    tables = []
    for name, part in rows["interpretation"].groupby("judge", sort=False):
        per_sae = part.groupby(["corpus", "seed"], sort=False)
        means = per_sae[[*SCORES]].mean().assign(scored=per_sae.scored.mean()).reset_index()
        columns = {
            shown: values_by(means, ["corpus"], column)
            for column, shown in {"scored": "scored", **SCORES}.items()
        }
        table = _table(run, columns).assign(failed=int(part.failed.sum()))
        table.insert(0, "judge", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def features(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per kind of SAE: descriptions by input and output, absorption, unlearning."""

    def means(name: str, column: str) -> dict[str, Values]:
        table = rows[name]
        if name == "absorption":
            table = table.loc[table.passes]
        mean = table.groupby(["corpus", "seed"], sort=False)[column].mean().reset_index()
        return values_by(mean, ["corpus"], column)

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
        },
    )


def _scored(rows: Rows, name: str = JUDGE) -> pd.DataFrame:
    """Latents that one judge has scored, with how many seeds share them and whether they are fake,
    of the SAEs that are compared.
    """
    table = rows["interpretation"]
    table = table.loc[(table.judge == name) & table.scored]
    return table.merge(rows["latent_groups"], on=["corpus", "seed", "latent"])


def sharing(run: Run, rows: Rows) -> pd.DataFrame:
    """Scores of latents by how many other seeds share them: a row per corpus and number, all seeds
    together.
    """
    scored = _scored(rows)
    tables = [
        by_sharing(part, SCORE).assign(corpus=heading(run, corpus))
        for corpus, part in scored.groupby("corpus", sort=False)
    ]
    return pd.concat(tables, ignore_index=True)


def pairs(run: Run, rows: Rows) -> pd.DataFrame:
    """Matched latents of two seeds, both scored: alignment, score_1, score_2, and what was said of
    each.
    """
    scored = _scored(rows).set_index(["corpus", "seed", "latent"])[[SCORE, "text"]]
    table = rows["latent_pairs"]
    for number, columns in enumerate((["seed_a", "latent"], ["seed_b", "match"]), 1):
        on = ["corpus", *columns]
        found = scored.rename(columns={SCORE: f"score_{number}", "text": f"text_{number}"})
        table = table.merge(found, left_on=on, right_index=True)
    return table.assign(corpus=table.corpus.map(lambda name: heading(run, name)))


def selected(run: Run, rows: Rows) -> pd.DataFrame:
    """Paulo and Belrose's Table 1 of each corpus, and the same selection from shuffled pairs."""
    tables = []
    for corpus, part in pairs(run, rows).groupby("corpus", sort=False):
        if part[["alignment", "score_1", "score_2"]].notna().all(axis=1).any():
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
    columns = {"l0": "L0", "explained_variance": "EV", "ce_diff": "CE difference"}
    records: list[Record] = []
    for (start, stop), part in table.groupby(["start", "stop"], sort=False):
        found = {column: values_by(part, ["corpus"], column) for column in columns}
        for corpus in dict.fromkeys(part.corpus):
            record: Record = {"trained on": heading(run, corpus), "positions": f"{start}-{stop}"}
            for column, name in columns.items():
                record |= cell(name, mean_over_seeds(found[column][corpus]))
            records.append(record)
    return pd.DataFrame(records)


def findings(run: Run, rows: Rows) -> pd.DataFrame:
    """One row per question, with its verdict (paper.verdicts). Scores are of detection against
    random windows, by each judge; groups are compared among latents that fire about as often.
    """
    corpora = run.evaluation.corpora
    questions = {
        "Shared latents are easier to explain (Paulo and Belrose 2025, section 4.2)": _shared,
        f"Yet many orphans are: over {MANY:.0%} of them score above half of the shared": _orphans,
        "Fake latents are harder to explain": _fake,
    }
    if len(corpora) > 1:
        other = heading(run, corpora[1])
        questions[f"Latents of its own text are easier to explain than those of {other}"] = _own
    judges = dict.fromkeys(rows["interpretation"].judge)
    table = []
    for question, cases_of in questions.items():
        cases = [
            case for name in judges for case in cases_of(run, _scored(rows, name), name, corpora)
        ]
        table.append({"question": question} | judge(cases, margin=SAME))
    return table_of(table)


def _per_seed(part: pd.DataFrame, measure) -> Values:
    """{(seed,): number} of the seeds that have one."""
    values = {(int(seed),): measure(of_seed) for seed, of_seed in part.groupby("seed")}
    return {seed: value for seed, value in values.items() if pd.notna(value)}


def _case(name: str, values: Values, what: str, seeds: int, sign: int = 1) -> Case:
    """Not testable where no seed has both groups."""
    if len(values) < 2:
        return Case(name, excluded=f"{len(values)} of {seeds} SAEs have latents of both kinds")
    estimate: Estimate = mean_over_seeds(values)
    return Case(name, (Difference(what, estimate if sign > 0 else estimate.negative()),))


def _of_corpora(run, scored, name, corpora) -> Iterator[tuple[str, pd.DataFrame, int]]:
    for corpus in corpora:
        part = scored.loc[scored.corpus == corpus]
        yield f"{heading(run, corpus)}, {name}", part, part.seed.nunique()


def _shared(run, scored, name, corpora) -> Iterator[Case]:
    for called, part, seeds in _of_corpora(run, scored, name, corpora):
        known = part.dropna(subset=["seeds_sharing"])
        known = known.assign(shared=known.seeds_sharing.gt(0).astype(bool))
        values = _per_seed(known, lambda p: frequency_matched(p, SCORE, "shared").difference)
        yield _case(called, values, "shared above orphans", seeds)


def _orphans(run, scored, name, corpora) -> Iterator[Case]:
    def share(part):
        shared = part.seeds_sharing > 0
        middle = part.loc[shared, SCORE].median()
        return (part.loc[~shared, SCORE] > middle).mean() - MANY if (~shared).any() else None

    for called, part, seeds in _of_corpora(run, scored, name, corpora):
        values = _per_seed(part.dropna(subset=["seeds_sharing"]), share)
        yield _case(called, values, f"share of orphans, above {MANY:.0%}", seeds)


def _own(run, scored, name, corpora) -> Iterator[Case]:
    both = scored.assign(own=scored.corpus == corpora[0])
    values = _per_seed(both, lambda p: frequency_matched(p, SCORE, "own").difference)
    yield _case(name, values, "own text above", both.seed.nunique())


def _fake(run, scored, name, corpora) -> Iterator[Case]:
    for called, part, seeds in _of_corpora(run, scored, name, corpora):
        part = part.assign(fake=part.fake.astype(bool))
        values = _per_seed(part, lambda p: frequency_matched(p, SCORE, "fake").difference)
        yield _case(called, values, "fake below the rest", seeds, sign=-1)
