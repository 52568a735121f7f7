"""What the explorer shows of an index, as JSON: the same for the notebook and for the page.

Numbers have four significant digits: what is shown has three, and the page is read over networks.
"""

import functools
import itertools
import math
import re
from pathlib import Path

import numpy as np

ROWS = 128  # features of the list read at a time
DENSE = 0.1  # fires on more than this share of the corpus' tokens
METHODS = ("PruningMaxAct", "MutInfo", "VocabProj", "MaxAct")  # in the order the list shows them
FLAGS = "fosdn"  # fake, orphan, shared, dead, dense
STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    "dom.js",
    "list.js",
    "feature.js",
    "reader.js",
    "app.js",
)  # the explorer itself, in this order; then its host's


def script(host) -> str:
    """The JavaScript for a host, page.js or widget.js."""
    return "\n".join((STATIC / name).read_text(encoding="utf-8") for name in (*SCRIPTS, host))


def set_key(meta, seed="seed") -> str:
    """Where a feature set is, in the page's address too: <run>/<corpus>/seed<seed>. `seed`: the key
    of meta that has it.
    """
    run, corpus, number = (
        "-" if meta[name] is None else meta[name] for name in ("run", "corpus", seed)
    )
    return f"{run}/{corpus}/seed{number}"


def set_name(index) -> dict:
    """What the choice of model, corpus and seed needs: {key, run, label, corpus, seed}."""
    return {"key": set_key(index.meta)} | {
        name: index.meta[name] for name in ("run", "label", "corpus", "seed")
    }


def set_meta(index) -> dict:
    """What is said of a whole set: index.json's entries that are shown, and how many latents have
    each flag.

    `twin_set` is the key of the set that `twin` is a latent of; `can_read`: whether text can be
    typed in.
    """
    meta = {
        name: index.meta[name]
        for name in (
            "run",
            "label",
            "corpus",
            "seed",
            "other_seed",
            "layer",
            "k",
            "d_sae",
            "tokens",
        )
    }
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
    }


def set_rows(index, chunk) -> dict:
    """The list's columns for latents chunk * ROWS up to the next chunk's.

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
    return columns | {
        "flags": [flags(row) for row in part.to_dict("records")],
        "words": _words(index)[start:stop],
    }


def set_page(index, latent) -> dict:
    """index.page(latent), its numbers shortened."""
    return shorten(index.page(latent))


def flags(row) -> str:
    """The letters of FLAGS that hold for a row of `latents`; of what is not known, none."""
    holds = (
        row["fake"] is True,
        row["shared"] is False,
        row["shared"] is True,
        bool(row["dead"]),
        row["frequency"] > DENSE,
    )
    return "".join(itertools.compress(FLAGS, holds))


def all_flags(index) -> list[str]:
    """flags of every latent."""
    columns = index.latents[["fake", "shared", "dead", "frequency"]]
    return [flags(dict(zip(columns.columns, row))) for row in columns.itertuples(index=False)]


def shorten(value):
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


@functools.lru_cache(
    maxsize=2
)  # an index and its other seed; reading the file for every chunk takes longer than reading it once
def _words(index) -> list[str]:
    """For each latent its different readings, a line each: the first of every method before the
    second of any, whole contexts last.
    """
    table = index.explanations()
    table = table[(table.method != "MaxAct") | (table["rank"] == 0)]
    place = table.method.map({method: i for i, method in enumerate(METHODS)}).fillna(len(METHODS))
    order = np.lexsort((place, table["rank"], table.method == "MaxAct", table.latent))
    words = [{} for _ in range(index.meta["d_sae"])]  # in the order of their first time
    for latent, text in zip(
        table.latent.to_numpy()[order].tolist(), table.text.to_numpy()[order].tolist()
    ):
        words[latent][re.sub(r"[\r\n]", "⏎", text)] = None
    return ["\n".join(texts) for texts in words]


@functools.cache
def style() -> str:
    """The explorer's CSS."""
    return (STATIC / "explorer.css").read_text(encoding="utf-8")
