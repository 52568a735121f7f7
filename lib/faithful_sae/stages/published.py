"""Putting published SAEs where those of a training would be, in the same layout, so that notebooks
03 to 09 need not know.
"""

import shutil
import time
from pathlib import Path

import pandas as pd

from faithful_sae.files import PACKAGE, atomic_path, folder_of, is_current, remove_others, seal
from faithful_sae.lm.architectures import ADDED, hooked_module
from faithful_sae.lm.model import LanguageModel
from faithful_sae.runs.keys import Fingerprint
from faithful_sae.runs.schema import Run
from faithful_sae.sae.published import FILES, load_fitting, measure, source_hashes, weights_hash
from faithful_sae.sae.sae import SAEError, TopKSAE
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import model_key
from faithful_sae.stages.s02_train_sae import sae_settings
from faithful_sae.stages.training import hook_metadata, weights_hashes
from faithful_sae.text import hub
from faithful_sae.text.packing import TokenRows

# what they make of a file is the result
FORMATS = tuple(
    f"sae/formats/{file.stem}" for file in sorted((PACKAGE / "sae" / "formats").glob("*.py"))
)


def locate(run: Run, name: str, seed: int) -> tuple[Path, str]:
    """(folder, origin) of the published SAE of a corpus and seed: where its files are on this
    machine, and where they are from.

    What is on the Hub is fetched, at the commit that is recorded for the profile.

    Raises:
        HubError: no such repository, revision or folder, or out of reach.
    """
    entry = run.published[name].of(seed)
    if entry.path:
        return folder_of(run.resolve(entry.path)), entry.path
    at = run.hub.commit("model", entry.hub, entry.revision)
    folder = hub.fetch_folder("model", entry.hub, at, entry.folder, FILES)
    below = f"/{entry.folder}" if entry.folder else ""
    return folder, f"{entry.hub}{below} at {at}"


def load_published(
    run: Run, name: str, width: int | None = None, kind: str | None = None
) -> dict[int, TopKSAE]:
    """{seed: SAE} of a corpus, as load_fitting.

    Args:
        width: the model's d_model, if it is known already.
        kind: its model_type, likewise.

    Raises:
        SAEError: as load_fitting; one SAE for two seeds.
        HubError: as locate.
    """
    saes = {}
    seen = {}
    sizes = {"d_sae": run.sae.d_sae, "k": run.sae.k}
    module = hooked_module(kind, run.hook) if kind in ADDED else None
    for seed in run.sae.seeds:
        folder, _ = locate(run, name, seed)
        saes[seed] = load_fitting(
            folder, run.model_name, run.layer, sizes, width, run.file, run.hook, module
        )
        weights = weights_hash(folder)
        if weights in seen:
            raise SAEError(
                f"{folder}: holds the weights of {seen[weights]}: two seeds of one corpus must be "
                "two SAEs"
            )
        seen[weights] = folder
    return saes


def published_corpus(run: Run, name: str, lm: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
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
    places = {seed: locate(run, name, seed) for seed in run.sae.seeds}
    read = {f"seed{seed}": [at, source_hashes(place)] for seed, (place, at) in places.items()}
    inputs = {"tokens": rows.key, "model": model_key(run), **read}
    code = ("sae/published", "lm/model", *FORMATS)
    made = Fingerprint(sae_settings(run, name), inputs, code)
    # of a training that was given up for these
    remove_others(folder.with_name(f"{name}-{made.key}.partial"))
    if not is_current(folder, made.key):
        _convert(run, name, lm, rows, folder, made, places)
    measured = pd.read_csv(folder / "measured.csv")
    curves = measured.drop(columns="tokens").assign(corpus=name, step=pd.NA, loss=float("nan"))
    summary = measured.assign(
        corpus=name,
        tokens=pd.NA,
        distinct_tokens=pd.NA,
        passes=float("nan"),
        weights=weights_hashes(folder, run.sae.seeds),
        source=[origin for _, origin in places.values()],
    )
    return curves, summary


def _convert(
    run: Run,
    name: str,
    lm: LanguageModel,
    rows: TokenRows,
    folder: Path,
    made: Fingerprint,
    places: dict[int, tuple[Path, str]],
) -> None:
    s = run.sae
    start = time.time()
    saes = load_published(run, name, lm.d_model, lm.model.config.model_type)
    results = measure(
        [sae.to(lm.device) for sae in saes.values()],
        lm,
        rows.train,
        max(s.tokens // 10, 1),
        s.include_bos,
        s.lm_batch_rows,
        s.batch_tokens,
        s.max_norm,
    )
    with atomic_path(folder) as tmp:
        tmp.mkdir(parents=True)
        records = []
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
            sae.metadata |= {"model": run.model_name, "layer": run.layer, "corpus": name}
            sae.metadata |= hook_metadata(run)
            sae.metadata |= {"seed": seed, "source": origin}
            sae.save(tmp / f"seed{seed}")
            published = place / "sparsity.safetensors"
            if published.is_file():
                shutil.copyfile(published, tmp / f"seed{seed}" / published.name)
            records.append({"seed": seed, **result})
        table = pd.DataFrame(records)
        table.to_csv(tmp / "measured.csv", index=False, lineterminator="\n")
        seconds = time.time() - start
        seal(tmp, made.key, made.record(lm.revision, seconds=seconds, device=lm.device))
