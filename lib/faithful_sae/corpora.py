"""Text -> packed token ids, and labelled text for probing. Every corpus is read the same way, whatever it comes from.

Rows are packed by packing.py. The last `heldout` share of them is kept from training, for evaluation.
"""

import gzip
import itertools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow

from faithful_sae import documentation
from faithful_sae.packing import pack, tokenize, without_end
from faithful_sae.provenance import ROOT, atomic_path, code_hash, digest, file_hash, is_current, write_provenance
from faithful_sae.schema import ParamsError, plain


class CorpusError(ValueError):
    """A corpus cannot be read; the message names the file or dataset, the place and the remedy."""


@dataclass(frozen=True)
class TokenRows:
    """A corpus as packed rows, int32 [R, T], each starting with BOS; memory-mapped, so rows are read when used."""
    name: str
    train: np.ndarray
    heldout: np.ndarray
    key: str   # hash of the rows themselves


# --- documents --------------------------------------------------------------------------------------------------------------

def read_records(path, keys):
    """Yield a tuple of the fields `keys` for every record of a jsonl, csv, parquet or txt file, or one of those with .gz.

    A txt file has one field, its text; its documents are separated by blank lines.

    Raises:
        CorpusError: unknown format, missing field, wrong type, text that is not UTF-8, broken line, no record at all.
    """
    path, count = Path(path), 0
    suffix = Path(path.name.removesuffix(".gz")).suffix
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        if suffix == ".parquet":
            records = _table_records(pd.read_parquet(path, engine="pyarrow"), path, keys)
        elif suffix == ".csv":
            chunks = pd.read_csv(path, chunksize=10_000, encoding="utf-8", keep_default_na=False)
            records = (record for chunk in chunks for record in _table_records(chunk, path, keys))
        elif suffix in (".jsonl", ".json"):
            records = _json_records(opened(path, "rt", encoding="utf-8"), path, keys)
        elif suffix == ".txt":
            records = _paragraphs(opened(path, "rt", encoding="utf-8"))
        else:
            raise CorpusError(f"{path}: unknown format {suffix!r}: use jsonl, csv, parquet or txt, or one of them with .gz")
        for record in records:
            if not isinstance(record[0], str):
                raise CorpusError(f"{path}: record {count + 1}: {keys[0]!r} holds {type(record[0]).__name__}, not text")
            if record[0].strip():
                count += 1
                yield record
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: not UTF-8 (byte {error.start} of a block: {error.object[error.start:error.start + 1]!r}): "
                          "convert it, for example with iconv -t UTF-8") from None
    except (EOFError, OSError, zlib.error, pyarrow.ArrowInvalid) as error:
        raise CorpusError(f"{path}: cannot be read ({error}): is it whole?") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CorpusError(f"{path}: not a readable csv ({error})") from None
    if not count:
        raise CorpusError(f"{path}: empty: it holds no text")


def _table_records(frame, path, keys):
    for key in keys:
        if key not in frame.columns:
            raise CorpusError(f"{path}: no column {key!r}; it has {', '.join(map(repr, frame.columns))}: set text_key or label_key")
    return frame[list(keys)].itertuples(index=False, name=None)


def _json_records(lines, path, keys):
    with lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{path}: line {number} is not JSON ({error.msg}): one object per line is needed") from None
            missing = [key for key in keys if not isinstance(record, dict) or key not in record]
            if missing:
                there = ", ".join(map(repr, record)) if isinstance(record, dict) else type(record).__name__
                raise CorpusError(f"{path}: line {number} has no key {missing[0]!r}; it has {there}: set text_key or label_key")
            yield tuple(record[key] for key in keys)


def _paragraphs(lines):
    with lines:
        for blank, group in itertools.groupby(lines, key=lambda line: not line.strip()):
            if not blank:
                yield ("".join(group).strip(),)


def _hub_records(entry, split, keys):
    """Stream a Hub dataset. No dataset's own code is run (datasets 5 has no loading scripts)."""
    import datasets

    try:
        rows = datasets.load_dataset(entry.hub, entry.config, split=split, revision=entry.revision, streaming=True)
        for row in rows:
            for key in keys:
                if key not in row:
                    raise CorpusError(f"{entry.hub}: no column {key!r}; it has {', '.join(map(repr, row))}")
            if isinstance(row[keys[0]], str) and row[keys[0]].strip():
                yield tuple(row[key] for key in keys)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{entry.hub}: cannot be read from the Hub ({' '.join(str(error).split())[:200]}): check id, config, "
                          "split and revision, `hf auth login` for a gated one, or give a local file with `path`") from error


def documentation_path(run, kind, packages, size, task=False) -> Path:
    """Where the text (or labelled task) made from installed packages is kept; the name changes with whatever it depends on."""
    key = digest([kind, list(packages), size, task, code_hash("documentation"), documentation.versions(packages)])
    return ROOT / "artifacts" / run.profile / "documentation" / f"{kind}-{key}.jsonl"


def write_documentation(path, kind, packages, size, task):
    """Make such a file."""
    (documentation.write_task if task else documentation.write_corpus)(kind, packages, size, Path(path))


def documentation_file(run, kind, packages, size, task=False) -> Path:
    """The same file, made when it is missing."""
    path = documentation_path(run, kind, packages, size, task)
    if not path.exists():
        write_documentation(path, kind, packages, size, task)
    return path


def text_hash(run, name) -> str:
    """Hash of the text of a corpus that is not generated; of a Hub dataset, its id and revision."""
    corpus = run.corpora[name]
    if corpus.hub:
        return digest([corpus.hub, corpus.config, corpus.split, corpus.revision])
    return file_hash(_text_file(run, corpus))


