"""What differs from one language model to the next: where its blocks are, which attention it
computes, what its configuration calls its sizes, and the memory that follows from them.

A new architecture is added here. No weights are read, and torch is not imported: what is known of
a model before any work is known without waiting for it. Bytes are whole numbers.
"""

import contextlib
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

# where Llama, Gemma and GPT-NeoX, where GPT-2, where OPT and where MPT keep their blocks
BLOCKS = ("layers", "h", "decoder.layers", "blocks")
# what their last normalisation is called beside them, by GPT-2, GPT-NeoX, Llama, Phi and MPT
NORMS = ("ln_f", "final_layer_norm", "norm", "final_layernorm", "norm_f")
# whose attention has nothing that decoding.Decoder's lacks
MODELS = ("gpt2", "gpt_neox", "llama", "gemma2", "mistral", "qwen2", "qwen3")
# where in a block a model is hooked: the residual stream that enters it, or what its MLP or its
# attention adds to that
Hook = Literal["residual", "mlp", "attention"]
HOOKS: tuple[Hook, ...] = get_args(Hook)
# what is called in a block whose outputs are added to the residual stream as they are: attention's
# and the MLP's, by model_type; where normalisations stand behind them, these
ADDED = {
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj"), ("attn", "mlp")),
    "gpt_neox": ("attention", "mlp"),
    "falcon": ("self_attention", "mlp"),
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "stablelm", "olmo"),
        ("self_attn", "mlp"),
    ),
    **dict.fromkeys(
        ("gemma2", "gemma3_text", "olmo2", "olmo3"),
        ("post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "glm4": ("post_self_attn_layernorm", "post_mlp_layernorm"),
}
# without which a model cannot be used at all, as transformers calls them
NEEDED = ("num_hidden_layers", "hidden_size", "num_attention_heads")
# what the longest row is called: by most, by GPT-2 in its file, by MPT, by Bloom
CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
# Bloom's positions have no end; it was trained on rows of so many tokens
BLOOM_CONTEXT = 2048


class ModelError(ValueError):
    """A model cannot be used as asked; the message says which, why and what to do."""


# --- what is known --------------------------------------------------------------------------------


def unknown(config: Any) -> str | None:
    """Why no model of a transformers configuration can be used, or None."""
    kind = f"a model of type {config.model_type!r}"
    if hasattr(config, "text_config"):
        return f"{kind} {NESTED}"
    lacking = [name for name in NEEDED if not hasattr(config, name)]
    if context_of(config.to_dict()) is None:
        lacking.append(CONTEXTS[0])
    if lacking:
        return f"{kind} has no {', '.join(lacking)}: take one of {', '.join(MODELS)}"
    return None


NESTED = "has its text model inside a larger one (text_config): take a model of text alone"


def context_of(config: dict) -> int | None:
    """The longest row of a model, in tokens, from its config.json; None: it does not say."""
    found = next((config[name] for name in CONTEXTS if config.get(name) is not None), None)
    return BLOOM_CONTEXT if found is None and config.get("model_type") == "bloom" else found


def not_sampled(config: dict) -> str | None:
    """Why there is no sampling from a model with such a config.json, or None.

    All causal language models of transformers whose past is keys and values can be sampled from;
    which do not, only the class says, so that torch is loaded for what is not one of MODELS.
    """
    kind = config.get("model_type")
    if kind in MODELS:
        return None
    if "text_config" in config:
        return f"a model of type {kind!r} {NESTED}"
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    mapping: Any = AutoModelForCausalLM._model_mapping
    try:
        made = mapping[CONFIG_MAPPING[str(kind)]]
    except KeyError:
        return (
            f"transformers has no causal language model of type {kind!r}: take one of "
            f"{', '.join(MODELS)}, or another that it has"
        )
    if made._is_stateful:
        return (
            f"cannot sample from a model of type {kind!r}, whose past is a state instead of keys "
            f"and values: take one of {', '.join(MODELS)}, or another with attention alone"
        )
    return None


def not_hooked(kind: str | None, hook: str) -> str | None:
    """Why a model of a model_type cannot be hooked there, or None."""
    if hook not in HOOKS:
        return f"hook {hook!r} must be one of {', '.join(HOOKS)}"
    if hook == "residual" or kind in ADDED:
        return None
    return (
        f"hook {hook!r}: it is not known what MLP and attention of a model of type {kind!r} add to "
        f"the residual stream: write `hook: residual`, or take one of {', '.join(ADDED)}"
    )


def hooked_module(kind: str | None, hook: str) -> str | None:
    """The module of a block whose output is hooked, by its name in a model of a model_type; None:
    the block's input is hooked.
    """
    if hook == "residual":
        return None
    attention, mlp = ADDED[str(kind)]
    return attention if hook == "attention" else mlp


def blocks_of(model: Any) -> Any:
    """The blocks of a transformers model, in the order in which they run.

    Raises:
        ModelError: it keeps them elsewhere than the architectures known here.
    """
    for name in BLOCKS:
        with contextlib.suppress(AttributeError):
            return operator.attrgetter(name)(model.base_model)
    raise ModelError(
        f"{model.name_or_path}: a model of type {model.config.model_type!r} keeps its blocks where "
        f"they are not looked for ({', '.join(BLOCKS)}): take one of {', '.join(MODELS)}"
    )


def beside_blocks(model: Any) -> Any:
    """The module of a transformers model that holds the blocks: the base model, or (OPT) a part."""
    blocks = blocks_of(model)
    return next(m for m in model.base_model.modules() if blocks in m.children())


def last_normalisation(model: Any) -> Callable[[Any], Any]:
    """What stands between the last block of a transformers model and its unembedding.

    Raises:
        ModelError: it is called otherwise than in the architectures known here.
    """
    place = beside_blocks(model)
    # OPT's 350M has none, and a projection
    project = getattr(place, "project_out", None)
    for name in NORMS:
        if hasattr(place, name):
            norm = getattr(place, name)
            return lambda x: _through(_through(x, norm), project)
    raise ModelError(
        f"{model.name_or_path}: a model of type {model.config.model_type!r} keeps its last "
        f"normalisation where it is not looked for ({', '.join(NORMS)}): write features: null"
    )


def _through(x, module):
    return x if module is None else module(x)


def tokens_in(tokenizer: dict) -> int:
    """How many embedding rows the ids of a tokenizer.json need: the largest id + 1."""
    words = tokenizer["model"]["vocab"]
    ids = words.values() if isinstance(words, dict) else range(len(words))
    added = (token["id"] for token in tokenizer.get("added_tokens", ()))
    return 1 + max(-1, *ids, *added)


def too_many_tokens(tokens: int, rows: int | None) -> str | None:
    """What is wrong with a tokenizer whose ids need so many embedding rows, or None.

    Args:
        rows: of the embedding; None: not known.
    """
    if rows is None or tokens <= rows:
        return None
    return (
        f"its tokenizer has ids up to {tokens - 1}, but its embedding has {rows} rows: save it "
        f"after model.resize_token_embeddings({tokens}), or with the tokenizer it was trained with"
    )


# --- sizes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes of a language model. `parameters`: tied ones once. `bytes_per_weight`: of its dtype,
    and of its activations'.
    """

    layers: int
    d_model: int
    heads: int
    kv_heads: int
    head_dim: int
    d_mlp: int
    vocab_size: int
    parameters: int
    context: int
    bytes_per_weight: int


def shape_of(model: Any) -> Shape:
    """The sizes of a transformers model, whatever its configuration calls them."""
    config = model.config
    heads = config.num_attention_heads
    return Shape(
        layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        d_mlp=getattr(config, "intermediate_size", None)
        or getattr(config, "n_inner", None)
        or getattr(config, "ffn_dim", None)
        or 4 * config.hidden_size,
        vocab_size=config.vocab_size,
        parameters=model.num_parameters(),
        context=context_of(config.to_dict()) or 0,
        bytes_per_weight=model.dtype.itemsize,
    )


@dataclass(frozen=True)
class Sizes:
    """What a config.json says of a model; None where it does not."""

    layers: int | None
    d_model: int | None
    context: int | None


def sizes_of(config: dict) -> Sizes:
    """The sizes in a config.json, under GPT-2's names or everybody else's."""
    return Sizes(
        layers=config.get("num_hidden_layers", config.get("n_layer")),
        d_model=config.get("hidden_size", config.get("n_embd")),
        context=context_of(config),
    )


# --- memory ---------------------------------------------------------------------------------------


def weights(shape: Shape) -> int:
    """parameters x bytes each."""
    return shape.parameters * shape.bytes_per_weight


def cache_bytes(shape: Shape, rows: int, length: int) -> int:
    """Keys and values of all layers, in whole tiles, and the copy of two layers that some devices
    and models need: rows x length x 2 x (layers + 2) x kv_heads x head_dim x bytes.
    """
    # with torch, for which the workflow does not wait
    from faithful_sae.kernels.one_token_attention import TILE

    return (
        rows
        * math.ceil(length / TILE)
        * TILE
        * 2
        * (shape.layers + 2)
        * shape.kv_heads
        * shape.head_dim
        * shape.bytes_per_weight
    )


def sampling_bytes(shape: Shape, rows: int, length: int) -> int:
    """Sampling: keys and values, and per row 24 bytes a logit: float32, its probability, two
    float64 sums of them.
    """
    return cache_bytes(shape, rows, length) + rows * 24 * shape.vocab_size


def forward_bytes(shape: Shape, tokens: int) -> int:
    """A forward pass without logits: of each token the residual stream and its norm (also in
    float32), queries, keys, values and their mixture, and three widths of the MLP. Attention keeps
    no scores.
    """
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_dim
    return tokens * (
        shape.bytes_per_weight * (4 * shape.d_model + attention + 3 * shape.d_mlp)
        + 12 * shape.d_model
    )
