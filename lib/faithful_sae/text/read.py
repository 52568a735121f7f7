"""Files of text -> documents, their token ids, and labelled text for probing. All are read the same
way, whatever they come from.
"""

import csv
import gzip
import itertools
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors.numpy import load_file, save_file

from faithful_sae.files import atomic_path
from faithful_sae.text.packing import joined, separate, tokenize

# documents are longer than a field may be by default
csv.field_size_limit(sys.maxsize)

# of a parquet file
RECORDS_AT_ONCE = 10_000
# are tokenised between two saves: a reading that is killed loses at most so many
PART_DOCUMENTS = 20_000

# the field that holds the text, or several; then that of a label, if there are labels
Keys = Sequence[str | tuple[str, ...]]
# returns the path, so that a file of the Hub is fetched when it is read
File = Callable[[], Path]
# file, and records read of it
Position = tuple[int, int]


class CorpusError(ValueError):
    """A corpus cannot be read; the message names the file or dataset, the place and the remedy."""


# --- records --------------------------------------------------------------------------------------


def read_records(path: str | Path, keys: Keys, start: int = 0) -> Iterator[tuple]:
    """Yield (text,) or (text, label) of every record of a jsonl, csv, parquet or txt file, or one
    of those with .gz. Nothing is guessed: text is text, and so is a label, whether a file has it as
    text, whole number or truth value.

    A txt file has one field, its text; its documents are separated by blank lines. The first line
    of a csv file names its columns.

    Args:
        path: of the file.
        keys: of the text, then of a label. A tuple in the first place: these texts, joined by an
            empty line, are the text.
        start: records to pass over; in a parquet file they are not read.

    Raises:
        CorpusError: unknown format, missing field or one that is there twice, wrong type, a label
            that names no class, text that is not Unicode, broken line, no record at all.
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
            labels = zip(keys[1:], record[len(several) :], strict=False)  # a txt file has no keys
            try:
                if whole := _joined_text(several, texts):
                    empty = False
                    yield number, (whole, *(_label(key, value) for key, value in labels))
            except ValueError as error:
                raise CorpusError(f"{path}: record {number}: {error}") from None
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 (byte {error.start} of a block: "
            f"{error.object[error.start : error.start + 1]!r}): "
            "convert it, for example with iconv -t UTF-8"
        ) from None
    except (EOFError, OSError, zlib.error, pyarrow.ArrowInvalid) as error:
        raise CorpusError(f"{path}: cannot be read ({error}): is it whole?") from None
    if empty:
        raise CorpusError(f"{path}: empty: it holds no text")


def _joined_text(keys, texts):
    for key, text in zip(keys, texts, strict=False):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"{key!r} holds {type(text).__name__}, not text")
    whole = "\n\n".join(text for text in texts if text and text.strip())
    try:
        whole.encode()
    except UnicodeEncodeError as error:
        # JSON can write it, and no tokenizer can read it
        raise ValueError(
            f"its text holds {whole[error.start]!a}, half of a surrogate pair: repair or remove it"
        ) from None
    return whole


def _label(key, value):
    """A label as text: 0 and "0" are one class, 01 and 1 are two."""
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(value if isinstance(value, bool) else int(value))
    raise ValueError(
        f"{key!r} holds {value!r}, which names no class: give text or a whole number, or leave "
        "such records out"
    )


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
        if (times := there.count(key)) != 1:
            found = "more than one" if times else "no"
            raise CorpusError(
                f"{path}: {found} column {key!r}; it has {', '.join(map(repr, there))}: set "
                "text_key or label_key"
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
    with _opened(path, newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            header = next(lines, None)
            if header is None:
                return
            _need_columns(path, header, columns)
            places = [header.index(key) for key in columns]
            for fields in lines:
                if fields and len(fields) != len(header):
                    raise CorpusError(
                        f"{path}: line {lines.line_num} has {len(fields)} fields, and the first "
                        f"line names {len(header)}: put text that has commas between double quotes"
                    )
                if fields:
                    yield tuple(fields[place] for place in places)
        except csv.Error as error:
            raise CorpusError(
                f"{path}: line {lines.line_num} is not csv ({error}): in a quoted text, a double "
                "quote is written twice"
            ) from None


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


def _opened(path, newline=None):
    # with or without the mark that some editors begin a file with
    how = {"encoding": "utf-8-sig", "newline": newline}
    return gzip.open(path, "rt", **how) if path.suffix == ".gz" else open(path, **how)


# --- token ids ------------------------------------------------------------------------------------


def read_ids(
    files: Sequence[File],
    keys: Keys,
    tokenizer: Any,
    parts: Path,
    wanted: Callable[[str], bool] = bool,
) -> Iterator[np.ndarray]:
    """Yield the ids of each document of some files, int32 without special tokens.

    Args:
        files: in order.
        keys: as of read_records; the text alone.
        tokenizer: of transformers.
        parts: a folder in which ids are kept while the files are read. What a killed reading left
            there is not read again.
        wanted: which texts are read.
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
            np.array(ids, np.int32)
            for ids in tokenize((text for (text,), _ in batch if wanted(text)), tokenizer)
        ]
        if not found:
            continue
        with atomic_path(parts / f"{number:05d}.safetensors") as tmp:
            save_file(joined(found) | {"position": np.array(batch[-1][1])}, tmp)
        number += 1
        yield from found


# --- labelled text --------------------------------------------------------------------------------


def draw_examples(
    parts: Iterable[Callable[[], Iterable[tuple[str, str]]]],
    limits: Sequence[int],
    rng: np.random.Generator,
) -> list[tuple[list[str], list[str]]]:
    """Draw the training and the test examples of a probing task, each from the whole of its part:
    a file may be sorted by class.

    A part is read twice, to count its records and to take those drawn, so that memory holds no
    more than these.

    Args:
        parts: each gives the records (text, label) of one from the first.
        limits: examples to keep of each.
        rng: of what is drawn, and of the order.

    Returns:
        (texts, labels) of both.

    Raises:
        CorpusError: fewer than two classes, as many as a score has, or one that training has never
            seen.
    """
    (train, train_labels), (test, test_labels) = (
        _drawn(part, limit, rng) for part, limit in zip(parts, limits, strict=True)
    )
    classes = set(train_labels)
    said = f"the {len(train)} training texts have {class_counts(train_labels)}"
    if len(classes) < 2 or not test:
        raise CorpusError(
            "needs at least two classes to train on and one example to test on: "
            f"{said}, and there are {len(test)} test texts"
        )
    if 2 * len(classes) > len(train):
        raise CorpusError(f"{said}, most of them once: is label_key right? A score is no class")
    if unseen := sorted(set(test_labels) - classes):
        raise CorpusError(
            f"test labels never occur in training: {class_counts(test_labels, unseen)}; {said}"
        )
    return [(train, train_labels), (test, test_labels)]


def class_counts(labels: Sequence[str], classes: Sequence[str] | None = None) -> str:
    """How often each class occurs, or each of some, in words; no more than ten are named."""
    counts = Counter(labels)
    classes = classes or sorted(counts)
    named = ", ".join(f"{name!r} {counts[name]:,}" for name in classes[:10])
    more = f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"{len(classes)} class{'es' * (len(classes) != 1)} ({named}{more})"


def _drawn(part, limit, rng):
    count = sum(1 for _ in part())
    places = {number: place for place, number in enumerate(rng.permutation(count)[:limit].tolist())}
    drawn = [("", "")] * len(places)
    for number, record in enumerate(part()):
        if number in places:
            drawn[places[number]] = record
    return [text for text, _ in drawn], [label for _, label in drawn]
