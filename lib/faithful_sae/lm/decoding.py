"""Decoding one token at a time, every row at a place of its own: the keys and values of all rows,
and the model's attention over them.

The model's forward pass is transformers'; only what its attention calls is ours, given to it by
name for as long as a Decoder is open.
"""

import torch
from transformers import AttentionInterface

from faithful_sae.kernels.one_token_attention import TILE, one_token_attention
from faithful_sae.lm.model import ModelError

NAME = "one_token"
MODELS = (
    "gpt2",
    "gpt_neox",
    "llama",
    "gemma2",
    "mistral",
    "qwen2",
    "qwen3",
)  # whose attention has nothing that ours lacks


class Decoder:
    """`rows` documents side by side, each up to `length` tokens long; a context manager, in which
    the model's attention is ours.

    Memory is `needs.cache_bytes`, on a CPU taken as the rows grow.

    Raises:
        ModelError: a model whose attention is not known to be the one computed here.
    """

    def __init__(self, model, rows, length):
        if model.config.model_type not in MODELS:
            raise ModelError(
                f"{model.name_or_path}: cannot sample from a model of type "
                f"{model.config.model_type!r}, only from "
                f"{', '.join(MODELS)}: set generate.backend: vllm"
            )
        self.model = model
        self.shape = (rows, -(-length // TILE))
        self.layers = {}
        self.lengths = torch.zeros(rows, dtype=torch.long)

    def __enter__(self):
        self.own = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        return self

    def __exit__(self, *_):
        self.model.set_attn_implementation(self.own)

    def step(self, ids, slots):
        """Append one token to each of some rows: ids and slots int64 [B] on the CPU, slots
        increasing. Returns logits [B, V].

        A row starts anew when `lengths[slot]` is set to 0.
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

    def attend(self, layer, query, k, v, scale, softcap, window):
        if layer not in self.layers:
            self.layers[layer] = [
                t.new_zeros(*self.shape, *t.shape[1:], TILE) for t in (k, v)
            ]  # on the layer's device
        slots = self.slots.to(k.device)
        before = self.before.to(k.device)
        return one_token_attention(
            query, k, v, *self.layers[layer], slots, before, self.longest, scale, softcap, window
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
