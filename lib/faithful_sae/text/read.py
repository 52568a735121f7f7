"""Files of text -> documents, their token ids, and labelled text for probing. All are read the same
way, whatever they come from.
"""

import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
from safetensors.numpy import load_file, save_file

from faithful_sae.files import atomic_path
from faithful_sae.text.packing import joined, separate, tokenize

# of a csv or parquet file
RECORDS_AT_ONCE = 10_000
# are tokenised between two saves: a reading that is killed loses at most so many
PART_DOCUMENTS = 20_000

# the field that holds the text, or several; then any others
Keys = Sequence[str | tuple[str, ...]]
# returns the path, so that a file of the Hub is fetched when it is read
File = Callable[[], Path]
# file, and records read of it
Position = tuple[int, int]


class CorpusError(ValueError):
    """A corpus cannot be read; the message names the file or dataset, the place and the remedy."""


# --- records --------------------------------------------------------------------------------------


def read_records(path: str | Path, keys: Keys, start: int = 0) -> Iterator[tuple]:
    """Yield a tuple of the fields `keys` for every record of a jsonl, csv, parquet or txt file, or
    one of those with .gz.

    A txt file has one field, its text; its documents are separated by blank lines.

    Args:
        path: of the file.
        keys: of the text, then of anything else. A tuple in the first place: these texts, joined by
            an empty line, are the text.
        start: records to pass over; in a parquet file they are not read.

    Raises:
        CorpusError: unknown format, missing field, wrong type, text that is not UTF-8, broken line,
            no record at all.
    """
    return (record for _, record in _numbered_records(path, keys, start))


def read_files(
    files: Sequence[File], keys: Keys, position: Position = (0, 0)
) -> Iterator[tuple[tuple, Position]]:
    """Yield (record, position after it) of several files in order, from a position on; as
    read_records.
    """
    first, start = position
    for number, file in enumerate(files[first:], first):
        for read, record in _numbered_records(file(), keys, start):
            yield record, (number, read)
        start = 0


def _numbered_records(path, keys, start):
    """Yield (number of records read, record) for those that have text."""
    path = Path(path)
    several = list(keys[0]) if isinstance(keys[0], tuple) else [keys[0]]
    empty = start == 0
    try:
        records = _raw_records(path, [*several, *keys[1:]], start)
        for number, record in enumerate(records, start + 1):
            texts = record[: len(several)]
            for key, text in zip(several, texts, strict=False):  # a txt file has no keys
                if text is not None and not isinstance(text, str):
                    raise CorpusError(
                        f"{path}: record {number}: {key!r} holds {type(text).__name__}, not text"
                    )
            if whole := "\n\n".join(text for text in texts if text and text.strip()):
                empty = False
                yield number, (whole, *record[len(several) :])
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


def _raw_records(path, columns, start):
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".parquet":
        return _parquet_records(path, columns, start)
    if suffix == ".csv":
        records = _csv_records(path, columns)
    elif suffix in (".jsonl", ".json"):
        records = _json_records(path, columns)
    elif suffix == ".txt":
        records = _paragraphs(path)
    else:
        raise CorpusError(
            f"{path}: unknown format {suffix!r}: use jsonl, csv, parquet or txt, or one of them "
            "with .gz"
        )
    return itertools.islice(records, start, None)


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
            yield from zip(*values, strict=True)


def _csv_records(path, columns):
    for chunk in pd.read_csv(
        path, chunksize=RECORDS_AT_ONCE, encoding="utf-8", keep_default_na=False
    ):
        _need_columns(path, list(chunk.columns), columns)
        yield from chunk[columns].itertuples(index=False, name=None)


def _json_records(path, columns):
    with _opened(path) as lines:
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
            is_object = isinstance(record, dict)
            missing = [key for key in columns if not is_object or key not in record]
            if missing:
                there = ", ".join(map(repr, record)) if is_object else type(record).__name__
                raise CorpusError(
                    f"{path}: line {number} has no key {missing[0]!r}; it has {there}: set "
                    "text_key or label_key"
                )
            yield tuple(record[key] for key in columns)


def _paragraphs(path):
    with _opened(path) as lines:
        for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield ("".join(group).strip(),)


def _opened(path):
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


# --- token ids ------------------------------------------------------------------------------------


def read_ids(
    files: Sequence[File], keys: Keys, tokenizer: Any, parts: Path
) -> Iterator[np.ndarray]:
    """Yield the ids of each document of some files, int32 without special tokens.

    Args:
        files: in order.
        keys: as of read_records; the text alone.
        tokenizer: of transformers.
        parts: a folder in which ids are kept while the files are read. What a killed reading left
            there is not read again.
    """
    parts.mkdir(parents=True, exist_ok=True)
    position = (0, 0)
    done = sorted(parts.glob("*.safetensors"))
    for path in done:
        part = load_file(path)
        position = tuple(part["position"].tolist())
        yield from separate(part)
    records = read_files(files, keys, position)
    number = len(done)
    while batch := list(itertools.islice(records, PART_DOCUMENTS)):
        found = [
            np.array(ids, np.int32) for ids in tokenize((text for (text,), _ in batch), tokenizer)
        ]
        if not found:
            continue
        with atomic_path(parts / f"{number:05d}.safetensors") as tmp:
            save_file(joined(found) | {"position": np.array(batch[-1][1])}, tmp)
        number += 1
        yield from found


# --- labelled text --------------------------------------------------------------------------------


def draw_examples(
    parts: Iterable[Sequence[tuple]], limits: Sequence[int], rng: np.random.Generator, where: str
) -> list[tuple[list[str], list]]:
    """Shuffle the training and the test part of a probing task and cut each to its limit.

    Args:
        parts: records (text, label) of both.
        limits: examples to keep of each.
        rng: of the order.
        where: the task in words, with which an error begins.

    Returns:
        (texts, labels) of both.

    Raises:
        CorpusError: fewer than two labels, a label that training has never seen.
    """
    chosen = []
    for records, limit in zip(parts, limits, strict=True):
        records = [records[i] for i in rng.permutation(len(records))[:limit]]
        chosen.append(([text for text, _ in records], [label for _, label in records]))
    (_, train_labels), (_, test_labels) = chosen
    if len(set(train_labels)) < 2 or not test_labels:
        raise CorpusError(
            f"{where}: needs at least two labels to train on and one example to test on; it has "
            f"labels {sorted(set(train_labels))} and {len(test_labels)} test examples"
        )
    if unseen := set(test_labels) - set(train_labels):
        raise CorpusError(f"{where}: test labels {sorted(unseen)} never occur in training")
    return chosen
