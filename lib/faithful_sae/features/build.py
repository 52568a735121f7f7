"""An index of features from a language model, an SAE and token rows. See index.py for the files and
what they hold.
"""

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from faithful_sae.features import explain
from faithful_sae.features.collect import Kept, collect
from faithful_sae.features.index import (
    CONTEXTS,
    EXPLANATIONS,
    META,
    FeatureError,
    FeatureIndex,
    write_grouped,
    write_latents,
)
from faithful_sae.features.vocabulary import display_strings
from faithful_sae.files import atomic_path, digest, is_current, remove_others
from faithful_sae.files.checkpoint import Checkpoint, checksum
from faithful_sae.kernels.latent_statistics import EDGES, NO_KEY
from faithful_sae.runs.provenance import write_provenance

METHODS = ("MaxAct", "PruningMaxAct", "VocabProj", "MutInfo")
LATENTS_PER_GROUP = 32  # of the parquet files: what is read for one page


def build_index(
    folder,
    lm,
    sae,
    rows,
    kept=Kept(),
    *,
    about=None,
    random_frequency=None,
    ffr_frequency=None,
    twin=None,
    twin_cosine=None,
    sfr_threshold=None,
    listed=10,
    shown=3,
    pruned=1,
    include_bos=False,
    batch_rows=32,
    key=None,
    provenance=None,
):
    """Make (or reuse, or finish) the index of an SAE's latents on a corpus.

    Args:
        folder: where it goes. rows: int [R, T] token rows, each starting with BOS. kept: Kept,
            which contexts.
        about: {name: value} for index.json: label, run, profile, corpus, seed, other_seed, ...;
            what is missing is None there.
        random_frequency: float [F] or None, share of random tokens on which each fires
            (ffr.firing_frequency); above ffr_frequency it is fake.
        twin, twin_cosine: int and float [F] or None, the matched latent of another SAE (-1: none)
            and its cosine, for instance `permutation` and `cosine` of match_features; at
            sfr_threshold or above it is shared.
        listed: tokens of VocabProj and MutInfo. shown: contexts of MaxAct. pruned: contexts that
            PruningMaxAct shortens: it runs the model again, at least one pass of two tokens for
            each (0: none).
        include_bos, batch_rows: as collect. key: of all the index depends on; by default of the
            arguments.
        provenance: {parameters, inputs} of write_provenance.

    Returns:
        FeatureIndex.

    Raises:
        FeatureError: as collect; arrays that are not one value per latent; random_frequency without
            ffr_frequency, or twin without twin_cosine or sfr_threshold.
    """
    folder = Path(folder)
    start = time.time()
    weights = checksum({n: t.detach().cpu().contiguous() for n, t in sae.weights.items()})
    _check(
        sae,
        {"random_frequency": random_frequency, "twin": twin, "twin_cosine": twin_cosine},
        {
            "random_frequency": ("ffr_frequency", ffr_frequency),
            "twin": ("sfr_threshold", sfr_threshold),
        },
    )
    if key is None:
        given = [
            None if a is None else np.asarray(a).tolist()
            for a in (random_frequency, twin, twin_cosine)
        ]
        key = digest(
            [
                weights,
                hashlib.sha256(np.ascontiguousarray(rows)).hexdigest(),
                lm.model.name_or_path,
                lm.layer,
                vars(kept),
                about,
                given,
                ffr_frequency,
                sfr_threshold,
                listed,
                shown,
                pruned,
                include_bos,
                batch_rows,
            ]
        )
    if is_current(folder, key):
        return FeatureIndex(folder)
    checkpoint = Checkpoint(folder.with_name(f"{folder.name}-{key}.partial"), key)
    remove_others(checkpoint.path)
    state, token_counts = collect(
        lm, sae, rows, kept, include_bos, batch_rows, checkpoint, f"features of {folder.name}"
    )
    latents, edges = latent_table(state, int(token_counts.sum()))
    latents = latents.assign(
        random_frequency=np.nan if random_frequency is None else random_frequency,
        fake=None,
        shared=None,
        twin=-1 if twin is None else twin,
        twin_cosine=np.nan if twin is None else twin_cosine,
    )
    if random_frequency is not None:
        latents["fake"] = np.asarray(random_frequency) > ffr_frequency
    if twin is not None:
        latents["shared"] = np.asarray(twin_cosine) >= sfr_threshold
    vocabulary = display_strings(lm.tokenizer)
    contexts = context_table(state, rows, kept)
    explanations = pd.concat(
        [
            explain.max_act_table(contexts, vocabulary, shown),
            explain.pruning_max_act_table(contexts, lm, sae, vocabulary, pruned),
            explain.vocab_proj_table(lm, sae, vocabulary, listed),
            explain.mut_info_table(state, token_counts, vocabulary, listed),
        ]
    )
    explanations = explanations.iloc[
        np.lexsort(
            (explanations["rank"], explanations.method.map(METHODS.index), explanations.latent)
        )
    ]
    meta = (
        dict.fromkeys(META)
        | {"layer": lm.layer, "k": sae.k, "seed": sae.metadata.get("seed")}
        | (about or {})
        | {
            "d_sae": sae.d_sae,
            "tokens": int(token_counts.sum()),
            "histogram_edges": edges,
            "sfr_threshold": sfr_threshold,
            "ffr_frequency": ffr_frequency,
            "key": key,
            "sae": weights,
        }
    )
    with atomic_path(folder) as tmp:
        tmp.mkdir(parents=True)
        write_latents(tmp / "latents.parquet", latents)
        write_grouped(tmp / "contexts.parquet", CONTEXTS, _groups(contexts, CONTEXTS))
        write_grouped(
            tmp / "explanations.parquet", EXPLANATIONS, _groups(explanations, EXPLANATIONS)
        )
        for name, record in (("index", meta), ("vocabulary", vocabulary)):
            (tmp / f"{name}.json").write_text(
                json.dumps(record, ensure_ascii=False), encoding="utf-8"
            )
        write_provenance(
            tmp / "provenance.json",
            key=key,
            seconds=time.time() - start,
            device=lm.device,
            **(provenance or {}),
        )
    checkpoint.remove()
    return FeatureIndex(folder)


