"""Indices of features in the format of faithful_sae.features.index, made up: two seeds, and a
corpus full of HTML and script.
"""

import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa

from faithful_sae.features.index import (
    CONTEXTS,
    EXPLANATIONS,
    FORMAT,
    RELATED,
    write_grouped,
    write_latents,
)

EVIL = [
    "<script>window.hacked=1</script>",
    "</script><script>window.hacked=2</script>",
    "<img src=x onerror=window.hacked=3>",
    '"]);window.hacked=4//',
    "\u2028",
    "\u2029",
    "<!--",
    "&lt;b&gt;",
    "${window.hacked=5}",
    "'\"`",
    "\n",
    "\t",
    " \u4e2d",
    "\\",
]
VOCABULARY = EVIL + [f" word{i}" for i in range(200)] + [f"part{i}" for i in range(40)]
EDGES = [float(edge) for edge in np.geomspace(0.01, 20, 25)]


def write_index(
    folder,
    run="neox",
    corpus="faithful",
    seed=42,
    other_seed=49,
    d_sae=96,
    length=24,
    top=10,
    sampled=8,
    elsewhere="a library",
    near=lambda latent: 0.7,
    **meta,
):
    """Write an index and return its folder, <folder>/<run>/features/<corpus>/seed<seed>.

    Latent i: dead if i % 16 == 15; fake if i % 16 == 3; dense (and fake) if i % 16 == 4; an orphan
    if i % 3 == 1, else shared. Its twin is d_sae - 1 - i. `near`: its cosine to the nearest latent
    `elsewhere`, in another corpus.
    """
    folder = folder / run / "features" / corpus / f"seed{seed}"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    latent = np.arange(d_sae)
    dead = latent % 16 == 15
    frequency = np.where(
        dead, 0.0, np.where(latent % 16 == 4, 0.25, 0.0005 + 0.00001 * (latent % 997))
    )
    peak = np.where(dead, 0.0, 1 + rng.gamma(2.0, 2.0, d_sae)).astype(np.float32)
    shared = latent % 3 != 1
    histogram = [
        []
        if is_dead
        else (rng.gamma(1.0, 400 / (1 + np.arange(len(EDGES) - 1)))).astype(int).tolist()
        for is_dead in dead
    ]
    latents = pd.DataFrame(
        {
            "latent": latent,
            "frequency": frequency,
            "mean": peak / 3,
            "max": peak,
            "dead": dead,
            "random_frequency": np.where(latent % 16 == 3, 0.3, 0.01),
            "fake": (latent % 16 == 3) | (latent % 16 == 4),
            "twin": d_sae - 1 - latent,
            "twin_cosine": np.where(shared, 0.9, 0.4) + latent % 7 / 100,
            "shared": shared,
            "histogram": histogram,
        }
    )
    write_latents(folder / "latents.parquet", latents)
    groups = [range(start, min(start + 8, d_sae)) for start in range(0, d_sae, 8)]
    contexts = [
        [c for i in group if not dead[i] for c in _contexts(rng, i, peak[i], length, top, sampled)]
        for group in groups
    ]
    write_grouped(
        folder / "contexts.parquet",
        CONTEXTS,
        (pa.Table.from_pylist(part, CONTEXTS) for part in contexts),
    )
    explained = [[e for i in group for e in _explanations(rng, i, dead[i])] for group in groups]
    write_grouped(
        folder / "explanations.parquet",
        EXPLANATIONS,
        (pa.Table.from_pylist(part, EXPLANATIONS) for part in explained),
    )
    related = [
        [r for i in group for r in _related(i, d_sae, f"{run}/{elsewhere}/seed{seed}", near(i))]
        for group in groups
    ]
    write_grouped(
        folder / "related.parquet",
        RELATED,
        (pa.Table.from_pylist(part, RELATED) for part in related),
    )
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY))
    (folder / "index.json").write_text(
        json.dumps(
            {
                "format": FORMAT,
                "label": f"Docs-{run}",
                "run": run,
                "profile": "synthetic",
                "corpus": corpus,
                "seed": seed,
                "other_seed": other_seed,
                "layer": 3,
                "k": 8,
                "d_sae": d_sae,
                "mut_info_lost": 0.0,
                "tokens": 100_000,
                "histogram_edges": EDGES,
                "sfr_threshold": 0.7,
                "ffr_frequency": 0.1,
                "key": "0",
                "sae": "0",
            }
            | meta
        )
    )
    return folder


