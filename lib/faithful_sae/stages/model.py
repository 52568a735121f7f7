"""The run's language model: trained here when it is embedded, loaded otherwise."""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from faithful_sae.files import MissingInputError, digest, file_hash, is_current, locked, write_csv
from faithful_sae.lm import ngram
from faithful_sae.lm.embedded import initialise, train_language_model, train_tokenizer
from faithful_sae.lm.model import ModelError, explained, load_model
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.needs import Shape, shape_of
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import plain
from faithful_sae.text import hub, packing, read


def model_key(run) -> str:
    """What determines a run's language model: its files, its commit on the Hub, or the recipe and
    text it is trained on.
    """
    if run.embedded:
        return digest(
            [
                plain(run.embedded),
                read.text_hash(run, run.embedded.corpus),
                run.heldout,
                run.threads,
                run.dtype,
                code_hash("lm/embedded", "text/packing", "lm/ngram"),
            ]
        )
    folder = run.model_folder
    return digest(
        [
            file_hash(folder)
            if folder
            else [run.model, hub.commit(run, "model", run.model, run.revision)],
            run.dtype,
        ]
    )


def model_shape(run) -> Shape:
    """The sizes of a run's language model, from its config.json or the `embedded` section: no
    weights are read or made.

    Raises:
        HubError: a model of the Hub whose config.json is neither in the cache nor within reach.
            ModelError: no readable config.json.
    """
    with torch.device("meta"):
        return shape_of(unloaded_model(run))


def unloaded_model(run):
    """A run's language model in its architecture and dtype, with random weights on the default
    device; raises as model_shape.
    """
    if run.embedded:
        return initialise(run.embedded, run.embedded.seed)
    folder = (
        run.model_folder
        or hub.fetch(
            "model", run.model, hub.commit(run, "model", run.model, run.revision), "config.json"
        ).parent
    )
    with explained(str(folder), "model"):
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForCausalLM.from_config(
            config, dtype=config.dtype if run.dtype == "auto" else getattr(torch, run.dtype)
        )


def open_model(run):
    """The run's language model, hooked at `layer`.

    Raises:
        MissingInputError: an embedded model that notebook 01 has not trained. ModelError: as
            load_model, or a context shorter
        than sequence_length.
    """
    folder = run.artifacts / "lm" if run.embedded else run.model_folder
    if run.embedded and not is_current(folder, model_key(run)):
        raise MissingInputError(
            f"{folder}: not trained yet, or with other parameters: run "
            "notebooks/01_generate_faithful for "
            f"{run.profile}/{run.name} first"
        )
    at = None if folder else hub.commit(run, "model", run.model, run.revision)
    lm = load_model(folder or run.model, run.layer, run.device, run.dtype, at, run.gpus)
    lm.revision = at
    if run.sequence_length > lm.context:
        raise ModelError(
            f"{run.file}: sequence_length = {run.sequence_length} exceeds the context of "
            f"{run.model}, {lm.context} tokens"
        )
    return lm


def train_embedded_model(run) -> pd.DataFrame | None:
    """Train the embedded language model if it is not there; None for a model that is not embedded.

    Writes rows `language_model`: held-out cross-entropy of the model and of an interpolated 5-gram
    fitted on the same tokens.

    Returns:
        the training log (tokens, train_ce, heldout_ce in nats per token).
    """
    if not run.embedded:
        return None
    folder = run.artifacts / "lm"
    key = model_key(run)
    with locked(run.artifacts / ".lm.lock"):  # workers come here together
        if not is_current(folder, key):
            _train(run, folder, key)
    write_rows(run, "language_model", pd.read_csv(folder / "evaluation.csv"))
    return pd.read_csv(folder / "training.csv")


def _train(run, folder, key):
    start = time.time()
    e = run.embedded
    texts = list(read.documents(run, e.corpus))
    tokenizer = train_tokenizer(texts, e.vocab_size)
    wanted = round(e.train_tokens / (1 - run.heldout))
    rows = packing.pack(
        packing.tokenize(texts, tokenizer), tokenizer.bos_token_id, e.context, wanted
    )
    if len(rows) * e.context < wanted - e.context:
        print(
            f"note: {e.corpus}: {len(rows) * e.context:,} tokens, fewer than the {wanted:,} asked "
            "for: all are used"
        )
    heldout = max(round(len(rows) * run.heldout), 1)
    train_rows, heldout_rows = rows[:-heldout], rows[-heldout:]
    five_gram = ngram.NGram(5, e.vocab_size).fit(train_rows).cross_entropy(heldout_rows)
    log = train_language_model(e, train_rows, heldout_rows, tokenizer, folder, e.seed)
    write_csv(
        folder / "evaluation.csv",
        pd.DataFrame(
            [
                {
                    "architecture": e.architecture,
                    "layers": e.n_layers,
                    "d_model": e.d_model,
                    "parameters": count_parameters(folder),
                    "train_tokens": train_rows.size,
                    "tokens_seen": e.steps * e.batch_rows * e.context,
                    "heldout_tokens": heldout_rows.size,
                    "ce": log["heldout_ce"].iloc[-1],
                    "ce_5gram": five_gram,
                }
            ]
        ),
    )
    write_provenance(
        folder / "provenance.json",
        key=key,
        parameters=run.settings("embedded", "threads", "heldout"),
        inputs={"text": digest(texts)},
        seconds=time.time() - start,
    )


def count_parameters(folder) -> int:
    """Number of weights in a model folder, tied ones once."""
    total = 0
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            total += sum(
                int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys()
            )
    return total
