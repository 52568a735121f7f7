"""Before any work: what of a profile would fail later, a line each, and whose the results are."""

import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from faithful_sae.engine.plan import corpus_inputs, stage_inputs
from faithful_sae.files import (
    ROOT,
    DiskFullError,
    atomic_path,
    from_root,
    is_current,
    read_json,
    remove,
)
from faithful_sae.lm.architectures import (
    ModelError,
    not_hooked,
    not_sampled,
    sizes_of,
    tokens_in,
    too_many_tokens,
)
from faithful_sae.paper.exhibits import unmeasured
from faithful_sae.runs.params import BRACES, read_profile, too_small
from faithful_sae.runs.registry import model_stages
from faithful_sae.runs.schema import Model, ParamsError, Run
from faithful_sae.stages.text import hub_source_problems, source_problems
from faithful_sae.text import hub


def first_problems(profile: str) -> Iterator[str]:
    """What can be said of a profile within a second or two: of its parameter files, then as
    `problems`, each as soon as it is found.
    """
    try:
        runs, found = read_profile(profile)
    except ParamsError as error:
        yield str(error)
        return
    yield from found
    if runs:
        yield from problems(runs)


def problems(runs: list[Run]) -> Iterator[str]:
    """Find what would fail later, a line each: a local model folder without config, weights or
    tokenizer, of an architecture that is not known or has no such hook, or whose tokenizer does not
    fit; a layer or length beyond the model's; a local corpus or task file that cannot be read, is
    empty, is not UTF-8 or lacks its key; a published SAE in a folder that is none, is damaged, or
    is not of the run's model, layer, d_sae or k; a file whose path has braces; results of another
    folder's in the way.
    """
    for run in runs:
        if run.gguf:
            # with transformers, for which nobody else waits
            from faithful_sae.stages.model import prepare_model

            try:
                prepare_model(run)
            except (ModelError, DiskFullError) as error:
                yield f"{run.file}: model: {error}"
                continue
        if folder := run.model_folder:
            files = [file.name for file in folder.iterdir()]
            yield from _model_problems(run, files, folder / "config.json", str(folder))
        yield from source_problems(run)
        config = folder and folder / "config.json"
        local = [name for name, entry in run.published.items() if entry.path]
        yield from _published_problems(run, config, local)
        for path in _inputs(run):
            if BRACES & set(path):
                why = "the workflow takes { and } for placeholders: rename it"
                yield f"{run.file}: {path}: {why}"
    yield from owner_problems(runs[0].file.parent)


def _inputs(run):
    """All that a run's steps read, sorted."""
    found = {path for stage in model_stages(run) for path in stage_inputs(run, stage)}
    trained = run.sae.train_on if run.sae else ()
    return sorted(found.union(*(corpus_inputs(run, name) for name in trained)))


def owner_problems(folder: Path) -> Iterator[str]:
    """Results of another folder's of parameter files, which would mix with those of this; not of
    one that is not there any more, which was renamed or moved.
    """
    note = ROOT / "artifacts" / folder.name / "profile.txt"
    other = (ROOT / note.read_text(encoding="utf-8").strip()).resolve() if note.exists() else folder
    if other != folder and other.is_dir():
        yield (
            f"{folder}: artifacts/{folder.name} holds the results of {other}: rename the folder, "
            f"or `make clean PARAMS={shlex.quote(str(other))}` first, which deletes them"
        )


def hub_problems(runs: list[Run]) -> Iterator[str]:
    """The same for what is read from the Hub: all of it is looked up, held to the commits found,
    and begun. A line for each model, dataset or SAE that is gated, renamed or missing, of another
    revision, without parquet files or the columns asked for, or that cannot be reached, and for an
    SAE as in `problems`.
    """
    for run in runs:
        config = run.model_folder and run.model_folder / "config.json"
        elsewhere = not run.embedded and not run.model_folder
        if elsewhere:
            try:
                at = run.hub.commit("model", run.model_name, run.revision)
                config = hub.fetch("model", run.model_name, at, "config.json")
                files = hub.repository_files("model", run.model_name, at)
                if "tokenizer.json" in files:
                    hub.fetch("model", run.model_name, at, "tokenizer.json")
                yield from _model_problems(run, files, config, f"its files at {at}")
            except hub.HubError as error:
                yield f"{run.file}: model: {error}"
        yield from hub_source_problems(run)
        names = [name for name, entry in run.published.items() if entry.hub or elsewhere]
        yield from _published_problems(run, config, names)


