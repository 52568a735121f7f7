"""Where an SAE reads a language model: the names of the residual stream, and whether an SAE belongs
to a given model and layer.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from faithful_sae.sae.formats.source import SAEError

if TYPE_CHECKING:
    from faithful_sae.sae.sae import TopKSAE

# TransformerLens' names; and Hugging Face's name of a block, which stands for its output
TRANSFORMER_LENS = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")
BLOCK = re.compile(r"(?:\w+\.)*(?:layers|h)\.(\d+)")


def layer_of(hook: str | None) -> int | None:
    """The block whose input a hook point is, or None; block L's output enters block L + 1."""
    if match := TRANSFORMER_LENS.fullmatch(str(hook)):
        return int(match[1]) + (match[2] == "post")
    if match := BLOCK.fullmatch(str(hook)):
        return int(match[1]) + 1
    return None


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


def check_hook(sae: "TopKSAE", model: str, layer: int, folder: Path | str) -> None:
    """Refuse an SAE that was made for another language model or hook point than those it is to be
    used with.

    Args:
        sae: what its files do not say is not checked.
        model: a Hub id or a folder; only the last part of the name counts, and gpt2-small is gpt2.
        layer: the block whose input is hooked, as in load_model.
        folder: where the SAE is from, for the message.

    Raises:
        SAEError: it names another model, another layer or another place than the residual stream.
    """
    hook = sae.metadata.get("hook_name")
    named = sae.metadata.get("model")
    found = layer_of(hook) if hook else sae.metadata.get("layer")
    if (hook or found is not None) and found != layer:
        raise SAEError(
            f"{folder}: reads {hook or f'the input of block {found}'}, but the profile hooks the "
            f"residual stream that enters block {layer} (blocks.{layer}.hook_resid_pre): take the "
            "SAE of that hook point, or change the layer"
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
