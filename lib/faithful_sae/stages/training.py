"""Training the SAEs of a run."""

import time

import numpy as np
import pandas as pd

from faithful_sae import activations, train
from faithful_sae.provenance import atomic_path, code_hash, digest, file_hash, is_current, require_space, write_provenance
from faithful_sae.stages.language_model import model_key
from faithful_sae.stages.rows import write_rows
from faithful_sae.stages.saes import sae_settings
from faithful_sae.stages.token_rows import corpus


def train_corpus(run, name, lm):
    """Train the SAEs of one corpus, one per seed, from one stream of activations, unless they are there already.

    Returns:
        (curves, summary): training curves (one row per seed and logged step) and one row per SAE.
    """
    s, rows = run.sae, corpus(run, name, lm)
    settings = sae_settings(run)
    key = digest([settings, rows.key, model_key(run), code_hash("train", "activations", "models")])
    folder = run.artifacts / "saes" / name
    available = rows.train.size if s.include_bos else int((np.asarray(rows.train) != lm.bos_id).sum())
    n_tokens = min(s.tokens, available * s.max_epochs)
    if available < s.tokens:
        print(f"note: {name}: {available:,} training tokens for a budget of {s.tokens:,}: {n_tokens / available:.1f} passes over them"
              + (f", {n_tokens:,} tokens in all, since sae.max_epochs = {s.max_epochs}" if n_tokens < s.tokens else ""))
    if not is_current(folder, key):
        start = time.time()
        require_space(folder, len(s.seeds) * 4 * s.d_sae * (2 * lm.d_model + 2), f"the SAEs of {name}")
        batches = activations.activation_batches(
            lm, rows.train, n_tokens=n_tokens, batch_tokens=s.batch_tokens, buffer_tokens=s.buffer_tokens,
            lm_batch_rows=s.lm_batch_rows, include_bos=s.include_bos, seed=s.data_seed)
        saes = train.train_saes(batches, lm.d_model, s.d_sae, s.k, s.seeds, s.lr, n_tokens, s.batch_tokens, s.recipe, lm.device,
                                f"{run.name}: {len(s.seeds)} SAEs on {name}")
        with atomic_path(folder) as tmp:
            tmp.mkdir(parents=True)
            for seed, sae in zip(s.seeds, saes):
                sae.metadata |= {"model": run.model, "layer": run.layer, "corpus": name, "sequence_length": run.sequence_length,
                                 "recipe": s.recipe, "training_tokens": n_tokens, "seed": seed}
                sae.save(tmp / f"seed{seed}")
            pd.concat([sae.training_log for sae in saes]).to_csv(tmp / "training.csv", index=False, lineterminator="\n")
            write_provenance(tmp / "provenance.json", key=key, parameters=settings, seconds=time.time() - start, device=lm.device,
                             inputs={"tokens": rows.key, "model": model_key(run), "commit": lm.revision})
    curves = pd.read_csv(folder / "training.csv").assign(corpus=name)
    summary = pd.DataFrame([{"corpus": name, "seed": seed, "tokens": n_tokens, "distinct_tokens": available,
                             "passes": n_tokens / available} | last_point(curves, seed) for seed in s.seeds])
    return curves, summary.assign(weights=[file_hash(folder / f"seed{seed}" / "sae_weights.safetensors") for seed in s.seeds])


def last_point(curves, seed):
    """Mean fvu, l0 over the last tenth of a training curve, and the dead latents at its end."""
    curve = curves[curves.seed == seed]
    tail = curve.iloc[-max(len(curve) // 10, 1):]
    return {"fvu": tail.fvu.mean(), "l0": tail.l0.mean(), "dead": int(curve.dead.iloc[-1])}


def train_all(run, lm):
    """Train (or reuse) the SAEs of every corpus in sae.train_on; writes rows `training` and `saes`, and returns both."""
    curves, summaries = zip(*(train_corpus(run, name, lm) for name in run.sae.train_on))
    curves, summary = pd.concat(curves, ignore_index=True), pd.concat(summaries, ignore_index=True)
    curves["tokens"] = curves.step * run.sae.batch_tokens
    write_rows(run, "training", curves)
    write_rows(run, "saes", summary)
    return curves, summary
