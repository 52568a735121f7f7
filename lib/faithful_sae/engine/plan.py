"""What the Snakefile needs to know: which files each notebook reads and writes for a run, and the
checks before any work.
"""

import argparse
import json
from pathlib import Path

from faithful_sae.files import ROOT, file_hash, remove
from faithful_sae.lm.architectures import sizes_of
from faithful_sae.paper.exhibits import notebook_exhibits, unmeasured
from faithful_sae.runs.params import made_with
from faithful_sae.runs.schema import (
    EMBEDDED_ROWS,
    MODEL_STAGES,
    PAPER_STAGES,
    PROFILE_STAGE,
    ROWS,
    ParamsError,
    model_stages,
    stage_corpora,
    stage_settings,
)
from faithful_sae.stages.corpus import (
    context_problems,
    documentation_path,
    hub_of,
    hub_source_problems,
    source_problems,
)
from faithful_sae.text import documentation, hub


def rows_file(run, name) -> str:
    return str(run.artifacts / "rows" / f"{name}.csv")


def stage_exhibits(run, stage) -> list[str]:
    """Paths of the exhibits a notebook writes for a run."""
    return [
        str(run.figures / name)
        for exhibit in notebook_exhibits(run, stage)
        for name in exhibit.files(run.name)
    ]


def stages(runs) -> list[str]:
    """The notebooks that run once per language model, for one of the models at least."""
    return [stage for stage in MODEL_STAGES if any(stage in model_stages(run) for run in runs)]


def stage_outputs(runs, stage) -> list[str]:
    """What a notebook writes for a run, with Snakemake's wildcard {run} in the run's place: rows,
    then exhibits.

    The embedded models' own rows and figure are outputs only where all models are embedded: a rule
    has one list of outputs.
    """
    embedded = all(run.embedded for run in runs)
    run = next(run for run in runs if stage in model_stages(run))
    rows = ROWS[stage] + ((EMBEDDED_ROWS,) if embedded and stage == "01_generate_faithful" else ())
    shown = [e for e in notebook_exhibits(run, stage) if embedded or e.id != "lm_training"]
    return [str(run.artifacts.parent / "{run}" / "rows" / f"{name}.csv") for name in rows] + [
        str(run.figures / name) for exhibit in shown for name in exhibit.files("{run}")
    ]


def trained_file(run, corpus) -> str:
    """What stands for the SAEs of a corpus in the workflow: a file with their hash."""
    return str(run.artifacts / "trained" / f"{corpus}.txt")


def corpus_inputs(run, corpus) -> list[str]:
    """Data that training on one corpus reads: a local or extracted file, the text of this or
    another run; the files of SAEs of a folder.
    """
    source = run.corpora[corpus]
    published = run.published.get(corpus)
    files = [str(run.resolve(source.path))] if source.path else []
    files += [str(documentation_path(run, *entry)) for entry in _sources(run, [source], [])]
    if published and published.path:
        folders = [run.resolve(published.of(seed).path) for seed in run.sae.seeds]
        files += sorted(
            str(file) for folder in folders for file in folder.iterdir() if file.is_file()
        )
    writers = {run.name if source.faithful == "self" else source.faithful} - {None} | (
        {run.name} if run.embedded else set()
    )
    return files + [
        str(run.artifacts.parent / name / "rows" / "dataset.csv") for name in sorted(writers)
    ]


def corpus_settings(run, corpus) -> str:
    """The parameters that training on one corpus depends on, as text."""
    record = stage_settings(run, "02_train_sae")
    del record["label"], record["sae"]["train_on"]
    record["sae"]["published"] = (record["sae"]["published"] or {}).get(corpus)
    return json.dumps(record | {"corpora": record["corpora"][corpus]}, sort_keys=True)


def run_outputs(runs, wanted=MODEL_STAGES, some=None) -> list[str]:
    """Everything the `wanted` notebooks write for all runs of a profile, or for `some` of them."""
    return [
        path.replace("{run}", run.name)
        for run in some or runs
        for stage in model_stages(run)
        if stage in wanted
        for path in stage_outputs(runs, stage)
    ]


