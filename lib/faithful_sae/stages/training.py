"""Training the SAEs of a run."""

import time

import numpy as np
import pandas as pd

from faithful_sae.files import (
    atomic_path,
    digest,
    file_hash,
    is_current,
    remove_others,
    require_space,
)
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.rows import write_rows
from faithful_sae.sae import activations, train
from faithful_sae.sae.activation_cache import ActivationCache, activations_disk
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import model_key
from faithful_sae.stages.published import published_corpus
from faithful_sae.stages.saes import sae_settings
from faithful_sae.text.read import rows_key


def train_corpus(run, name, lm):
    """Train the SAEs of one corpus, one per seed, from one stream of activations, unless they are
    there already.

    Returns:
        (curves, summary): training curves (one row per seed and logged step) and one row per SAE.
    """
    s = run.sae
    rows = corpus(run, name, lm)
    n_tokens, available = token_budget(run, name, rows, lm, s.tokens)
    folder = run.artifacts / "saes" / name
    wanted = [
        {"name": f"seed{seed}", "d_sae": s.d_sae, "k": s.k, "tokens": n_tokens, "seed": seed}
        for seed in s.seeds
    ]
    train_stream(run, name, lm, rows, folder, sae_settings(run), wanted)
    curves = pd.read_csv(folder / "training.csv").assign(corpus=name)
    summary = pd.DataFrame(
        [
            {
                "corpus": name,
                "seed": seed,
                "tokens": n_tokens,
                "distinct_tokens": available,
                "passes": n_tokens / available,
            }
            | last_point(curves[curves.seed == seed])
            for seed in s.seeds
        ]
    )
    return curves, summary.assign(
        weights=[file_hash(folder / f"seed{seed}" / "sae_weights.safetensors") for seed in s.seeds],
        source=pd.NA,
    )


def token_budget(run, name, rows, lm, tokens):
    """(how many of the `tokens` asked for sae.max_epochs allows, how many different ones there
    are); says so where they repeat.
    """
    s = run.sae
    available = (
        rows.train.size if s.include_bos else int((np.asarray(rows.train) != lm.bos_id).sum())
    )
    n_tokens = min(tokens, available * s.max_epochs)
    if available < tokens:
        print(
            f"note: {name}: {available:,} training tokens for a budget of {tokens:,}: "
            f"{n_tokens / available:.1f} passes over them"
            + (
                f", {n_tokens:,} tokens in all, since sae.max_epochs = {s.max_epochs}"
                if n_tokens < tokens
                else ""
            )
        )
    return n_tokens, available


def train_stream(run, name, lm, rows, folder, settings, wanted, label="seed"):
    """Train SAEs from one stream of activations into one artefact, `folder`, unless it is there
    already.

    Args:
        name: of the corpus, rows: its TokenRows. settings: all parameters the artefact depends on.
        wanted: per SAE a dict with `name` (of its subfolder), d_sae, k, tokens, seed. label: which
            of these tells the training curves in the folder's training.csv apart.
    """
    key = training_key(run, settings, rows.key)
    checkpoint = Checkpoint(folder.with_name(f"{folder.name}-{key}.partial"), key)
    if is_current(folder, key):
        checkpoint.remove()
        return
    s = run.sae
    start = time.time()
    sizes = {
        column: [entry[column] for entry in wanted] for column in ("d_sae", "k", "seed", "tokens")
    }
    require_space(
        folder, train.training_disk(lm.d_model, sizes["d_sae"]), f"training the SAEs of {name}"
    )
    remove_others(checkpoint.path)  # of trainings that were given up for one with other parameters
    batches = activation_stream(run, name, rows, lm, max(sizes["tokens"]))
    saes = train.train_saes(
        batches,
        lm.d_model,
        sizes["d_sae"],
        sizes["k"],
        sizes["seed"],
        s.lr,
        sizes["tokens"],
        s.batch_tokens,
        s.recipe,
        lm.device,
        f"{run.name}: {len(wanted)} SAEs on {name}, layer {run.layer}",
        checkpoint,
    )
    with atomic_path(folder) as tmp:
        tmp.mkdir(parents=True)
        for entry, sae in zip(wanted, saes, strict=True):
            sae.metadata |= {
                "model": run.model,
                "layer": run.layer,
                "corpus": name,
                "sequence_length": run.sequence_length,
                "recipe": s.recipe,
                "training_tokens": entry["tokens"],
                "seed": entry["seed"],
            }
            sae.save(tmp / entry["name"])
        curves = pd.concat(
            [
                sae.training_log.assign(**{label: entry[label]})
                for entry, sae in zip(wanted, saes, strict=True)
            ]
        )
        curves.to_csv(tmp / "training.csv", index=False, lineterminator="\n")
        write_provenance(
            tmp / "provenance.json",
            key=key,
            parameters=settings,
            seconds=time.time() - start,
            device=lm.device,
            inputs={"tokens": rows.key, "model": model_key(run), "commit": lm.revision},
        )
    checkpoint.remove()


