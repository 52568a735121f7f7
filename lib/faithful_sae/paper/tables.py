"""Rows of a profile's runs -> the paper's tables, each measured row with the paper's own beside it.

Columns are the paper's corpora; which corpus of a run plays which role its YAML says (and the
exhibit `corpora` shows). A trained corpus without a role gets a column of its own in Tables 4 and
7. `source` is `here` or `paper`. A run whose rows have not been made, or with other parameters, is
left out: `exhibits.unmeasured` names it.
"""

from collections.abc import Collection
from typing import Any

import pandas as pd

from faithful_sae.runs.catalogue import exhibits, paper_models
from faithful_sae.runs.rows import measured, read_rows
from faithful_sae.runs.schema import ROLES, Corpus, Run

WEB = ("pile", "faithful", "fineweb")
TASKS = ("sst2", "cola", "yelp")  # of Table 6
INSTRUCTION = ("faithful", "alpaca", "open-instruct", "flan")
ROLE_NAMES = {
    "faithful": "Faithful",
    "faithful-other": "Faithful, other model's",
    "pile": "Pile",
    "fineweb": "FineWeb",
    "openwebtext": "OpenWebText",
    "tinystories": "TinyStories",
    "alpaca": "Alpaca",
    "open-instruct": "Open-Instruct",
    "flan": "FLAN",
    "sst2": "SST-2",
    "cola": "CoLA",
    "yelp": "Yelp",
    "agnews": "AG News",
}
Record = dict[str, Any]  # a row of a table


def gather(runs: list[Run], name: str) -> pd.DataFrame | None:
    """rows/<name>.csv of all runs that have them in one DataFrame, with columns run and model
    behind; None if no run has.
    """
    parts = [
        read_rows(run, name).assign(run=run.name, model=run.label) for run in measured(runs, name)
    ]
    return pd.concat(parts, ignore_index=True) if parts else None


def heading(run: Run, corpus: str) -> str:
    """How a corpus is called in tables and figures: the role it plays, with its own name where that
    says more.
    """
    role = run.corpora[corpus].role
    if role is None:
        return corpus
    return ROLE_NAMES[role] if role.startswith("faithful") else f"{corpus} ({ROLE_NAMES[role]})"


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
        for name, corpus in run.corpora.items():
            row: Record = {
                "model": run.label,
                "name": name,
                "plays": ROLE_NAMES.get(corpus.role or "", ""),
                "text": text_of(run, corpus),
                "training tokens": pd.NA,
                "passes": pd.NA,
            }
            if name in used:
                row |= used[name]
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
    """Held-out cross-entropy of each embedded model beside its 5-gram's (empty for models that come
    ready-made, and before 01).
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
        "first_token_coverage",
        "kl",
        "missing_mass",
    ]
    records = [] if rows is None else rows.loc[:, kept].to_dict("records")
    return beside(records, runs, exhibits()["table1"].numbers)


def sfr_values(runs: list[Run], column: str = "sfr") -> dict[str, dict[str, float]]:
    """{run name: {role or corpus name: SFR}}, averaged over the pairs of seeds."""
    return _means(runs, "sfr", column)


def ffr_values(runs: list[Run], column: str = "ffr") -> dict[str, dict[str, float]]:
    """{run name: {role or corpus name: FFR in percent}}, averaged over seeds (paper 4)."""
    return _means(runs, "ffr", column)


def _means(runs, name, column):
    means = {}
    for run in measured(runs, name):
        rows = read_rows(run, name).groupby("corpus", sort=False)
        means[run.name] = _by_role(run, rows[column].mean())
    return means


def _by_role(run, values):
    return {_column(run, corpus): float(value) for corpus, value in values.items()}


def _column(run, corpus):
    """A corpus's column: its role, or without one its name, which may be that of a role it does not
    play.
    """
    return run.corpora[corpus].role or (f"{corpus} (no role)" if corpus in ROLES else corpus)


def columns_without_role(runs: list[Run]) -> set[str]:
    """Columns of corpora with SAEs that play no role of the paper's."""
    return {
        _column(run, name)
        for run in runs
        for name, corpus in sae_corpora(run).items()
        if corpus.role is None
    }


def sfr_table(runs: list[Run], table_id: str, roles: Collection[str]) -> pd.DataFrame:
    """Tables 2 and 4: SFR by role, then over latents alive in both SAEs, and the share of dead
    latents.

    Args:
        table_id: of Table 2, or of Table 4, which shows corpora without a role as well.
        roles: the columns.
    """
    variants = {
        "": "sfr",
        ", alive": "sfr_alive",
        ", dead share": "dead",
        ", > instead of >=": "sfr_strict",
        ", encoder+decoder": "sfr_encoder_decoder",
    }
    values = {suffix: sfr_values(runs, column) for suffix, column in variants.items()}
    rows = []
    for run in measured(runs, "sfr"):
        shown = {*roles, *(columns_without_role([run]) if table_id == "table4" else ())}
        own = [role for role in values[""][run.name] if role in shown]
        if own:
            row = {"model": run.label}
            for suffix, of in values.items():
                row |= {f"{role}{suffix}": of[run.name][role] for role in own}
            rows.append(row)
    return beside(rows, runs, exhibits()[table_id].numbers)


