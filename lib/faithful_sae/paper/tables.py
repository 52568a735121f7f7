"""Rows of a profile's runs -> the paper's tables, each measured row with the paper's own beside it.

Columns are the paper's corpora; which corpus of a run plays which role its YAML says (and the
exhibit `corpora` shows). A trained corpus without a role gets a column of its own in Tables 4 and
7. `source` is `here` or `paper`. A run whose rows have not been made, or with other parameters, is
left out: `exhibits.unmeasured` names it.
"""

import pandas as pd

from faithful_sae.runs.catalogue import exhibits, paper_models
from faithful_sae.runs.rows import measured, read_rows
from faithful_sae.runs.schema import ROLES

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


def gather(runs, name, notebook):
    """rows/<name>.csv of all runs that have them in one DataFrame, with columns run and model
    behind; None if no run has.
    """
    parts = [
        read_rows(run, name, notebook).assign(run=run.name, model=run.label)
        for run in measured(runs, name)
    ]
    return pd.concat(parts, ignore_index=True) if parts else None


def heading(run, corpus) -> str:
    """How a corpus is called in tables and figures: the role it plays, with its own name where that
    says more.
    """
    role = run.corpora[corpus].role
    if role is None:
        return corpus
    return ROLE_NAMES[role] if role.startswith("faithful") else f"{corpus} ({ROLE_NAMES[role]})"


def beside(rows, runs, numbers):
    """Put the paper's rows under those measured here: each run's counterpart directly below it,
    then the others.
    """
    here = [row | {"source": "here"} for row in rows]
    paper = {
        key: {"model": paper_models()[key], "source": "paper", **values}
        for key, values in numbers.items()
    }
    ordered = []
    run_of = {run.label: run for run in runs}
    for row in here:
        ordered.append(row)
        counterpart = run_of[row["model"]].beside
        if counterpart in paper:
            ordered.append(paper.pop(counterpart))
    table = pd.DataFrame(ordered + list(paper.values()))
    first = ["model", "source"]
    return table[first + [c for c in table.columns if c not in first]]


def corpora_table(runs):
    """Which corpus and which task of each run plays which role of the paper, and how much of it
    there is.
    """
    rows = []
    for run in runs:
        trained = (
            read_rows(run, "saes", "02_train_sae").drop_duplicates("corpus").set_index("corpus")
            if measured([run], "saes")
            else None
        )
        known = (
            trained.index.difference(run.published) if trained is not None else ()
        )  # what published SAEs were trained on, nobody here can say
        for name, corpus in run.corpora.items():
            text = (
                f"text of {run.label if corpus.faithful == 'self' else corpus.faithful}"
                if corpus.faithful
                else corpus.path
                or corpus.hub
                or f"{corpus.documentation} of "
                f"{', '.join(corpus.packages) or 'the standard library'}"
            )
            used = trained.loc[name] if trained is not None and name in trained.index else None
            rows.append(
                {
                    "model": run.label,
                    "name": name,
                    "plays": ROLE_NAMES.get(corpus.role, ""),
                    "text": text,
                    "training tokens": int(used.distinct_tokens) if name in known else pd.NA,
                    "passes": round(used.passes, 2) if name in known else pd.NA,
                    **(
                        {"SAEs from": "/".join(filter(None, (e.path, e.hub, e.folder)))}
                        if (e := run.published.get(name))
                        else {}
                    ),
                }
            )
        rows += [
            {
                "model": run.label,
                "name": name,
                "plays": ROLE_NAMES.get(task.role, ""),
                "text": task.train
                or task.hub
                or f"{task.documentation} from {', '.join(task.packages)}",
            }
            for name, task in run.probing.tasks.items()
        ]
    return pd.DataFrame(rows)


def language_models(runs):
    """Held-out cross-entropy of each embedded model beside its 5-gram's (empty for models that come
    ready-made, and before 01).
    """
    rows = [
        read_rows(run, "language_model", "01_generate_faithful").assign(model=run.label)
        if measured([run], "language_model")
        else pd.DataFrame([{"model": run.label}])
        for run in runs
    ]
    table = pd.concat(rows, ignore_index=True)
    return table[["model", *[c for c in table.columns if c != "model"]]]


