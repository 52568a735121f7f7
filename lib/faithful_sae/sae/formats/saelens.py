"""SAELens: cfg.json, sae_weights.safetensors and, where it was measured, sparsity.safetensors
(log10 of the firing frequency).

Version 6 keeps what concerns the language model under `metadata`; version 5 has all keys at the
top, calls the hook point `hook_point` in older files, and writes a TopK SAE as `activation_fn_str:
topk`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from faithful_sae.files import atomic_path
from faithful_sae.sae.formats.hooks import describe, hook_name
from faithful_sae.sae.formats.source import Parts, SAEError, Source, on_cpu, read_json

if TYPE_CHECKING:
    from faithful_sae.sae.sae import TopKSAE

WEIGHTS = "sae_weights.safetensors"
# the layout written here; readers dispatch on it
VERSION = "6.0.0"
# with a router, which SAELens has not: it refuses this name
SWITCH = "faithful_sae_switch"
ARCHITECTURES = (
    *("topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated", "standard"),
    SWITCH,
)
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
METADATA_5 = (
    "model_name",
    "hook_name",
    "hook_head_index",
    "context_size",
    "prepend_bos",
    "dataset_path",
    "sae_lens_training_version",
)


def read(folder: Path) -> Parts:
    """Read a folder of either version, saved for inference or in training."""
    source = Source(folder, "cfg.json", WEIGHTS)
    config = source.config
    D = source.count("d_in", source["d_in"])
    F = source.count("d_sae", source["d_sae"])
    architecture = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn"))
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    if architecture not in ARCHITECTURES or activation not in (None, "relu", "topk"):
        raise source.refuse(
            f"architecture {architecture} with activation {activation or 'relu'} is none of "
            + ", ".join(ARCHITECTURES)
        )
    if activation == "topk" and architecture != "topk":
        raise source.refuse(
            f"activation topk does not go with architecture {architecture}, which has its own way "
            "to select latents"
        )
    if config.get("reshape_activations", "none") != "none":
        raise source.refuse(
            f"reshape_activations {config['reshape_activations']}: it reads attention heads, no "
            "residual stream"
        )
    if "W_skip" in source.tensors:
        raise SAEError(
            f"{source.file}: holds W_skip: a transcoder, which predicts another activation than "
            "the one it reads"
        )
    taken = source.take({"W_enc": (D, F), "W_dec": (F, D), "b_dec": (D,)})
    parts = Parts(b_enc=torch.zeros(F), **taken)
    if architecture == "gated":
        parts.gate(**source.take({"r_mag": (F,), "b_gate": (F,), "b_mag": (F,)}))
    else:
        parts.b_enc = source.take({"b_enc": (F,)})["b_enc"]
    if config.get("rescale_acts_by_decoder_norm", False):
        parts.to_unit_decoder()
    if architecture == SWITCH:
        experts = source.count("experts", config.get("experts"), ("d_sae", F))
        taken = source.take({"router": (D, experts), "b_router": (D,)})
        parts.router, parts.b_router = taken["router"], taken["b_router"]
    if architecture in ("topk", SWITCH):
        parts.k = source.count(
            "k", config.get("k", source.section("activation_fn_kwargs").get("k")), ("d_sae", F)
        )
    elif architecture == "standard":
        parts.above(0)
    elif architecture == "jumprelu":
        parts.above(source.take({"threshold": (F,)})["threshold"])
    # BatchTopK in training; what SAELens saves for inference is a jumprelu with this threshold
    elif architecture != "gated":
        parts.above(source.take({"topk_threshold": ()})["topk_threshold"])
    if not config.get("apply_b_dec_to_input", True):
        parts.uncentre()
    _rescale_latents(source, parts, F)
    _normalise(source, parts)
    metadata = source.section("metadata") or {
        key: config[key] for key in METADATA_5 if key in config
    }
    parts.metadata = describe(
        metadata, metadata.get("model_name"), metadata.get("hook_name", config.get("hook_point"))
    )
    if (folder / "sparsity.safetensors").is_file():
        measured = Source(folder, "cfg.json", "sparsity.safetensors").take({"sparsity": (F,)})
        parts.firing = 10 ** measured["sparsity"] - 1e-10
    return parts


def _rescale_latents(source, parts, d_sae):
    """Version 5 may multiply latents by a finetuned `scaling_factor` when it decodes: fold it into
    the decoder's rows.
    """
    names = ("scaling_factor", "finetuning_scaling_factor")
    name = next((name for name in names if name in source.tensors), None)
    if source.config.get("finetuning_scaling_factor"):
        name = name or "scaling_factor"
        parts.W_dec = parts.W_dec * source.take({name: (d_sae,)})[name][:, None]
    elif name and not torch.allclose(source.tensors[name].float(), torch.ones(())):
        raise source.refuse(
            f"finetuning_scaling_factor is off, but {source.file.name} holds a {name} that is not 1"
        )


def _normalise(source, parts):
    """Run-time normalisations are kept; a constant factor (one for all tokens) is folded: W_enc s,
    W_dec / s, b_dec / s.
    """
    name = source.config.get("normalize_activations") or "none"
    if name in (True, "expected_average_only_in"):
        scaler = source.folder / "activation_scaler.json"
        factor = read_json(scaler).get("scaling_factor") if scaler.is_file() else None
        if not isinstance(factor, (int, float)) or factor <= 0:
            raise source.refuse(
                "normalize_activations expected_average_only_in: the factor that activations are "
                "multiplied by is in no file (activation_scaler.json would hold it): take the SAE "
                "saved after training"
            )
        parts.W_enc = parts.W_enc * factor
        parts.W_dec = parts.W_dec / factor
        parts.b_dec = parts.b_dec / factor
    elif name in NORMALISATIONS:
        parts.normalisation = name
    else:
        raise source.refuse(
            f"normalize_activations {name} is none of {', '.join(NORMALISATIONS)}: take the SAE "
            "as saved after training"
        )


def write(sae: "TopKSAE", folder: Path | str) -> None:
    """Write the version 6 layout: a TopK SAE as topk, one that keeps every positive latent as
    standard, one with other thresholds as jumprelu, one with a router as what SAELens refuses.
    """
    m = sae.metadata
    hook = m.get("hook_name")
    if not hook and m.get("layer") is not None:
        hook = hook_name("residual", m["layer"])
    architecture = "topk" if sae.router is None else SWITCH
    select = {"k": sae.k}
    rescale = {"rescale_acts_by_decoder_norm": False}
    tensors = sae.tensors
    if sae.is_relu:
        architecture = "standard"
        del tensors["threshold"]
    elif sae.threshold is not None:
        architecture = "jumprelu"
    if sae.threshold is not None:
        select = {}
        rescale = {}
    config = {
        "architecture": architecture,
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        **select,
        **({} if sae.router is None else {"experts": sae.router.shape[1]}),
        "dtype": "float32",
        "device": "cpu",
        **rescale,
        "apply_b_dec_to_input": True,
        "normalize_activations": sae.normalisation,
        "reshape_activations": "none",
        "metadata": m
        | {
            "sae_lens_version": VERSION,
            "hook_name": hook,
            "hook_head_index": None,
            "model_name": m.get("model"),
            "context_size": m.get("sequence_length", m.get("context_size")),
            "prepend_bos": m.get("prepend_bos", True),
        },
    }
    with atomic_path(folder) as tmp:
        tmp.mkdir()
        save_file(on_cpu(tensors), tmp / WEIGHTS)
        if sae.firing is not None:
            save_file(
                {"sparsity": torch.log10(sae.firing.cpu() + 1e-10)}, tmp / "sparsity.safetensors"
            )
        (tmp / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")