def _text_file(run, corpus):
    return (run.resolve(corpus.path) if corpus.path else
            documentation_file(run, corpus.documentation, corpus.packages, corpus.max_characters))


def documents(run, name):
    """Yield the texts of a corpus that is not generated, in its own order."""
    corpus = run.corpora[name]
    if corpus.hub:
        records = _hub_records(corpus, corpus.split, [corpus.text_key])
    else:
        records = read_records(_text_file(run, corpus), [corpus.text_key or "text"])
    return (record[0] for record in records)


# --- token rows ---------------------------------------------------------------------------------------------------------------

def corpus_rows(run, name, lm, faithful=None) -> TokenRows:
    """A corpus as token rows, at most `corpus_tokens` of it; packed once and kept under the run's artifacts.

    Args:
        faithful: (key, iterable of id arrays, tokenizer) of a generated corpus. Ids of a model with another tokenizer are
            decoded and tokenised anew; ids of the same one are used as sampled.

    Raises:
        CorpusError: unreadable or empty corpus; one too small for a training and a held-out row.
    """
    corpus, vocabulary = run.corpora[name], digest(lm.tokenizer.get_vocab())
    inputs = {"faithful": faithful[0]} if faithful else {"text": text_hash(run, name)}
    settings = run.settings("sequence_length", "corpus_tokens") | {"corpus": plain(corpus) | {"role": None}, "bos_id": lm.bos_id,
                                                                    "vocabulary": vocabulary}
    key = digest([settings, inputs, code_hash("packing", "corpora")])
    folder = run.artifacts / "corpora" / name
    if not is_current(folder, key):
        if faithful is None:
            ids = tokenize(documents(run, name), lm.tokenizer)
        elif digest(faithful[2].get_vocab()) == vocabulary:
            ids = without_end(faithful[1], {lm.bos_id, lm.tokenizer.eos_token_id})
        else:
            ids = tokenize((faithful[2].decode(i, skip_special_tokens=True) for i in faithful[1]), lm.tokenizer)
        rows = pack(ids, lm.bos_id, run.sequence_length, run.corpus_tokens)
        with atomic_path(folder) as tmp:
            tmp.mkdir(parents=True)
            np.save(tmp / "rows.npy", rows)
            write_provenance(tmp / "provenance.json", key=key, parameters=settings, inputs=inputs)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    heldout = round(len(rows) * run.heldout)
    if not 0 < heldout < len(rows):
        raise CorpusError(f"{run.file}: corpora.{name}: only {len(rows)} rows of {run.sequence_length} tokens, too few for training "
                          f"and held-out rows (heldout = {run.heldout}): give more text or a shorter sequence_length")
    return TokenRows(name, rows[:-heldout], rows[-heldout:], digest([file_hash(folder), run.heldout]))


# --- labelled text --------------------------------------------------------------------------------------------------------------

def labelled(run, name):
    """A probing task, shuffled with its seed and cut to max_train and max_test.

    Returns:
        (train, test), each (texts: list[str], labels: list); and its input hashes.

    Raises:
        CorpusError: unreadable file, wrong key, a label that training has never seen, fewer than two labels.
    """
    task, probing = run.probing.tasks[name], run.probing
    rng = np.random.default_rng(probing.seed)
    keys = [task.text_key or "text", task.label_key or "label"]
    limits = probing.max_train, probing.max_test
    if task.documentation:
        path = documentation_file(run, task.documentation, task.packages, sum(limits), task=True)
        records, inputs = list(read_records(path, keys)), {"file": file_hash(path)}
        records = [records[i] for i in rng.permutation(len(records))]
        cut = round(len(records) * limits[0] / sum(limits))
        parts = records[:cut], records[cut:]
    elif task.train:
        files = run.resolve(task.train), run.resolve(task.test)
        parts, inputs = [list(read_records(file, keys)) for file in files], {file.name: file_hash(file) for file in files}
    else:
        parts = [list(itertools.islice(_hub_records(task, split, keys), limit * 2))
                 for split, limit in zip((task.train_split, task.test_split), limits)]
        inputs = {"hub": f"{task.hub}@{task.revision}"}
    chosen = []
    for records, limit in zip(parts, limits):
        records = [records[i] for i in rng.permutation(len(records))[:limit]]
        chosen.append(([text for text, _ in records], [label for _, label in records]))
    (_, train_labels), (_, test_labels) = chosen
    if len(set(train_labels)) < 2 or not test_labels:
        raise CorpusError(f"{run.file}: probing.tasks.{name}: needs at least two labels to train on and one example to test on; it has "
                          f"labels {sorted(set(train_labels))} and {len(test_labels)} test examples")
    if unseen := set(test_labels) - set(train_labels):
        raise CorpusError(f"{run.file}: probing.tasks.{name}: test labels {sorted(unseen)} never occur in training")
    return chosen[0], chosen[1], inputs


def check_sources(run):
    """Read the local files of a run once, before any work: readable, UTF-8, right keys, not empty.

    Raises:
        ParamsError: naming the key of the YAML and what is wrong with its file.
    """
    files = [(f"corpora.{name}.path", c.path, [c.text_key or "text"]) for name, c in run.corpora.items() if c.path]
    for name, task in run.probing.tasks.items():
        files += [(f"probing.tasks.{name}.{part}", getattr(task, part), [task.text_key or "text", task.label_key])
                  for part in ("train", "test") if getattr(task, part)]
    for key, path, keys in files:
        try:
            for _ in read_records(run.resolve(path), keys):
                pass
        except CorpusError as error:
            raise ParamsError(f"{run.file}: {key}: {error}") from None