def paper_inputs(runs, some=None) -> list[str]:
    """What the profile's one notebook gathers: the outputs of all that the paper's tables and
    figures are made of.
    """
    indices = [
        rows_file(run, "features") for run in some or runs if run.sae and run.features
    ]  # 07 links to single features
    return run_outputs(runs, PAPER_STAGES, some) + indices


def profile_outputs(runs, some=None) -> list[str]:
    """Everything `make paper` makes, of all runs or of `some`."""
    return run_outputs(runs, some=some) + stage_exhibits(runs[0], PROFILE_STAGE)


def chosen(runs, names) -> list:
    """The runs called one of `names`, a text with spaces between them; all of them without one.

    Raises:
        ParamsError: a name that no run has.
    """
    by_name = {run.name: run for run in runs}
    for name in (names := str(names or "").split()):
        if name not in by_name:
            raise ParamsError(
                f"MODELS: {name!r} is not in {runs[0].file.parent}, which has {', '.join(by_name)}"
            )
    return [by_name[name] for name in dict.fromkeys(names)] or runs


def with_sources(runs, wanted) -> list:
    """The wanted runs and those whose text they use."""
    names = {run.name for run in wanted} | {
        corpus.faithful for run in wanted for corpus in run.corpora.values()
    }
    return [run for run in runs if run.name in names]


def stage_inputs(run, stage) -> list[str]:
    """Data a notebook reads: earlier notebooks' rows (this run's, and of runs whose text it uses),
    local files, documentation.
    """
    corpora = [run.corpora[name] for name in stage_corpora(run, stage)]
    tasks = list(run.tasks.values()) if stage == "06_probing" else []
    files = [
        str(run.resolve(path))
        for path in [
            *(c.path for c in corpora),
            *(t.train for t in tasks),
            *(t.test for t in tasks),
        ]
        if path
    ]
    files += [str(documentation_path(run, *source)) for source in _sources(run, corpora, tasks)]
    if stage == "01_generate_faithful" and (folder := run.model_folder):
        files += sorted(str(f) for f in folder.iterdir() if f.is_file())
    if stage == "02_train_sae":
        files += [trained_file(run, name) for name in run.sae.train_on]
    if stage in ("02_train_sae", "08_seed_dependence"):
        files.append(rows_file(run, "dataset"))
    elif stage != "01_generate_faithful":
        files.append(rows_file(run, "saes"))
    if stage == "09_explore_features":
        files += [rows_file(run, "sfr"), rows_file(run, "matching"), rows_file(run, "firing")]
    siblings = {c.faithful for c in corpora if c.faithful} - {"self"}
    return files + [
        str(run.artifacts.parent / name / "rows" / "dataset.csv") for name in sorted(siblings)
    ]


def text_marks(run, stage, workers) -> list[str]:
    """Marks of the workers that notebook 01 waits for: none with one, which is the notebook itself."""
    return _marks(run, "text", workers) if stage == "01_generate_faithful" else []


def activation_marks(run, corpus, workers) -> list[str]:
    """Marks of the workers that training on a corpus waits for, where its activations are kept."""
    return (
        _marks(run, f"activations:{corpus}", workers)
        if run.sae.cache_activations and corpus not in run.published
        else []
    )


def _marks(run, what, workers):
    return [
        str(run.artifacts / "workers" / what / f"{i}of{workers}")
        for i in range(workers)
        if workers > 1
    ]


def share_inputs(run, corpus=None) -> list[str]:
    """Data that a worker reads: what training on the corpus does, or, for a share of the text,
    notebook 01.
    """
    return corpus_inputs(run, corpus) if corpus else stage_inputs(run, "01_generate_faithful")


