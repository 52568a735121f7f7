"""Batches of whole token rows, for losses that look at what the language model makes of x_hat.

The model runs once on the rows as they are. Then a loss may put other activations in the place of
the hooked ones, and follow them, with derivatives, through the rest of the model: to the logits,
and to the residual stream behind every block from the hooked one on.

What stands in for x is measured at positions that are not BOS (unless it is included) and moderate
at the hook; the others keep their x, so that they do not decide. What becomes massive behind the
hook is not left out.

R rows, T tokens, N positions measured, D model, V vocabulary.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from faithful_sae.sae.activations import SAMPLE, Massive, as_ids, moderate_limit

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


@dataclass(frozen=True)
class Outputs:
    """What the model makes of token rows: logits [R, T, V], and the residual stream behind each
    block from the hooked one on, [R, T, D] each; all float32.
    """

    logits: Tensor
    streams: list[Tensor]


class InContext:
    """Token rows, and what the model makes of them.

    Attributes:
        x: float32 [N, D], the hooked activations at the positions measured, row after row.
        measured: bool [R, T].
        original: what the model makes of the rows as they are.
    """

    def __init__(
        self, lm: "LanguageModel", ids: Tensor, limit: float = math.inf, include_bos: bool = False
    ) -> None:
        """A batch of ids int64 [R, T]; `limit`: the largest norm of a moderate activation."""
        self.lm = lm
        # derivatives are those of x_hat alone; for those of weights all would have to be kept
        lm.model.requires_grad_(False)
        self.ids = ids.to(lm.device)
        kept: list[Tensor] = []
        with torch.no_grad(), lm.at_layer(lambda x: kept.append(x.to(lm.device))):
            self.original = self._outputs()
        (self._rows,) = kept
        self.norms = self._rows.float().norm(dim=-1)
        self.content = (self.ids != lm.bos_id) | include_bos
        # what is not a number stays, so that the training says so
        self.measured = self.content & ~(self.norms > limit)
        self.x = self._rows[self.measured].float()

    def rows(self, x_hat: Tensor) -> Tensor:
        """The hooked activations [R, T, D] with x_hat [N, D] in the place of x."""
        return self._rows.to(x_hat.dtype).index_put((self.measured,), x_hat)

    def run(self, rows: Tensor) -> Outputs:
        """What the model makes of other activations [R, T, D], differentiable."""
        with self.lm.at_layer(lambda x: rows.to(x), skip=True):
            return self._outputs()

    def _outputs(self) -> Outputs:
        lm = self.lm
        streams: list[Tensor] = []

        def keep(_module, _args, output):
            x = output[0] if isinstance(output, tuple) else output
            streams.append(x.to(lm.device).float())

        with contextlib.ExitStack() as hooks:
            for block in lm.blocks[lm.layer :]:
                hooks.callback(block.register_forward_hook(keep).remove)
            ids = self.ids.to(lm.model.device)
            logits = lm.model(input_ids=ids, use_cache=False).logits
        return Outputs(logits.to(lm.device).float(), streams)


class RowStream:
    """Iterates over batches of whole rows in random order, another one in every pass, until
    `n_tokens` positions have been given out, BOS included. A pass leaves out the rows that would
    not fill its last batch.

    The stream depends on `seed` alone, and a batch on its number, so that a stream goes on from a
    `state` with the same bytes.

    Args:
        rows: int [R, T].
        n_tokens: rounded up to whole batches.
        batch_tokens: of a batch, a multiple of T.
        include_bos, seed: as ActivationStream's.
        max_norm: activations of a norm above so many times the median of the first SAMPLE, in the
            order of the seed, are not measured; None: all are.

    Raises:
        ValueError: rows that do not fill a batch.
    """

    def __init__(
        self,
        lm: "LanguageModel",
        rows: np.ndarray,
        *,
        n_tokens: int,
        batch_tokens: int,
        include_bos: bool,
        seed: int,
        max_norm: float | None = None,
    ) -> None:
        self.batch_rows, rest = divmod(batch_tokens, rows.shape[1])
        if rest or not 0 < self.batch_rows <= len(rows):
            raise ValueError(
                f"batches of whole rows: {batch_tokens} tokens must be a multiple of the "
                f"{rows.shape[1]} of a row, and the {len(rows)} rows must fill one"
            )
        self.lm = lm
        self.token_rows = rows
        self.batches = -(-n_tokens // batch_tokens)
        self.include_bos = include_bos
        self.seed = seed
        self.max_norm = max_norm
        self.left_out = Massive()
        self.given = 0

    @property
    def limit(self) -> float | None:
        """The largest norm that is measured, once known; None without max_norm."""
        return self.left_out.limit

    def __iter__(self) -> Iterator[InContext]:
        if self.max_norm is not None and self.left_out.limit is None:
            order = np.random.default_rng(self.seed).permutation(len(self.token_rows))
            # twice as many rows as they fill, since some tokens are BOS
            first = self.token_rows[order[: 2 * SAMPLE // self.token_rows.shape[1] + 1]]
            sample = (first, self.include_bos, self.batch_rows, self.max_norm, SAMPLE)
            self.left_out.limit = moderate_limit(self.lm, *sample)
        a_pass = len(self.token_rows) // self.batch_rows
        while self.given < self.batches:
            epoch, number = divmod(self.given, a_pass)
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.token_rows))
            chosen = np.sort(order[number * self.batch_rows :][: self.batch_rows])
            ids = as_ids(self.token_rows[chosen])
            limit = math.inf if self.limit is None else self.limit
            batch = InContext(self.lm, ids, limit, self.include_bos)
            row, position = (batch.content & (batch.norms > limit)).cpu().nonzero().unbind(1)
            for i in row.unique():
                at = position[row == i]
                norms = batch.norms[i][at.to(batch.norms.device)].cpu()
                columns = (torch.full_like(at, int(chosen[i])), at, ids[i, at], norms)
                self.left_out.note(int(chosen[i]), [part.numpy() for part in columns])
            self.given += 1
            yield batch

    def state(self) -> dict:
        """{given}: how many batches have been. With max_norm also those of Massive."""
        return {"given": self.given} | self.left_out.state()

    def resume(self, state: Mapping) -> None:
        """Go on from a `state` of a stream with the same arguments."""
        self.given = int(state["given"])
        self.left_out.resume(state)

    def massive(self) -> pd.DataFrame:
        """The activations that were left out so far; see Massive."""
        return self.left_out.table()
