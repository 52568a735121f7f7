"""Text -> packed token ids, and labelled text for probing. Every corpus is read the same way,
whatever it comes from.

Rows are packed by packing.py. The last `heldout` share of them is kept from training, for
evaluation.
"""

import functools
import gzip
import itertools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from safetensors.numpy import load_file, save_file

from faithful_sae.files import (
    ROOT,
    atomic_path,
    digest,
    file_hash,
    is_current,
    remove,
    remove_others,
    require_space,
)
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.needs import rows_disk
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.schema import Task, plain
from faithful_sae.text import documentation, hub
from faithful_sae.text.packing import pack, tokenize, without_end

RECORDS_AT_ONCE = 10_000  # of a csv or parquet file
PART_DOCUMENTS = (
    20_000  # are tokenised between two saves: a reading that is killed loses at most so many
)


class CorpusError(ValueError):
    """A corpus cannot be read; the message names the file or dataset, the place and the remedy."""


@dataclass(frozen=True)
class TokenRows:
    """A corpus as packed rows, int32 [R, T], each starting with BOS; memory-mapped, so rows are
    read when used.
    """

    name: str
    train: np.ndarray
    heldout: np.ndarray
    key: str  # hash of the rows themselves


# --- documents ------------------------------------------------------------------------------------


def read_records(path, keys, start=0):
    """Yield a tuple of the fields `keys` for every record of a jsonl, csv, parquet or txt file, or
    one of those with .gz.

    A txt file has one field, its text; its documents are separated by blank lines.

    Args:
        keys: of the text, then of anything else. A tuple in the first place: these texts, joined by
            an empty line, are the text.
        start: records to pass over; in a parquet file they are not read.

    Raises:
        CorpusError: unknown format, missing field, wrong type, text that is not UTF-8, broken line,
            no record at all.
    """
    return (record for _, record in _numbered_records(path, keys, start))


def _numbered_records(path, keys, start):
    """Yield (number of records read, record) for those that have text."""
    path = Path(path)
    empty = start == 0
    several = keys[0] if isinstance(keys[0], tuple) else keys[:1]
    columns = [*several, *keys[1:]]
    suffix = Path(path.name.removesuffix(".gz")).suffix
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        if suffix == ".parquet":
            records = _parquet_records(path, columns, start)
        elif suffix == ".csv":
            chunks = pd.read_csv(
                path, chunksize=RECORDS_AT_ONCE, encoding="utf-8", keep_default_na=False
            )
            records = itertools.islice(
                (record for chunk in chunks for record in _csv_records(chunk, path, columns)),
                start,
                None,
            )
        elif suffix in (".jsonl", ".json"):
            records = itertools.islice(
                _json_records(opened(path, "rt", encoding="utf-8"), path, columns), start, None
            )
        elif suffix == ".txt":
            records = itertools.islice(
                _paragraphs(opened(path, "rt", encoding="utf-8")), start, None
            )
        else:
            raise CorpusError(
                f"{path}: unknown format {suffix!r}: use jsonl, csv, parquet or txt, or one of "
                "them with .gz"
            )
        for number, record in enumerate(records, start + 1):
            for key, text in zip(several, record):
                if text is not None and not isinstance(text, str):
                    raise CorpusError(
                        f"{path}: record {number}: {key!r} holds {type(text).__name__}, not text"
                    )
            if text := "\n\n".join(
                text for text in record[: len(several)] if text and text.strip()
            ):
                empty = False
                yield number, (text, *record[len(several) :])
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 (byte {error.start} of a block: "
            f"{error.object[error.start : error.start + 1]!r}): "
            "convert it, for example with iconv -t UTF-8"
        ) from None
    except (EOFError, OSError, zlib.error, pyarrow.ArrowInvalid) as error:
        raise CorpusError(f"{path}: cannot be read ({error}): is it whole?") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CorpusError(f"{path}: not a readable csv ({error})") from None
    if empty:
        raise CorpusError(f"{path}: empty: it holds no text")


def _need_columns(path, there, columns):
    for key in columns:
        if key not in there:
            raise CorpusError(
                f"{path}: no column {key!r}; it has {', '.join(map(repr, there))}: set text_key "
                "or label_key"
            )


def _parquet_records(path, columns, start):
    with pyarrow.parquet.ParquetFile(path) as file:
        _need_columns(path, file.schema_arrow.names, columns)
        groups = list(range(file.num_row_groups))
        while groups and start >= (rows := file.metadata.row_group(groups[0]).num_rows):
            start -= rows
            del groups[0]
        for batch in file.iter_batches(
            row_groups=groups, columns=columns, batch_size=RECORDS_AT_ONCE
        ):
            values = [
                batch.column(key).slice(min(start, len(batch))).to_pylist() for key in columns
            ]
            start = max(start - len(batch), 0)
            yield from zip(*values)


def _csv_records(frame, path, columns):
    _need_columns(path, list(frame.columns), columns)
    return frame[columns].itertuples(index=False, name=None)


