"""Decoding one token at a time without copying what came before: a preallocated KV cache, and attention that reads it in place.

transformers' cache grows by concatenation, a copy of everything for every token, and its attention repeats the keys of grouped
heads. Here keys and values are kept transposed, [B, heads, head dim, tokens], so that batched products run along the tokens.
"""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, DynamicLayer

NAME = "one_token"
MODELS = ("gpt2", "gpt_neox", "llama")   # whose attention is a softmax over all tokens and nothing else


@contextmanager
def decoding(model, length):
    """A KV cache for `length` tokens of rows that all start with their first; within the context the model's attention is ours.

    Other models than those of MODELS keep their attention, which may have more to it, and layers with a sliding window their cache.
    """
    cache, own = DynamicCache(config=model.config), model.config._attn_implementation
    cache.layers = [_Preallocated(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if model.config.model_type not in MODELS:
        yield cache
        return
    model.set_attn_implementation(NAME)
    try:
        yield cache
    finally:
        model.set_attn_implementation(own)


def attend(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Softmax attention of one query token per row: query [B, H, 1, d], key and value [B, G, T, d], H / G heads sharing a key.

    All T tokens lie before the query, so that no mask is needed. Returns [B, 1, H, d], as transformers' attention functions do.
    """
    batch, heads, _, d = query.shape
    grouped = query.reshape(batch, key.shape[1], heads // key.shape[1], d) * (d ** -0.5 if scaling is None else scaling)
    weights = torch.softmax(grouped @ key.transpose(2, 3), -1, dtype=torch.float32).to(value.dtype)
    return (weights @ value).reshape(batch, 1, heads, value.shape[3]), None


AttentionInterface.register(NAME, attend)


class _Preallocated(DynamicLayer):
    """A cache layer that writes into buffers [B, G, d, length] and hands out views of them as transformers has them, [B, G, T, d]."""

    def __init__(self, length):
        super().__init__()
        self.length, self.used = length, 0

    def update(self, key_states, value_states, *args, **kwargs):
        new = [states.transpose(2, 3) for states in (key_states, value_states)]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.buffers = [states.new_empty(*states.shape[:3], self.length) for states in new]
        start, self.used = self.used, self.used + key_states.shape[2]
        for buffer, states in zip(self.buffers, new):
            buffer[..., start:self.used] = states
        self._view()
        return self.keys, self.values

    def batch_select_indices(self, indices):
        self.buffers = [buffer[indices] for buffer in self.buffers]
        self._view()

    def _view(self):
        self.keys, self.values = (buffer[..., :self.used].transpose(2, 3) for buffer in self.buffers)
