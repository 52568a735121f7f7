"""What there is to say of an SAE from its weights and from token rows alone: SAEBench's `core`
(Karvonen et al. 2025, arXiv 2503.09532), with its formulas where they are sound.

x is the hooked activation of a position, x_hat its reconstruction, z its latents. E is the mean
over all positions measured, in float64. Fidelity is that of metrics/fidelity.py, under its names.

    mse           E |x - x_hat|^2 / D
    cosine        E cos(x, x_hat)
    l2_in, l2_out E |x|, E |x_hat|
    l2_ratio      E (|x_hat| / |x|)
    relative_reconstruction_bias
                  E |x_hat|^2 / E (x . x_hat), below 1 where x_hat is shrunk: x_hat divided by it
                  has the smallest error (Rajamanoharan et al. 2024, arXiv 2404.16014, equation 10)
    ce_score      (ce_zero - ce_sae) / (ce_zero - ce), fidelity's ce_recovered
    kl_score      (kl_zero - kl) / kl_zero, KL being from the original to the spliced prediction
    ce_diff       ce_sae - ce, in nats (Lieberum et al. 2024, arXiv 2408.05147). In late layers of
                  small models ce_zero is enormous, and scores near 1 say little: read nats, too
    l0, l1        E of the number of z_f that are not 0, and of their sum in absolute value
    density_f     share of positions where z_f is not 0
    over_p        share of latents with a density above p; normalised: their share of all firings
    consistent_activation_heuristic_f
                  firings of a latent / token rows in which it fires at all

Ours differ from SAEBench's where its have faults: its `mse` divides by the tokens of a batch, and
its `explained_variance` squares a mean of squares.

A position is measured where fidelity measures it: everywhere, or everywhere but at BOS.

F latents, D model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from faithful_sae.metrics.fidelity import ModerateFidelity, fidelity_of_all
from faithful_sae.metrics.geometry import geometry, nearest
from faithful_sae.sae.activations import rows_in_batches
from faithful_sae.sae.reference import zero_sae
from faithful_sae.sae.sae import TopKSAE

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

SUMS = ("norm_in", "norm_out", "ratio", "cosine", "square_out", "product", "l0", "l1")


@dataclass(frozen=True)
class Structural:
    """One SAE on some token rows; see the module for the formulas.

    Attributes:
        positions: measured.
        mse: squared units of x, per dimension.
        explained_variance, ev_authors, ev_legacy: at most 1; NaN where all x are alike.
        cosine: -1 to 1; 0 at a position whose x_hat is 0.
        l2_in, l2_out: in units of x.
        l2_ratio: 0 or more; NaN where an x is 0.
        relative_reconstruction_bias: 1: unbiased; NaN where no x_hat has anything of its x.
        ce, ce_sae, ce_zero, ce_diff, kl, kl_zero: nats per predicted token.
        ce_score, kl_score: 1: as good as the model itself, 0: as bad as ablation; NaN where
            ablation changes nothing.
        l0: latents per token.
        l1: in units of latents.
        frac_alive: share of latents, 0 to 1, that fire at all on these rows.
        over_1_percent, over_10_percent: shares of latents, 0 to 1.
        over_1_percent_normalised, over_10_percent_normalised: shares of firings, 0 to 1; NaN where
            nothing fires.
        decoder_nearest, encoder_nearest: mean over latents of the largest cosine to another one.
        decoder_random: what decoder_nearest is of random directions.
        duplicates: share of latents, 0 to 1, whose nearest decoder row is at 0.7 or above.
    """

    positions: int
    mse: float
    explained_variance: float
    ev_authors: float
    ev_legacy: float
    cosine: float
    l2_in: float
    l2_out: float
    l2_ratio: float
    relative_reconstruction_bias: float
    ce: float
    ce_sae: float
    ce_zero: float
    ce_diff: float
    ce_score: float
    kl: float
    kl_zero: float
    kl_score: float
    l0: float
    l1: float
    frac_alive: float
    over_1_percent: float
    over_10_percent: float
    over_1_percent_normalised: float
    over_10_percent_normalised: float
    decoder_nearest: float
    decoder_random: float
    encoder_nearest: float
    duplicates: float


@dataclass(frozen=True)
class ModerateStructural(Structural):
    """The same, and on moderate positions alone (fidelity.ModerateFidelity)."""

    massive: int
    mse_moderate: float
    explained_variance_moderate: float
    ce_diff_moderate: float


def structural(
    saes: Mapping[Any, TopKSAE],
    lm: "LanguageModel",
    tokens: np.ndarray,
    include_bos: bool = False,
    batch_rows: int = 16,
    max_norm: float | None = None,
) -> tuple[dict[Any, Structural], dict[Any, pd.DataFrame]]:
    """Every number of the module for some SAEs on the same rows.

    Cost: fidelity of the SAEs and of one that reconstructs 0, and one stopped pass more.

    Args:
        saes: by name, on the model's device.
        tokens: int [R, T], rows that start with BOS.
        include_bos: whether BOS positions are replaced and measured, too.
        batch_rows: rows per forward pass.
        max_norm: above so many times the median norm a position is massive; the records are
            ModerateStructural then. None: as if none were.

    Returns:
        ({name: Structural}, {name: a row per latent}). Of a latent: latent (0 to F - 1), density,
        consistent_activation_heuristic (NaN where it never fires), encoder_bias, encoder_norm,
        encoder_decoder_cosine, decoder_nearest and encoder_nearest, the largest cosine to another
        latent's row; cosines of a row of zeros are 0.

    Raises:
        ValueError: as fidelity_of_all; an SAE of one latent.
    """
    weights = {name: _weights(sae) for name, sae in saes.items()}
    # a name that nobody else can have
    ablation = object()
    measured, _ = fidelity_of_all(
        {**saes, ablation: zero_sae(lm.d_model, lm.device)},
        lm,
        tokens,
        batch_rows,
        (include_bos,),
        max_norm=max_norm,
    )
    kl_zero = measured[ablation, include_bos].kl
    sums = {name: _Sums(sae) for name, sae in saes.items()}
    for ids in tqdm(
        rows_in_batches(tokens, batch_rows),
        total=math.ceil(len(tokens) / batch_rows),
        desc="latents and norms",
        unit="batch",
    ):
        x = lm.activations(ids)
        where = (ids.to(x.device) != lm.bos_id) | include_bos
        for one in sums.values():
            one.add(x, where)
    records, latents = {}, {}
    for name, one in sums.items():
        of_weights, table = weights[name]
        fidelity = measured[name, include_bos]
        record = Structural(
            positions=fidelity.tokens,
            mse=fidelity.l2,
            explained_variance=fidelity.explained_variance,
            ev_authors=fidelity.ev_authors,
            ev_legacy=fidelity.ev_legacy,
            ce=fidelity.ce,
            ce_sae=fidelity.ce_sae,
            ce_zero=fidelity.ce_zero,
            ce_diff=fidelity.ce_diff,
            ce_score=fidelity.ce_recovered,
            kl=fidelity.kl,
            kl_zero=kl_zero,
            kl_score=_ratio(kl_zero - fidelity.kl, kl_zero),
            **of_weights,
            **one.means(fidelity.tokens),
            **one.densities(fidelity.tokens),
        )
        if isinstance(fidelity, ModerateFidelity):
            record = ModerateStructural(
                **vars(record),
                massive=fidelity.massive,
                mse_moderate=fidelity.l2_moderate,
                explained_variance_moderate=fidelity.explained_variance_moderate,
                ce_diff_moderate=fidelity.ce_diff_moderate,
            )
        records[name] = record
        table.insert(1, "density", one.firings / fidelity.tokens)
        table.insert(2, "consistent_activation_heuristic", one.per_row())
        latents[name] = table
    return records, latents


def _weights(sae):
    """What is said of the weights alone: ({field: number}, columns of the table of latents)."""
    of_decoder, decoder = geometry(sae.W_dec)
    rows = sae.W_enc.T.float()
    encoder = nearest(rows)
    columns = {
        "encoder_bias": sae.b_enc,
        "encoder_norm": rows.norm(dim=-1),
        "encoder_decoder_cosine": F.cosine_similarity(rows, sae.W_dec.float(), dim=-1),
        "decoder_nearest": decoder,
        "encoder_nearest": encoder,
    }
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    table.insert(0, "latent", np.arange(sae.d_sae))
    return {
        "decoder_nearest": of_decoder.mean,
        "decoder_random": of_decoder.random,
        "encoder_nearest": encoder.mean().item(),
        "duplicates": of_decoder.duplicates,
    }, table


class _Sums:
    """float64 sums over positions, and counts of firings, of one SAE."""

    def __init__(self, sae: TopKSAE) -> None:
        self.sae = sae
        # of each token row, added up at the end: whatever the batches, in the same order
        self.rows: dict[str, list[float]] = {name: [] for name in SUMS}
        self.firings = np.zeros(sae.d_sae, np.int64)
        self.rows_with = np.zeros(sae.d_sae, np.int64)

    def add(self, x: Tensor, where: Tensor) -> None:
        """Of activations [B, T, D], at the positions `where` bool [B, T]."""
        values, indices = self.sae.encode_topk(x)
        fires = values != 0
        plain = self.sae.normalisation == "none"
        # latents that are there already are half of a reconstruction
        x_hat = self.sae.decode_topk(values, indices) if plain else self.sae.reconstruct(x)
        x, x_hat = x.double(), x_hat.double()
        norm_in, norm_out = x.norm(dim=-1), x_hat.norm(dim=-1)
        found = {
            "norm_in": norm_in,
            "norm_out": norm_out,
            "ratio": norm_out / norm_in,
            "cosine": F.cosine_similarity(x, x_hat, dim=-1),
            "square_out": norm_out.square(),
            "product": torch.linalg.vecdot(x, x_hat),
            "l0": fires.sum(-1).double(),
            "l1": values.double().abs().sum(-1),
        }
        for name, value in found.items():
            self.rows[name] += torch.where(where, value, 0.0).sum(1).tolist()
        fires &= where[..., None]
        row = torch.arange(len(x), device=x.device)[:, None, None]
        cells = (row * self.sae.d_sae + indices)[fires]
        counts = torch.bincount(cells, minlength=len(x) * self.sae.d_sae)
        counts = counts.view(len(x), self.sae.d_sae).cpu()
        self.firings += counts.sum(0).numpy()
        self.rows_with += (counts > 0).sum(0).numpy()

    def means(self, positions):
        """Fields that are means over positions."""
        total = {name: math.fsum(values) for name, values in self.rows.items()}
        return {
            "cosine": total["cosine"] / positions,
            "l2_in": total["norm_in"] / positions,
            "l2_out": total["norm_out"] / positions,
            "l2_ratio": total["ratio"] / positions,
            "relative_reconstruction_bias": _ratio(total["square_out"], total["product"]),
            "l0": total["l0"] / positions,
            "l1": total["l1"] / positions,
        }

    def densities(self, positions):
        """Fields that are shares of latents and of firings."""
        density = self.firings / positions
        found = {"frac_alive": (density > 0).mean().item()}
        for percent in (1, 10):
            over = density > percent / 100
            share = _ratio(self.firings[over].sum().item(), self.firings.sum().item())
            found[f"over_{percent}_percent"] = over.mean().item()
            found[f"over_{percent}_percent_normalised"] = share
        return found

    def per_row(self):
        """The consistent activation heuristic, float64 [F]."""
        with np.errstate(invalid="ignore"):
            return self.firings / self.rows_with


def _ratio(part, whole):
    return part / whole if whole else math.nan
