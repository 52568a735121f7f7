"""Feature geometry: how close the rows of one dictionary stand to each other (SAEBench's `core`).

    nearest_i = max over j != i of cos(d_i, d_j)

Two rows of one SAE that point the same way are one feature found twice. The mean over latents is
SAEBench's `average_max_decoder_cosine_sim`. In few dimensions random directions are close, too:
the same mean over as many of them is the floor beside it.

D model, F latents.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

BLOCK = 1024  # rows at a time


@dataclass(frozen=True)
class Geometry:
    """One SAE.

    Attributes:
        mean: of nearest_i over all latents, a cosine.
        random: the same of as many random directions.
        duplicates: share of latents, 0 to 1, whose nearest row is at `duplicate` or above.
    """

    mean: float
    random: float
    duplicates: float


def nearest(rows: torch.Tensor) -> torch.Tensor:
    """The largest cosine of each row to another one, float32 [F].

    Args:
        rows: float [F, D]; normalised here.

    Raises:
        ValueError: fewer than two rows.
    """
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} row has no other to be near to: at least two are needed")
    unit = F.normalize(rows.float(), dim=-1)
    found = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        own = torch.arange(len(cosine), device=rows.device)
        cosine[own, own + start] = -torch.inf
        found.append(cosine.amax(1))
    return torch.cat(found)


def geometry(
    decoder: torch.Tensor, duplicate: float = 0.7, seed: int = 0
) -> tuple[Geometry, torch.Tensor]:
    """Geometry of a dictionary, and the nearest cosine of each latent, float32 [F].

    Args:
        decoder: W_dec, float [F, D].
        duplicate: least cosine of two latents that are one feature.
        seed: of the random directions.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(decoder.shape, generator=generator)
    cosine = nearest(decoder)
    twice = (cosine >= duplicate).float().mean().item()
    return Geometry(cosine.mean().item(), nearest(directions).mean().item(), twice), cosine