def refuse(problems: Iterable[str]) -> None:
    """Stop where there are any.

    Raises:
        ParamsError: all of them, a line each.
    """
    if lines := list(dict.fromkeys(problems)):
        raise ParamsError("\n  ".join(lines))


def take_possession(runs: list[Run]) -> None:
    """Under the profile's lock: note whose results these are, clear what killed runs left, and
    forget rows whose artefacts are gone or damaged, so that they are made again, and exhibits that
    say that other things are missing than are.
    """
    folder = ROOT / "artifacts" / runs[0].profile
    owner = from_root(runs[0].file.parent)
    with atomic_path(folder / "profile.txt") as tmp:
        tmp.write_text(f"{owner}\n", encoding="utf-8")
    for leftover in folder.rglob(".*.tmp"):
        remove(leftover)
    for run in runs:
        _forget_damaged(run)
    listed = runs[0].figures / "missing.csv"
    now = unmeasured(runs).to_csv(index=False, lineterminator="\n")
    if listed.exists() and listed.read_text(encoding="utf-8") != now:
        listed.unlink()


def _forget_damaged(run):
    for stage in model_stages(run):
        for artefact in stage.artefacts(run):
            if not is_current(artefact.folder):
                artefact.rows.unlink(missing_ok=True)


def _published_problems(run: Run, config: Path | None, names: list[str]) -> Iterator[str]:
    """Of the published SAEs of some corpora; `config` is the model's, where there is one."""
    try:
        record = read_json(config) if config else {}
    except (OSError, ValueError):
        return  # said of the model
    width, kind = sizes_of(record).d_model, record.get("model_type")
    if run.embedded:
        width, kind = run.embedded.d_model, run.embedded.architecture
    for name in names:
        # with torch, for which nobody else waits
        from faithful_sae.sae.sae import SAEError
        from faithful_sae.stages.published import load_published

        try:
            load_published(run, name, width, kind)
        except (SAEError, hub.HubError) as error:
            yield f"{run.file}: sae.published.{name}: {error}"


def _start_problems(run: Run, files: list[str], config: Path) -> list[str]:
    """What generate.start asks of a tokenizer that is known not to have it: that it says so itself.
    Anything else is found when it is loaded.
    """
    start = run.generate.start
    if start not in ("bos", "chat"):
        return []
    try:
        said = read_json(config.with_name("tokenizer_config.json"))
    except (OSError, ValueError):
        return []
    at = f"{run.file}: generate.start = {start!r}: the tokenizer of {run.model_name}"
    if start == "bos" and said.get("bos_token", "") is None:
        return [f"{at} has no BOS: write a token that its documents begin after"]
    # a template may stand in a file of its own
    if start == "chat" and "chat_template" not in said and "chat_template.jinja" not in files:
        return [f"{at} has no chat template: write a text that stands before an answer"]
    return []


def _model_problems(run: Run, files: list[str], config: Path, where: str) -> list[str]:
    try:
        record = read_json(config)
    except (OSError, ValueError) as error:
        why = f"no readable config.json in {where} ({error})"
        return [f"{run.file}: model = {run.model_name!r}: {why}"]
    found = []
    if why := not_sampled(record):
        found.append(f"{run.file}: model = {run.model_name!r}: {why}")
    study = run.architectures
    for hook in (run.hook, *([study.hook] if study and study.hook else [])):
        if why := not_hooked(record.get("model_type"), hook):
            found.append(f"{run.file}: {why}")
    if not any(file.endswith(".safetensors") for file in files):
        found.append(f"{run.file}: model = {run.model_name!r}: no *.safetensors weights in {where}")
    if not {"tokenizer.json", "tokenizer_config.json"} & set(files):
        found.append(
            f"{run.file}: model = {run.model_name!r}: no tokenizer in {where}: copy "
            "tokenizer.json and tokenizer_config.json beside config.json"
        )
    found += _start_problems(run, files, config)
    try:
        tokens = tokens_in(read_json(config.with_name("tokenizer.json")))
    except (OSError, ValueError, KeyError, TypeError):
        tokens = 0  # none, or one that only transformers can read
    if why := too_many_tokens(tokens, record.get("vocab_size")):
        found.append(f"{run.file}: model = {run.model_name!r}: {why}")
    sizes = sizes_of(record)
    return found + too_small(run, Model(run.model_name, sizes.layers, sizes.context))
