"""What a latent is worth to the prediction of each token of a context.

    change_t = CE(token t | latent ablated) - CE(token t)        nats

At the hook, x becomes x - z_f d_f on the whole context before the rest of the model runs, as in
Bricken et al. (2023), "Feature Ablations". What the SAE does not reconstruct stays in x
(steering.edited): the latent alone is missing, and the SAE's error is not. Above 0: without the
latent the token is less likely, so the latent helped to predict it.

R rows of T tokens.
"""

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from faithful_sae.features.steering import edited
from faithful_sae.lm.model import LanguageModel
from faithful_sae.sae.sae import TopKSAE

# so many rows at a time that there are about so many logits
LOGITS_AT_ONCE = 2**22


def loss_changes(
    lm: LanguageModel, sae: TopKSAE, rows: np.ndarray, latents: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """Change of the loss of each token where one latent of each row is ablated, float32 [R, T]; 0
    for the first token, which nothing predicts. BOS keeps its x.

    Args:
        rows: int [R, T], rows that start with BOS.
        latents: int [R], the one ablated in each.
        ends: int [R], tokens of each that are asked for; behind them there may be 0.
    """
    changes = np.zeros(rows.shape, np.float32)
    # rows of about one length at a time, so that little is computed that nobody asked for
    order = np.argsort(ends, kind="stable")
    size = rows_at_once(rows.shape[1], lm.vocab_size)
    for start in range(0, len(rows), size):
        chunk = order[start : start + size]
        end = ends[chunk].max()
        ids = torch.from_numpy(rows[chunk, :end].astype(np.int64))
        x = lm.activations(ids)
        pairs = zip(x, latents[chunk].tolist(), strict=True)
        without = torch.stack([edited(sae, one, latent, "ablate") for one, latent in pairs])
        bos = (ids == lm.bos_id).to(x.device)[..., None]
        before, after = (_losses(lm, ids, y) for y in (x, torch.where(bos, x, without)))
        changes[chunk, 1:end] = (after - before).cpu().numpy()
    return changes


def rows_at_once(length: int, vocab_size: int) -> int:
    """Rows of so many tokens whose logits are computed together."""
    return max(1, LOGITS_AT_ONCE // (length * vocab_size))


def _losses(lm, ids, x):
    """Of the tokens behind the first, float32 [R, T - 1]."""
    logits = lm.spliced_logits(ids, x)[:, :-1, : lm.vocab_size].flatten(0, 1)
    tokens = ids[:, 1:].to(logits.device)
    return cross_entropy(logits, tokens.flatten(), reduction="none").view(tokens.shape)
