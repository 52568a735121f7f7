"""The study of seeds: SAEs on one corpus that differ in their seed, and all pairs of them compared
(Paulo and Belrose 2025).
"""

import dataclasses

import numpy as np
import pandas as pd

from faithful_sae.files import file_hash
from faithful_sae.metrics import seed_dependence
from faithful_sae.metrics.sfr import match_seeds
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import wanted_saes
from faithful_sae.sae.sae import load_sae
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.saes import sae_settings
from faithful_sae.stages.training import last_point, token_budget, train_stream

THRESHOLDS = np.linspace(0, 1, 51).round(2)


def train_seeds(run):
    """Train (or reuse) all SAEs of the study, those of a layer from one stream of activations;
    writes rows `seed_saes`.

    Returns:
        (saes, summary): {(layer, d_sae, k, tokens, seed): TopKSAE} and one row per SAE.
    """
    saes = {}
    records = []
    d = run.seed_dependence
    for layer in dict.fromkeys((run.layer, *d.layers)):
        at = dataclasses.replace(run, layer=layer)
        name = d.corpus
        lm = open_model(at)
        rows = corpus(at, name, lm)
        cap, _ = token_budget(
            run, name, rows, lm, max(run.sae.tokens, *(d.tokens if layer == run.layer else ()), 0)
        )
        wanted = wanted_saes(run, layer, cap)
        settings = {
            key: value
            for key, value in sae_settings(at).items()
            if key not in ("seeds", "d_sae", "k", "tokens")
        }
        folder = run.artifacts / "seed_saes" / f"layer{layer}"
        train_stream(
            at, name, lm, rows, folder, settings | {"corpus": name, "saes": wanted}, wanted, "name"
        )
        curves = pd.read_csv(folder / "training.csv")
        for entry in wanted:
            sizes = {"layer": layer} | {key: entry[key] for key in ("d_sae", "k", "tokens", "seed")}
            saes[tuple(sizes.values())] = load_sae(folder / entry["name"])
            records.append(
                sizes
                | last_point(curves[curves.name == entry["name"]])
                | {"weights": file_hash(folder / entry["name"] / "sae_weights.safetensors")}
            )
    summary = pd.DataFrame(records)
    write_rows(run, "seed_saes", summary)
    return saes, summary


def study_seeds(run, saes) -> dict:
    """Compare the SAEs of train_seeds; writes and returns the rows

    `seed_pairs`      every pair of seeds, and at every swept value every pair of those trained
    there (column `sweep`)
    `seed_latents`    every latent of the first seed: matched with the second seed, and over all
    seeds
    `seed_modes`      the test of one mode on the first seed's matched cosines with each other seed
    `seed_curve`      share of latents found in the base SAE alone, per base and number of seeds;
    `seed_fits`: the two power laws `seed_threshold`  share of shared latents at every threshold,
    mean, least and largest over all pairs
    """
    # the first SAE is as `sae` says
    threshold = run.sfr.threshold
    plain = next(iter(saes))[:-1]
    base = {seed: sae for (*sizes, seed), sae in saes.items() if tuple(sizes) == plain}
    first, second, *_ = base
    matchings = match_seeds(base)
    tables = {
        pair: seed_dependence.compare_latents(base[pair[0]], base[pair[1]], *found)
        for pair, found in matchings.items()
    }
    pairs = [
        _row("seeds", len(base), base, pair, tables[pair], matchings[pair], threshold)
        for pair in matchings
    ]
    for sweep, value, group in _swept(saes, plain, run.seed_dependence.sweep_seeds):
        for pair, found in match_seeds(group).items():
            latents = seed_dependence.compare_latents(group[pair[0]], group[pair[1]], *found)
            pairs.append(_row(sweep, value, group, pair, latents, found, threshold))

    masks = seed_dependence.hit_masks(matchings, threshold)
    curve = seed_dependence.only_in_base(masks)
    mean = curve.groupby("seeds").only_in_base.mean()
    with_first = {b: table for (a, b), table in tables.items() if a == first}
    cosine = {
        b: (table.decoder_cosine + table.encoder_cosine) / 2 for b, table in with_first.items()
    }
    cuts = pd.concat(
        [
            seed_dependence.thresholds(tables[pair], *matchings[pair], THRESHOLDS)
            for pair in matchings
        ]
    )
    rows = {
        "seed_pairs": pd.DataFrame(pairs),
        "seed_latents": with_first[second].assign(
            mean_cosine=np.mean([t.decoder_cosine for t in with_first.values()], axis=0),
            seeds_sharing=masks[first].sum(0),
            firing=base[first].firing.numpy(),
        ),
        "seed_modes": pd.DataFrame(
            [
                {"seed_a": first, "seed_b": b}
                | dict(zip(("modes", "p"), seed_dependence.modes_test(values)))
                for b, values in cosine.items()
            ]
        ),
        "seed_curve": curve,
        "seed_fits": seed_dependence.power_laws(mean.index, mean),
        "seed_threshold": cuts.melt("threshold", var_name="definition", value_name="share")
        .groupby(["definition", "threshold"], sort=False)
        .share.agg(["mean", "min", "max"])
        .reset_index(),
    }
    for name, table in rows.items():
        write_rows(run, name, table)
    return rows


def _swept(saes, plain, n_seeds):
    """(what is changed, its value, {seed: SAE}) for every sweep that has another value than the
    plain SAEs', theirs included.
    """
    for column, sweep in enumerate(("layer", "d_sae", "k", "tokens")):
        same = [
            name
            for name in saes
            if all(name[i] == plain[i] for i in range(len(plain)) if i != column)
        ]
        values = sorted({name[column] for name in same})
        for value in values if len(values) > 1 else ():
            yield (
                sweep,
                value,
                {
                    name[-1]: saes[name]
                    for name in [n for n in same if n[column] == value][:n_seeds]
                },
            )


def _row(sweep, value, group, pair, latents, found, threshold):
    a, b = (group[seed] for seed in pair)
    dead = 1 - (a.firing.gt(0).float().mean() + b.firing.gt(0).float().mean()).item() / 2
    return {
        "sweep": sweep,
        "value": value,
        "seed_a": pair[0],
        "seed_b": pair[1],
        "d_sae": a.d_sae,
        **seed_dependence.compare_pair(latents, *found, threshold),
        "dead": dead,
    }
