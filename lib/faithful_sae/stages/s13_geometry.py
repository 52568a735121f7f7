"""13: geometry of the decoder of every SAE."""

import pandas as pd

from faithful_sae.lm.architectures import Shape
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Run, Section, Seed, key
from faithful_sae.runs.stage import Memory, SAEs, Stage
from faithful_sae.stages.budget import saes_bytes


class Geometry(Section):
    """How close the rows of one decoder stand to each other."""

    duplicate: float = key("least cosine of two latents that are one feature", 0.7, gt=0, le=1)
    seed: Seed = key("of the random directions beside them", 0)


class DecoderGeometry(Stage):
    sections = {"geometry": Geometry}
    rows = ("geometry", "nearest")
    reads = ("saes",)
    lower = "sae.d_sae"

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.metrics.geometry import BLOCK

        block = 2 * 4 * BLOCK * run.sae.d_sae
        return Memory(0, saes_bytes(run, shape) + block, weights=False)


def decoder_geometry(run: Run, saes: SAEs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Geometry of every SAE; writes rows `geometry` (one per SAE) and `nearest` (one per latent),
    and returns both.
    """
    from faithful_sae.metrics.geometry import geometry

    rows = []
    latents = []
    for (corpus, seed), sae in saes.items():
        which = {"corpus": corpus, "seed": seed}
        record, cosine = geometry(sae.W_dec.cpu(), run.geometry.duplicate, run.geometry.seed)
        rows.append({**which, **vars(record)})
        each = {"latent": range(sae.d_sae), "nearest": cosine.numpy()}
        latents.append(pd.DataFrame({**which, **each, "random": record.random}))
    table = pd.DataFrame(rows)
    nearest = pd.concat(latents, ignore_index=True)
    write_rows(run, "geometry", table)
    write_rows(run, "nearest", nearest)
    return table, nearest


STAGE = DecoderGeometry()
