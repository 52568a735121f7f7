"""Where an SAE reads a language model: the names of hook points, and whether an SAE belongs to a
given model and hook.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from faithful_sae.lm.architectures import Hook
from faithful_sae.sae.formats.source import SAEError

if TYPE_CHECKING:
    from faithful_sae.sae.sae import TopKSAE

# TransformerLens' names; and Hugging Face's of a block or a module in it: it stands for its output
TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.hook_(resid_pre|resid_post|mlp_out|attn_out)")
MODULE = re.compile(r"(?:\w+\.)*(?:layers|h)\.(\d+)(?:\.(\w+))?")
NAMES: dict[Hook, str] = {
    "residual": "hook_resid_pre",
    "mlp": "hook_mlp_out",
    "attention": "hook_attn_out",
}
HOOKED: dict[str, Hook] = {name.removeprefix("hook_"): hook for hook, name in NAMES.items()}
# post_attention_layernorm is not among them: in most models it stands before the MLP
MODULES: dict[str, Hook] = {
    **dict.fromkeys(("mlp", "post_feedforward_layernorm", "post_mlp_layernorm"), "mlp"),
    **dict.fromkeys(("attn", "self_attn", "attention", "self_attention"), "attention"),
    "post_self_attn_layernorm": "attention",
}
WORDS: dict[Hook, str] = {
    "residual": "residual stream entering block {}",
    "mlp": "MLP output of block {}, as added to the residual stream",
    "attention": "attention output of block {}, as added to the residual stream",
}


class Place(NamedTuple):
    """A hook point, by what load_model calls it."""

    hook: Hook
    layer: int


def hook_name(hook: Hook, layer: int) -> str:
    """TransformerLens' name of a hook point."""
    return f"blocks.{layer}.{NAMES[hook]}"


def in_words(hook: Hook, layer: int) -> str:
    """A hook point as it is called in a text."""
    return f"{WORDS[hook].format(layer)} ({hook_name(hook, layer)})"


def place_of(name: str | None) -> Place | None:
    """The hook point that a name stands for, or None: it is none of load_model's. Block L's output
    enters block L + 1.
    """
    if match := TRANSFORMER_LENS.fullmatch(str(name)):
        after = match[2] == "resid_post"
        return Place("residual" if after else HOOKED[match[2]], int(match[1]) + after)
    if match := MODULE.fullmatch(str(name)):
        if match[2] is None:
            return Place("residual", int(match[1]) + 1)
        if hook := MODULES.get(match[2]):
            return Place(hook, int(match[1]))
    return None


def layer_of(name: str | None) -> int | None:
    """The block of a hook point, as load_model's `layer`, or None: it is none of load_model's."""
    place = place_of(name)
    return place and place.layer


def describe(metadata: dict, model: str | None, hook: str | None) -> dict:
    """Metadata with `model`, `hook_name` and `layer` (as in load_model), as far as they are known
    and not said yet.
    """
    found = {"model": model, "hook_name": hook, "layer": layer_of(hook)}
    return metadata | {
        key: value
        for key, value in found.items()
        if value is not None and metadata.get(key) is None
    }


def check_hook(
    sae: "TopKSAE",
    model: str,
    layer: int,
    folder: Path | str,
    hook: Hook = "residual",
    module: str | None = None,
) -> None:
    """Refuse an SAE that was made for another language model or hook point than those it is to be
    used with.

    Args:
        sae: what its files do not say is not checked; a layer alone is of the residual stream.
        model: a Hub id or a folder; only the last part of the name counts, and gpt2-small is gpt2.
        layer: the block that is hooked, as in load_model.
        folder: where the SAE is from, for the message.
        hook: what of the block is hooked, as in load_model.
        module: of the model, whose output that is (architectures.hooked_module), where it is known:
            one by Hugging Face's name must be this one. Where a normalisation stands behind an MLP,
            `mlp` is before it.

    Raises:
        SAEError: it names another model, another layer or another place in the block.
    """
    name = sae.metadata.get("hook_name")
    named = sae.metadata.get("model")
    place = place_of(name)
    alone = sae.metadata.get("layer")
    if not name and alone is not None:
        name, place = f"the input of block {alone}", Place("residual", alone)
    in_block = MODULE.fullmatch(str(name))
    elsewhere = bool(in_block and in_block[2] and module and in_block[2] != module)
    if name and (place != (hook, layer) or elsewhere):
        raise SAEError(
            f"{folder}: reads {name}, but the profile hooks the {in_words(hook, layer)}: take the "
            "SAE of that hook point, or change layer and hook"
        )
    if named and _short(named) != _short(model):
        raise SAEError(
            f"{folder}: was made for the model {named}, but the profile's is {model}: take an SAE "
            "of that model, or change the model"
        )


def _short(model):
    """The last part of a model's name, without what the authors' conversion to SAELens appends to
    it (their scripts/convert.py).
    """
    name = re.sub(
        r"-(topk|batchtopk|vanilla|jumprelu)-sae-\d+-.*$",
        "",
        str(model).rstrip("/").rpartition("/")[2].lower(),
    )
    return {"gpt2-small": "gpt2"}.get(name, name)