def _check(sae, arrays, thresholds):
    for name, array in arrays.items():
        if array is not None and np.shape(array) != (sae.d_sae,):
            raise FeatureError(
                f"{name} has shape {list(np.shape(array))}, but the SAE has {sae.d_sae} latents: "
                "one value for each"
            )
    if (arrays["twin"] is None) != (arrays["twin_cosine"] is None):
        raise FeatureError(
            "twin and twin_cosine come together: which latent is matched, and how close it is"
        )
    for name, (threshold, value) in thresholds.items():
        if arrays[name] is not None and value is None:
            raise FeatureError(f"{name} is given without {threshold}, by which it is judged")


def latent_table(state, tokens):
    """(DataFrame of what a pass says of each latent, histogram edges): the bins in which any latent
    has an activation.
    """
    used = np.flatnonzero(state["histogram"].any(0))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    fired = state["fired"]
    return pd.DataFrame(
        {
            "latent": np.arange(len(fired)),
            "frequency": fired / tokens,
            "mean": np.where(fired > 0, state["total"] / np.maximum(fired, 1), 0),
            "max": state["largest"],
            "dead": fired == 0,
            "histogram": list(state["histogram"][:, low:high]),
        }
    ), EDGES[low : high + 1]


def context_table(state, rows, kept):
    """DataFrame of contexts.parquet from the state of a pass and the rows it went through."""
    top = state["top_value"].shape
    sample = state["sample_value"].shape
    # every place of both kinds, as columns; then those in use, in order
    places = {
        name: np.concatenate(
            [state[f"top_{name}"].reshape(-1), state[f"sample_{name}"].reshape(-1)]
        )
        for name in ("value", "row", "position")
    }
    windows = np.concatenate(
        [
            state[f"{kind}_window"].reshape(-1, kept.left + 1 + kept.right)
            for kind in ("top", "sample")
        ]
    )
    latent = np.concatenate(
        [
            np.repeat(np.arange(top[0]), top[1]),
            np.repeat(np.arange(sample[0]), sample[1] * sample[2]),
        ]
    )
    stratum = np.concatenate(
        [
            np.full(top[0] * top[1], -1),
            np.tile(np.repeat(np.arange(sample[1]), sample[2]), sample[0]),
        ]
    )
    key = np.concatenate([np.zeros(top[0] * top[1], np.int64), state["sample_key"].reshape(-1)])
    order = np.lexsort(
        (places["row"], key, -np.where(stratum < 0, places["value"], 0), stratum, latent)
    )
    order = order[(places["row"][order] >= 0) & (key[order] != NO_KEY)]
    latent = latent[order]
    stratum = stratum[order]
    first = (
        np.r_[True, (np.diff(latent) != 0) | (np.diff(stratum) != 0)]
        if len(order)
        else np.zeros(0, bool)
    )
    rank = np.arange(len(order)) - np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
    tokens = []
    activations = []
    positions = []
    for i in order:
        row = places["row"][i]
        peak = places["position"][i]
        begin = max(peak - kept.left, 0)
        end = min(peak + kept.right + 1, rows.shape[1])
        tokens.append(np.asarray(rows[row, begin:end], np.int32))
        activations.append(windows[i, begin - peak + kept.left : end - peak + kept.left])
        positions.append(peak - begin)
    return pd.DataFrame(
        {
            "latent": latent,
            "kind": np.where(stratum < 0, "top", "sample"),
            "rank": rank,
            "stratum": stratum,
            "activation": places["value"][order],
            "position": np.array(positions, int),
            "tokens": tokens,
            "activations": activations,
        }
    )


def _groups(table, schema):
    """Arrow tables of a few latents each, of a DataFrame sorted by latent."""
    bounds = np.flatnonzero(np.diff(table.latent.to_numpy() // LATENTS_PER_GROUP)) + 1
    for begin, end in zip([0, *bounds], [*bounds, len(table)]):
        yield pa.Table.from_pandas(table.iloc[begin:end], schema, preserve_index=False)
