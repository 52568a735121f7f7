"""Where latents fire in token rows: sparse codes in the order of the latents, kept whole.

B rows of a batch, R rows of T tokens, F latents.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from faithful_sae.features.index import FeatureError
from faithful_sae.sae.activations import rows_in_batches
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.text.packing import is_content

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


@dataclass(frozen=True)
class Codes:
    """Where each latent of an SAE fires in token rows, BOS left out.

    Attributes:
        start: int64 [F + 1]; latent f owns the entries start[f] to start[f + 1] of the others.
        position: int32, row x T + place in the row, rising for each latent.
        value: float32, above 0.
        tokens: that are not BOS.
    """

    start: np.ndarray
    position: np.ndarray
    value: np.ndarray
    tokens: int

    @property
    def d_sae(self) -> int:
        return len(self.start) - 1

    @property
    def density(self) -> np.ndarray:
        """Share of tokens on which each latent fires, float64 [F]."""
        return np.diff(self.start) / self.tokens

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """(position, value) of one latent."""
        own = slice(self.start[latent], self.start[latent + 1])
        return self.position[own], self.value[own]


def sparse_codes(
    saes: Mapping[Any, TopKSAE],
    lm: "LanguageModel",
    rows: np.ndarray,
    batch_rows: int = 32,
    description: str = "codes",
) -> dict[Any, Codes]:
    """Where the latents of some SAEs fire, in one pass of the language model for all.

    Memory: 12 bytes for each active latent of a token, and twice as much while they are sorted.

    Args:
        saes: by name, on the model's device.
        rows: int [R, T], rows that start with BOS.
        batch_rows: B, in a forward pass.
        description: of the progress bar.

    Raises:
        FeatureError: no rows or nothing but BOS in them, 2^31 tokens or more, or an SAE of
            another width than the model.
    """
    if rows.ndim != 2 or not rows.size or rows.size > np.iinfo(np.int32).max:
        raise FeatureError(
            f"token rows of shape {list(rows.shape)}: codes need rows of tokens, in all fewer than "
            "2^31"
        )
    for name, sae in saes.items():
        if sae.d_model != lm.d_model:
            raise FeatureError(
                f"SAE {name!r} takes activations of width {sae.d_model}, but the model's are "
                f"{lm.d_model} wide: take the SAE of this model"
            )
    found: dict[Any, list] = {name: [] for name in saes}
    tokens = 0
    batches = -(-len(rows) // batch_rows)
    at = 0
    for ids in tqdm(rows_in_batches(rows, batch_rows), desc=description, total=batches):
        content = is_content(ids, lm.bos_id).flatten()
        place = at + content.nonzero().squeeze(-1).to(torch.int32)
        at += ids.numel()
        tokens += len(place)
        x = lm.activations(ids).flatten(0, 1)
        x = x[content.to(x.device)]
        for name, sae in saes.items():
            values, latents = (tensor.cpu() for tensor in sae.encode_topk(x))
            active = values > 0
            positions = place[:, None].expand_as(values)[active]
            kept = (latents[active].to(torch.int32), positions, values[active].float())
            found[name].append([tensor.numpy() for tensor in kept])
    if not tokens:
        raise FeatureError("the token rows hold nothing but BOS: give rows with text")
    return {name: _by_latent(found.pop(name), sae.d_sae, tokens) for name, sae in saes.items()}


def _by_latent(parts, d_sae, tokens):
    latent, position, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    # positions rise already, and a stable sort keeps them so
    order = latent.argsort(kind="stable")
    start = np.zeros(d_sae + 1, np.int64)
    start[1:] = np.bincount(latent, minlength=d_sae).cumsum()
    return Codes(start, position[order], value[order], tokens)
