"""Putting published SAEs where those of a training would be, in the same layout, so that notebooks
03 to 08 need not know.
"""

import shutil
import time

import pandas as pd

from faithful_sae.files import PACKAGE, atomic_path, digest, file_hash, is_current, remove_others
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.sae.published import load_published, locate, measure, source_hashes
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import model_key
from faithful_sae.stages.saes import sae_settings

FORMATS = tuple(
    f"sae/formats/{file.stem}" for file in sorted((PACKAGE / "sae" / "formats").glob("*.py"))
)  # what they make of a file is the result


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
        for (seed, sae), result in zip(saes.items(), results):
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
        pd.DataFrame([{"seed": seed, **result} for seed, result in zip(saes, results)]).to_csv(
            tmp / "measured.csv", index=False, lineterminator="\n"
        )
        write_provenance(
            tmp / "provenance.json",
            key=key,
            parameters=settings,
            seconds=time.time() - start,
            device=lm.device,
            inputs={"tokens": rows.key, "model": model_key(run), "commit": lm.revision} | inputs,
        )
