"""The texts of a run, wherever they come from: local files, the Hub, the documentation of installed
packages.

Nothing here waits for torch: the workflow asks for these texts before any work.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faithful_sae.files import ROOT, digest, file_hash
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.schema import Run, Source
from faithful_sae.text import documentation, hub
from faithful_sae.text.bm25 import most_like
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
    return filter(wanted(run, name), _documents(run, name))


def wanted(run: Run, name: str) -> Callable[[str], bool]:
    """Which documents of a corpus that is not generated are in it: all, or those that are retrieved
    (see text/bm25.py).
    """
    retrieve = run.corpora[name].retrieve
    if retrieve is None:
        return bool
    like = run.resolve(retrieve.like).read_text(encoding="utf-8")
    return most_like(lambda: _documents(run, name), like, retrieve.share)


def _documents(run, name):
    corpus = run.corpora[name]
    found = files(run, corpus, corpus.split)
    return (record[0] for record, _ in read_files(found, corpus.record_keys))


def text_hash(run: Run, name: str) -> str:
    """Hash of the text of a corpus that is not generated; of a Hub dataset, its id and commit."""
    corpus = run.corpora[name]
    if corpus.hub:
        return digest([corpus.hub, corpus.config, corpus.split, commit(run, corpus)])
    of_file = file_hash(_local_file(run, corpus))
    if corpus.retrieve is None:
        return of_file
    of_subject = file_hash(run.resolve(corpus.retrieve.like))
    return digest([of_file, of_subject, corpus.retrieve.share, code_hash("text/bm25")])


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


def labelled(run: Run, name: str) -> list[tuple[list[str], list[str]]]:
    """A probing task, drawn with its seed and cut to max_train and max_test.

    Returns:
        (texts, labels) to train on, and to test on.

    Raises:
        CorpusError: unreadable file or dataset, wrong key, or as draw_examples; with the task's
            key.
    """
    probing = run.probing
    assert probing, f"{run.file}: has no probing tasks"
    try:
        return labelled_texts(run, probing.tasks[name])
    except (CorpusError, hub.HubError) as error:
        raise CorpusError(f"{run.file}: probing.tasks.{name}: {error}") from None


def labelled_texts(run: Run, task: Any) -> list[tuple[list[str], list[str]]]:
    """The same of any task, be it one of the run's or not; raises as it does, without the key.

    Args:
        task: a section of `probing.tasks`.
    """
    probing = run.probing
    keys = tuple(task.record_keys)
    limits = (probing.max_train, probing.max_test)
    if task.hub:
        splits = [files(run, task, split) for split in (task.train_split, task.test_split)]
        parts = tuple(tuple(file() for file in split) for split in splits)
        return _drawn_from_hub(parts, keys, limits, probing.seed)
    if task.train:
        parts = ((run.resolve(task.train),), (run.resolve(task.test),))
        return _drawn_from(parts, keys, limits, probing.seed)
    rng = np.random.default_rng(probing.seed)
    path = documentation_file(run, task.documentation, task.packages, sum(limits))
    records = list(read_records(path, keys))
    records = [records[i] for i in rng.permutation(len(records))]
    cut = round(len(records) * limits[0] / sum(limits))
    return draw_examples([lambda: records[:cut], lambda: records[cut:]], limits, rng)


def _drawn_from(parts, keys, limits, seed):
    def records(paths):
        return itertools.chain.from_iterable(read_records(path, keys) for path in paths)

    read = [functools.partial(records, paths) for paths in parts]
    return draw_examples(read, limits, np.random.default_rng(seed))


# files at a commit do not change, and each model of a profile asks for the same: 6 s where there
# are 650,000 texts
_drawn_from_hub = functools.cache(_drawn_from)


# --- before any work ------------------------------------------------------------------------------


def source_problems(run: Run) -> Iterator[str]:
    """Read the local files of a run once, before any work: a line for each corpus or task that is
    not readable, UTF-8, with the keys asked for, not empty, or whose labels cannot be probed.
    """
    for name, entry in run.corpora.items():
        if entry.path:
            path = run.resolve(entry.path)
            try:
                for _ in read_records(path, entry.record_keys):
                    pass
            except CorpusError as error:
                yield f"{run.file}: corpora.{name}.path: {error}"
                continue
            if entry.retrieve and not any(map(wanted(run, name), _documents(run, name))):
                yield (
                    f"{run.file}: corpora.{name}.retrieve.like = {entry.retrieve.like!r}: no "
                    f"document of {path} has a word of it"
                )
    yield from _task_problems(run, [name for name, task in run.tasks.items() if task.train])


def hub_source_problems(run: Run) -> Iterator[str]:
    """Find the Hub datasets of a run, read the first record of each corpus and the whole of each
    task, before any work: a line for each where that fails.
    """
    for name, entry in run.corpora.items():
        if entry.hub:
            try:
                next(read_files(files(run, entry, entry.split), entry.record_keys))
            except (CorpusError, hub.HubError) as error:
                yield f"{run.file}: corpora.{name}: {error}"
    yield from _task_problems(run, [name for name, task in run.tasks.items() if task.hub])


def _task_problems(run, names):
    for name in names:
        try:
            labelled(run, name)
        except CorpusError as error:
            yield str(error)
