"""The texts of a run, wherever they come from: local files, the Hub, the documentation of installed
packages.

Nothing here waits for torch: the workflow asks for these texts before any work.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from faithful_sae.files import ROOT, digest, file_hash
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.schema import Run, Source
from faithful_sae.text import documentation, hub
from faithful_sae.text.read import CorpusError, File, draw_examples, read_files, read_records

# --- documentation --------------------------------------------------------------------------------


def documentation_path(run: Run, kind: str, packages: Sequence[str], size: int) -> Path:
    """Where the text made from installed packages is kept; the name changes with whatever it
    depends on.

    Args:
        run: any of the profile.
        kind: of documentation, or a task.
        packages: import names.
        size: characters, or examples of a task.
    """
    key = digest(
        [
            kind,
            list(packages),
            size,
            kind in documentation.TASKS,
            code_hash("text/documentation"),
            documentation.versions(packages),
        ]
    )
    return ROOT / "artifacts" / run.profile / "documentation" / f"{kind}-{key}.jsonl"


def documentation_file(run: Run, kind: str, packages: Sequence[str], size: int) -> Path:
    """The same file, made when it is missing."""
    path = documentation_path(run, kind, packages, size)
    if not path.exists():
        documentation.write(kind, packages, size, path)
    return path


# --- corpora --------------------------------------------------------------------------------------


def documents(run: Run, name: str) -> Iterator[str]:
    """Yield the texts of a corpus that is not generated, in its own order."""
    corpus = run.corpora[name]
    found = files(run, corpus, corpus.split)
    return (record[0] for record, _ in read_files(found, corpus.record_keys))


def text_hash(run: Run, name: str) -> str:
    """Hash of the text of a corpus that is not generated; of a Hub dataset, its id and commit."""
    corpus = run.corpora[name]
    if corpus.hub:
        return digest([corpus.hub, corpus.config, corpus.split, commit(run, corpus)])
    return file_hash(_local_file(run, corpus))


def files(run: Run, entry: Source, split: str | None) -> list[File]:
    """The files of a corpus or a task, in order.

    Args:
        run: that reads them.
        entry: not generated; a task is of the Hub.
        split: of a dataset of the Hub.
    """
    if not entry.hub:
        return [functools.partial(_local_file, run, entry)]
    assert entry.config and split, "params sees to it"
    at = commit(run, entry)
    names = run.hub.split_files(entry.hub, entry.revision, entry.config, split)
    return [functools.partial(hub.fetch, "dataset", entry.hub, at, name) for name in names]


def commit(run: Run, entry: Source) -> str:
    """Of a dataset of the Hub."""
    assert entry.hub
    return run.hub.commit("dataset", entry.hub, entry.revision)


def _local_file(run, corpus):
    if corpus.path:
        return run.resolve(corpus.path)
    return documentation_file(run, corpus.documentation, corpus.packages, corpus.max_characters)


# --- labelled text --------------------------------------------------------------------------------


def labelled(
    run: Run, name: str
) -> tuple[tuple[list[str], list], tuple[list[str], list], dict[str, str]]:
    """A probing task, shuffled with its seed and cut to max_train and max_test.

    Returns:
        (texts, labels) to train on, (texts, labels) to test on, and hashes of what was read.

    Raises:
        CorpusError: unreadable file, wrong key, or as draw_examples.
    """
    probing = run.probing
    assert probing, f"{run.file}: has no probing tasks"
    task = probing.tasks[name]
    rng = np.random.default_rng(probing.seed)
    limits = (probing.max_train, probing.max_test)
    if task.documentation:
        path = documentation_file(run, task.documentation, task.packages, sum(limits))
        records = list(read_records(path, task.record_keys))
        inputs = {"file": file_hash(path)}
        records = [records[i] for i in rng.permutation(len(records))]
        cut = round(len(records) * limits[0] / sum(limits))
        parts = [records[:cut], records[cut:]]
    elif task.train:
        paths = [run.resolve(task.train), run.resolve(task.test)]
        parts = [list(read_records(path, task.record_keys)) for path in paths]
        inputs = {path.name: file_hash(path) for path in paths}
    else:
        parts = []
        for split, limit in zip((task.train_split, task.test_split), limits, strict=True):
            records = read_files(files(run, task, split), task.record_keys)
            parts.append([record for record, _ in itertools.islice(records, limit * 2)])
        inputs = {"commit": commit(run, task)}
    train, test = draw_examples(parts, limits, rng, f"{run.file}: probing.tasks.{name}")
    return train, test, inputs


# --- before any work ------------------------------------------------------------------------------


def source_problems(run: Run) -> Iterator[str]:
    """Read the local files of a run once, before any work: a line for each that is not readable,
    UTF-8, with the keys asked for, not empty.
    """
    sources: list[tuple[str, str, Source]] = [
        (f"corpora.{name}.path", c.path, c) for name, c in run.corpora.items() if c.path
    ]
    for name, task in run.tasks.items():
        for part in ("train", "test"):
            if path := getattr(task, part):
                sources.append((f"probing.tasks.{name}.{part}", path, task))
    for key, path, entry in sources:
        try:
            for _ in read_records(run.resolve(path), entry.record_keys):
                pass
        except CorpusError as error:
            yield f"{run.file}: {key}: {error}"


def hub_source_problems(run: Run) -> Iterator[str]:
    """Find the Hub datasets of a run and read the first record of each, before any work: a line for
    each where that fails.
    """
    sources: list[tuple[str, Source, str | None]] = [
        (f"corpora.{name}", c, c.split) for name, c in run.corpora.items() if c.hub
    ]
    for name, task in run.tasks.items():
        if task.hub:
            for split in (task.train_split, task.test_split):
                sources.append((f"probing.tasks.{name}", task, split))
    for key, entry, split in sources:
        try:
            next(read_files(files(run, entry, split), entry.record_keys))
        except (CorpusError, hub.HubError) as error:
            yield f"{run.file}: {key}: {error}"
