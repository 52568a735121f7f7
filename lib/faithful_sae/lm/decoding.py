"""Decoding one token at a time, every row at a place of its own: the keys and values of all rows,
and the model's attention over them.

The model's forward pass is transformers'; only what its attention calls is ours, given to it by
name for as long as a Decoder is open.
"""

from typing import Any, Self

import torch
from transformers import AttentionInterface, PreTrainedModel

from faithful_sae.kernels.one_token_attention import TILE, one_token_attention
from faithful_sae.lm.architectures import ModelError, not_sampled

NAME = "one_token"


class Decoder:
    """Documents side by side; a context manager, in which the model's attention is ours.

    Args:
        model: a causal LM of transformers.
        rows: documents.
        length: tokens in each, at most.

    Memory is `architectures.cache_bytes`, on a CPU taken as the rows grow.

    Raises:
        ModelError: a model whose attention is not known to be the one computed here.
    """

    def __init__(self, model: PreTrainedModel, rows: int, length: int):
        if why := not_sampled(model.config.model_type):
            raise ModelError(f"{model.name_or_path}: {why}")
        self.model = model
        self.shape = (rows, -(-length // TILE))
        self.layers: dict[int, list[torch.Tensor]] = {}
        self.lengths = torch.zeros(rows, dtype=torch.long)

    def __enter__(self) -> Self:
        self.own: Any = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        return self

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self.own)

    def step(self, ids: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Append one token to each of some rows. A row starts anew when `lengths[slot]` is set to
        0.

        Args:
            ids: int64 [B] on the CPU.
            slots: the rows, int64 [B] on the CPU, increasing.

        Returns:
            logits [B, V].
        """
        device = self.model.device
        lengths = self.lengths[slots]
        self.slots = slots.to(device)
        self.before = lengths.to(device)
        self.longest = int(lengths.max())
        logits = self.model(
            input_ids=ids.to(device)[:, None],
            position_ids=self.before[:, None],
            use_cache=False,
            decoder=self,
        ).logits
        self.lengths[slots] += 1
        return logits[:, -1]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        softcap: float | None,
        window: int | None,
    ) -> torch.Tensor:
        """Keep the new token's key and value and attend to all of its row; as
        kernels.one_token_attention. Called by the model's attention.

        Args:
            layer: number of the block.
            query: [B, H, d].
            k: [B, G, d].
            v: [B, G, d].
            scale: of the scores.
            softcap: bound of the scores, if there is one.
            window: how many tokens are attended to, if not all.

        Returns:
            [B, H, d].
        """
        if layer not in self.layers:
            # on the layer's device
            self.layers[layer] = [t.new_zeros(*self.shape, *t.shape[1:], TILE) for t in (k, v)]
        keys, values = self.layers[layer]
        slots = self.slots.to(k.device)
        before = self.before.to(k.device)
        return one_token_attention(
            query, k, v, keys, values, slots, before, self.longest, scale, softcap, window
        )


def _attention(
    module,
    query,
    key,
    value,
    attention_mask,
    *,
    decoder,
    scaling,
    softcap=None,
    sliding_window=None,
    **kwargs,
):
    """transformers' interface: query [B, H, 1, d], key and value [B, G, 1, d] of the new token
    alone. Returns [B, 1, H, d].
    """
    out = decoder.attend(
        module.layer_idx,
        query[:, :, 0],
        key[:, :, 0],
        value[:, :, 0],
        scaling,
        softcap,
        sliding_window,
    )
    return out[:, None], None


AttentionInterface.register(NAME, _attention)
