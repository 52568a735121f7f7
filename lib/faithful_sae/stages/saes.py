"""Loading the SAEs of a run, and refusing those that are not what the parameters say."""

import json

from faithful_sae.files import MissingInputError, file_hash
from faithful_sae.runs.rows import read_rows
from faithful_sae.runs.schema import plain
from faithful_sae.sae.sae import SAEError, load_sae

MEASURED_WITH = ("seeds", "d_sae", "k", "tokens", "include_bos", "lm_batch_rows", "batch_tokens")


def sae_settings(run, name=None) -> dict:
    """The parameters that the SAEs of a corpus depend on: of a trained one all but the corpus; of a
    published one (by its name) where they are from, and what they are measured with.
    """
    settings = run.settings("layer", "threads", "dtype", "device")
    s = plain(run.sae)
    if name in run.published:
        return (
            settings | {key: s[key] for key in MEASURED_WITH} | {"published": s["published"][name]}
        )
    del s["train_on"], s["published"], s["cache_activations"]  # which changes no number
    return settings | s


def load_saes(run, lm=None) -> dict:
    """{(corpus, seed): TopKSAE} of a run.

    Raises:
        MissingInputError: notebook 02 has not made one. SAEError: damaged weights, other weights
            than 02 recorded, another
        k, d_sae or layer than the parameters', or (with `lm`) another width than the model's.
    """
    recorded = read_rows(run, "saes", "02_train_sae").set_index(["corpus", "seed"]).weights
    saes = {}
    for name in run.sae.train_on:
        record = run.artifacts / "saes" / name / "provenance.json"
        trained = (
            json.loads(record.read_text(encoding="utf-8"))["parameters"] if record.exists() else {}
        )
        for seed in run.sae.seeds:
            folder = run.artifacts / "saes" / name / f"seed{seed}"
            if not folder.exists() or (name, seed) not in recorded.index:
                raise MissingInputError(
                    f"{folder} is missing: run notebooks/02_train_sae for "
                    f"{run.profile}/{run.name} first"
                )
            sae = load_sae(folder)
            if lm is not None and sae.d_model != lm.d_model:
                raise SAEError(
                    f"{folder}: takes activations of width {sae.d_model}, but the model's are "
                    f"{lm.d_model} wide"
                )
            found = (
                trained
                | {"d_sae": sae.d_sae, "layer": sae.metadata.get("layer")}
                | ({"k": sae.k} if sae.threshold is None else {})
            )
            for key, wanted in sae_settings(run, name).items():
                if found.get(key) != wanted:
                    raise SAEError(
                        f"{folder}: was made with {key} = {found.get(key)}, but {run.file} says "
                        f"{wanted}: run "
                        "02_train_sae again"
                    )
            if file_hash(folder / "sae_weights.safetensors") != recorded[name, seed]:
                raise SAEError(
                    f"{folder}: its weights are not those 02_train_sae wrote: delete the folder "
                    "and run it again"
                )
            saes[name, seed] = sae.to(lm.device) if lm is not None else sae
    return saes