def table1(runs):
    """Coverage of the vocabulary and KL of the first token."""
    rows = gather(runs, "dataset", "01_generate_faithful")
    kept = [
        "model",
        "tokens",
        "vocab_size",
        "all_token_coverage",
        "first_token_coverage",
        "kl",
        "missing_mass",
    ]
    return beside(
        rows[kept].to_dict("records") if rows is not None else [],
        runs,
        exhibits()["table1"].numbers,
    )


def sfr_values(runs, column="sfr"):
    """{run name: {role or corpus name: SFR}}, averaged over the pairs of seeds."""
    return {
        run.name: _by_role(
            run, read_rows(run, "sfr", "03_sfr").groupby("corpus", sort=False)[column].mean()
        )
        for run in measured(runs, "sfr")
    }


def ffr_values(runs, column="ffr"):
    """{run name: {role or corpus name: FFR in percent}}, averaged over seeds (paper 4)."""
    return {
        run.name: _by_role(
            run, read_rows(run, "ffr", "04_ffr").groupby("corpus", sort=False)[column].mean()
        )
        for run in measured(runs, "ffr")
    }


def _by_role(run, values):
    return {_column(run, corpus): float(value) for corpus, value in values.items()}


def _column(run, corpus):
    """A corpus's column: its role, or without one its name, which may be that of a role it does not
    play.
    """
    return run.corpora[corpus].role or (f"{corpus} (no role)" if corpus in ROLES else corpus)


def columns_without_role(runs) -> set[str]:
    """Columns of trained corpora that play no role of the paper's."""
    return {
        _column(run, name)
        for run in runs
        for name in run.sae.train_on
        if run.corpora[name].role is None
    }


def _has_no_role(run, column):
    return column in columns_without_role([run])


def sfr_table(runs, table_id, roles):
    """Tables 2, 3 and 4: SFR by role, then over latents alive in both SAEs, and the share of dead
    latents.
    """
    sfr, alive, dead = sfr_values(runs), sfr_values(runs, "sfr_alive"), sfr_values(runs, "dead")
    strict, both = sfr_values(runs, "sfr_strict"), sfr_values(runs, "sfr_encoder_decoder")
    rows = []
    for run in measured(runs, "sfr"):
        own = [
            r
            for r in sfr[run.name]
            if r in roles or (table_id == "table4" and _has_no_role(run, r))
        ]
        if own:
            rows.append(
                {"model": run.label}
                | {r: sfr[run.name][r] for r in own}
                | {f"{r}, alive": alive[run.name][r] for r in own}
                | {f"{r}, dead share": dead[run.name][r] for r in own}
                | {f"{r}, > instead of >=": strict[run.name][r] for r in own}
                | {f"{r}, encoder+decoder": both[run.name][r] for r in own}
            )
    return beside(rows, runs, exhibits()[table_id].numbers)


def table3(runs):
    """SFR by target model and source of its faithful text."""
    rows = []
    sfr = sfr_values(runs)
    for run in measured(runs, "sfr"):
        values = sfr[run.name]
        sources = {
            run.corpora[name].role: run.corpora[name].faithful
            for name in run.sae.train_on
            if run.corpora[name].faithful
        }
        labels = {r.name: r.label for r in runs} | {"self": run.label}
        rows += [
            {
                "target": run.label,
                "text from": labels[source],
                "source": "here",
                "sfr": values[role],
            }
            for role, source in sources.items()
            if role in values
        ]
    other = {"pythia-1.4b": "pythia-2.8b", "pythia-2.8b": "pythia-1.4b"}
    for key, values in exhibits()["table3"].numbers.items():
        rows += [
            {
                "target": paper_models()[key],
                "text from": paper_models()[key if role == "faithful" else other[key]],
                "source": "paper",
                "sfr": value,
            }
            for role, value in values.items()
        ]
    return pd.DataFrame(rows)


