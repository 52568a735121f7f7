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
"""

from pathlib import Path

import torch

from faithful_sae.sae.formats.hooks import describe
from faithful_sae.sae.formats.source import Parts, Source

WEIGHTS = "ae.pt"
# of those whose layers are torch's Linear, with weights [out, in]
B_DEC = {
    "AutoEncoderTopK": "b_dec",
    "BatchTopKSAE": "b_dec",
    "AutoEncoder": "bias",
    "AutoEncoderNew": "decoder.bias",
    "GatedAutoEncoder": "decoder_bias",
}
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
    """The hook point by TransformerLens' name; a submodule that is not the residual stream by its
    own.
    """
    name = trainer.get("submodule_name") or ""
    layer = trainer.get("layer")
    if name and "resid" not in name:
        return name
    if layer is None:
        return None
    enters = buffer.get("io") == "in" or "resid_pre" in name
    return f"blocks.{layer}.hook_resid_{'pre' if enters else 'post'}"
