"""03: the shared feature ratio of every corpus."""

from typing import Any

import pandas as pd

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Count, ParamsError, Run, Section, key
from faithful_sae.runs.stage import HOOK, MODEL, ROWS_OF_TEXT, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import count_saes, group_bytes, reading_bytes, saes_bytes
from faithful_sae.stages.s02_train_sae import text_of


class SFR(Section):
    """Shared feature ratio."""

    threshold: float = key("least cosine of a shared latent", 0.7, gt=0, le=1, paper="3.4, 4")
    dead_below: float = key(
        "a latent that fired on no larger share of the last tenth of the training is dead",
        0.0,
        ge=0,
        lt=1,
    )
    tokens: Count = key(
        "held-out tokens on which latents are correlated, at most", 8192, unit="tokens"
    )


class SharedFeatureRatio(Stage):
    sections = {"sfr": SFR}
    paper = True
    rows = ("sfr", "matching", "sfr_curve")
    reads = ("saes",)
    parameters = (
        *MODEL,
        *ROWS_OF_TEXT,
        *HOOK,
        "sae.include_bos",
        "sae.lm_batch_rows",
        "sae.max_norm",
    )
    lower = "sae.d_sae"

    def wanted(self, run: Run) -> bool:
        return super().wanted(run) and len(run.sae.seeds) > 1

    def corpora(self, run: Run) -> tuple[str, ...]:
        return run.sae.train_on if run.sae else ()

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.matching import matching_bytes
        from faithful_sae.metrics.sfr import TOKENS_AT_ONCE

        s = run.sae
        latents = 2 * 4 * TOKENS_AT_ONCE * s.d_sae
        matching = matching_bytes(shape.d_model, s.d_sae, len(s.seeds))
        # active latents: a float64 and an int32 each, twice while they are put together
        kept = len(s.seeds) * 2 * 12 * run.sfr.tokens * s.k
        device = weights(shape) + saes_bytes(run, shape) + group_bytes(run, shape) + latents
        return Memory(device, reading_bytes(run) + matching + kept)

    def tokens(self, run: Run) -> int:
        return len(run.sae_names) * run.sfr.tokens

    def seconds(self, run: Run, rates: Rates) -> float:
        """Of the correlations; the matching is timed by nothing here, and takes about as long."""
        encoded = count_saes(run) * run.sfr.tokens * rates.encode_token()
        return self.tokens(run) * rates.read_token() + encoded


def seed_comparison(
    run: Run, saes: SAEs, lm: Any
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Match the seeds of every corpus and baseline; writes and returns rows `sfr` (one per corpus
    and pair), `matching` (one per latent) and `sfr_curve` (one per threshold).

    Raises:
        ParamsError: there is one seed.
    """
    from faithful_sae.metrics import sfr

    if len(run.sae.seeds) == 1:
        raise ParamsError(
            f"{run.file}: sae.seeds holds one seed: SFR compares two, and is not measured; the "
            "notebooks from 04 on do without it"
        )
    names = ("sfr", "matching", "sfr_curve")
    parts = []
    for name in run.sae_names:
        pair = {seed: saes[name, seed] for seed in run.sae.seeds}
        x = heldout_activations(run, text_of(run, name), lm, run.sfr.tokens)
        tables = sfr.compare_seeds(pair, x, run.sfr.threshold, run.sfr.dead_below)
        parts.append([table.assign(corpus=name) for table in tables])
    rows, latents, curve = (
        pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True)
    )
    for name, table in zip(names, (rows, latents, curve), strict=True):
        write_rows(run, name, table)
    return rows, latents, curve


def heldout_activations(run: Run, name: str, lm: Any, n_tokens: int) -> Any:
    """Activations float32 [<= n_tokens, D] of the first held-out tokens of a corpus, BOS among them
    where SAEs are trained on it. Massive ones are not, with sae.max_norm: two latents that fire on
    one such token alone would be correlated.
    """
    import torch

    from faithful_sae.sae.activations import (
        moderate,
        norm_limit,
        rows_in_batches,
        token_activations,
    )
    from faithful_sae.stages.corpus import corpus

    wanted = -(-n_tokens // (run.sequence_length - 1))
    rows = corpus(run, name, lm).heldout[:wanted]
    parts = [
        token_activations(lm, ids, run.sae.include_bos)
        for ids in rows_in_batches(rows, run.sae.lm_batch_rows)
    ]
    x = torch.cat(parts)[:n_tokens].float()
    limit = run.sae.max_norm
    return x if limit is None else moderate(x, norm_limit(x.norm(dim=-1), limit))


STAGE = SharedFeatureRatio()