def table5(runs):
    """Training configurations, here and in the paper."""
    rows = []
    for run in runs:
        s = run.sae
        trained = [name for name in run.sae.train_on if name not in run.published]
        ours = (
            {"lr": s.lr, "tokens": s.tokens, "recipe": s.recipe, "corpora": ", ".join(trained)}
            if trained
            else {}
        )  # no published SAE's
        rows.append(
            {
                "model": run.label,
                "layer": run.layer,
                "d_sae": s.d_sae,
                "k": s.k,
                "lr": None,
                "sequence_length": run.sequence_length,
                "tokens": None,
                "seeds": ", ".join(map(str, s.seeds)),
                "recipe": None,
                "corpora": None,
            }
            | ours
            | ({"published": ", ".join(run.published)} if run.published else {})
        )
    numbers = {
        key: values
        | {"tokens": 150_000_000 if key == "llama-8b" else 100_000_000, "seeds": "42, 49"}
        for key, values in exhibits()["table5"].numbers.items()
    }
    table = beside(rows, runs, numbers)
    return table.assign(
        lr=table.lr.map(lambda lr: f"{lr:g}", na_action="ignore"),
        tokens=table.tokens.astype("Int64"),
    )


def probing_means(runs):
    """Accuracy and F1 by model, task, representation and corpus (heading), averaged over seeds."""
    rows = gather(runs, "probing", "06_probing")
    keys = ["run", "model", "task", "representation", "corpus"]
    if rows is None:
        return pd.DataFrame(columns=[*keys, "accuracy", "f1"])
    return rows.groupby(keys, sort=False, dropna=False)[["accuracy", "f1"]].mean().reset_index()


def probing_figure_data(runs):
    """Figure 6's data: the probing means of the web corpora (or, without roles, of all), tasks and
    corpora by their headings.
    """
    means = probing_means(runs)
    parts = [means[:0]]
    for run in measured(runs, "probing"):
        part = means[means.run == run.name]
        shown = {
            name: heading(run, name)
            for name in run.sae.train_on
            if run.corpora[name].role in (*WEB, None)
        }
        part = part[part.corpus.isna() | part.corpus.isin(shown)]
        titles = {
            name: f"{name} ({ROLE_NAMES[task.role]})" if task.role else name
            for name, task in run.probing.tasks.items()
        }
        parts.append(part.assign(corpus=part.corpus.map(shown), task=part.task.map(titles)))
    return pd.concat(parts, ignore_index=True)


def table6(runs):
    """Probing accuracy on the reconstruction, one row per model and task, as in the paper's
    appendix C.1.
    """
    means = probing_means(runs)
    rows = []
    numbers = exhibits()["table6"].numbers
    runs = measured(runs, "probing")
    for run in runs:
        mine = means[means.run == run.name]
        for task, spec in run.probing.tasks.items():
            part = mine[mine.task == task]
            accuracy = part[part.representation == "reconstruction"].set_index("corpus").accuracy
            rows.append(
                {
                    "model": run.label,
                    "source": "here",
                    "task": task,
                    "plays": ROLE_NAMES.get(spec.role, ""),
                    "baseline": part[part.representation == "baseline"].accuracy.iloc[0],
                    **{
                        role: value
                        for role, value in _by_role(run, accuracy).items()
                        if role in WEB or _has_no_role(run, role)
                    },
                }
            )
            if spec.role in numbers.get(run.beside, {}):
                rows.append(
                    {
                        "model": paper_models()[run.beside],
                        "source": "paper",
                        "task": ROLE_NAMES[spec.role],
                        **numbers[run.beside][spec.role],
                    }
                )
    shown = {(run.beside, task.role) for run in runs for task in run.probing.tasks.values()}
    rows += [
        {"model": paper_models()[key], "source": "paper", "task": ROLE_NAMES[role], **values}
        for key, tasks in numbers.items()
        for role, values in tasks.items()
        if (key, role) not in shown
    ]
    return pd.DataFrame(rows)


def table7(runs):
    """FFR in percent; beside the paper's definition (activation > 0) the authors' code's (> 1.0)."""
    ffr, authors = ffr_values(runs), ffr_values(runs, "ffr_authors")
    rows = []
    for run in measured(runs, "ffr"):
        own = [r for r in ffr[run.name] if r in WEB or _has_no_role(run, r)]
        rows.append(
            {"model": run.label}
            | {r: ffr[run.name][r] for r in own}
            | {f"{r}, activation > 1": authors[run.name][r] for r in own}
        )
    return beside(rows, runs, exhibits()["table7"].numbers)


def bars_data(table, roles):
    """A table of SFR by role in long form, for the bar figures: model, source, corpus, sfr."""
    long = table.melt(
        ["model", "source"], [r for r in table.columns if r in roles], "corpus", "sfr"
    ).dropna(subset="sfr")
    return long.assign(corpus=long.corpus.map(lambda r: ROLE_NAMES.get(r, r)))
