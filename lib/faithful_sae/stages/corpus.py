"""The corpora and labelled texts of a run, wherever they come from: local files, the Hub, the
documentation of installed packages, or its language model.

Nothing here waits for torch: the workflow asks for these texts before any work.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from faithful_sae.files import (
    ROOT,
    MissingInputError,
    atomic_path,
    digest,
    file_hash,
    is_current,
    locked,
    remove,
    remove_others,
    require_space,
)
from faithful_sae.lm.architectures import beyond_context
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.params import load_params
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.schema import Corpus, Run, Task, plain
from faithful_sae.text import documentation, hub
from faithful_sae.text.packing import Ids, TokenRows, pack, rows_disk, tokenize, without_end
from faithful_sae.text.read import (
    CorpusError,
    File,
    Keys,
    draw_examples,
    read_files,
    read_ids,
    read_records,
)

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


def hub_of(run: Run) -> hub.Record:
    """What the run's profile reads from the Hub."""
    return hub.Record(run.artifacts.parent / "hub.json")


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
    return (record[0] for record, _ in read_files(_files(run, corpus, corpus.split), _keys(corpus)))


def text_hash(run: Run, name: str) -> str:
    """Hash of the text of a corpus that is not generated; of a Hub dataset, its id and commit."""
    corpus = run.corpora[name]
    if corpus.hub:
        return digest([corpus.hub, corpus.config, corpus.split, _commit(run, corpus)])
    return file_hash(_local_file(run, corpus))


def _files(run: Run, entry: Corpus | Task, split: str | None) -> list[File]:
    """The files of a corpus or a task, in order.

    Args:
        run: that reads them.
        entry: not generated; a task is of the Hub.
        split: of a dataset of the Hub.
    """
    if not entry.hub:
        return [functools.partial(_local_file, run, entry)]
    assert entry.config and split, "params sees to it"
    at = _commit(run, entry)
    names = hub_of(run).split_files(entry.hub, entry.revision, entry.config, split)
    return [functools.partial(hub.fetch, "dataset", entry.hub, at, name) for name in names]


def _keys(entry: Corpus | Task) -> Keys:
    """The fields of its records: text, and the label of a task."""
    label = [entry.label_key or "label"] if isinstance(entry, Task) else []
    return [entry.text_key or "text", *label]


def _commit(run: Run, entry: Corpus | Task) -> str:
    """Of a dataset of the Hub."""
    assert entry.hub
    return hub_of(run).commit("dataset", entry.hub, entry.revision)


def _local_file(run, corpus):
    if corpus.path:
        return run.resolve(corpus.path)
    return documentation_file(run, corpus.documentation, corpus.packages, corpus.max_characters)


# --- token rows -----------------------------------------------------------------------------------


def corpus(run: Run, name: str, lm: "LanguageModel") -> TokenRows:
    """A corpus of the run as token rows.

    Raises:
        MissingInputError: generated text that 01 has not made, or made with other parameters.
        CorpusError: as corpus_rows.
    """
    # notebooks, trainings and workers may come for it together
    with locked(run.artifacts / f".corpus-{name}.lock"):
        return _corpus(run, name, lm)


def _corpus(run: Run, name: str, lm: "LanguageModel") -> TokenRows:
    source_name = run.corpora[name].faithful
    if source_name is None:
        return corpus_rows(run, name, lm)
    # with torch, for which the workflow does not wait
    from faithful_sae.stages.faithful import faithful_key, read_shards
    from faithful_sae.stages.model import open_model

    source = run
    if source_name != "self":
        source = load_params(run.file.with_name(f"{source_name}.yaml"))
    folder = source.artifacts / "faithful"
    key = faithful_key(source)
    if not is_current(folder, key):
        raise MissingInputError(
            f"{folder} is missing or was made with other parameters: run "
            f"notebooks/01_generate_faithful for {source.profile}/{source.name} first"
        )
    tokenizer = lm.tokenizer if source is run else open_model(source).tokenizer
    return corpus_rows(run, name, lm, (key, read_shards(source), tokenizer))