def share_settings(run, corpus=None) -> str:
    """The parameters that a worker's share depends on, as text."""
    return corpus_settings(run, corpus) if corpus else settings(run, "01_generate_faithful")


def settings(run, stage) -> str:
    """The parameters a notebook depends on, as text: Snakemake reruns the notebook when it changes.

    Those of earlier notebooks are among them: Snakemake does not see that a file was made with
    other parameters if it is the same.
    """
    return json.dumps([stage_settings(run, stage), made_with(run, stage)], sort_keys=True)


# --- documentation --------------------------------------------------------------------------------


def documentation_files(runs) -> dict[str, list]:
    """{file: [kind, packages, size]} of all that has to be extracted from installed
    packages.
    """
    sources = [
        source for run in runs for source in _sources(run, run.corpora.values(), run.tasks.values())
    ]
    return {str(documentation_path(runs[0], *source)): source for source in sources}


def _sources(run, corpora, tasks):
    return [[c.documentation, c.packages, c.max_characters] for c in corpora if c.documentation] + [
        [t.documentation, t.packages, run.probing.max_train + run.probing.max_test]
        for t in tasks
        if t.documentation
    ]


def make_documentation(kind, packages, size, path):
    """Extract one corpus or labelled task; the notebooks of several models read the same file."""
    documentation.write(kind, packages, size, Path(path))
    print(
        f"  ✓ {kind} of {', '.join(packages) or 'the language reference'}, "
        f"{Path(path).stat().st_size / 1e6:.1f} MB",
        flush=True,
    )


# --- before any work ------------------------------------------------------------------------------


def problems(runs):
    """Find what would fail later, a line each: a local model folder without config, weights or
    tokenizer; a layer or length beyond the model's; a local corpus or task file that cannot be
    read, is empty, is not UTF-8 or lacks its key; a published SAE in a folder that is none, is
    damaged, or is not of the run's model, layer, d_sae or k; results of another folder's in the
    way.
    """
    for run in runs:
        if folder := run.model_folder:
            files = [file.name for file in folder.iterdir()]
            yield from _model_problems(run, files, folder / "config.json", folder)
        yield from source_problems(run)
        yield from _published_problems(
            run, folder and folder / "config.json", lambda entry: entry.path
        )
    owner = ROOT / "artifacts" / runs[0].profile / "profile.txt"
    folder = str(runs[0].file.parent)
    if owner.exists() and (other := owner.read_text(encoding="utf-8").strip()) != folder:
        yield (
            f"{folder}: artifacts/{runs[0].profile} holds the results of {other}: rename the "
            "folder, or `make clean "
            f"PARAMS={other}` first"
        )


def hub_problems(runs):
    """The same for what is read from the Hub: all of it is looked up, held to the commits found,
    and begun. A line for each model, dataset or SAE that is gated, renamed or missing, of another
    revision, without parquet files or the columns asked for, or that cannot be reached, and for an
    SAE as in `problems`.
    """
    for run in runs:
        config = run.model_folder and run.model_folder / "config.json"
        if elsewhere := not run.embedded and not run.model_folder:
            try:
                at = hub_of(run).commit("model", run.model, run.revision)
                config = hub.fetch("model", run.model, at, "config.json")
                yield from _model_problems(
                    run, hub.repository_files("model", run.model, at), config, f"its files at {at}"
                )
            except hub.HubError as error:
                yield f"{run.file}: model: {error}"
        yield from hub_source_problems(run)
        yield from _published_problems(run, config, lambda entry: entry.hub or elsewhere)


def refuse(problems):
    """Stop where there are any.

    Raises:
        ParamsError: all of them, a line each.
    """
    if problems := list(dict.fromkeys(problems)):
        raise ParamsError("\n  ".join(problems))


