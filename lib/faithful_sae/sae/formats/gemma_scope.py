"""Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147): params.npz, JumpReLU SAEs of Gemma 2.

    p = x W_enc + b_enc        z = p where p > threshold and p > 0        x_hat = z W_dec + b_dec

The encoder sees x, not x - b_dec. There is no configuration: sizes are those of W_enc, and the
path alone says where an SAE reads: gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71 is the
residual stream behind block 20 of gemma-2-2b. A path without the repository's name is taken to be
of the residual stream.
"""

import re
from pathlib import Path

from torch import Tensor

from faithful_sae.sae.formats.hooks import describe
from faithful_sae.sae.formats.source import Parts, SAEError, Source

WEIGHTS = "params.npz"
NAMES = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
REPOSITORY = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(\w+)")
LAYER = re.compile(r"layer_(\d+)")
# by the last part of the repository's name
HOOKS = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "blocks.{}.attn.hook_z",
}


def read(folder: Path) -> Parts:
    """Read the folder of one SAE."""
    metadata = _metadata(folder.resolve())
    source = Source(folder, None, WEIGHTS)
    if other := sorted(set(source.tensors) - NAMES):
        raise SAEError(
            f"{source.file}: holds {', '.join(other)} beside what a JumpReLU SAE has, and it is "
            "not known what that does"
        )
    W_enc = source.tensors.get("W_enc")
    if not isinstance(W_enc, Tensor) or W_enc.ndim != 2:
        raise SAEError(f"{source.file}: tensor W_enc is missing, or no matrix [d_model, d_sae]")
    D, F = W_enc.shape
    parts = Parts(**source.take({"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}))
    parts.above(source.take({"threshold": (F,)})["threshold"])
    parts.uncentre()
    parts.metadata = metadata
    return parts


def _metadata(folder):
    repository = REPOSITORY.search(folder.as_posix())
    kind = repository[3] if repository else "res"
    if kind.startswith("transcoder"):
        raise SAEError(
            f"{folder}: a transcoder, which predicts another activation than the one it reads"
        )
    model = None
    if repository:
        model = f"google/gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "")
    # the innermost name that says it
    layers = (LAYER.search(name) for name in reversed(folder.parts))
    layer = next((int(found[1]) for found in layers if found), None)
    hook = None if layer is None else HOOKS.get(kind, kind + ".{}").format(layer)
    # of the embeddings, which the first block does not read as they are
    if "embedding" in folder.parts:
        hook = "embedding"
    return describe({}, model, hook)
