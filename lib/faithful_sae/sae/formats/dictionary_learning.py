"""dictionary_learning: config.json (keys under `trainer` and `buffer`) and ae.pt, a pickled
state_dict.

ae.pt may also be a backup made in training, {"ae": state_dict, "norm_factor": what activations were
divided by, ...}. `trainer.dict_class` says which tensors there are and what keeps a latent:

    AutoEncoderTopK         the k largest, as its `encode` does unless told otherwise (it stores
                            a threshold, too)
    BatchTopKSAE and        those above a number; -1 is unset and keeps every positive latent
    MatryoshkaBatchTopKSAE
    JumpReluAutoEncoder     those above their own; the encoder sees x, not x - b_dec
    AutoEncoder and         ReLU; the first has its decoder rows normalised on loading, the second's
    AutoEncoderNew          encoder sees x
    GatedAutoEncoder        those whose gate is open

Written are AutoEncoderTopK, AutoEncoder where every positive latent is kept and rows of W_dec have
unit norm, and JumpReluAutoEncoder for all else that has thresholds, one for all among them: a
BatchTopKSAE would need a k, which such an SAE does not have.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from faithful_sae.files import atomic_path
from faithful_sae.sae.formats.hooks import NAMES, describe, layer_of, place_of
from faithful_sae.sae.formats.source import Parts, SAEError, Source, on_cpu, own_way

if TYPE_CHECKING:
    from faithful_sae.sae.sae import TopKSAE

WEIGHTS = "ae.pt"
# of those whose layers are torch's Linear, with weights [out, in]
B_DEC = {
    "AutoEncoderTopK": "b_dec",
    "BatchTopKSAE": "b_dec",
    "AutoEncoder": "bias",
    "AutoEncoderNew": "decoder.bias",
    "GatedAutoEncoder": "decoder_bias",
}
# a submodule that is an MLP or attention, as it is called beside resid_post_layer_8
OUTPUT = re.compile(r"(mlp_out|attn_out)_layer_(\d+)")
PLAIN = ("MatryoshkaBatchTopKSAE", "JumpReluAutoEncoder")


def read(folder: Path) -> Parts:
    """Read a folder that trainSAE wrote."""
    source = Source(folder, "config.json", WEIGHTS)
    buffer, source.config = source.section("buffer"), source.section("trainer")
    kind = source["dict_class"]
    D = source.count("activation_dim", source["activation_dim"])
    F = source.count("dict_size", source["dict_size"])
    if buffer.get("io", "out") not in ("in", "out"):
        raise source.refuse(
            f"buffer.io {buffer['io']}: a transcoder, which predicts another activation than the "
            "one it reads"
        )
    if kind not in (*B_DEC, *PLAIN):
        raise source.refuse(f"trainer.dict_class {kind} is none of {', '.join((*B_DEC, *PLAIN))}")
    norm_factor = None
    if isinstance(source.tensors.get("ae"), dict):
        norm_factor = source.tensors.get("norm_factor")
        source.tensors = source.tensors["ae"]
    if kind in PLAIN:
        parts = Parts(
            **source.take({"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)})
        )
    else:
        t = source.take({"encoder.weight": (F, D), "decoder.weight": (D, F), B_DEC[kind]: (D,)})
        # a gated one has its bias in the gate
        bias = torch.zeros(F)
        if kind != "GatedAutoEncoder":
            bias = source.take({"encoder.bias": (F,)})["encoder.bias"]
        parts = Parts(
            t["encoder.weight"].T.contiguous(),
            bias,
            t["decoder.weight"].T.contiguous(),
            t[B_DEC[kind]],
        )
    _select(source, kind, parts, F)
    if kind in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        parts.uncentre()
    # the final file has this folded in: biases and thresholds grow with the activations
    if norm_factor:
        parts.b_enc = parts.b_enc * norm_factor
        parts.b_dec = parts.b_dec * norm_factor
        parts.threshold = None if parts.threshold is None else parts.threshold * norm_factor
    seed = source.config.get("seed")
    parts.metadata = describe(
        {} if seed is None else {"seed": seed},
        source.config.get("lm_name"),
        _hook(source.config, buffer),
    )
    return parts


def _select(source, kind, parts, F):
    if kind == "AutoEncoderTopK":
        parts.k = source.count("k", source["k"], ("dict_size", F))
        stored = int(source.take({"k": ()})["k"]) if "k" in source.tensors else parts.k
        if stored != parts.k:
            raise source.refuse(f"trainer.k = {parts.k}, but {source.file.name} says {stored}")
    elif "BatchTopK" in kind:
        parts.above(source.take({"threshold": ()})["threshold"])
    elif kind == "JumpReluAutoEncoder":
        parts.above(source.take({"threshold": (F,)})["threshold"])
    elif kind == "GatedAutoEncoder":
        t = source.take({"r_mag": (F,), "gate_bias": (F,), "mag_bias": (F,)})
        parts.gate(t["r_mag"], t["gate_bias"], t["mag_bias"])
    else:
        parts.above(0)
        if kind == "AutoEncoder":
            parts.to_unit_decoder()


def _hook(trainer, buffer):
    """The hook point by TransformerLens' name; a submodule that is another place by its own."""
    name = trainer.get("submodule_name") or ""
    layer = trainer.get("layer")
    if (output := OUTPUT.fullmatch(name)) and buffer.get("io") != "in":
        return f"blocks.{output[2]}.hook_{output[1]}"
    if name and "resid" not in name:
        return name
    if layer is None:
        return name or None
    enters = buffer.get("io") == "in" or "resid_pre" in name
    return f"blocks.{layer}.hook_resid_{'pre' if enters else 'post'}"