def _json_records(lines, path, columns):
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(
                    f"{path}: line {number} is not JSON ({error.msg}): one object per line is "
                    "needed"
                ) from None
            missing = [key for key in columns if not isinstance(record, dict) or key not in record]
            if missing:
                there = (
                    ", ".join(map(repr, record))
                    if isinstance(record, dict)
                    else type(record).__name__
                )
                raise CorpusError(
                    f"{path}: line {number} has no key {missing[0]!r}; it has {there}: set "
                    "text_key or label_key"
                )
            yield tuple(record[key] for key in columns)


def _paragraphs(lines):
    with lines:
        for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield ("".join(group).strip(),)


def _files(run, entry, split=None):
    """The files of a corpus or task, in order: functions that return a path, so that one of the
    Hub's is fetched when it is read.
    """
    if entry.hub:
        at = hub.commit(run, "dataset", entry.hub, entry.revision)
        return [
            functools.partial(hub.fetch, "dataset", entry.hub, at, file)
            for file in hub.split_files(
                run, entry.hub, entry.revision, entry.config, split or entry.split
            )
        ]
    return [functools.partial(_text_file, run, entry)]


def _records(files, keys, position=(0, 0)):
    """Yield (record, position after it) of several files, from a position on: (file, records read
    of it).
    """
    first, start = position
    for number, file in enumerate(files[first:], first):
        for read, record in _numbered_records(file(), keys, start):
            yield record, (number, read)
        start = 0


def documentation_path(run, kind, packages, size, task=False) -> Path:
    """Where the text (or labelled task) made from installed packages is kept; the name changes with
    whatever it depends on.
    """
    key = digest(
        [
            kind,
            list(packages),
            size,
            task,
            code_hash("text/documentation"),
            documentation.versions(packages),
        ]
    )
    return ROOT / "artifacts" / run.profile / "documentation" / f"{kind}-{key}.jsonl"


def write_documentation(path, kind, packages, size, task):
    """Make such a file."""
    (documentation.write_task if task else documentation.write_corpus)(
        kind, packages, size, Path(path)
    )


def documentation_file(run, kind, packages, size, task=False) -> Path:
    """The same file, made when it is missing."""
    path = documentation_path(run, kind, packages, size, task)
    if not path.exists():
        write_documentation(path, kind, packages, size, task)
    return path


def text_hash(run, name) -> str:
    """Hash of the text of a corpus that is not generated; of a Hub dataset, its id and commit."""
    corpus = run.corpora[name]
    if corpus.hub:
        return digest(
            [
                corpus.hub,
                corpus.config,
                corpus.split,
                hub.commit(run, "dataset", corpus.hub, corpus.revision),
            ]
        )
    return file_hash(_text_file(run, corpus))


def _text_file(run, corpus):
    return (
        run.resolve(corpus.path)
        if corpus.path
        else documentation_file(run, corpus.documentation, corpus.packages, corpus.max_characters)
    )


def documents(run, name):
    """Yield the texts of a corpus that is not generated, in its own order."""
    corpus = run.corpora[name]
    return (record[0] for record, _ in _records(_files(run, corpus), _keys(corpus)))


def _keys(entry):
    return [
        entry.text_key or "text",
        *([entry.label_key or "label"] if isinstance(entry, Task) else []),
    ]


# --- token rows -----------------------------------------------------------------------------------