def words_in(context):
    """[(word, in small letters, and its largest activation)] of a context of a page: of its text,
    letter by letter.
    """
    text = "".join(context["tokens"])
    pairs = zip(context["tokens"], context["activations"], strict=True)
    heat = [value for token, value in pairs for _ in token]
    found = re.finditer(r"\w+", text)
    return [(match[0].lower(), max(heat[slice(*match.span())])) for match in found]


def _contexts(rng, latent, peak, length, top, sampled):
    for number in range(top + sampled):
        strongest = peak * (1 - 0.05 * number) if number < top else peak / 2 ** (1 + number % 4)
        position = length - 6
        tokens = rng.integers(len(EVIL), len(VOCABULARY), length)
        tokens[position] = len(EVIL) + latent % 200  # " word<latent>"
        tokens[rng.integers(position)] = number % len(EVIL)  # something nasty in every context
        activations = np.where(rng.random(length) < 0.12, strongest * rng.random(length), 0.0)
        activations[position] = strongest
        kind = "top" if number < top else "sample"
        yield {
            "latent": latent,
            "kind": kind,
            "rank": number if kind == "top" else number - top,
            "stratum": -1 if kind == "top" else number % 4,
            "activation": strongest,
            "position": position,
            "tokens": tokens.tolist(),
            "activations": activations.tolist(),
            "row": 10 * latent + number,
            "place": 100 + number,
            "document": None if number else 3 * latent,
            # the strongest context of every other latent has effects of ablation
            "loss_change": None if number or latent % 2 else np.linspace(-1, 2, length).tolist(),
        }


def _related(latent, d_sae, elsewhere, near):
    """Nearest: the next two; correlated: the one before; elsewhere: another corpus, not always
    indexed.
    """
    found = [
        ("decoder", "", 0, latent + 1, 0.8, None),
        ("decoder", "", 1, latent + 2, 0.6, None),
        ("correlated", "", 0, latent - 1, 0.5, 17),
        ("decoder", elsewhere, 0, latent + 3, near, None),
    ]
    for relation, sae, rank, other, value, together in found:
        yield {
            "latent": latent,
            "relation": relation,
            "sae": sae,
            "rank": rank,
            "other": other % d_sae,
            "value": value,
            "together": together,
        }


def _explanations(rng, latent, dead):
    word = f" word{latent % 200}"
    if not dead:
        yield from (
            {
                "latent": latent,
                "method": "MaxAct",
                "rank": rank,
                "text": f"{EVIL[rank]}{word} of context {rank}",
                "value": 9.0 - rank,
            }
            for rank in range(5)
        )
        yield from (
            {
                "latent": latent,
                "method": "MutInfo",
                "rank": rank,
                "text": text,
                "value": 0.01 / (rank + 1),
            }
            for rank, text in enumerate([word, *(f"part{i}" for i in rng.permutation(40)[:9])])
        )
        yield from (
            {
                "latent": latent,
                "method": "PruningMaxAct",
                "rank": rank,
                "text": f"part{latent % 40}{word}",
                "value": 8.0 - rank,
            }
            for rank in range(5)
        )
    yield from (
        {
            "latent": latent,
            "method": "VocabProj",
            "rank": rank,
            "text": VOCABULARY[i],
            "value": 6.0 / (rank + 1),
        }
        for rank, i in enumerate(rng.permutation(len(VOCABULARY))[:10].tolist())
    )
    yield {
        "latent": latent,
        "method": "VocabProjNegative",
        "rank": 0,
        "text": "lowered",
        "value": -6.0,
    }