def write(sae: "TopKSAE", folder: Path | str) -> None:
    """Write a folder that `load_dictionary` reads.

    Raises:
        SAEError: the SAE has experts or a run-time normalisation, which no class there has.
    """
    if own := own_way(sae):
        raise SAEError(
            f"{folder}: dictionary_learning has no class for an SAE that {own}: save it as SAELens "
            "does"
        )
    kind, tensors = _state(sae)
    m = sae.metadata
    place, io = _place(m)
    trainer = {
        "dict_class": kind,
        "activation_dim": sae.d_model,
        "dict_size": sae.d_sae,
        "k": sae.k,
        "lm_name": m.get("model"),
        "seed": m.get("seed"),
        **place,
    }
    context = m.get("sequence_length", m.get("context_size"))
    buffer = {"d_submodule": sae.d_model, "io": io, "ctx_len": context}
    with atomic_path(folder) as tmp:
        tmp.mkdir()
        torch.save(on_cpu(tensors), tmp / WEIGHTS)
        (tmp / "config.json").write_text(
            json.dumps({"trainer": trainer, "buffer": buffer}, indent=1) + "\n"
        )


def _state(sae: "TopKSAE") -> tuple[str, dict[str, Tensor]]:
    """The class that computes what an SAE does, and its state_dict."""
    linear = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T,
    }
    if sae.threshold is None:
        # their threshold, which is not used unless asked for, is not set
        own = {"k": torch.tensor(sae.k, dtype=torch.int32), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", linear | {"b_dec": sae.b_dec} | own
    norm = sae.W_dec.norm(dim=-1)
    # loading an AutoEncoder divides other rows by their norms
    if sae.is_relu and torch.allclose(norm, torch.ones_like(norm)):
        return "AutoEncoder", linear | {"bias": sae.b_dec}
    # its encoder sees x, not x - b_dec
    b_enc = sae.b_enc - sae.b_dec @ sae.W_enc
    return "JumpReluAutoEncoder", sae.tensors | {"b_enc": b_enc}


def _place(metadata: dict) -> tuple[dict, str]:
    """What the trainer and the buffer's `io` say of where an SAE reads. Other readers take `layer`
    for a block whose output that is: only the first block's input is none.
    """
    hook = metadata.get("hook_name")
    place = place_of(hook)
    layer = layer_of(hook) if hook else metadata.get("layer")
    if layer is None:
        return {"submodule_name": hook}, "out"
    if place and place.hook != "residual":
        output = NAMES[place.hook].removeprefix("hook_")
        return {"layer": layer, "submodule_name": f"{output}_layer_{layer}"}, "out"
    if layer == 0:
        return {"layer": 0, "submodule_name": "resid_pre_layer_0"}, "in"
    return {"layer": layer - 1, "submodule_name": f"resid_post_layer_{layer - 1}"}, "out"
