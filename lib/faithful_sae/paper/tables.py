"""Rows of a profile's runs -> the paper's tables, each measured row with the paper's own beside it.

Columns are the paper's corpora; which corpus of a run plays which role its YAML says (and the
exhibit `corpora` shows). A trained corpus without a role gets a column of its own in Tables 4 and
7, and untrained baselines get theirs behind all others. `source` is `here` or `paper`. A run whose
rows have not been made, or with other parameters, is left out: `exhibits.unmeasured` names it.

A column `x ±` is half of the 95 % interval of x (estimates.py); it is empty where the seeds are too
few for one, and for the paper, which gives none.
"""

import itertools
import math
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.metrics.uncertainty import Estimate
from faithful_sae.paper.estimates import (
    ffr_estimates,
    fidelity_cells,
    guesses,
    pair_values,
    probe_estimates,
    rank_correlation,
    sfr_along_ce,
    sfr_estimates,
)
from faithful_sae.paper.names import ROLE_NAMES, heading
from faithful_sae.paper.verdicts import SHARE, Case, Difference, judge, table_of
from faithful_sae.runs.catalogue import HALF, exhibits, paper_models
from faithful_sae.runs.rows import measured, read_rows
from faithful_sae.runs.schema import BASELINES, ROLES, Corpus, Run

WEB = ("pile", "faithful", "fineweb")
TASKS = ("sst2", "cola", "yelp")  # of Table 6
INSTRUCTION = ("faithful", "alpaca", "open-instruct", "flan")
SCORES = ("accuracy", "f1", "auc")
PAPERS_SEEDS = (42, 49)  # Table 5
PAPERS_PAIR = ", seeds {} and {}".format(*PAPERS_SEEDS)
Record = dict[str, Any]  # a row of a table


def gather(runs: list[Run], name: str) -> pd.DataFrame | None:
    """rows/<name>.csv of all runs that have them in one DataFrame, with columns run and model
    behind; None if no run has.
    """
    parts = [
        read_rows(run, name).assign(run=run.name, model=run.label) for run in measured(runs, name)
    ]
    return pd.concat(parts, ignore_index=True) if parts else None


def called_here(runs: list[Run]) -> dict[str, str]:
    """{role: what it is called, with the name of the corpus that plays it, where all models have
    one}.
    """
    names: dict[str, set[str]] = {}
    for run in runs:
        for name, corpus in sae_corpora(run).items():
            if corpus.role:
                names.setdefault(corpus.role, set()).add(name)
    return {
        role: f"{ROLE_NAMES[role]} (here {next(iter(found))})"
        for role, found in names.items()
        if len(found) == 1 and not role.startswith("faithful")
    }


def sae_corpora(run: Run) -> dict[str, Corpus]:
    """The corpora that a run has SAEs of."""
    return {name: run.corpora[name] for name in run.sae.train_on} if run.sae else {}


def text_of(run: Run, corpus: Corpus) -> str:
    """A corpus in words: whose text it is, or where it is from."""
    if corpus.faithful:
        return f"text of {run.label if corpus.faithful == 'self' else corpus.faithful}"
    if corpus.documentation:
        packages = ", ".join(corpus.packages) or "the standard library"
        return f"{corpus.documentation} of {packages}"
    return corpus.path or corpus.hub or ""


