"""What the explorer shows of an index, as JSON: the same for the notebook and for the page.

Numbers have four significant digits: what is shown has three, and the page is read over networks.
"""

import functools
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from faithful_sae.features.examples import examples
from faithful_sae.features.index import DENSE, FeatureIndex, ordinary
from faithful_sae.features.judging import SCORES
from faithful_sae.features.vocabulary import visible

# features of the list read at a time
ROWS = 128
# in the order the list shows them: what speaks for a latent, so not VocabProjNegative
METHODS = ("PruningMaxAct", "MutInfo", "VocabProj", "MaxAct")
# features without a counterpart that are shown, and readings of each
ALONE, READINGS = 10, 4
# fake, orphan, shared, dead, dense
FLAGS = "fosdn"
STATIC = Path(__file__).parent / "static"
# the explorer itself, in this order; then its host's
SCRIPTS = (
    *("dom.js", "find.js", "list.js", "feature.js", "steering.js", "reader.js"),
    *("overview.js", "examples.js"),
    "app.js",
)


def script(host: str) -> str:
    """The JavaScript for a host, page.js or widget.js."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in (*SCRIPTS, host))


def set_key(meta: Mapping[str, Any], seed: str = "seed") -> str:
    """Where a feature set is, in the page's address too: <run>/<corpus>/seed<seed>.

    Args:
        meta: FeatureIndex.meta.
        seed: the key of meta that has it.
    """
    run, corpus, number = (
        "-" if meta[name] is None else meta[name] for name in ("run", "corpus", seed)
    )
    return f"{run}/{corpus}/seed{number}"


def set_name(index: FeatureIndex) -> dict[str, Any]:
    """What the choice of model, corpus and seed needs: {key, run, label, corpus, seed}."""
    return {"key": set_key(index.meta)} | {
        name: index.meta[name] for name in ("run", "label", "corpus", "seed")
    }


def set_meta(index: FeatureIndex) -> dict[str, Any]:
    """What is said of a whole set: index.json's entries that are shown, and how many latents have
    each flag.

    `twin_set` is the key of the set that `twin` is a latent of; `can_read`: whether text can be
    typed in; `judges`: those that explained its latents, in the order in which they were asked.
    """
    shown = ("run", "label", "corpus", "seed", "other_seed")
    shown += ("layer", "k", "d_sae", "tokens", "sae")
    # an index has a hook only where it is not the residual stream
    meta = {name: index.meta[name] for name in (*shown, "hook") if name in index.meta}
    flags = "".join(all_flags(index))
    return {
        "key": set_key(meta),
        "twin_set": set_key(meta, "other_seed"),
        "can_read": False,
        **meta,
        "dense": DENSE,
        "rows_per_chunk": ROWS,
        "histogram_edges": shorten(index.meta["histogram_edges"]),
        "counts": {flag: flags.count(flag) for flag in FLAGS},
        "judges": index.judged.judge.drop_duplicates().tolist(),
    }


def set_rows(index: FeatureIndex, chunk: int) -> dict[str, list]:
    """The list's columns for latents chunk * ROWS up to the next chunk's; `judged` has the scores,
    {judge: {score: [..]}}, None where a latent has none.

    Raises:
        IndexError: no such chunk.
    """
    start = chunk * ROWS
    stop = min((chunk + 1) * ROWS, index.meta["d_sae"])
    if not 0 <= start < stop:
        raise IndexError(f"no chunk {chunk}: {index.meta['d_sae']} latents are in chunks of {ROWS}")
    part = index.latents.iloc[start:stop]
    columns = {
        name: [shorten(value) for value in part[name].tolist()]
        for name in ("frequency", "mean", "max", "random_frequency", "twin_cosine")
    }
    judged = index.judged.loc[index.judged.latent.between(start, stop - 1)]
    scores = {
        judge: own.set_index("latent").reindex(range(start, stop))
        for judge, own in judged.groupby("judge", sort=False)
    }
    return columns | {
        "judged": {
            judge: {name: shorten(own[name].tolist()) for name in SCORES}
            for judge, own in scores.items()
        },
        "flags": [flags(row) for row in part.to_dict("records")],
        "words": _words(index)[start:stop],
    }


def set_page(index: FeatureIndex, latent: int) -> dict[str, Any]:
    """index.page(latent), its numbers shortened."""
    return shorten(index.page(latent))


def set_overview(index: FeatureIndex) -> dict[str, Any]:
    """What a corpus has that others have not: which latents of a set have a counterpart in SAEs of
    other corpora, a nearest decoder row with a cosine of at least sfr_threshold.

    Returns:
        {features, dead, shared, threshold, anywhere, elsewhere: {sae: {found, alone: [[latent,
         cosine, readings], ...]}}}: how many there are, are dead, are shared with the other seed
        (None: not known), have a counterpart in any of the others, and in each; `alone`: of those
        that have none there the ALONE that fire most, without fake and dense ones, and with the
        cosine to the nearest. Nothing is elsewhere where no threshold is known.
    """
    latents = index.latents
    threshold = index.meta["sfr_threshold"]
    nearest = index.elsewhere()
    if threshold is None:
        nearest = nearest.head(0)
    near = nearest.loc[nearest.value >= (threshold or 0)]
    shown = ordinary(latents).sort_values(["frequency", "latent"], ascending=[False, True])
    ranked = shown.latent
    elsewhere = {}
    for name, own in nearest.groupby("sae", sort=False):
        found = near.latent[near.sae == name]
        cosine = dict(zip(own.latent, own.value.tolist(), strict=True))
        alone = ranked[~ranked.isin(found)][:ALONE]
        elsewhere[name] = {
            "found": len(found),
            "alone": [
                [latent, cosine[latent], _words(index)[latent].split("\n")[:READINGS]]
                for latent in alone.tolist()
            ],
        }
    known = latents.shared.notna().all()
    return shorten(
        {
            "features": len(latents),
            "dead": int(latents.dead.sum()),
            "shared": int(latents.shared.sum()) if known else None,
            "threshold": threshold,
            "anywhere": near.latent.nunique(),
            "elsewhere": elsewhere,
        }
    )


def set_examples(index: FeatureIndex) -> dict[str, list]:
    """{group: [[latent, its name, the share of its contexts that it fits, readings], ...]} of
    examples.py.
    """
    found = {"named": [], "random": []}
    for row in examples(index).to_dict("records"):
        # one without sampled contexts has no name
        name = visible(row["name"]) if row["contexts"] > 0 else None
        readings = _words(index)[row["latent"]].split("\n")[:READINGS]
        found[row["group"]].append([row["latent"], name, row["share"], readings])
    return shorten(found)


def flags(row: Mapping[str, Any]) -> str:
    """The letters of FLAGS that hold for a row of `latents`; of what is not known, none."""
    holds = (
        row["fake"] is True,
        row["shared"] is False,
        row["shared"] is True,
        bool(row["dead"]),
        row["frequency"] > DENSE,
    )
    return "".join(itertools.compress(FLAGS, holds))


def all_flags(index: FeatureIndex) -> list[str]:
    """flags of every latent."""
    columns = index.latents.loc[:, ["fake", "shared", "dead", "frequency"]]
    return [flags(row) for row in columns.to_dict("records")]


def shorten(value: Any) -> Any:
    """A JSON-able value with every float to four significant digits, and None for one that is not
    finite.
    """
    if isinstance(value, dict):
        return {name: shorten(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [shorten(entry) for entry in value]
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


# an index and its other seed; reading the file for every chunk takes longer than reading it once
@functools.lru_cache(maxsize=2)
def _words(index: FeatureIndex) -> list[str]:
    """For each latent its different readings, a line each: the first of every method before the
    second of any, whole contexts last.
    """
    table = index.explanations()
    table = table[table.method.isin(METHODS) & ((table.method != "MaxAct") | (table["rank"] == 0))]
    place = table.method.map({method: i for i, method in enumerate(METHODS)})
    order = np.lexsort((place, table["rank"], table.method == "MaxAct", table.latent))
    table = table.iloc[order]
    # in the order of their first time
    words = [{} for _ in range(index.meta["d_sae"])]
    for latent, text in zip(table.latent, table.text, strict=True):
        words[latent][visible(text, blanks=False)] = None
    return ["\n".join(texts) for texts in words]


@functools.cache
def style() -> str:
    """The explorer's CSS."""
    return (STATIC / "explorer.css").read_text(encoding="utf-8")
