"""The residual stream at several layers at once, and a stand-in for a language model that gives out
one of them for each token: what one SAE for a group of layers is trained on (Ghilardi et al. 2024,
arXiv 2410.21508).

L layers, B rows, T tokens, N of them that count, D model.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from faithful_sae.sae.activations import norm_limit, rows_in_batches

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


def streams(lm: "LanguageModel", ids: Tensor, layers: Sequence[int]) -> Tensor:
    """The residual stream entering some blocks, in one pass that stops at the last of them: float32
    [L, B, T, D].

    Args:
        ids: int64 [B, T].
        layers: of the blocks, rising.
    """
    found: list[Tensor] = []

    def keep(x: Tensor) -> None:
        found.append(x.to(lm.device).float())

    *before, last = (dataclasses.replace(lm, layer=layer, hook="residual") for layer in layers)
    with contextlib.ExitStack() as hooks:
        for earlier in before:
            hooks.enter_context(earlier.at_layer(keep))
        found.append(last.activations(ids))
    return torch.stack(found)


@dataclass(frozen=True)
class Streams:
    """Iterates over float32 [L, N, D] of token rows, a batch of them at a time: the tokens that are
    neither BOS nor massive at any layer.

    Args:
        rows: int [R, T].
        batch_rows: rows per forward pass.
        layers: rising.
        max_norm: a norm above so many times the layer's median is massive; None: none is.
    """

    lm: "LanguageModel"
    rows: np.ndarray
    batch_rows: int
    layers: Sequence[int]
    max_norm: float | None = None

    def __iter__(self) -> Iterator[Tensor]:
        for x in self._content():
            yield x[:, (x.norm(dim=-1) <= self._limits[:, None].to(x)).all(0)]

    def _content(self):
        for ids in rows_in_batches(self.rows, self.batch_rows):
            content = (ids != self.lm.bos_id).to(self.lm.device)
            yield streams(self.lm, ids, self.layers)[:, content]

    @functools.cached_property
    def _limits(self):
        """The largest norm of each layer that is not massive, [L]."""
        if self.max_norm is None:
            return torch.full((len(self.layers),), math.inf)
        norms = torch.cat([x.norm(dim=-1) for x in self._content()], 1)
        return torch.tensor([norm_limit(layer, self.max_norm) for layer in norms])


def spreads(streams: Iterable[Tensor]) -> list[float]:
    """s of each layer, as variants.base.spread has it of one batch: the root of the mean squared
    distance of all tokens [L, N, D] from their mean.
    """
    count, total, squares = 0, 0, 0
    for x in streams:
        count += x.shape[1]
        total = total + x.sum(1, dtype=torch.float64)
        squares = squares + x.square().sum((1, 2), dtype=torch.float64)
    mean = torch.as_tensor(total) / count
    return (torch.as_tensor(squares) / count - mean.square().sum(-1)).sqrt().tolist()


@dataclass
class LayerGroup:
    """A language model whose activation of a token is that of one of several layers, drawn at
    random, in units of the layer's spread: an ActivationStream takes it for a model.

    What is drawn depends on the seed and on the ids of the batch, so that it is the same in every
    pass over a text.

    Args:
        layers: rising.
        scales: of each layer, what its activations are divided by.
    """

    lm: "LanguageModel"
    layers: Sequence[int]
    scales: Sequence[float]
    seed: int

    def __getattr__(self, name: str) -> Any:
        # while it is copied it has no model yet
        if name == "lm":
            raise AttributeError(name)
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
