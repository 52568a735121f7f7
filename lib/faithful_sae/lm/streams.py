"""The residual stream at several layers at once, and a stand-in for a language model that gives out
one of them for each token: what one SAE for a group of layers is trained on (Ghilardi et al. 2024,
arXiv 2410.21508).

L layers, B rows, T tokens, D model.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from faithful_sae.lm.model import LanguageModel


@torch.no_grad()
def streams(lm: LanguageModel, ids: Tensor, layers: Sequence[int]) -> Tensor:
    """The residual stream entering some blocks, in one pass: float32 [L, B, T, D].

    Args:
        ids: int64 [B, T].
        layers: of the blocks, rising.
    """
    found: list[Tensor] = []

    def keep(_module: Any, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs["hidden_states"]
        found.append(x.to(lm.device).float())

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            handle = lm.blocks[layer].register_forward_pre_hook(keep, with_kwargs=True)
            hooks.callback(handle.remove)
        lm.model.base_model(input_ids=ids.to(lm.model.device), use_cache=False)
    return torch.stack(found)


def spreads(lm: LanguageModel, batches: Iterator[Tensor], layers: Sequence[int]) -> list[float]:
    """s of each layer: the root of the mean squared distance of its activations from their mean,
    over the tokens of some ids [B, T] that are not BOS.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for ids in batches:
        x = streams(lm, ids, layers)[:, (ids != lm.bos_id).to(lm.device)].double()
        count += x.shape[1]
        total = total + x.sum(1)
        squares = squares + x.square().sum((1, 2))
    mean = total / count
    return (squares / count - mean.square().sum(-1)).sqrt().tolist()


@dataclass
class LayerGroup:
    """A language model whose activation of a token is that of one of several layers, drawn at
    random, in units of the layer's spread: as `activations` are taken from it, an ActivationStream
    takes it for a model.

    What is drawn depends on the seed and on the ids of the batch, so that it is the same in every
    pass over a text.

    Args:
        layers: rising.
        scales: of each layer, what its activations are divided by.
    """

    lm: LanguageModel
    layers: Sequence[int]
    scales: Sequence[float]
    seed: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lm, name)

    def activations(self, ids: Tensor) -> Tensor:
        """float32 [B, T, D]."""
        x = streams(self.lm, ids, self.layers)
        scales = torch.tensor(self.scales, device=x.device)
        digest = hashlib.sha256(ids.cpu().numpy().tobytes()).digest()
        rng = np.random.default_rng([self.seed, *np.frombuffer(digest, np.uint32)])
        drawn = torch.from_numpy(rng.integers(len(self.layers), size=ids.shape)).to(x.device)
        chosen = x.gather(0, drawn[None, ..., None].expand(1, *x.shape[1:]))[0]
        return chosen / scales[drawn][..., None]