def beside(rows: list[Record], runs: list[Run], numbers: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Put the paper's rows under those measured here: each run's counterpart directly below it,
    then the others.

    Args:
        rows: measured ones, with the label of a run as `model`.
        numbers: {the paper's model: its row}.
    """
    paper = {
        key: {"model": paper_models()[key], "source": "paper", **values}
        for key, values in numbers.items()
    }
    counterparts = {run.label: run.beside for run in runs}
    ordered = []
    for row in rows:
        ordered.append({"model": row["model"], "source": "here"} | row)
        counterpart = counterparts[row["model"]]
        if counterpart in paper:
            ordered.append(paper.pop(counterpart))
    return pd.DataFrame([*ordered, *paper.values()])


def corpora_table(runs: list[Run]) -> pd.DataFrame:
    """Which corpus and which task of each run plays which role of the paper, and how much of it
    there is.
    """
    rows = []
    for run in runs:
        used = _training_text(run)
        ce = _cross_entropies(run)
        for name, corpus in run.corpora.items():
            row: Record = {
                "model": run.label,
                "name": name,
                "plays": ROLE_NAMES.get(corpus.role or "", ""),
                "text": text_of(run, corpus),
                "training tokens": pd.NA,
                "passes": pd.NA,
            }
            row |= ce.get(name, {}) | used.get(name, {})
            if name in run.published:
                source = run.published[name]
                parts = (source.path, source.hub, source.folder)
                row["SAEs from"] = "/".join(part for part in parts if part)
            rows.append(row)
        for name, task in run.tasks.items():
            packages = ", ".join(task.packages)
            text = task.train or task.hub or f"{task.documentation} from {packages}"
            plays = ROLE_NAMES.get(task.role or "", "")
            rows.append({"model": run.label, "name": name, "plays": plays, "text": text})
    return pd.DataFrame(rows)


def _cross_entropies(run):
    """{corpus: the model's own CE on it, as packed and, of its own text, as sampled}."""
    if not measured([run], "corpus_ce"):
        return {}
    found = {}
    for row in read_rows(run, "corpus_ce").to_dict("records"):
        found[row["corpus"]] = {"CE": row["ce"], f"CE{HALF}": 1.96 * row["error"]}
        if not math.isnan(row.get("ce_as_sampled", math.nan)):
            found[row["corpus"]]["CE as sampled"] = row["ce_as_sampled"]
    return found


def _training_text(run):
    """{corpus: how much text its SAEs saw}. What published SAEs saw, nobody here can say."""
    if not measured([run], "saes"):
        return {}
    saes = read_rows(run, "saes").drop_duplicates("corpus").set_index("corpus")
    passes = saes.passes.round(2)
    return {
        name: {"training tokens": int(tokens), "passes": passes[name]}
        for name, tokens in saes.distinct_tokens.items()
        if name not in run.published
    }


def language_models(runs: list[Run]) -> pd.DataFrame:
    """Held-out cross-entropy of each embedded model beside its n-gram model's (empty for models
    that come ready-made, and before 01).
    """
    rows = []
    for run in runs:
        row: Record = {"model": run.label}
        if measured([run], "language_model"):
            (evaluation,) = read_rows(run, "language_model").to_dict("records")
            row |= evaluation
        rows.append(row)
    return pd.DataFrame(rows)


def table1(runs: list[Run]) -> pd.DataFrame:
    """Coverage of the vocabulary and KL of the first token."""
    rows = gather(runs, "dataset")
    kept = [
        "model",
        "tokens",
        "vocab_size",
        "all_token_coverage",
        "pretraining_coverage",
        "relative_coverage",
        "first_token_coverage",
        "expected_first_token_coverage",
        "kl",
        "expected_kl",
        "missing_mass",
        "expected_missing_mass",
    ]
    records = [] if rows is None else rows.loc[:, kept].to_dict("records")
    table = beside(records, runs, exhibits()["table1"].numbers)
    # whole numbers, although the paper has none to put beside them
    return table.astype(
        dict.fromkeys(table.columns.intersection(["tokens", "vocab_size"]), "Int64")
    )


def cell(name: str, estimate: Estimate) -> Record:
    """{name: value, name ±: half of its interval}."""
    return {name: estimate.value, f"{name}{HALF}": estimate.half_width()}


def _cells(
    run: Run, shown: Collection[str], estimates: dict[str, Estimate], suffix: str = ""
) -> Record:
    """{column: value, column ±: half of its interval} of the columns that are shown."""
    record: Record = {}
    for corpus, estimate in estimates.items():
        column = _column(run, corpus)
        if column in shown:
            record |= cell(f"{column}{suffix}", estimate)
    return record


def _web_columns(run):
    """Of Tables 6 and 7."""
    return {*WEB, *BASELINES, *columns_without_role([run])}


def _column(run, corpus):
    """A corpus's column: its role, or without one its name, which may be that of a role it does not
    play; a baseline's is its name.
    """
    if corpus in BASELINES:
        return corpus
    return run.corpora[corpus].role or (f"{corpus} (no role)" if corpus in ROLES else corpus)


def columns_without_role(runs: list[Run]) -> set[str]:
    """Columns of corpora with SAEs that play no role of the paper's."""
    return {
        _column(run, name)
        for run in runs
        for name, corpus in sae_corpora(run).items()
        if corpus.role is None
    }


def _papers_pair(values):
    """SFR of the paper's own two seeds, where they are among a corpus's; NaN otherwise."""
    return values.get(PAPERS_SEEDS, values.get(PAPERS_SEEDS[::-1], math.nan))


def sfr_table(runs: list[Run], table_id: str, roles: Collection[str]) -> pd.DataFrame:
    """Tables 2 and 4: SFR by role over all pairs of seeds, and of the paper's own pair alone.

    Args:
        table_id: of Table 2, or of Table 4, which shows corpora without a role as well.
        roles: the columns, beside those of baselines.
    """
    rows = []
    for run in measured(runs, "sfr"):
        shown = {*roles, *BASELINES, *(columns_without_role([run]) if table_id == "table4" else ())}
        cells = _cells(run, shown, sfr_estimates(run))
        if cells:
            assert run.sae
            pairs = {
                f"{_column(run, corpus)}{PAPERS_PAIR}": _papers_pair(values)
                for corpus, values in pair_values(run).items()
                if _column(run, corpus) in shown
            }
            rows.append({"model": run.label, "seeds": len(run.sae.seeds), **cells, **pairs})
    return _whole(_baselines_last(beside(rows, runs, exhibits()[table_id].numbers)))


def _whole(table):
    """Numbers of seeds as whole numbers, beside rows that have none."""
    return table.astype({"seeds": "Int64"}) if "seeds" in table else table


def _baselines_last(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of baselines behind those that only the paper has."""
    return table.loc[:, sorted(table.columns, key=lambda column: column.startswith(BASELINES))]


def table3(runs: list[Run]) -> pd.DataFrame:
    """SFR by target model and source of its faithful text."""
    rows = []
    labels = {run.name: run.label for run in runs}
    for run in measured(runs, "sfr"):
        estimates = sfr_estimates(run)
        values = pair_values(run)
        for name, corpus in sae_corpora(run).items():
            if corpus.faithful and corpus.role:
                source = run.label if corpus.faithful == "self" else labels[corpus.faithful]
                found = estimates[name]
                rows.append(
                    {
                        "target": run.label,
                        "text from": source,
                        "source": "here",
                        "seeds": found.seeds,
                        **cell("sfr", found),
                        f"sfr{PAPERS_PAIR}": _papers_pair(values[name]),
                    }
                )
    paper = exhibits()["table3"]
    for key, numbers in paper.numbers.items():
        for role, value in numbers.items():
            source = key if role == "faithful" else paper.other_model[key]
            target = paper_models()[key]
            row = {"target": target, "text from": paper_models()[source], "source": "paper"}
            rows.append(row | {"sfr": value})
    return _whole(pd.DataFrame(rows))


def shared_features(runs: list[Run]) -> pd.DataFrame:
    """What seeds have in common, by every measure: one row per model and corpus, or baseline.

    SFR, over all latents (the paper's), over latents alive in both SAEs, by encoder and decoder
    together (Paulo and Belrose 2025), above instead of at least 0.7 (the authors' code); PW-MCC,
    which needs no threshold, of decoder, encoder and activations; the share of dead latents.
    """
    columns = {
        "SFR": "sfr",
        "SFR, alive": "sfr_alive",
        "SFR, encoder and decoder": "sfr_encoder_decoder",
        "SFR, > for >=": "sfr_strict",
        "PW-MCC decoder": "mean_cosine",
        "PW-MCC encoder": "mean_encoder_cosine",
        "PW-MCC activations": "mean_correlation",
        "dead": "dead",
    }
    rows = []
    for run in measured(runs, "sfr"):
        found = {title: sfr_estimates(run, column) for title, column in columns.items()}
        for corpus, one in found["SFR"].items():
            row: Record = {"model": run.label, "corpus": heading(run, corpus), "seeds": one.seeds}
            for title, estimates in found.items():
                dead = {title: estimates[corpus].value}
                row |= dead if title == "dead" else cell(title, estimates[corpus])
            rows.append(row)
    return pd.DataFrame(rows)


def mechanism(runs: list[Run]) -> pd.DataFrame:
    """Does text that the model predicts worse lower SFR? The rank correlation of the two over the
    corpora of each model, and the verdict on what SFR falls by along their line; p_corpora is
    exact, over all orders of the corpora.
    """
    rows = []
    for run in with_mechanism(runs):
        found = rank_correlation(run)
        ce = read_rows(run, "corpus_ce").set_index("corpus").ce
        estimates = sfr_estimates(run)
        sfr = {name: estimates[name].value for name in sae_corpora(run)}
        if len(sfr) < 3:
            case = Case(run.label, excluded=f"{len(sfr)} corpora: too few for a line")
        else:
            case = Case(run.label, (Difference("SFR falls by", sfr_along_ce(run).negative()),))
        rows.append(
            {
                "model": run.label,
                "statement": "The worse the model predicts a text, the lower is its SFR",
                "corpora": len(sfr),
                **cell("rank correlation", found),
                "p_corpora": _order_p([ce[name] for name in sfr], list(sfr.values())),
                **judge([case], margin=SHARE),
            }
        )
    return table_of(rows) if rows else pd.DataFrame(columns=["model", "statement", "verdict"])


def with_mechanism(runs: list[Run]) -> list[Run]:
    """The runs of which both SFR and the model's own CE are measured."""
    trained = [run for run in runs if run.sae]
    return [run for run in measured(trained, "sfr") if measured([run], "corpus_ce")]


def _order_p(ce, sfr):
    """One-sided p of a rank correlation as low as this, over all orders (of many corpora, over
    10,000 of them).
    """
    x, y = (np.argsort(np.argsort(values)) for values in (ce, sfr))
    n = len(x)
    if math.factorial(n) <= 50_000:
        orders = np.array(list(itertools.permutations(range(n))))
    else:
        rng = np.random.default_rng(0)
        orders = np.array([rng.permutation(n) for _ in range(10_000)])
    return float(((x[orders] * y).sum(1) <= (x * y).sum()).mean())


def table5(runs: list[Run]) -> pd.DataFrame:
    """Training configurations, here and in the paper; what published SAEs were trained with is not
    known.
    """
    rows = []
    elsewhere = any(run.hook != "residual" for run in runs)
    for run in runs:
        s = run.sae
        if s is None:
            continue
        trained = [name for name in s.train_on if name not in run.published]
        row: Record = {
            "model": run.label,
            "layer": run.layer,
            "d_sae": s.d_sae,
            "k": s.k,
            "lr": s.lr if trained else None,
            "sequence_length": run.sequence_length,
            "tokens": s.tokens if trained else None,
            "seeds": ", ".join(map(str, s.seeds)),
            "recipe": s.recipe if trained else None,
            "corpora": ", ".join(trained) if trained else None,
        }
        if run.published:
            row["published"] = ", ".join(run.published)
        if elsewhere:
            row["hook"] = run.hook
        rows.append(row)
    table = beside(rows, runs, exhibits()["table5"].numbers)
    return table.assign(
        lr=table.lr.map(lambda lr: f"{lr:g}", na_action="ignore"),
        tokens=table.tokens.astype("Int64"),
    )


def probing_scores(runs: list[Run]) -> pd.DataFrame:
    """Accuracy, F1 and AUC by model, task, representation and corpus (None where there is no SAE),
    means over seeds with half of their intervals.
    """
    keys = ["run", "model", "task", "representation", "corpus"]
    rows = []
    for run in measured(runs, "probing"):
        probes = read_rows(run, "probing")[["task", "representation"]].drop_duplicates()
        for task, kind in probes.itertuples(index=False, name=None):
            found = {score: probe_estimates(run, task, kind, score) for score in SCORES}
            for corpus in found["accuracy"]:
                which = (run.name, run.label, task, kind, corpus or None)
                row: Record = dict(zip(keys, which, strict=True))
                for score, estimates in found.items():
                    row |= cell(score, estimates[corpus])
                rows.append(row)
    halves = [f"{score}{HALF}" for score in SCORES]
    return pd.DataFrame(rows, columns=[*keys, *SCORES, *halves])


def table6(runs: list[Run]) -> pd.DataFrame:
    """Probing accuracy on the reconstruction, one row per model and task, as in the paper's
    appendix C.1, beside what is read without any SAE; then the area under the ROC curve (mean over
    seeds), which does not depend on where a probe cuts.
    """
    paper = {
        (model, role): {
            "model": paper_models()[model],
            "source": "paper",
            "task": ROLE_NAMES[role],
            **values,
        }
        for model, tasks in exhibits()["table6"].numbers.items()
        for role, values in tasks.items()
    }
    rows = []
    shown = set()
    for run in measured(runs, "probing"):
        columns = _web_columns(run)
        for name, task in run.tasks.items():
            row: Record = {
                "model": run.label,
                "source": "here",
                "task": name,
                "plays": ROLE_NAMES.get(task.role or "", ""),
                **guesses(run, name),
            }
            for score, suffix in (("accuracy", ""), ("auc", ", AUC")):
                for kind in ("likelihood", "baseline"):
                    (without,) = probe_estimates(run, name, kind, score).values()
                    row |= cell(f"{kind}{suffix}", without)
                of_saes = probe_estimates(run, name, "reconstruction", score)
                row |= _cells(run, columns, of_saes, suffix)
            rows.append(row)
            counterpart = (run.beside or "", task.role or "")
            if counterpart in paper:
                rows.append(paper[counterpart])
                shown.add(counterpart)
    rows += [row for key, row in paper.items() if key not in shown]
    return _baselines_last(pd.DataFrame(rows))


def fidelity(run: Run) -> pd.DataFrame:
    """Every measure of fidelity, with BOS and without, by what SAEs were trained and are evaluated
    on: mean over seeds, with half of the interval; and the model without an SAE.
    """
    measured_rows = read_rows(run, "fidelity")
    counts = [name for name in ("tokens", "massive") if name in measured_rows]
    given = [*counts, "ce", "ce_zero", "ce_mean"]
    keys = ["trained_on", "evaluated_on", "include_bos"]
    without_sae = measured_rows.groupby(keys, sort=False)[given].agg("first")
    rows = []
    for include_bos in (True, False):
        cells = fidelity_cells(run, include_bos=include_bos)
        for pair, found in cells["ce_diff"].items():
            which = (*pair, include_bos)
            row: Record = dict(zip(keys, which, strict=True))
            row |= {"seeds": found.seeds, **without_sae.loc[which].to_dict()}
            for measure, estimates in cells.items():
                row |= cell(measure, estimates[pair])
            rows.append(row)
    return pd.DataFrame(rows).astype(dict.fromkeys(counts, "int64"))


def table7(runs: list[Run]) -> pd.DataFrame:
    """FFR in percent: by the paper's definition (activation > 0 on uniform ids), on ids alone that
    the model's own text has, and by the authors' code (activation > 1).
    """
    rows = []
    for run in measured(runs, "ffr"):
        assert run.sae
        columns = _web_columns(run)
        row: Record = {"model": run.label, "seeds": len(run.sae.seeds)}
        for suffix, column in (
            ("", "ffr"),
            (", ids that occur", "ffr_occurring"),
            (", activation > 1", "ffr_authors"),
        ):
            row |= _cells(run, columns, ffr_estimates(run, column), suffix)
        rows.append(row)
    return _whole(_baselines_last(beside(rows, runs, exhibits()["table7"].numbers)))
