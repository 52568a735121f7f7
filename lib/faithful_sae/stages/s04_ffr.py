"""FFR of every SAE of a run."""

import pandas as pd

from faithful_sae.metrics.ffr import AUTHORS_ACTIVATION, fake_ratio, firing_frequency
from faithful_sae.runs.rows import write_rows


def fake_features(run, saes, lm):
    """Firing on random tokens of every SAE; writes rows `ffr` (one per SAE) and `firing` (one per
    latent).

    `ffr` fires above ffr.activation (the paper: 0), `ffr_authors` above 1.0 as in the authors'
    code.
    """
    f = run.ffr
    names = list(saes)
    counted = firing_frequency(
        list(saes.values()),
        lm,
        f.tokens,
        run.sequence_length,
        f.seed,
        (f.activation, AUTHORS_ACTIVATION),
    )
    rows = []
    latents = []
    for (name, seed), (frequency, authors) in zip(names, counted):
        rows.append(
            {
                "corpus": name,
                "seed": seed,
                "tokens": f.tokens,
                "ffr": fake_ratio(frequency, f.frequency),
                "ffr_authors": fake_ratio(authors, f.frequency),
                "fake": int((frequency > f.frequency).sum()),
                "d_sae": len(frequency),
            }
        )
        latents.append(
            pd.DataFrame(
                {
                    "corpus": name,
                    "seed": seed,
                    "latent": range(len(frequency)),
                    "frequency": frequency,
                    "frequency_authors": authors,
                }
            )
        )
    rows = pd.DataFrame(rows)
    latents = pd.concat(latents, ignore_index=True)
    write_rows(run, "ffr", rows)
    write_rows(run, "firing", latents)
    return rows, latents
