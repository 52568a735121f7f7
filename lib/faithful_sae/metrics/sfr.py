"""The shared feature ratio (paper 3.4): how much of its dictionary an SAE owes to its seed.

SFR = share of latents whose matched cosine is >= threshold;  the others are orphans

Its siblings need no threshold. PW-MCC is the mean cosine of matched latents (Song et al. 2025,
"Mechanistic Interpretability Should Prioritize Feature Consistency in SAEs"): of decoder rows, of
encoder columns, each by a matching of its own, and here of activations as well: the correlation of
latents that the decoder matches, over tokens.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from torch import Tensor

from faithful_sae.matching import Matching, match_features, match_pairs
from faithful_sae.sae.sae import TopKSAE

CRITERIA = ("decoder", "encoder+decoder")
THRESHOLDS = np.linspace(0, 1, 51).round(2)
# tokens whose pre-activations are there at once
TOKENS_AT_ONCE = 1024


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
    saes: Mapping[Any, TopKSAE], x: Tensor, threshold: float, dead_below: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Match all pairs of seeds of one corpus.

    Args:
        saes: by seed, each with `.firing`.
        x: activations [N, D] of held-out tokens, on which latents are correlated.
        threshold: least cosine of a shared latent.
        dead_below: a latent that fires on a share of tokens at or below it is dead (0: it never
            fired over the last tenth of the training).

    Returns:
        (rows, latents, curve). rows, one per pair: sfr (the paper's, over all latents),
        sfr_encoder_decoder, sfr_strict (the authors' > instead of >=), sfr_alive (over latents
        alive in the first SAE and matched to one alive in the second), mean_cosine and
        mean_encoder_cosine (PW-MCC), mean_correlation, mean share of dead latents. latents, one row
        per latent of the first: its match, both cosines, alive flags. curve, one row per pair and
        threshold: sfr there.

    Raises:
        ValueError: an SAE without firing frequencies.
    """
    rows = []
    tables = []
    curves = []
    matchings = match_seeds(saes)
    correlation = matched_correlations(saes, matchings, x)
    for (seed_a, seed_b), (decoder, encoder) in matchings.items():
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
                "mean_encoder_cosine": encoder.cosine.mean(),
                "mean_correlation": correlation[seed_a, seed_b].mean(),
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
        shares = [shared(decoder, None, t).mean() for t in THRESHOLDS]
        pair = {"seed_a": seed_a, "seed_b": seed_b}
        curves.append(pd.DataFrame({**pair, "threshold": THRESHOLDS, "sfr": shares}))
    latents, curve = (pd.concat(parts, ignore_index=True) for parts in (tables, curves))
    return pd.DataFrame(rows), latents, curve


def matched_correlations(
    saes: Mapping[Any, TopKSAE], matchings: Mapping[tuple, tuple[Matching, Matching]], x: Tensor
) -> dict[tuple, np.ndarray]:
    """Pearson correlation of each latent with the one that the decoder matches it with, over
    tokens.

    Args:
        saes: by name.
        matchings: of match_seeds.
        x: activations [N, D].

    Returns:
        {pair: float64 [F]}; 0 where one of the two is constant, as a dead latent is.
    """
    latents: dict[Any, Any] = {name: _active_latents(sae, x) for name, sae in saes.items()}
    means = {name: _mean(z) for name, z in latents.items()}
    spreads = {
        name: np.sqrt((_mean(z.multiply(z)) - means[name] ** 2).clip(0))
        for name, z in latents.items()
    }
    found = {}
    for (a, b), (decoder, _) in matchings.items():
        other = decoder.permutation
        spread = spreads[a] * spreads[b][other]
        products = _mean(latents[a].multiply(latents[b][:, other]))
        covariance = products - means[a] * means[b][other]
        found[a, b] = np.divide(covariance, spread, out=np.zeros(len(other)), where=spread > 0)
    return found


def _mean(z):
    """[F], over tokens."""
    return np.asarray(z.mean(0)).ravel()


def _active_latents(sae, x):
    """float64 csc matrix [N, F]: few of a token's latents are not 0."""
    parts = []
    for part in x.split(TOKENS_AT_ONCE):
        values, indices = (t.cpu().numpy() for t in sae.encode_topk(part))
        rows = np.repeat(np.arange(len(values)), values.shape[1])
        entries = (values.astype(float).ravel(), (rows, indices.ravel()))
        parts.append(scipy.sparse.csr_matrix(entries, (len(values), sae.d_sae)))
    return scipy.sparse.vstack(parts, format="csc")


def _firing(sae):
    if sae.firing is None:
        raise ValueError("an SAE without firing frequencies: which latents are dead is not known")
    return sae.firing.numpy()
