"""SAEs without some of their latents (paper, section 8: "pruning Fake Features").

A pruned SAE is the smaller SAE that is left: the rows and columns of the removed latents are gone,
and nothing is trained again. TopK chooses among what is left, so that each token still has k
latents: the next largest take the places of the removed ones. Were removed latents set to zero
behind TopK, tokens would have fewer latents than k, and SAEs of other sparsity were compared.

Latents are removed in some order:

    random tokens   those first that fire on most uniformly random tokens: fake ones (metrics/ffr)
    own text        those first that fire most on text that the model wrote
    frequent, rare  those first that fire most, or least, on text that the SAE was not trained on
    at random       in a drawn order

F latents.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.sae.activations import (
    moderate,
    moderate_limit,
    rows_in_batches,
    token_activations,
)
from faithful_sae.sae.sae import TopKSAE

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

RANDOM = "at random"
ORDERS = ("random tokens", "own text", "frequent", "rare", RANDOM)


def pruned(sae: TopKSAE, latents: ArrayLike) -> TopKSAE:
    """The SAE without some of its latents; the given one is left as it is.

    Args:
        latents: int [R], which to remove.

    Raises:
        ValueError: latents that it has not; fewer than k, or none, left; an SAE with experts, each
            of which has a block of latents of one size.
    """
    gone = np.unique(np.asarray(latents, int))
    if len(gone) and not 0 <= gone[0] <= gone[-1] < sae.d_sae:
        raise ValueError(f"latents {gone[0]} to {gone[-1]} are not among 0 to {sae.d_sae - 1}")
    left = sae.d_sae - len(gone)
    if left < (sae.k or 1):
        raise ValueError(f"{left} latents would be left, fewer than k = {sae.k or 1}: remove fewer")
    return with_latents(sae, np.delete(np.arange(sae.d_sae), gone))


def with_latents(sae: TopKSAE, latents: ArrayLike) -> TopKSAE:
    """An SAE with some of the latents of another, in this order; as many are active as there were,
    or all where there are fewer.

    Raises:
        ValueError: an SAE with experts, each of which has a block of latents of one size.
    """
    if sae.router is not None:
        raise ValueError("an SAE with experts cannot be pruned: their latents come in equal blocks")
    kept = torch.as_tensor(np.asarray(latents, int), device=sae.W_dec.device)
    found = copy.copy(sae)
    found.W_enc, found.b_enc = sae.W_enc[:, kept].contiguous(), sae.b_enc[kept]
    found.W_dec = sae.W_dec[kept]
    if sae.k is not None:
        found.k = min(sae.k, len(kept))
    for name in ("threshold", "firing"):
        of_latents = getattr(sae, name)
        setattr(found, name, None if of_latents is None else of_latents[kept.to(of_latents.device)])
    return found


def rankings(
    random_tokens: ArrayLike, own_text: ArrayLike, unseen_text: ArrayLike, draws: int, seed: int
) -> dict[tuple[str, int], np.ndarray]:
    """{(order, draw): all latents [F] in the order in which they are removed}; of those that fire
    as often, the first one first.

    Args:
        random_tokens: [F], on what share of random tokens each fires.
        own_text: of tokens that the model wrote.
        unseen_text: of tokens of a text that the SAE was not trained on.
        draws: how many orders are drawn at random.
        seed: of these.
    """
    frequency = {"random tokens": random_tokens, "own text": own_text, "frequent": unseen_text}
    found = {
        (order, 0): np.argsort(-np.asarray(values), kind="stable")
        for order, values in frequency.items()
    }
    found["rare", 0] = np.argsort(np.asarray(unseen_text), kind="stable")
    for draw in range(draws):
        rng = np.random.default_rng((seed, draw))
        found[RANDOM, draw] = rng.permutation(len(found["rare", 0]))
    return found


def moderate_batches(
    lm: "LanguageModel", rows: np.ndarray, batch_rows: int, max_norm: float | None = None
) -> Iterator[Tensor]:
    """Yield activations float32 [N, D] of the tokens of some rows, without BOS and, with max_norm,
    without massive ones (sae.activations).
    """
    limit = moderate_limit(lm, rows, False, batch_rows, max_norm)
    for ids in rows_in_batches(rows, batch_rows):
        yield moderate(token_activations(lm, ids, False), limit)


def firing_on(saes: Mapping[Any, TopKSAE], batches: Iterable[Tensor]) -> dict[Any, np.ndarray]:
    """On what share of the tokens of some batches [N, D] each latent fires, {name: float64 [F]}."""
    counts = {name: torch.zeros(sae.d_sae, dtype=torch.int64) for name, sae in saes.items()}
    tokens = 0
    for x in batches:
        tokens += len(x)
        for name, sae in saes.items():
            counts[name] += firing_counts(*sae.encode_topk(x), sae.d_sae).cpu()
    return {name: (count.double() / max(tokens, 1)).numpy() for name, count in counts.items()}


def sizes(sae: TopKSAE, fake: int, shares: Sequence[float]) -> dict[str, int]:
    """{name: how many latents are removed}: as many as are fake, as long as k latents stay, and
    shares of all, rounded.
    """
    most = sae.d_sae - (sae.k or 1)
    of_all = {f"{100 * share:g} %": round(share * sae.d_sae) for share in shares}
    return {"fake": min(fake, most)} | of_all