def corpus_rows(run, name, lm, faithful=None) -> TokenRows:
    """A corpus as token rows, at most `corpus_tokens` of it; packed once and kept under the run's
    artifacts.

    Args:
        faithful: (key, iterable of id arrays, tokenizer) of a generated corpus. Ids of a model with
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
            ids = _tokenized(run, name, lm.tokenizer, parts)
        elif digest(faithful[2].get_vocab()) == vocabulary:
            ids = without_end(faithful[1], {lm.bos_id, lm.tokenizer.eos_token_id})
        else:
            ids = tokenize(
                (faithful[2].decode(i, skip_special_tokens=True) for i in faithful[1]), lm.tokenizer
            )
        rows = pack(ids, lm.bos_id, run.sequence_length, run.corpus_tokens)
        with atomic_path(folder) as tmp:
            tmp.mkdir(parents=True)
            np.save(tmp / "rows.npy", rows)
            write_provenance(
                tmp / "provenance.json",
                key=key,
                parameters=settings,
                inputs=inputs | _at(run, corpus),
            )
        remove(parts)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    heldout = round(len(rows) * run.heldout)
    if not 0 < heldout < len(rows):
        raise CorpusError(
            f"{run.file}: corpora.{name}: only {len(rows)} rows of {run.sequence_length} tokens, "
            "too few for training "
            f"and held-out rows (heldout = {run.heldout}): give more text or a shorter "
            "sequence_length"
        )
    return TokenRows(name, rows[:-heldout], rows[-heldout:], rows_key(run, folder))


def rows_key(run, folder) -> str:
    """`TokenRows.key` of a folder of packed rows."""
    return digest([file_hash(folder), run.heldout])


def _tokenized(run, name, tokenizer, parts):
    """Yield the ids of each document of a corpus that is not generated; those that are in the
    folder `parts` are not read again.
    """
    parts.mkdir(parents=True, exist_ok=True)
    position = (0, 0)
    done = sorted(parts.glob("*.safetensors"))
    for path in done:
        part = load_file(path)
        position = part["position"].tolist()
        yield from np.split(part["ids"], np.cumsum(part["lengths"])[:-1])
    records = _records(_files(run, run.corpora[name]), _keys(run.corpora[name]), position)
    number = len(done)
    while batch := list(itertools.islice(records, PART_DOCUMENTS)):
        if found := [
            np.array(ids, np.int32) for ids in tokenize((text for (text,), _ in batch), tokenizer)
        ]:
            with atomic_path(parts / f"{number:05d}.safetensors") as tmp:
                save_file(
                    {
                        "ids": np.concatenate(found),
                        "lengths": np.array([len(ids) for ids in found]),
                        "position": np.array(batch[-1][1]),
                    },
                    tmp,
                )
            number += 1
            yield from found


def _at(run, entry):
    """{"commit": that of a Hub dataset}, for provenance."""
    return {"commit": hub.commit(run, "dataset", entry.hub, entry.revision)} if entry.hub else {}


# --- labelled text --------------------------------------------------------------------------------


def labelled(run, name):
    """A probing task, shuffled with its seed and cut to max_train and max_test.

    Returns:
        (train, test), each (texts: list[str], labels: list); and its input hashes.

    Raises:
        CorpusError: unreadable file, wrong key, a label that training has never seen, fewer than
            two labels.
    """
    task = run.probing.tasks[name]
    probing = run.probing
    rng = np.random.default_rng(probing.seed)
    keys = _keys(task)
    limits = (probing.max_train, probing.max_test)
    if task.documentation:
        path = documentation_file(run, task.documentation, task.packages, sum(limits), task=True)
        records = list(read_records(path, keys))
        inputs = {"file": file_hash(path)}
        records = [records[i] for i in rng.permutation(len(records))]
        cut = round(len(records) * limits[0] / sum(limits))
        parts = records[:cut], records[cut:]
    elif task.train:
        files = run.resolve(task.train), run.resolve(task.test)
        parts = [list(read_records(file, keys)) for file in files]
        inputs = {file.name: file_hash(file) for file in files}
    else:
        splits = [
            _records(_files(run, task, split), keys)
            for split in (task.train_split, task.test_split)
        ]
        parts = [
            [record for record, _ in itertools.islice(records, limit * 2)]
            for records, limit in zip(splits, limits)
        ]
        inputs = _at(run, task)
    chosen = []
    for records, limit in zip(parts, limits):
        records = [records[i] for i in rng.permutation(len(records))[:limit]]
        chosen.append(([text for text, _ in records], [label for _, label in records]))
    (_, train_labels), (_, test_labels) = chosen
    if len(set(train_labels)) < 2 or not test_labels:
        raise CorpusError(
            f"{run.file}: probing.tasks.{name}: needs at least two labels to train on and one "
            "example to test on; it has "
            f"labels {sorted(set(train_labels))} and {len(test_labels)} test examples"
        )
    if unseen := set(test_labels) - set(train_labels):
        raise CorpusError(
            f"{run.file}: probing.tasks.{name}: test labels {sorted(unseen)} never occur in "
            "training"
        )
    return chosen[0], chosen[1], inputs


def source_problems(run):
    """Read the local files of a run once, before any work: a line for each that is not readable,
    UTF-8, with the keys asked for, not empty.
    """
    files = [
        (f"corpora.{name}.path", c.path, _keys(c)) for name, c in run.corpora.items() if c.path
    ]
    for name, task in run.tasks.items():
        files += [
            (f"probing.tasks.{name}.{part}", getattr(task, part), _keys(task))
            for part in ("train", "test")
            if getattr(task, part)
        ]
    for key, path, keys in files:
        try:
            for _ in read_records(run.resolve(path), keys):
                pass
        except CorpusError as error:
            yield f"{run.file}: {key}: {error}"


def hub_source_problems(run):
    """Find the Hub datasets of a run and read the first record of each, before any work: a line for
    each where that fails.
    """
    sources = [
        (f"corpora.{name}", corpus, corpus.split)
        for name, corpus in run.corpora.items()
        if corpus.hub
    ]
    sources += [
        (f"probing.tasks.{name}", task, split)
        for name, task in run.tasks.items()
        if task.hub
        for split in (task.train_split, task.test_split)
    ]
    for key, entry, split in sources:
        try:
            next(_records(_files(run, entry, split), _keys(entry)))
        except (CorpusError, hub.HubError) as error:
            yield f"{run.file}: {key}: {error}"
