"""How far an SAE's features depend on its seed, by the measures of Paulo and Belrose (2025),
"Sparse Autoencoders Trained on the Same Data Learn Different Features".

A latent of one SAE is *shared* with another if the decoder matching and the encoder matching give
it the same counterpart and both cosines reach the threshold (their section 3). SAEs in, numbers
out; S SAEs, F latents.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit

from faithful_sae.matching import Matching
from faithful_sae.metrics.sfr import shared
from faithful_sae.sae.sae import TopKSAE

LAWS = {"power law": lambda n, a, b: a * n**-b, "with offset": lambda n, a, b, c: a * n**-b + c}
# a share is never negative
BOUNDS = {"power law": ([0, 0], [10, 10]), "with offset": ([0, 0, 0], [10, 10, 1])}


# --- pairs of SAEs --------------------------------------------------------------------------------


def maximum_cosine(
    A: torch.Tensor | np.ndarray, B: torch.Tensor | np.ndarray, tile: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """For every row of A the row of B nearest to it; the mean of the cosines is MMCS.

    Memory: `tile` x m float32. Time: one product of n x d with d x m.

    Args:
        A: [n, d].
        B: [m, d].
        tile: rows of A at a time.

    Returns:
        (index int64 [n], cosine float64 [n]).
    """
    a, b = (F.normalize(torch.as_tensor(matrix).detach().float(), dim=-1) for matrix in (A, B))
    index = torch.cat([(part @ b.T).argmax(1) for part in a.split(tile)])
    return index.cpu().numpy(), (a.double() * b[index].double()).sum(1).cpu().numpy()


def compare_latents(
    sae_a: TopKSAE, sae_b: TopKSAE, decoder: Matching, encoder: Matching
) -> pd.DataFrame:
    """One row per latent of the first SAE: its matched and its nearest latents in the second, by
    decoder and by encoder.
    """
    maximum, max_cosine = maximum_cosine(sae_a.W_dec, sae_b.W_dec)
    maximum_encoder, max_encoder_cosine = maximum_cosine(sae_a.W_enc.T, sae_b.W_enc.T)
    return pd.DataFrame(
        {
            "latent": np.arange(len(maximum)),
            "match": decoder.permutation,
            "decoder_cosine": decoder.cosine,
            "encoder_match": encoder.permutation,
            "encoder_cosine": encoder.cosine,
            "agree": decoder.permutation == encoder.permutation,
            "maximum": maximum,
            "max_cosine": max_cosine,
            "maximum_encoder": maximum_encoder,
            "max_encoder_cosine": max_encoder_cosine,
        }
    )


def shared_by_maximum(latents: pd.DataFrame, threshold: float) -> np.ndarray:
    """bool [F]: shared if, instead of matched, each latent goes to its nearest one, by decoder and
    encoder alike (Figure A2).
    """
    return (
        (latents.maximum == latents.maximum_encoder)
        & (latents.max_cosine >= threshold)
        & (latents.max_encoder_cosine >= threshold)
    ).to_numpy()


def compare_pair(
    latents: pd.DataFrame, decoder: Matching, encoder: Matching, threshold: float
) -> dict[str, float]:
    """A pair of SAEs in numbers: all are means over the first one's latents, fractions 0-1 or
    cosines.

    `shared` by encoder and decoder, `shared_decoder` by the decoder alone (SFR), `shared_maximum`
    by nearest latents; `agree`: both matchings give one counterpart; `alignment`: mean of the two
    matched cosines, and where they agree and where not (NaN if nowhere); `correlation` of decoder
    with encoder cosines; `at_maximum`: matched with the nearest.
    """
    alignment = (latents.decoder_cosine + latents.encoder_cosine) / 2
    agree = latents.agree
    return {
        "shared": shared(decoder, encoder, threshold).mean(),
        "shared_decoder": shared(decoder, None, threshold).mean(),
        "shared_maximum": shared_by_maximum(latents, threshold).mean(),
        "agree": agree.mean(),
        "alignment": alignment.mean(),
        "alignment_agree": alignment[agree].mean(),
        "alignment_disagree": alignment[~agree].mean(),
        "correlation": latents.decoder_cosine.corr(latents.encoder_cosine),
        "matched_cosine": latents.decoder_cosine.mean(),
        "mmcs": latents.max_cosine.mean(),
        "at_maximum": (latents.match == latents.maximum).mean(),
    }


def thresholds(
    latents: pd.DataFrame, decoder: Matching, encoder: Matching, values: Iterable[float]
) -> pd.DataFrame:
    """Share of shared latents at every threshold in `values`, under the three definitions of
    compare_pair (Figure A2).
    """
    return pd.DataFrame(
        [
            {
                "threshold": t,
                "shared": shared(decoder, encoder, t).mean(),
                "shared_decoder": shared(decoder, None, t).mean(),
                "shared_maximum": shared_by_maximum(latents, t).mean(),
            }
            for t in values
        ]
    )


# --- many seeds -----------------------------------------------------------------------------------


def hit_masks(
    matchings: Mapping[tuple, tuple[Matching, Matching]], threshold: float
) -> dict[Any, np.ndarray]:
    """{base: bool [S-1, F]}: which latents of each SAE are shared with each of the others, in the
    order of the pairs of match_seeds.
    """
    masks = defaultdict(list)
    for (a, b), (decoder, encoder) in matchings.items():
        hit = shared(decoder, encoder, threshold)
        masks[a].append(hit)
        # seen from b: latent permutation[i] is a hit where i is
        masks[b].append(hit[np.argsort(decoder.permutation)])
    return {base: np.stack(hits) for base, hits in masks.items()}


def only_in_base(masks: Mapping[Any, np.ndarray]) -> pd.DataFrame:
    """Share of latents found in the base SAE alone, for every base and every number of seeds n =
    2..S (their 4.1, Figure A1).

    They average over all sets of n SAEs. A latent that misses m of the S-1 others is alone in C(m,
    n-1) of the C(S-1, n-1) sets with its base, which gives that average without going through the
    sets.
    """
    rows = []
    for base, hits in masks.items():
        others = len(hits)
        misses = (~hits).sum(0)
        for n in range(2, others + 2):
            sets = np.array([math.comb(m, n - 1) for m in range(others + 1)])
            alone = sets / math.comb(others, n - 1)
            rows.append({"base": base, "seeds": n, "only_in_base": alone[misses].mean()})
    return pd.DataFrame(rows)


def power_laws(n: ArrayLike, share: ArrayLike) -> pd.DataFrame:
    """Fit a n^-b and a n^-b + c to the share of latents found in the base alone, and say which
    predicts better.

    The points are averages over the same SAEs, not independent draws: aicc flatters whichever law
    fits closer, so a verdict asks for loo as well.

    Args:
        n: numbers of SAEs.
        share: at each of them.

    Returns:
        a row per law: a, b, c (0 without offset); rmse of the fit; aicc, Akaike's criterion for
        small samples; loo, the root mean square error at points left out of the fit one at a time.
        aicc and loo are NaN with too few points for them.
    """
    n = np.asarray(n, float)
    share = np.asarray(share, float)
    rows = []
    for name, law in LAWS.items():
        size = len(BOUNDS[name][0])
        # as many numbers as points fit anything
        if len(n) <= size:
            rows.append(
                {"law": name} | dict.fromkeys(("a", "b", "c", "rmse", "aicc", "loo"), np.nan)
            )
            continue
        found = _fit(name, n, share)
        # an exact fit has no logarithm
        squares = max(float(((law(n, *found) - share) ** 2).sum()), 1e-30)
        aicc = np.nan
        # the law's and the variance
        parameters = size + 1
        if len(n) > parameters + 1:
            aicc = (
                len(n) * math.log(squares / len(n))
                + 2 * parameters
                + 2 * parameters * (parameters + 1) / (len(n) - parameters - 1)
            )
        loo = np.nan
        if len(n) > size + 1:
            left_out = [
                law(n[i], *_fit(name, np.delete(n, i), np.delete(share, i))) - share[i]
                for i in range(len(n))
            ]
            loo = float(np.sqrt(np.mean(np.square(left_out))))
        a, b, c = (*found, 0.0)[:3]
        rows.append(
            {
                "law": name,
                "a": a,
                "b": b,
                "c": c,
                "rmse": math.sqrt(squares / len(n)),
                "aicc": aicc,
                "loo": loo,
            }
        )
    return pd.DataFrame(rows)


def _fit(name, n, share):
    start = [share[0] / 2, 1.0, share[-1] / 2][: len(BOUNDS[name][0])]
    return curve_fit(
        LAWS[name],
        n,
        share,
        p0=np.clip(start, 1e-6, 1),
        bounds=BOUNDS[name],
        max_nfev=20_000,
        ftol=1e-12,
        xtol=1e-12,
    )[0]


def fitted_curves(curve: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """The figure's data: per number of seeds the mean over bases (series `measured`), the lowest
    and highest base, and both laws.

    Args:
        curve: of only_in_base.
        fits: of power_laws.
    """
    measured = (
        curve.groupby("seeds")
        .only_in_base.agg(only_in_base="mean", low="min", high="max")
        .reset_index()
    )
    parts = [measured.assign(series="measured")]
    n = np.linspace(curve.seeds.min(), curve.seeds.max(), 43)
    for fit in fits.dropna(subset="a").to_dict("records"):
        label = f"{fit['a']:.2f} $n^{{-{fit['b']:.2f}}}$"
        if fit["law"] == "with offset":
            label += f" + {fit['c']:.2f}"
        values = LAWS["with offset"](n, fit["a"], fit["b"], fit["c"])
        parts.append(
            pd.DataFrame(
                {
                    "seeds": n,
                    "only_in_base": values,
                    "series": fit["law"],
                    "label": f"{fit['law']}: {label}",
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


# --- one or two kinds of latents ------------------------------------------------------------------


def count_modes(values: ArrayLike, bandwidth: float) -> int:
    """Number of maxima of the Gaussian kernel density estimate of `values` [n]."""
    values = np.asarray(values, float)
    grid = np.linspace(values.min() - 2 * bandwidth, values.max() + 2 * bandwidth, 256)
    density = np.exp(-(((grid[:, None] - values) / bandwidth) ** 2) / 2).sum(1)
    return int(((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])).sum())


def modes_test(values: ArrayLike, seed: int = 0, resamples: int = 200) -> tuple[int, float]:
    """Are there two kinds of latents? Silverman's (1981) test of one mode.

    A small p speaks against one mode. The test is known to be cautious.

    Args:
        values: cosines [n].
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Returns:
        (modes, p): the number of modes at the normal-reference bandwidth, and the share of smoothed
        bootstrap samples from the smoothest-needed one-mode density that need at least as much
        smoothing to have one mode; (0, NaN) for fewer than two different values.
    """
    values = np.asarray(values, float)
    spread = values.std()
    if len(values) < 2 or spread == 0:
        return 0, np.nan
    low = spread / 100
    high = 2 * spread
    # the least bandwidth with one mode
    for _ in range(16):
        middle = (low + high) / 2
        if count_modes(values, middle) > 1:
            low = middle
        else:
            high = middle
    rng = np.random.default_rng(seed)
    more = 0
    for _ in range(resamples):
        sample = rng.choice(values, len(values)) + high * rng.standard_normal(len(values))
        # of the values' variance
        widened = math.sqrt(1 + (high / spread) ** 2)
        sample = values.mean() + (sample - values.mean()) / widened
        more += count_modes(sample, high) > 1
    return count_modes(values, 1.06 * spread * len(values) ** -0.2), more / resamples