def training_key(run, settings, rows_key) -> str:
    """What determines the SAEs trained from one stream."""
    return digest(
        [settings, rows_key, model_key(run), code_hash("sae/train", "sae/activations", "lm/model")]
    )


def corpus_is_trained(run, name) -> bool:
    """Whether the SAEs of a corpus are there, for its token rows as they are now."""
    folder = run.artifacts / "saes" / name
    rows = run.artifacts / "corpora" / name
    return rows.exists() and is_current(
        folder, training_key(run, sae_settings(run, name), rows_key(run, rows))
    )


def activation_stream(run, name, rows, lm, n_tokens):
    """The activations of a corpus in the order in which SAEs are trained on them, kept on disk if
    the run says so.
    """
    s = run.sae
    return activations.ActivationStream(
        lm,
        rows.train,
        n_tokens=n_tokens,
        batch_tokens=s.batch_tokens,
        buffer_tokens=s.buffer_tokens,
        lm_batch_rows=s.lm_batch_rows,
        include_bos=s.include_bos,
        seed=s.data_seed,
        cache=activation_cache(run, name, rows, lm) if s.cache_activations else None,
    )


def activation_cache(run, name, rows, lm):
    """Where the activations of a corpus at the run's layer are kept; those of other parameters are
    removed.

    Raises:
        DiskFullError: they would not fit, all of them.
    """
    s = run.sae
    missing = activations_disk(rows.train.size, lm.d_model, lm.model.dtype.itemsize)
    key = digest(
        [
            run.settings("layer", "threads", "dtype", "device"),
            s.buffer_tokens,
            s.lm_batch_rows,
            s.include_bos,
            s.data_seed,
            rows.key,
            model_key(run),
            code_hash("sae/activations", "lm/model"),
        ]
    )
    folder = run.artifacts / "activations" / f"{name}-layer{run.layer}-{key}"
    remove_others(folder, "")
    if folder.exists():
        missing -= sum(
            file.stat().st_size for file in folder.glob("group_*.safetensors")
        )  # another notebook may be adding to them
    require_space(folder, missing, f"keeping the activations of {name} (sae.cache_activations)")
    return ActivationCache(folder)


def last_point(curve):
    """Mean fvu, l0 over the last tenth of a training curve, and the dead latents at its end."""
    tail = curve.iloc[-max(len(curve) // 10, 1) :]
    return {"fvu": tail.fvu.mean(), "l0": tail.l0.mean(), "dead": int(curve.dead.iloc[-1])}


def corpus_saes(run, name, lm):
    """Train the SAEs of one corpus, or read them where they are published, unless they are there
    already: as train_corpus.
    """
    return (published_corpus if name in run.published else train_corpus)(run, name, lm)


def train_all(run, lm):
    """Train, read (sae.published) or reuse the SAEs of every corpus in sae.train_on; writes rows
    `training` and `saes`, and returns both.

    A row of `training` without a step is what a published SAE does on the run's own text.
    """
    curves, summaries = zip(*(corpus_saes(run, name, lm) for name in run.sae.train_on))
    curves = pd.concat(curves, ignore_index=True)[
        ["step", "loss", "fvu", "l0", "dead", "seed", "corpus"]
    ].astype({"step": "Int64"})
    summary = pd.concat(summaries, ignore_index=True)[
        [
            "corpus",
            "seed",
            "tokens",
            "distinct_tokens",
            "passes",
            "fvu",
            "l0",
            "dead",
            "weights",
            "source",
        ]
    ].astype({"tokens": "Int64", "distinct_tokens": "Int64"})
    curves["tokens"] = curves.step * run.sae.batch_tokens
    write_rows(run, "training", curves)
    write_rows(run, "saes", summary)
    return curves, summary
