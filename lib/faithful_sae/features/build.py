"""An index of features from a language model, an SAE and token rows. See index.py for the files and
what they hold.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from faithful_sae.features import explain
from faithful_sae.features.ablation import loss_changes
from faithful_sae.features.codes import sparse_codes
from faithful_sae.features.collect import TOKEN_COUNTERS, Kept, collect, exact_counts
from faithful_sae.features.index import (
    CONTEXTS,
    EXPLANATIONS,
    FORMAT,
    META,
    RELATED,
    FeatureError,
    FeatureIndex,
    sae_checksum,
    write_grouped,
    write_latents,
)
from faithful_sae.features.relations import related_table
from faithful_sae.features.vocabulary import display_strings
from faithful_sae.files import atomic_path, digest, is_current, remove_others, seal
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.kernels.latent_statistics import EDGES, NO_KEY
from faithful_sae.lm.model import LanguageModel
from faithful_sae.sae.sae import TopKSAE

METHODS = ("MaxAct", "PruningMaxAct", "VocabProj", "VocabProjNegative", "MutInfo")
# of the parquet files: what is read for one page
LATENTS_PER_GROUP = 32
# bytes of the histogram and of the numbers of one latent in a pass
LATENT_COUNTS = 900
# activations on which correlations rest, at most: 50 MB
CORRELATED = 2**22
# contexts of each latent on which it is ablated
ABLATED = 2


def build_index(
    folder: str | Path,
    lm: LanguageModel,
    sae: TopKSAE,
    rows: np.ndarray,
    kept: Kept | None = None,
    *,
    about: Mapping[str, object] | None = None,
    random_frequency: np.ndarray | None = None,
    ffr_frequency: float | None = None,
    twin: np.ndarray | None = None,
    twin_cosine: np.ndarray | None = None,
    sfr_threshold: float | None = None,
    listed: int = 10,
    shown: int = 3,
    pruned: int = 1,
    ablated: int = ABLATED,
    others: Mapping[str, TopKSAE] | None = None,
    documents: np.ndarray | None = None,
    include_bos: bool = False,
    batch_rows: int = 32,
    key: str | None = None,
    record: Callable[..., Mapping[str, object]] | None = None,
) -> FeatureIndex:
    """Make (or reuse, or finish) the index of an SAE's latents on a corpus.

    Args:
        folder: where it goes.
        rows: int [R, T] token rows, each starting with BOS.
        kept: which contexts; None: as Kept has it.
        about: {name: value} for index.json: label, run, profile, corpus, seed, other_seed, ...;
            what is missing is None there.
        random_frequency: float [F] or None, share of random tokens on which each fires
            (ffr.firing_frequency).
        ffr_frequency: a latent whose random_frequency is above it is fake.
        twin: int [F] or None, the matched latent of another SAE (-1: none), for instance
            `permutation` of match_features.
        twin_cosine: float [F] or None, for instance `cosine` of match_features.
        sfr_threshold: a latent whose twin_cosine is at least that is shared.
        listed: tokens of VocabProj and MutInfo.
        shown: contexts of MaxAct.
        pruned: contexts that PruningMaxAct shortens: it runs the model again, at least one pass of
            two tokens for each (0: none).
        ablated: contexts of each latent on which it is ablated, as far as that takes no more rows
            than there are; where there are too few for one of each, it is done for some latents,
            evenly over their numbers.
        others: by name, SAEs of other corpora, in which the nearest decoder row is looked up.
        documents: int [R, T] or None, the number of the document that each token is of.
        include_bos, batch_rows: as collect.
        key: of all the index depends on; by default of the arguments.
        record: called as record(seconds=...) when the index is made; what it returns goes into
            provenance.json.

    Raises:
        FeatureError: as collect; arrays that are not one value per latent; random_frequency without
            ffr_frequency, or twin without twin_cosine or sfr_threshold.
    """
    folder = Path(folder)
    kept = kept or Kept()
    start = time.time()
    weights = sae_checksum(sae)
    arrays = {"random_frequency": random_frequency, "twin": twin, "twin_cosine": twin_cosine}
    for name, array in arrays.items():
        if array is not None and np.shape(array) != (sae.d_sae,):
            raise FeatureError(
                f"{name} has shape {list(np.shape(array))}, but the SAE has {sae.d_sae} latents: "
                "one value for each"
            )
    if (twin is None) != (twin_cosine is None):
        raise FeatureError(
            "twin and twin_cosine come together: which latent is matched, and how close it is"
        )
    if random_frequency is not None and ffr_frequency is None:
        raise FeatureError("random_frequency is given without ffr_frequency, by which it is judged")
    if twin is not None and sfr_threshold is None:
        raise FeatureError("twin is given without sfr_threshold, by which it is judged")
    # an index of a residual stream is named by the layer alone, as before there were other hooks
    hook = {} if lm.hook == "residual" else {"hook": lm.hook}
    if key is None:
        key = digest(
            [
                weights,
                hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest(),
                lm.model.name_or_path,
                lm.layer,
                *hook.values(),
                vars(kept),
                about,
                [None if a is None else np.asarray(a).tolist() for a in arrays.values()],
                ffr_frequency,
                sfr_threshold,
                listed,
                shown,
                pruned,
                ablated,
                {name: sae_checksum(other) for name, other in (others or {}).items()},
                None if documents is None else hashlib.sha256(documents.tobytes()).hexdigest(),
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
    tokens = int(token_counts.sum())
    latents, edges = latent_table(state, tokens)
    latents = latents.assign(
        random_frequency=np.nan if random_frequency is None else random_frequency,
        fake=None if random_frequency is None else np.asarray(random_frequency) > ffr_frequency,
        shared=None if twin_cosine is None else np.asarray(twin_cosine) >= sfr_threshold,
        twin=-1 if twin is None else twin,
        twin_cosine=np.nan if twin_cosine is None else twin_cosine,
    )
    vocabulary = display_strings(lm.tokenizer)
    contexts = context_table(state, rows, kept)
    contexts["document"] = pd.array([pd.NA] * len(contexts), "Int32")
    if documents is not None:
        contexts["document"] = np.asarray(documents)[contexts.row, contexts.place]
    contexts["loss_change"] = loss_change_column(contexts, lm, sae, rows, ablated)
    read = spread_rows(rows, correlated_tokens(sae.k or sae.d_sae))
    title = f"correlations of {folder.name}"
    codes = sparse_codes({0: sae}, lm, read, batch_rows, title)[0]
    explanations = pd.concat(
        [
            explain.max_act_table(contexts, vocabulary, shown),
            explain.pruning_max_act_table(contexts, lm, sae, vocabulary, pruned),
            explain.vocab_proj_table(lm, sae, vocabulary, listed),
            explain.mut_info_table(state, token_counts, vocabulary, listed),
        ]
    )
    methods = explanations.method.map(METHODS.index)
    order = np.lexsort((explanations["rank"], methods, explanations.latent))
    meta = {
        **dict.fromkeys(META),
        "layer": lm.layer,
        "k": sae.k,
        "seed": sae.metadata.get("seed"),
        **(about or {}),
        "format": FORMAT,
        "d_sae": sae.d_sae,
        "tokens": tokens,
        "mut_info_lost": float((state["lost"] / np.maximum(state["fired"], 1)).max()),
        "histogram_edges": edges,
        "sfr_threshold": sfr_threshold,
        "ffr_frequency": ffr_frequency,
        "key": key,
        "sae": weights,
        **hook,
    }
    with atomic_path(folder) as tmp:
        tmp.mkdir(parents=True)
        write_latents(tmp / "latents.parquet", latents)
        for name, schema, table in (
            ("contexts", CONTEXTS, contexts),
            ("explanations", EXPLANATIONS, explanations.iloc[order]),
            ("related", RELATED, related_table(sae, codes, others)),
        ):
            write_grouped(tmp / f"{name}.parquet", schema, _groups(table, schema))
        for name, value in (("index", meta), ("vocabulary", vocabulary)):
            text = json.dumps(value, ensure_ascii=False)
            (tmp / f"{name}.json").write_text(text, encoding="utf-8")
        seal(tmp, key, record(seconds=time.time() - start) if record else {})
    checkpoint.remove()
    return FeatureIndex(folder)


def index_bytes(kept: Kept, d_sae: int, vocab_size: int) -> int:
    """Memory of what a pass keeps of all latents (kernels/latent_statistics.py): contexts with
    their windows, histograms and token counters.
    """
    places = kept.top + kept.strata * kept.samples
    # a counter that is not its token's by its place says whose it is
    counters = 8 * vocab_size if exact_counts(d_sae, vocab_size) else 12 * TOKEN_COUNTERS
    of_latent = places * (4 * (kept.left + 1 + kept.right) + 24) + counters + LATENT_COUNTS
    return d_sae * of_latent


def latent_table(state: Mapping[str, np.ndarray], tokens: int) -> tuple[pd.DataFrame, list[float]]:
    """What a pass says of each latent, and the histogram's edges: of the bins in which any latent
    has an activation.
    """
    used = np.flatnonzero(state["histogram"].any(0))
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
    fired = state["fired"]
    table = pd.DataFrame(
        {
            "latent": np.arange(len(fired)),
            "frequency": fired / tokens,
            "mean": np.where(fired > 0, state["total"] / np.maximum(fired, 1), 0),
            "max": state["largest"],
            "dead": fired == 0,
            "histogram": list(state["histogram"][:, low:high]),
        }
    )
    return table, EDGES[low : high + 1]


def context_table(state: Mapping[str, np.ndarray], rows: np.ndarray, kept: Kept) -> pd.DataFrame:
    """Rows of contexts.parquet from the state of a pass and the token rows it went through."""
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
    number = np.arange(len(order))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(latent) != 0) | (np.diff(stratum) != 0)
    rank = number - np.maximum.accumulate(np.where(first, number, 0))
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
            # lists also where there are none
            "tokens": pd.Series(tokens, dtype=object),
            "activations": pd.Series(activations, dtype=object),
            "row": places["row"][order],
            "place": places["position"][order],
        }
    )


def loss_change_column(
    contexts: pd.DataFrame, lm: LanguageModel, sae: TopKSAE, rows: np.ndarray, n: int
) -> pd.Series:
    """loss_change of contexts.parquet, of the first n of each latent's strongest contexts or, where
    these are more than there are rows, of fewer (build_index); None for the others.
    """
    alive = contexts.latent.unique()
    each = min(n, len(rows) // max(len(alive), 1))
    if not each:
        # one for as many latents as there are rows
        each = min(n, 1)
        alive = alive[np.linspace(0, len(alive) - 1, len(rows)).astype(int)]
    top = (contexts.kind == "top") & (contexts["rank"] < each) & contexts.latent.isin(alive)
    chosen = contexts[top]
    begin = (chosen.place - chosen.position).to_numpy()
    end = begin + np.array([len(ids) for ids in chosen.tokens], int)
    of_latent, row = chosen.latent.to_numpy(), chosen.row.to_numpy()
    changes = loss_changes(lm, sae, rows[row], of_latent, end)
    column = pd.Series(None, contexts.index, object)
    windows = zip(changes, begin, end, strict=True)
    column[top] = pd.Series([row[a:b] for row, a, b in windows], chosen.index, object)
    return column


def correlated_tokens(k: int) -> int:
    """Tokens on which correlations rest, at most, where so many latents are active on each."""
    return CORRELATED // k


def spread_rows(rows: np.ndarray, tokens: int) -> np.ndarray:
    """As many of the rows as hold so many tokens, evenly from first to last; at least one."""
    n = min(max(tokens // rows.shape[1], 1), len(rows))
    return rows[np.linspace(0, len(rows) - 1, n).astype(int)]


def _groups(table: pd.DataFrame, schema: pa.Schema) -> Iterator[pa.Table]:
    """Arrow tables of a few latents each, of a DataFrame sorted by latent."""
    bounds = np.flatnonzero(np.diff(table.latent.to_numpy() // LATENTS_PER_GROUP)) + 1
    for begin, end in pairwise([0, *bounds, len(table)]):
        yield pa.Table.from_pandas(table.iloc[begin:end], schema, preserve_index=False)
