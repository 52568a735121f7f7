"""Decoding one token at a time, every row at a place of its own: the keys and values of all rows,
and the model's attention over them.

The model's forward pass is transformers'. Where its attention is known (architectures.MODELS), only
what that calls is ours, given to it by name for as long as a Decoder is open. Of all other models
the keys and values are transformers' own cache (CachedDecoder), which is slower: it is copied in
each step, and takes rows of different lengths by a mask.
"""

import inspect
from typing import Any, Self

import torch
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from faithful_sae.kernels.one_token_attention import TILE, one_token_attention
from faithful_sae.lm.architectures import MODELS, ModelError, not_sampled

NAME = "one_token"


def open_decoder(model: PreTrainedModel, rows: int, length: int) -> "Decoder | CachedDecoder":
    """A decoder of any causal language model.

    Args:
        model: of transformers.
        rows: documents.
        length: tokens in each, at most.

    Raises:
        ModelError: a model that cannot be sampled from, or (when the decoder is entered) is not
            decoded exactly.
    """
    kind = Decoder if model.config.model_type in MODELS else CachedDecoder
    return kind(model, rows, length)


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
        if model.config.model_type not in MODELS:
            raise ModelError(
                f"{model.name_or_path}: the attention of a model of type "
                f"{model.config.model_type!r} is not known to be the one computed here, as that of "
                f"{', '.join(MODELS)} is: open_decoder takes transformers' own"
            )
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


class CachedDecoder:
    """The same with transformers' own cache, for a model of any kind that has keys and values.

    The last `lengths[slot]` entries of the cache are a row's own, and a mask hides those before
    them; what no row has any more is cut off. Layers with a window keep all tokens: which of them
    are seen is the mask's business, too.

    Raises:
        ModelError: a model whose past is something else; when it is entered, one whose logits are
            not those of a plain forward pass.
    """

    def __init__(self, model: PreTrainedModel, rows: int, length: int):
        if why := not_sampled(model.config.to_dict()):
            raise ModelError(f"{model.name_or_path}: {why}")
        self.model = model
        self.length = length
        self.lengths = torch.zeros(rows, dtype=torch.long)
        # the rows in the cache
        self.slots: torch.Tensor | None = None
        self.cache = DynamicCache()
        self.places = "position_ids" in inspect.signature(model.forward).parameters

    def __enter__(self) -> Self:
        if not _is_exact(self.model, self.length):
            raise ModelError(
                f"{self.model.name_or_path}: cannot sample from a model of type "
                f"{self.model.config.model_type!r}: with transformers' cache its logits are not "
                f"those without: take one of {', '.join(MODELS)}"
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.cache = DynamicCache()
        self.slots = None

    def step(self, ids: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """Append one token to each of some rows, as Decoder.step. A row that is left out once does
        not come back.

        Returns:
            logits [B, V].
        """
        device = self.model.device
        lengths = self.lengths[slots]
        if self.slots is not None and not torch.equal(slots, self.slots):
            # on the CPU: layers may be on several devices
            self.cache.batch_select_indices(torch.searchsorted(self.slots, slots))
        self.slots = slots
        longest = int(lengths.max())
        held = self.cache.get_seq_length()
        if held > longest:
            layers: Any = self.cache.layers
            for layer in layers:
                layer.keys = layer.keys[..., held - longest :, :]
                layer.values = layer.values[..., held - longest :, :]
            held = longest
        mask = torch.arange(held + 1) >= held - lengths[:, None]
        where = {"position_ids": lengths[:, None].to(device)} if self.places else {}
        logits = self.model(
            input_ids=ids.to(device)[:, None],
            attention_mask=mask.to(device, torch.long),
            past_key_values=self.cache,
            use_cache=True,
            **where,
        ).logits
        self.lengths[slots] += 1
        return logits[:, -1]


# rows that begin anew after so many tokens, and the one that ends then
CHECKED = 8


@torch.no_grad()
def _is_exact(model: PreTrainedModel, length: int) -> bool:
    """Whether a CachedDecoder gives the logits of a plain forward pass, for rows that begin anew
    and rows that end: up to what rounding does to a logit, relative to how much logits vary.
    """
    steps = min(CHECKED, length)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (3, steps), generator=generator)
    decoder = CachedDecoder(model, 3, length)
    found: list[list[torch.Tensor]] = [[], [], []]
    begun = [0, 0, 0]
    for step in range(steps):
        slots = torch.tensor([0, 1, 2] if step < steps - 1 else [0, 2])
        if step == steps // 2:
            decoder.lengths[2] = 0
            found[2] = []
            begun[2] = step
        for slot, logits in zip(slots.tolist(), decoder.step(ids[slots, step], slots), strict=True):
            found[slot].append(logits)
    rounding = max(1e-3, 16 * torch.finfo(model.dtype).eps)
    for row, first, logits in zip(ids, begun, found, strict=True):
        own = row[first : first + len(logits)][None].to(model.device)
        expected = model(input_ids=own, use_cache=False).logits[0].double()
        error = torch.stack(logits).double() - expected
        spread = (expected - expected.mean(-1, keepdim=True)).square().mean().sqrt()
        # logits that are not finite are found by the sampling
        if error.square().mean().sqrt() > rounding * spread:
            return False
    return True


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
