"""The faithful dataset of a run, and its corpora (generated or not) as packed token rows."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from faithful_sae.files import (
    MissingInputError,
    atomic_path,
    digest,
    file_hash,
    is_current,
    locked,
    remove,
    remove_others,
    require_space,
    seal,
)
from faithful_sae.lm import sampling
from faithful_sae.lm.model import LanguageModel, ModelError
from faithful_sae.runs.keys import Fingerprint, settings
from faithful_sae.runs.params import load_params
from faithful_sae.runs.rows import run_first
from faithful_sae.runs.schema import Run, plain
from faithful_sae.stages.model import heldout_text, model_key, open_model
from faithful_sae.stages.s01_generate_faithful import TEXT, text_disk
from faithful_sae.stages.text import commit, files, text_hash, wanted
from faithful_sae.text.packing import (
    Cut,
    Ids,
    TokenRows,
    pack,
    rows_disk,
    text_tokens,
    without_end,
)
from faithful_sae.text.read import CorpusError, read_ids

# --- the faithful dataset -------------------------------------------------------------------------


def faithful_fingerprint(run: Run) -> Fingerprint:
    """What a run's faithful dataset depends on."""
    code = ("lm/sampling", "lm/decoding", "lm/model")
    return Fingerprint(settings(run, TEXT), {"model": model_key(run)}, code)


def start_of(run: Run, lm: LanguageModel) -> list[int]:
    """The ids that the documents of a run are sampled after (generate.start).

    Raises:
        ModelError: as sampling.start_ids; a context too short for them and a document.
    """
    g = run.generate
    try:
        ids = sampling.start_ids(lm.tokenizer, lm.bos_id, g.start, run.model_name)
    except ModelError as error:
        raise ModelError(f"{run.file}: {error}") from None
    if len(ids) + g.max_new_tokens > lm.context:
        raise ModelError(
            f"{run.file}: generate.max_new_tokens = {g.max_new_tokens} and the {len(ids)} tokens "
            f"of generate.start exceed the context of {run.model_name}, {lm.context} tokens"
        )
    return ids


def make_faithful(run: Run, lm: LanguageModel, folder: Path | None = None) -> Path:
    """Make the faithful dataset of a run, shard by shard; shards that exist are kept, so a killed
    run goes on where it was.

    Each shard has its own generator, seeded by (seed, shard): the same tokens whether or not the
    run was interrupted, and however many processes sample_share's shards beforehand. While one of
    them still runs, this waits.

    Args:
        run: whose section `generate` is followed.
        lm: its language model.
        folder: None: where the run's own dataset is.

    Returns:
        its folder.

    Raises:
        ModelError: before any work, as start_of.
        DiskFullError: before any work, if the tokens would not fit.
        MemoryError: before any work, if batch_rows rows would not fit in memory.
    """
    folder = run.artifacts / "faithful" if folder is None else folder
    made = faithful_fingerprint(run)
    return make_dataset(folder, made, lm, lambda shards: sample_shards(run, lm, shards))


def make_dataset(
    folder: Path, made: Fingerprint, lm: LanguageModel, write: Callable[[Path], None]
) -> Path:
    """A folder of sampled shards (sampling.read_shards), unless it is there already.

    Args:
        made: what it depends on.
        lm: the model that is sampled from.
        write: samples the shards that are not in the folder it is given, which stays where this is
            interrupted.
    """
    with locked(folder.with_name(f".{folder.name}.lock")):
        if is_current(folder, made.key):
            return folder
        start = time.time()
        shards = folder.with_name(f"{folder.name}-{made.key}.partial")
        remove_others(shards)
        write(shards)
        # of a process killed while it wrote, and locks
        for unfinished in shards.glob(".*"):
            remove(unfinished)
        seconds = time.time() - start
        seal(shards, made.key, made.record(lm.revision, seconds=seconds, device=lm.device))
        remove(folder)
        os.replace(shards, folder)
    return folder


def sample_share(run: Run, lm: LanguageModel, worker: int, of: int) -> None:
    """Sample every `of`-th shard of the dataset from number `worker` on, beside other processes
    that do; make_faithful joins them, and raises the same.
    """
    key = faithful_fingerprint(run).key
    folder = run.artifacts / "faithful"
    with locked(run.artifacts / ".faithful.lock", shared=True):
        if not is_current(folder, key):
            sample_shards(run, lm, folder.with_name(f"faithful-{key}.partial"), worker, of)