def table3(runs: list[Run]) -> pd.DataFrame:
    """SFR by target model and source of its faithful text."""
    rows = []
    labels = {run.name: run.label for run in runs}
    sfr = sfr_values(runs)
    for run in measured(runs, "sfr"):
        for corpus in sae_corpora(run).values():
            if corpus.faithful and corpus.role in sfr[run.name]:
                source = run.label if corpus.faithful == "self" else labels[corpus.faithful]
                rows.append((run.label, source, "here", sfr[run.name][corpus.role]))
    paper = exhibits()["table3"]
    for key, values in paper.numbers.items():
        for role, value in values.items():
            source = key if role == "faithful" else paper.other_model[key]
            rows.append((paper_models()[key], paper_models()[source], "paper", value))
    return pd.DataFrame(rows, columns=["target", "text from", "source", "sfr"])


def table5(runs: list[Run]) -> pd.DataFrame:
    """Training configurations, here and in the paper; what published SAEs were trained with is not
    known.
    """
    rows = []
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
        rows.append(row)
    table = beside(rows, runs, exhibits()["table5"].numbers)
    return table.assign(
        lr=table.lr.map(lambda lr: f"{lr:g}", na_action="ignore"),
        tokens=table.tokens.astype("Int64"),
    )


def probing_means(runs: list[Run]) -> pd.DataFrame:
    """Accuracy and F1 by model, task, representation and corpus (heading), averaged over seeds."""
    rows = gather(runs, "probing")
    keys = ["run", "model", "task", "representation", "corpus"]
    if rows is None:
        return pd.DataFrame(columns=[*keys, "accuracy", "f1"])
    means = rows.groupby(keys, sort=False, dropna=False)[["accuracy", "f1"]].agg("mean")
    return means.reset_index()


def probing_figure_data(runs: list[Run]) -> pd.DataFrame:
    """Figure 6's data: the probing means of the paper's representations and of the web corpora (or,
    without roles, of all), tasks and corpora by their headings.
    """
    means = probing_means(runs)
    parts = [means.head(0)]
    for run in measured(runs, "probing"):
        shown = {
            name: heading(run, name)
            for name, corpus in sae_corpora(run).items()
            if corpus.role in (*WEB, None)
        }
        titles = {
            name: f"{name} ({ROLE_NAMES[task.role]})" if task.role else name
            for name, task in run.tasks.items()
        }
        here = means.corpus.isna() | means.corpus.isin(shown)
        ours = means.representation == "likelihood"
        part = means.loc[(means.run == run.name) & here & ~ours]
        parts.append(part.assign(corpus=part.corpus.map(shown), task=part.task.map(titles)))
    return pd.concat(parts, ignore_index=True)


def table6(runs: list[Run]) -> pd.DataFrame:
    """Probing accuracy on the reconstruction, one row per model and task, as in the paper's
    appendix C.1.
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
    means = probing_means(runs)
    rows = []
    shown = set()
    for run in measured(runs, "probing"):
        columns = {*WEB, *columns_without_role([run])}
        for name, task in run.tasks.items():
            part = means.loc[(means.run == run.name) & (means.task == name)]
            baseline = part.loc[part.representation == "baseline", "accuracy"]
            reconstruction = part.loc[part.representation == "reconstruction"]
            accuracy = _by_role(run, reconstruction.set_index("corpus").accuracy)
            rows.append(
                {
                    "model": run.label,
                    "source": "here",
                    "task": name,
                    "plays": ROLE_NAMES.get(task.role or "", ""),
                    "baseline": baseline.iloc[0],
                    **{role: value for role, value in accuracy.items() if role in columns},
                }
            )
            counterpart = (run.beside or "", task.role or "")
            if counterpart in paper:
                rows.append(paper[counterpart])
                shown.add(counterpart)
    rows += [row for key, row in paper.items() if key not in shown]
    return pd.DataFrame(rows)


def table7(runs: list[Run]) -> pd.DataFrame:
    """FFR in percent, by the paper's definition (activation > 0) and the authors' code's (> 1)."""
    ffr = ffr_values(runs)
    authors = ffr_values(runs, "ffr_authors")
    rows = []
    for run in measured(runs, "ffr"):
        columns = {*WEB, *columns_without_role([run])}
        own = [role for role in ffr[run.name] if role in columns]
        rows.append(
            {"model": run.label}
            | {role: ffr[run.name][role] for role in own}
            | {f"{role}, activation > 1": authors[run.name][role] for role in own}
        )
    return beside(rows, runs, exhibits()["table7"].numbers)


def bars_data(table: pd.DataFrame, roles: Collection[str]) -> pd.DataFrame:
    """A table of SFR by role in long form, for the bar figures: model, source, corpus, sfr."""
    columns = [column for column in table.columns if column in roles]
    long = table.melt(["model", "source"], columns, "corpus", "sfr").dropna(subset="sfr")
    return long.assign(corpus=long.corpus.map(lambda role: ROLE_NAMES.get(role, role)))
