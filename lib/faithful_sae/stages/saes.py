"""Loading the SAEs of a run, and refusing those that are not what the parameters say."""

from collections.abc import Sequence
from typing import Any

from faithful_sae.files import MissingInputError, file_hash, read_json
from faithful_sae.lm.model import LanguageModel
from faithful_sae.runs.rows import read_rows, run_first
from faithful_sae.runs.schema import Run
from faithful_sae.runs.stage import SAEs
from faithful_sae.sae.sae import SAEError, TopKSAE, load_sae
from faithful_sae.stages.s02_train_sae import STAGE, sae_artefact, sae_folder, sae_settings


def load_saes(
    run: Run,
    lm: LanguageModel | None = None,
    corpora: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> SAEs:
    """{(corpus, seed): SAE} of a run; a baseline is called by its name in the place of a corpus.

    Args:
        lm: on whose device they are put.
        corpora: some of sae.train_on; None: all of them, then the baselines.
        seeds: those of sae.seeds that are loaded; None: all.

    Raises:
        MissingInputError: notebook 02 has not made one.
        SAEError: damaged weights, other weights than 02 recorded, other parameters than the run's,
            or (with `lm`) another width than the model's.
    """
    recorded = read_rows(run, "saes").set_index(["corpus", "seed"]).weights
    saes = {}
    for name in run.sae_names if corpora is None else corpora:
        record = sae_artefact(run, name) / "provenance.json"
        made = {}
        if record.exists():
            made = read_json(record)["parameters"]
        for seed in run.sae.seeds if seeds is None else seeds:
            folder = sae_folder(run, name, seed)
            if not folder.exists() or (name, seed) not in recorded.index:
                raise MissingInputError(f"{folder} is missing: {run_first(run, 'saes')}")
            sae = load_sae(folder)
            if lm is not None and sae.d_model != lm.d_model:
                raise SAEError(
                    f"{folder}: takes activations of width {sae.d_model}, but the model's are "
                    f"{lm.d_model} wide"
                )
            for key, found, wanted in _differences(run, name, sae, made):
                raise SAEError(
                    f"{folder}: was made with {key} = {found}, but {run.file} says {wanted}: run "
                    f"{STAGE.name} again"
                )
            if file_hash(folder / "sae_weights.safetensors") != recorded[name, seed]:
                raise SAEError(
                    f"{folder}: its weights are not those {STAGE.name} wrote: delete the folder "
                    "and run it again"
                )
            saes[name, seed] = sae.to(lm.device) if lm is not None else sae
    return saes


def _differences(run: Run, name: str, sae: TopKSAE, made: dict) -> list[tuple[str, Any, Any]]:
    """(key, what an SAE was made with, what the run says) where these are not the same."""
    found = _flat(made) | {"layer": sae.metadata.get("layer"), "sae.d_sae": sae.d_sae}
    if sae.threshold is None:
        found["sae.k"] = sae.k
    wanted = _flat(sae_settings(run, name))
    # a key that came later stands in one of the two alone where the other is as before it
    return [
        (key, found.get(key), wanted.get(key))
        for key in {**wanted, **_flat(made)}
        if found.get(key) != wanted.get(key)
    ]


def _flat(settings: dict) -> dict[str, Any]:
    """Settings with a section's values by their own keys, `sae.k`."""
    flat = {}
    for key, value in settings.items():
        below = value if key == "sae" else {}
        flat |= {f"{key}.{name}": entry for name, entry in below.items()} or {key: value}
    return flat
