"""The faithful dataset of a run: text that its language model wrote, an artefact made of shards."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from faithful_sae.files import (
    MissingInputError,
    digest,
    is_current,
    locked,
    remove,
    remove_others,
    require_space,
)
from faithful_sae.lm import sampling
from faithful_sae.lm.model import LanguageModel
from faithful_sae.runs import needs
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.schema import Run, plain
from faithful_sae.stages.model import model_key


def faithful_key(run: Run) -> str:
    """What determines a run's faithful dataset."""
    return digest(
        [
            model_key(run),
            plain(run.generate),
            run.threads,
            run.device,
            code_hash("lm/sampling", "lm/decoding", "lm/model"),
        ]
    )


def make_faithful(run: Run, lm: LanguageModel) -> Path:
    """Make the faithful dataset of a run, shard by shard; shards that exist are kept, so a killed
    run goes on where it was.

    Each shard has its own generator, seeded by (seed, shard): the same tokens whether or not the
    run was interrupted, and however many processes sample_text's shards beforehand. While one of
    them still runs, this waits.

    Args:
        run: whose section `generate` is followed.
        lm: its language model.

    Returns:
        its folder.

    Raises:
        DiskFullError: before any work, if the tokens would not fit.
        MemoryError: before any work, if batch_rows rows would not fit in memory.
    """
    key = faithful_key(run)
    folder = run.artifacts / "faithful"
    with locked(run.artifacts / ".faithful.lock"):
        if is_current(folder, key):
            return folder
        start = time.time()
        shards = folder.with_name(f"faithful-{key}.partial")
        remove_others(shards)
        _sample_shards(run, lm, shards)
        # of a process killed while it wrote, and locks
        for unfinished in shards.glob(".*"):
            remove(unfinished)
        write_provenance(
            shards / "provenance.json",
            key=key,
            parameters=run.settings("generate"),
            inputs={"model": model_key(run), "commit": lm.revision},
            seconds=time.time() - start,
            device=lm.device,
        )
        remove(folder)
        os.replace(shards, folder)
    return folder


def sample_text(run: Run, lm: LanguageModel, worker: int, of: int) -> None:
    """Sample every `of`-th shard of the dataset from number `worker` on, beside other processes
    that do; make_faithful joins them, and raises the same.
    """
    key = faithful_key(run)
    folder = run.artifacts / "faithful"
    with locked(run.artifacts / ".faithful.lock", shared=True):
        if not is_current(folder, key):
            _sample_shards(run, lm, folder.with_name(f"faithful-{key}.partial"), worker, of)


def _sample_shards(run: Run, lm: LanguageModel, shards: Path, worker: int = 0, of: int = 1) -> None:
    g = run.generate
    require_space(shards, needs.text_disk(g) // of, "the faithful dataset")
    try:
        sampling.require_memory(lm, g.batch_rows, g.max_new_tokens)
    except MemoryError as error:
        raise MemoryError(f"{run.file}: generate.{error}") from None
    title = f"{run.name}: faithful text"
    sampling.write_shards(shards, lm, **plain(g), worker=worker, of=of, title=title)


def read_shards(run: Run) -> Iterator[np.ndarray]:
    """Yield the documents (int32 ids without BOS) of a run's faithful dataset.

    Raises:
        MissingInputError: notebook 01 has not made it.
    """
    folder = run.artifacts / "faithful"
    if not (folder / "provenance.json").exists():
        raise MissingInputError(
            f"{folder} is missing: run notebooks/01_generate_faithful for "
            f"{run.profile}/{run.name} first"
        )
    yield from sampling.read_shards(folder)
