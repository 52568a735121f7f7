"""SFR of every corpus of a run."""

import pandas as pd

from faithful_sae.metrics import sfr
from faithful_sae.runs.rows import write_rows


def seed_comparison(run, saes):
    """Match the seeds of every corpus; writes rows `sfr` (one per corpus and pair) and `matching`
    (one per latent).
    """
    parts = []
    for name in run.sae.train_on:
        pair = {seed: saes[name, seed] for seed in run.sae.seeds}
        parts.append(
            [
                table.assign(corpus=name)
                for table in sfr.compare_seeds(pair, run.sfr.threshold, run.sfr.dead_below)
            ]
        )
    rows, latents = (pd.concat(tables, ignore_index=True) for tables in zip(*parts))
    write_rows(run, "sfr", rows)
    write_rows(run, "matching", latents)
    return rows, latents