def take_possession(runs):
    """Under the profile's lock: note whose results these are, clear what killed runs left, and
    forget rows whose artefacts are gone or damaged, so that they are made again, and exhibits that
    say that other things are missing than are.
    """
    folder = ROOT / "artifacts" / runs[0].profile
    (folder / "profile.txt").write_text(f"{runs[0].file.parent}\n", encoding="utf-8")
    for leftover in folder.rglob(".*.tmp"):
        remove(leftover)
    for run in runs:
        _forget_damaged(run)
    listed = runs[0].figures / "missing.csv"
    if listed.exists() and listed.read_text(encoding="utf-8") != unmeasured(runs).to_csv(
        index=False, lineterminator="\n"
    ):
        listed.unlink()


def _published_problems(run, config, chosen):
    """Of the published SAEs of the corpora whose entry is `chosen`. config: the model's, where
    there is one already.
    """
    try:
        config = json.loads(config.read_text(encoding="utf-8")) if config else {}
    except (OSError, ValueError):
        return  # said of the model
    width = run.embedded.d_model if run.embedded else sizes_of(config).d_model
    for name in [name for name, entry in run.published.items() if chosen(entry)]:
        from faithful_sae.sae.published import (
            SAEError,
            load_published,
        )  # with torch, for which nobody else waits

        try:
            load_published(run, name, width)
        except (SAEError, hub.HubError) as error:
            yield f"{run.file}: sae.published.{name}: {error}"


def _model_problems(run, files, config, where):
    found = []

    def need(ok, key, why):
        if not ok:
            found.append(f"{run.file}: {key} {why}")

    try:
        config = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{run.file}: model = {run.model!r}: no readable config.json in {where} ({error})"]
    need(
        any(file.endswith(".safetensors") for file in files),
        "model",
        f"= {run.model!r}: no *.safetensors weights in {where}",
    )
    need(
        {"tokenizer.json", "tokenizer_config.json"} & set(files),
        "model",
        f"= {run.model!r}: no tokenizer in {where}: copy tokenizer.json and tokenizer_config.json "
        "beside config.json",
    )
    sizes = sizes_of(config)
    layers = sizes.layers
    need(
        layers is None or run.layer < layers,
        "layer",
        f"= {run.layer} is out of range: {run.model} has blocks 0 to {(layers or 0) - 1}",
    )
    swept = max(run.seed_dependence.layers, default=0) if run.seed_dependence else 0
    need(
        layers is None or swept < layers,
        "seed_dependence.layers",
        f"holds {swept}: {run.model} has blocks 0 to {(layers or 0) - 1}",
    )
    if sizes.context is not None:
        found += [f"{run.file}: {why}" for why in context_problems(run, sizes.context)]
    return found


def _forget_damaged(run):
    saes = {name: run.artifacts / "saes" / name for name in (run.sae.train_on if run.sae else ())}
    folders = {
        rows_file(run, "dataset"): [run.artifacts / "faithful"]
        + ([run.artifacts / "lm"] if run.embedded else [])
    }
    # of 02 too: Snakemake does not make again what only lies between things that are there
    folders |= {trained_file(run, name): [folder] for name, folder in saes.items()} | {
        rows_file(run, "saes"): list(saes.values())
    }
    if run.seed_dependence:
        folders[rows_file(run, "seed_saes")] = [
            run.artifacts / "seed_saes" / f"layer{layer}"
            for layer in {run.layer, *run.seed_dependence.layers}
        ]
    if run.features:
        folders[rows_file(run, "features")] = [
            run.artifacts / "features" / run.features.corpus / f"seed{seed}"
            for seed in run.features.seeds
        ]
    for made, artefacts in folders.items():
        if not all(map(_whole, artefacts)):
            Path(made).unlink(missing_ok=True)


def _whole(folder):
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))[
            "content"
        ] == file_hash(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main():
    parser = argparse.ArgumentParser(
        description="Extract one corpus or task from the documentation of installed packages."
    )
    parser.add_argument("source", help="JSON list: kind, packages, size")
    parser.add_argument("output")
    args = parser.parse_args()
    make_documentation(*json.loads(args.source), args.output)


if __name__ == "__main__":
    main()
