"""Putting published SAEs where those of a training would be, in the same layout, so that notebooks
03 to 08 need not know.
"""

import shutil
import time
from pathlib import Path

import pandas as pd

from faithful_sae.files import PACKAGE, atomic_path, digest, file_hash, is_current, remove_others
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.sae.published import FILES, load_fitting, measure, source_hashes, weights_hash
from faithful_sae.sae.sae import SAEError, TopKSAE
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import model_key
from faithful_sae.stages.saes import sae_settings
from faithful_sae.text import hub

# what they make of a file is the result
FORMATS = tuple(
    f"sae/formats/{file.stem}" for file in sorted((PACKAGE / "sae" / "formats").glob("*.py"))
)


def locate(run, name: str, seed: int) -> tuple[Path, str]:
    """(folder, origin) of the published SAE of a corpus and seed: where its files are on this
    machine, and where they are from.

    What is on the Hub is fetched, at the commit that is recorded for the profile.

    Raises:
        HubError: no such repository, revision or folder, or out of reach.
    """
    entry = run.published[name].of(seed)
    if entry.path:
        return run.resolve(entry.path), entry.path
    at = hub.commit(run, "model", entry.hub, entry.revision)
    folder = hub.fetch_folder("model", entry.hub, at, entry.folder, FILES)
    below = f"/{entry.folder}" if entry.folder else ""
    return folder, f"{entry.hub}{below} at {at}"


def load_published(run, name: str, width: int | None = None) -> dict[int, TopKSAE]:
    """{seed: SAE} of a corpus, as load_fitting.

    Args:
        width: the model's d_model, if it is known already.

    Raises:
        SAEError: as load_fitting; one SAE for two seeds.
        HubError: as locate.
    """
    saes = {}
    seen = {}
    sizes = {"d_sae": run.sae.d_sae, "k": run.sae.k}
    for seed in run.sae.seeds:
        folder, _ = locate(run, name, seed)
        saes[seed] = load_fitting(folder, run.model, run.layer, sizes, width, run.file)
        weights = weights_hash(folder)
        if weights in seen:
            raise SAEError(
                f"{folder}: holds the weights of {seen[weights]}: two seeds of one corpus must be "
                "two SAEs"
            )
        seen[weights] = folder
    return saes


def published_corpus(run, name, lm):
    """Read the published SAEs of one corpus, one per seed, unless they are there already; they are
    measured on the run's own rows.

    The firing frequencies an SAE was published with are kept, to the last digit; where there are
    none they are measured, too.

    Returns:
        (curves, summary) as train_corpus: a row per seed in each. What only its trainer knows
            (tokens, steps, loss) is missing.

    Raises:
        SAEError, HubError: as load_published.
    """
    folder = run.artifacts / "saes" / name
    rows = corpus(run, name, lm)
    settings = sae_settings(run, name)
    places = {seed: locate(run, name, seed) for seed in run.sae.seeds}
    inputs = {
        f"seed{seed}": [origin, source_hashes(place)] for seed, (place, origin) in places.items()
    }
    key = digest(
        [
            settings,
            inputs,
            rows.key,
            model_key(run),
            code_hash("sae/published", "lm/model", *FORMATS),
        ]
    )
    remove_others(
        folder.with_name(f"{name}-{key}.partial")
    )  # of a training that was given up for these
    if not is_current(folder, key):
        _convert(run, name, lm, rows, folder, settings, key, places, inputs)
    measured = pd.read_csv(folder / "measured.csv")
    curves = measured.drop(columns="tokens").assign(corpus=name, step=pd.NA, loss=float("nan"))
    weights = [
        file_hash(folder / f"seed{seed}" / "sae_weights.safetensors") for seed in run.sae.seeds
    ]
    summary = measured.assign(
        corpus=name,
        tokens=pd.NA,
        distinct_tokens=pd.NA,
        passes=float("nan"),
        weights=weights,
        source=[origin for _, origin in places.values()],
    )
    return curves, summary


def _convert(run, name, lm, rows, folder, settings, key, places, inputs):
    s = run.sae
    start = time.time()
    saes = load_published(run, name, lm.d_model)
    results = measure(
        [sae.to(lm.device) for sae in saes.values()],
        lm,
        rows.train,
        max(s.tokens // 10, 1),
        s.include_bos,
        s.lm_batch_rows,
        s.batch_tokens,
    )
    with atomic_path(folder) as tmp:
        tmp.mkdir(parents=True)
        for (seed, sae), result in zip(saes.items(), results, strict=True):
            place, origin = places[seed]
            if sae.threshold is not None:
                print(
                    f"note: {name}, seed {seed}: keeps the latents above a threshold, not the k "
                    f"largest; sae.k = {s.k} is not its own"
                )
            if (said := sae.metadata.get("seed")) not in (None, seed):
                print(f"note: {name}, seed {seed}: its files call it seed {said}")
            firing = result.pop("firing")
            sae.firing = firing if sae.firing is None else sae.firing
            sae.metadata |= {
                "model": run.model,
                "layer": run.layer,
                "corpus": name,
                "seed": seed,
                "source": origin,
            }
            sae.save(tmp / f"seed{seed}")
            if (place / "sparsity.safetensors").is_file():
                shutil.copyfile(
                    place / "sparsity.safetensors", tmp / f"seed{seed}" / "sparsity.safetensors"
                )
        pd.DataFrame(
            [{"seed": seed, **result} for seed, result in zip(saes, results, strict=True)]
        ).to_csv(tmp / "measured.csv", index=False, lineterminator="\n")
        write_provenance(
            tmp / "provenance.json",
            key=key,
            parameters=settings,
            seconds=time.time() - start,
            device=lm.device,
            inputs={"tokens": rows.key, "model": model_key(run), "commit": lm.revision} | inputs,
        )