def corpus_rows(
    run: Run,
    name: str,
    lm: "LanguageModel",
    faithful: tuple[str, Iterable[np.ndarray], Any] | None = None,
) -> TokenRows:
    """A corpus as token rows, at most `corpus_tokens` of it; packed once and kept under the run's
    artifacts.

    Args:
        run: that reads the corpus.
        name: of the corpus.
        lm: the run's language model.
        faithful: (key, ids of each document, tokenizer) of a generated corpus. Ids of a model with
            another tokenizer are decoded and tokenised anew; ids of the same one are used as
            sampled.

    Raises:
        CorpusError: unreadable or empty corpus; one too small for a training and a held-out row.
    """
    corpus = run.corpora[name]
    vocabulary = digest(lm.tokenizer.get_vocab())
    inputs = {"faithful": faithful[0]} if faithful else {"text": text_hash(run, name)}
    settings = run.settings("sequence_length", "corpus_tokens") | {
        "corpus": plain(corpus) | {"role": None},
        "bos_id": lm.bos_id,
        "vocabulary": vocabulary,
    }
    key = digest([settings, inputs, code_hash("text/packing", "text/read")])
    folder = run.artifacts / "corpora" / name
    if not is_current(folder, key):
        require_space(folder, rows_disk(run.corpus_tokens), f"reading {name}")
        parts = folder.with_name(f"{name}-{key}.partial")
        remove_others(parts)
        if faithful is None:
            ids = read_ids(_files(run, corpus, corpus.split), _keys(corpus), lm.tokenizer, parts)
        else:
            ids = _faithful_ids(faithful[1], faithful[2], lm, vocabulary)
        rows = pack(ids, lm.bos_id, run.sequence_length, run.corpus_tokens)
        with atomic_path(folder) as tmp:
            tmp.mkdir(parents=True)
            np.save(tmp / "rows.npy", rows)
            if corpus.hub:
                inputs["commit"] = _commit(run, corpus)
            write_provenance(tmp / "provenance.json", key=key, parameters=settings, inputs=inputs)
        remove(parts)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    heldout = round(len(rows) * run.heldout)
    if not 0 < heldout < len(rows):
        raise CorpusError(
            f"{run.file}: corpora.{name}: only {len(rows)} rows of {run.sequence_length} tokens, "
            f"too few for training and held-out rows (heldout = {run.heldout}): give more text or "
            "a shorter sequence_length"
        )
    return TokenRows(name, rows[:-heldout], rows[-heldout:], rows_key(run, folder))


def rows_key(run: Run, folder: Path) -> str:
    """`TokenRows.key` of a folder of packed rows."""
    return digest([file_hash(folder), run.heldout])


def _faithful_ids(
    documents: Iterable[np.ndarray], tokenizer: Any, lm: "LanguageModel", vocabulary: str
) -> Iterator[Ids]:
    if digest(tokenizer.get_vocab()) == vocabulary:
        return without_end(documents, {lm.bos_id, lm.tokenizer.eos_token_id})
    texts = (tokenizer.decode(ids, skip_special_tokens=True) for ids in documents)
    return tokenize(texts, lm.tokenizer)


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
        records = list(read_records(path, _keys(task)))
        inputs = {"file": file_hash(path)}
        records = [records[i] for i in rng.permutation(len(records))]
        cut = round(len(records) * limits[0] / sum(limits))
        parts = [records[:cut], records[cut:]]
    elif task.train:
        paths = [run.resolve(task.train), run.resolve(task.test)]
        parts = [list(read_records(path, _keys(task))) for path in paths]
        inputs = {path.name: file_hash(path) for path in paths}
    else:
        parts = []
        for split, limit in zip((task.train_split, task.test_split), limits, strict=True):
            records = read_files(_files(run, task, split), _keys(task))
            parts.append([record for record, _ in itertools.islice(records, limit * 2)])
        inputs = {"commit": _commit(run, task)}
    train, test = draw_examples(parts, limits, rng, f"{run.file}: probing.tasks.{name}")
    return train, test, inputs


# --- before any work ------------------------------------------------------------------------------


def context_problems(run: Run, context: int) -> Iterator[str]:
    """A line for each length of a run that its model's context has no room for."""
    lengths = {
        "sequence_length": run.sequence_length,
        "generate.max_new_tokens": run.generate.max_new_tokens,
    }
    if run.probing:
        lengths["probing.max_tokens"] = run.probing.max_tokens
    return beyond_context(context, f"the context of {run.model}, {context} tokens", lengths)


def source_problems(run: Run) -> Iterator[str]:
    """Read the local files of a run once, before any work: a line for each that is not readable,
    UTF-8, with the keys asked for, not empty.
    """
    sources: list[tuple[str, str, Corpus | Task]] = [
        (f"corpora.{name}.path", c.path, c) for name, c in run.corpora.items() if c.path
    ]
    for name, task in run.tasks.items():
        for part in ("train", "test"):
            if path := getattr(task, part):
                sources.append((f"probing.tasks.{name}.{part}", path, task))
    for key, path, entry in sources:
        try:
            for _ in read_records(run.resolve(path), _keys(entry)):
                pass
        except CorpusError as error:
            yield f"{run.file}: {key}: {error}"


def hub_source_problems(run: Run) -> Iterator[str]:
    """Find the Hub datasets of a run and read the first record of each, before any work: a line for
    each where that fails.
    """
    sources: list[tuple[str, Corpus | Task, str | None]] = [
        (f"corpora.{name}", c, c.split) for name, c in run.corpora.items() if c.hub
    ]
    for name, task in run.tasks.items():
        if task.hub:
            for split in (task.train_split, task.test_split):
                sources.append((f"probing.tasks.{name}", task, split))
    for key, entry, split in sources:
        try:
            next(read_files(_files(run, entry, split), _keys(entry)))
        except (CorpusError, hub.HubError) as error:
            yield f"{run.file}: {key}: {error}"
