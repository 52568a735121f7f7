"""04: the fake feature ratio of every SAE."""

from typing import Any

import pandas as pd

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import Count, Run, Section, Seed, key
from faithful_sae.runs.stage import HOOK, MODEL, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import count_saes, random_tokens_bytes, saes_bytes


class FFR(Section):
    """Fake feature ratio."""

    tokens: Count = key(
        "random tokens, of all ids and once more of those that occur",
        1_000_000,
        unit="tokens",
        paper="4",
    )
    frequency: float = key("tau: fake above this share of them", 0.1, gt=0, lt=1, paper="4")
    activation: float = key("firing means above this (the authors: 1.0)", 0.0, ge=0, paper="3.5")
    seed: Seed = key("of the random tokens", 0)


class FakeFeatureRatio(Stage):
    sections = {"ffr": FFR}
    paper = True
    rows = ("ffr", "firing")
    reads = ("saes", "first_token")
    parameters = (*MODEL, *HOOK, "sequence_length")
    lower = "sae.d_sae"

    def memory(self, run: Run, shape: Shape) -> Memory:
        saes = saes_bytes(run, shape)
        return Memory(weights(shape) + saes + random_tokens_bytes(run, shape), 0)

    def tokens(self, run: Run) -> int:
        return 2 * run.ffr.tokens

    def seconds(self, run: Run, rates: Rates) -> float:
        per_token = rates.read_token() + count_saes(run) * rates.encode_token()
        return self.tokens(run) * per_token


def fake_features(run: Run, saes: SAEs, lm: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Firing on random tokens of every SAE; writes rows `ffr` (one per SAE) and `firing` (one per
    latent), and returns both.

    `ffr` fires above ffr.activation (the paper: 0), `ffr_authors` above 1.0 as in the authors'
    code; `ffr_occurring` fires as `ffr`, on ids alone that the model's own text has.
    """
    from faithful_sae.metrics.ffr import AUTHORS_ACTIVATION, fake_ratio, firing_frequency

    f = run.ffr
    tokens = read_rows(run, "first_token")
    occurring = tokens.token_id[tokens["count"] > 0].to_numpy()
    thresholds = (f.activation, AUTHORS_ACTIVATION)
    options = (list(saes.values()), lm, f.tokens, run.sequence_length, f.seed)
    counted = firing_frequency(*options, thresholds)
    on_occurring = firing_frequency(*options, (f.activation,), ids=occurring)
    rows = []
    latents = []
    for (name, seed), (frequency, authors), (here,) in zip(
        saes, counted, on_occurring, strict=True
    ):
        which = {"corpus": name, "seed": seed}
        rows.append(
            {
                **which,
                "tokens": f.tokens,
                "ids": len(occurring),
                "ffr": fake_ratio(frequency, f.frequency),
                "ffr_occurring": fake_ratio(here, f.frequency),
                "ffr_authors": fake_ratio(authors, f.frequency),
                "fake": int((frequency > f.frequency).sum()),
                "d_sae": len(frequency),
            }
        )
        of_each = {
            "frequency": frequency,
            "frequency_occurring": here,
            "frequency_authors": authors,
        }
        latents.append(pd.DataFrame({**which, "latent": range(len(frequency)), **of_each}))
    table = pd.DataFrame(rows)
    firing = pd.concat(latents, ignore_index=True)
    write_rows(run, "ffr", table)
    write_rows(run, "firing", firing)
    return table, firing


STAGE = FakeFeatureRatio()
