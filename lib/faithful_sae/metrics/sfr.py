"""The shared feature ratio (paper 3.4): how much of its dictionary an SAE owes to its seed.

SFR = share of latents whose matched cosine is >= threshold;  the others are orphans
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.matching import Matching, match_features, match_pairs
from faithful_sae.sae.sae import TopKSAE

CRITERIA = ("decoder", "encoder+decoder")


def shared_feature_ratio(
    sae_a: TopKSAE, sae_b: TopKSAE, threshold: float = 0.7, criterion: str = "decoder"
) -> float:
    """SFR of two SAEs, a fraction 0-1.

    Args:
        threshold: least cosine of a shared latent. The paper says >= 0.7; the authors' code has >
            0.7.
        criterion: "decoder" (the paper's), or "encoder+decoder": both sides are matched on their
            own, and a latent is shared if both matchings pair the same two latents and both cosines
            reach the threshold (Paulo and Belrose 2025).

    Raises:
        ValueError: different sizes, unknown criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion!r} must be one of {', '.join(CRITERIA)}")
    if sae_a.d_sae != sae_b.d_sae:
        raise ValueError(
            f"d_sae is {sae_a.d_sae} and {sae_b.d_sae}: the ratio is defined for two dictionaries "
            "of one size"
        )
    decoder = match_features(sae_a.W_dec, sae_b.W_dec)
    encoder = None
    if criterion == "encoder+decoder":
        encoder = match_features(sae_a.W_enc.T, sae_b.W_enc.T)
    return float(shared(decoder, encoder, threshold).mean())


def shared(decoder: Matching, encoder: Matching | None, threshold: float) -> np.ndarray:
    """bool [F]: which latents of the first SAE are shared, by the decoder matching or (encoder not
    None) by both.
    """
    result = decoder.cosine >= threshold
    if encoder is not None:
        result &= (encoder.cosine >= threshold) & (encoder.permutation == decoder.permutation)
    return result


def match_seeds(saes: Mapping[Any, TopKSAE]) -> dict[tuple, tuple[Matching, Matching]]:
    """{(a, b): (by decoder, by encoder)} for all pairs of named SAEs, matched apart (Paulo and
    Belrose 2025, section 3).
    """
    decoder = match_pairs({name: sae.W_dec for name, sae in saes.items()})
    encoder = match_pairs({name: sae.W_enc.T for name, sae in saes.items()})
    return {pair: (decoder[pair], encoder[pair]) for pair in decoder}


def compare_seeds(
    saes: Mapping[Any, TopKSAE], threshold: float, dead_below: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Match all pairs of seeds of one corpus.

    Args:
        saes: by seed, each with `.firing`.
        threshold: least cosine of a shared latent.
        dead_below: a latent that fires on a share of tokens at or below it is dead (0: it never
            fired over the last tenth of the training).

    Returns:
        (rows, latents). rows, one per pair: sfr (the paper's, over all latents),
        sfr_encoder_decoder, sfr_strict (the authors' > instead of >=), sfr_alive (over latents
        alive in the first SAE and matched to one alive in the second), mean share of dead latents.
        latents, one row per latent of the first: its match, both cosines, alive flags.

    Raises:
        ValueError: an SAE without firing frequencies.
    """
    rows = []
    tables = []
    for (seed_a, seed_b), (decoder, encoder) in match_seeds(saes).items():
        a, b = saes[seed_a], saes[seed_b]
        firing = _firing(a)
        alive_a = firing > dead_below
        alive_b = _firing(b) > dead_below
        both = alive_a & alive_b[decoder.permutation]
        is_shared = shared(decoder, None, threshold)
        rows.append(
            {
                "seed_a": seed_a,
                "seed_b": seed_b,
                "d_sae": len(both),
                "sfr": is_shared.mean(),
                "sfr_encoder_decoder": shared(decoder, encoder, threshold).mean(),
                "sfr_strict": (decoder.cosine > threshold).mean(),
                "sfr_alive": is_shared[both].mean() if both.any() else np.nan,
                "mean_cosine": decoder.cosine.mean(),
                "dead": 1 - (alive_a.mean() + alive_b.mean()) / 2,
            }
        )
        tables.append(
            pd.DataFrame(
                {
                    "seed_a": seed_a,
                    "seed_b": seed_b,
                    "latent": np.arange(len(both)),
                    "match": decoder.permutation,
                    "decoder_cosine": decoder.cosine,
                    "encoder_match": encoder.permutation,
                    "encoder_cosine": encoder.cosine,
                    "alive_both": both,
                    "firing": firing,
                }
            )
        )
    return pd.DataFrame(rows), pd.concat(tables, ignore_index=True)


def _firing(sae):
    if sae.firing is None:
        raise ValueError("an SAE without firing frequencies: which latents are dead is not known")
    return sae.firing.numpy()
