"""Rows of SAEs and latents -> the data of the figures of notebooks 02, 03, 04 and 13, small enough
to be read by itself. Apart from what 07 shows: a change of its tables makes nothing here again.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from faithful_sae.metrics.uncertainty import mean_over_seeds
from faithful_sae.paper.estimates import sfr_estimates, values_by
from faithful_sae.paper.names import named
from faithful_sae.runs.schema import Run

BINS = 40


def training(curves: pd.DataFrame) -> pd.DataFrame:
    """Training curves of every corpus: mean, least and largest over seeds of fvu, l0 and dead.

    Args:
        curves: rows `training`. A published SAE has no tokens.
    """
    measures = ("fvu", "l0", "dead")
    columns = {
        f"{measure}{suffix}": (measure, how)
        for measure in measures
        for suffix, how in (("", "mean"), (" least", "min"), (" most", "max"))
    }
    grouped = curves.groupby(["corpus", "tokens"], sort=False, dropna=False)
    return grouped.agg(seeds=("seed", "nunique"), **columns).reset_index()


def cosines(run: Run, latents: pd.DataFrame) -> pd.DataFrame:
    """Histogram of the matched cosines of every corpus, with its SFR.

    Args:
        latents: rows `matching`.
    """
    bins = np.linspace(min(0.0, latents.decoder_cosine.min()), 1, BINS + 1)
    found = sfr_estimates(run)
    table = cosine_histogram(latents, bins)
    table = table.assign(
        sfr=table.corpus.map(lambda name: found[name].value),
        half_width=table.corpus.map(lambda name: found[name].half_width()),
        threshold=run.sfr.threshold,
    )
    return named(run, table)


def sfr_curve(run: Run, curve: pd.DataFrame) -> pd.DataFrame:
    """SFR of every corpus at every threshold, with half of its interval.

    Args:
        curve: rows `sfr_curve`.
    """
    rows = []
    for (corpus, threshold), values in values_by(curve, ["corpus", "threshold"], "sfr").items():
        found = mean_over_seeds(values)
        row = {"corpus": corpus, "threshold": threshold, "sfr": found.value}
        rows.append(row | {"half_width": found.half_width(), "chosen": run.sfr.threshold})
    return named(run, pd.DataFrame(rows))


def firing(run: Run, latents: pd.DataFrame) -> pd.DataFrame:
    """Sorted firing frequencies of every corpus: mean, least and largest over seeds at each rank.

    Args:
        latents: rows `firing`.
    """
    falling = latents.sort_values("frequency", ascending=False, kind="stable")
    ranks = falling.groupby(["corpus", "seed"], sort=False).cumcount() + 1
    grouped = falling.assign(rank=ranks).groupby(["corpus", "rank"]).frequency
    table = grouped.agg(frequency="mean", low="min", high="max").reset_index()
    order = {name: i for i, name in enumerate(run.sae_names)}
    table = table.sort_values(
        ["corpus", "rank"], key=lambda c: c.map(order) if c.name == "corpus" else c
    )
    return named(run, table).reset_index(drop=True).assign(tau=run.ffr.frequency)


def cosine_histogram(latents: pd.DataFrame, bins: ArrayLike) -> pd.DataFrame:
    """How many latents of a corpus have which matched cosine, per pair of seeds on average.

    Args:
        latents: of compare_seeds, with a column `corpus`.
        bins: edges.

    Returns:
        corpus, low, high (of the bin), alive and dead (latents per pair).
    """
    edges = np.asarray(bins)
    parts = []
    for corpus, part in latents.groupby("corpus", sort=False):
        pairs = len(part[["seed_a", "seed_b"]].drop_duplicates())
        alive = part.alive_both.astype(bool)
        counts = {
            name: np.histogram(part.decoder_cosine[chosen], edges)[0] / pairs
            for name, chosen in (("alive", alive), ("dead", ~alive))
        }
        bounds = {"corpus": corpus, "low": edges[:-1], "high": edges[1:]}
        parts.append(pd.DataFrame({**bounds, **counts}))
    return pd.concat(parts, ignore_index=True)


def nearest(latents: pd.DataFrame) -> pd.DataFrame:
    """Which share of the latents of a corpus' SAEs have their nearest neighbour within a cosine.

    Args:
        latents: rows `nearest`.

    Returns:
        corpus, cosine, share (0 to 1), random (the mean of random directions).
    """
    edges = np.linspace(min(0.0, latents.nearest.min()), 1, 2 * BINS + 1)
    parts = []
    for corpus, part in latents.groupby("corpus", sort=False):
        # a cosine of 1 may be rounded up
        within = np.searchsorted(np.sort(part.nearest), edges + 1e-6, side="right")
        shares = {"cosine": edges, "share": within / len(part), "random": part.random.mean()}
        parts.append(pd.DataFrame({"corpus": corpus, **shares}))
    return pd.concat(parts, ignore_index=True)