def sample_shards(run: Run, lm: LanguageModel, shards: Path, worker: int = 0, of: int = 1) -> None:
    """Sample as a run's `generate` says, from its language model or from what it became, into a
    folder; the rest as sampling.write_shards. Raises as make_faithful.
    """
    g = run.generate
    start = start_of(run, lm)
    require_space(shards, text_disk(g) // of, "the faithful dataset")
    try:
        sampling.require_memory(lm, g.batch_rows, g.max_new_tokens + len(start) - 1)
    except MemoryError as error:
        raise MemoryError(f"{run.file}: generate.{error}") from None
    title = f"{run.name}: faithful text"
    sampling.write_shards(shards, lm, **plain(g), worker=worker, of=of, title=title)


def read_shards(run: Run) -> Iterator[np.ndarray]:
    """Yield the documents (int32 ids without what they start after) of a run's faithful dataset.

    Raises:
        MissingInputError: notebook 01 has not made it.
    """
    folder = run.artifacts / "faithful"
    if not (folder / "provenance.json").exists():
        raise MissingInputError(f"{folder} is missing: {run_first(run, 'dataset')}")
    yield from sampling.read_shards(folder)


# --- token rows -----------------------------------------------------------------------------------


def corpus(run: Run, name: str, lm: LanguageModel) -> TokenRows:
    """A corpus of the run as token rows.

    Raises:
        MissingInputError: generated text that 01 has not made, or made with other parameters.
        CorpusError: as corpus_rows.
    """
    # notebooks, trainings and workers may come for it together
    with locked(run.artifacts / f".corpus-{name}.lock"):
        return _corpus(run, name, lm)


def _corpus(run, name, lm):
    source_name = run.corpora[name].faithful
    if source_name is None:
        return corpus_rows(run, name, lm)
    source = run
    if source_name != "self":
        source = load_params(run.file.with_name(f"{source_name}.yaml"))
    folder = source.artifacts / "faithful"
    key = faithful_fingerprint(source).key
    if not is_current(folder, key):
        why = "is missing or was made with other parameters"
        raise MissingInputError(f"{folder} {why}: {run_first(source, 'dataset')}")
    author = lm if source is run else open_model(source)
    return corpus_rows(run, name, lm, (key, sampled_documents(source, author), author.tokenizer))


def sampled_documents(
    run: Run, lm: LanguageModel, documents: Iterable[np.ndarray] | None = None
) -> Iterator[Ids | Cut]:
    """The documents of a run's faithful dataset, or others that were sampled as its `generate`
    says, without the tokens that ended them, for `pack`.
    """
    documents = read_shards(run) if documents is None else documents
    return without_end(documents, sampling.end_ids(lm.tokenizer, start_of(run, lm)))


def corpus_rows(
    run: Run,
    name: str,
    lm: LanguageModel,
    faithful: tuple[str, Iterable[Ids | Cut], Any] | None = None,
) -> TokenRows:
    """A corpus as token rows, at most `corpus_tokens` of it; packed once and kept under the run's
    artifacts.

    Args:
        run: that reads the corpus.
        name: of the corpus.
        lm: the run's language model.
        faithful: (key, sampled_documents, tokenizer) of a generated corpus. Ids of a model with
            another tokenizer are decoded and tokenised anew; ids of the same one are used as
            sampled.

    Raises:
        CorpusError: unreadable or empty corpus; one too small for a training and a held-out row.
    """
    corpus = run.corpora[name]
    vocabulary = digest(lm.tokenizer.get_vocab())
    source = {"faithful": faithful[0]} if faithful else {"text": text_hash(run, name)}
    parameters = settings(run, ("sequence_length", "corpus_tokens", f"corpora.{name}"))
    inputs = {**source, "bos_id": lm.bos_id, "vocabulary": vocabulary}
    made = Fingerprint(parameters, inputs, ("text/packing", "text/read"))
    folder = run.artifacts / "corpora" / name
    if not is_current(folder, made.key):
        require_space(folder, rows_disk(run.corpus_tokens), f"reading {name}")
        parts = folder.with_name(f"{name}-{made.key}.partial")
        remove_others(parts)
        if faithful is None:
            found = files(run, corpus, corpus.split)
            chosen = wanted(run, name)
            ids = read_ids(found, corpus.record_keys, lm.tokenizer, parts, chosen)
        else:
            ids = _faithful_ids(faithful[1], faithful[2], lm, vocabulary)
        rows = pack(ids, lm.bos_id, run.sequence_length, run.corpus_tokens)
        with atomic_path(folder) as tmp:
            tmp.mkdir(parents=True)
            np.save(tmp / "rows.npy", rows)
            seal(tmp, made.key, made.record(commit(run, corpus) if corpus.hub else None))
        remove(parts)
    rows = np.load(folder / "rows.npy", mmap_mode="r")
    heldout = round(len(rows) * run.heldout)
    if not 0 < heldout < len(rows):
        raise CorpusError(
            f"{run.file}: corpora.{name}: only {len(rows)} rows of {run.sequence_length} tokens, "
            f"too few for training and held-out rows (heldout = {run.heldout}): give more text or "
            "a shorter sequence_length"
        )
    train, held_out = rows[:-heldout], rows[-heldout:]
    if _pretraining(run, name):
        # the end of `rows` is what the language model itself was trained on
        n_train, held_out = heldout_text(run)
        train, held_out = train[:n_train], held_out[:heldout]
    return TokenRows(name, train, held_out, rows_key(run, name))


def _pretraining(run, name):
    """Whether a corpus is the text that the run's language model is trained on here."""
    return bool(run.embedded) and name == run.embedded.corpus


def rows_key(run: Run, name: str) -> str:
    """`TokenRows.key` of a corpus whose rows are packed."""
    heldout = model_key(run) if _pretraining(run, name) else run.heldout
    return digest([file_hash(run.artifacts / "corpora" / name), heldout])


def _faithful_ids(
    sampled: Iterable[Ids | Cut], tokenizer: Any, lm: LanguageModel, vocabulary: str
) -> Iterator[Ids | Cut]:
    if digest(tokenizer.get_vocab()) == vocabulary:
        yield from sampled
        return
    for document in sampled:
        cut = isinstance(document, Cut)
        text = tokenizer.decode(document.ids if cut else document, skip_special_tokens=True)
        (ids,) = text_tokens([text], lm.tokenizer)
        if ids:
            yield Cut(ids) if cut else ids
