"""03: the shared feature ratio of every corpus."""

import pandas as pd

from faithful_sae.lm.architectures import Shape
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Run, Section, key
from faithful_sae.runs.stage import Memory, SAEs, Stage
from faithful_sae.stages.budget import saes_bytes


class SFR(Section):
    """Shared feature ratio."""

    threshold: float = key("least cosine of a shared latent", 0.7, gt=0, le=1, paper="3.4, 4")
    dead_below: float = key(
        "a latent that fired on no larger share of the last tenth of the training is dead",
        0.0,
        ge=0,
        lt=1,
    )


class SharedFeatureRatio(Stage):
    sections = {"sfr": SFR}
    paper = True
    rows = ("sfr", "matching")
    reads = ("saes",)
    parameters = ("threads",)
    lower = "sae.d_sae"

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.matching import matching_bytes

        matching = matching_bytes(shape.d_model, run.sae.d_sae, len(run.sae.seeds))
        return Memory(0, saes_bytes(run, shape) + matching, weights=False)


def seed_comparison(run: Run, saes: SAEs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match the seeds of every corpus; writes rows `sfr` (one per corpus and pair) and `matching`
    (one per latent), and returns both.
    """
    from faithful_sae.metrics import sfr

    parts = []
    for name in run.sae.train_on:
        pair = {seed: saes[name, seed] for seed in run.sae.seeds}
        tables = sfr.compare_seeds(pair, run.sfr.threshold, run.sfr.dead_below)
        parts.append([table.assign(corpus=name) for table in tables])
    rows, latents = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    write_rows(run, "sfr", rows)
    write_rows(run, "matching", latents)
    return rows, latents


STAGE = SharedFeatureRatio()
