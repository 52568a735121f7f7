"""sparsify: <run>/<hook point>/{cfg.json, sae.safetensors}, with a further folder seed<n> where a
run has several seeds.

    z = top k of ReLU((x - b_dec) encoder.weight^T + encoder.bias)        x_hat = z W_dec + b_dec
    encoder.weight and W_dec are [F, D]

cfg.json names neither model nor hook point: the folder's name is the hook point, a block's output;
the model is in the run's config.json.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from faithful_sae.files import atomic_path
from faithful_sae.sae.formats.hooks import describe, place_of
from faithful_sae.sae.formats.source import Parts, SAEError, Source, on_cpu, own_way, read_json

if TYPE_CHECKING:
    from faithful_sae.sae.sae import TopKSAE

WEIGHTS = "sae.safetensors"
# a folder's name that is a place in a model: a block or what is in it, or what is before and behind
# the blocks
PLACE = re.compile(
    r"\b(layers|h)\.\d"
    r"|^(?:\w+\.)*(embed_tokens|embed_in|wte|wpe|norm|ln_f|final_layer_norm|lm_head|embed_out)$"
)
# may be other than false
KNOWN = {
    "activation",
    "expansion_factor",
    "normalize_decoder",
    "num_latents",
    "k",
    "multi_topk",
    "d_in",
    "hook_name",
    "hook_layer",
}


def read(folder: Path) -> Parts:
    """Read one hook point's folder."""
    source = Source(folder, "cfg.json", WEIGHTS)
    config = source.config
    if config.get("activation", "topk") != "topk":
        raise source.refuse(
            f"activation {config['activation']} keeps one latent of each group, not the k largest"
        )
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in source.tensors:
        raise source.refuse(
            "transcode or skip_connection: it predicts another activation than the one it reads"
        )
    # such as `signed` of older versions: k largest by size
    other = [key for key, value in config.items() if value and key not in KNOWN]
    if other:
        raise source.refuse(
            f"{', '.join(other)}: not known to leave the k largest latents what they are"
        )
    D = source.count("d_in", source["d_in"])
    # 0 stands for this product
    F = source.count("num_latents", config.get("num_latents") or D * source["expansion_factor"])
    t = source.take(
        {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    )
    return Parts(
        t["encoder.weight"].T.contiguous(),
        t["encoder.bias"],
        t["W_dec"],
        t["b_dec"],
        k=source.count("k", source["k"], ("num_latents", F)),
        metadata=_metadata(folder.resolve()),
    )


def _metadata(folder):
    seed = re.fullmatch(r"seed(\d+)", folder.name)
    folder = folder.parent if seed else folder
    place = place_of(folder.name)
    run = folder.parent / "config.json"
    # or else the folder was renamed
    hook = folder.name if PLACE.search(folder.name) else None
    if place and place.hook == "residual":
        hook = f"blocks.{place.layer - 1}.hook_resid_post"
    model = read_json(run).get("model") if run.is_file() else None
    return describe(
        {"seed": int(seed[1])} if seed else {}, model if isinstance(model, str) else None, hook
    )


def write(sae: "TopKSAE", folder: Path | str) -> None:
    """Write sparsify's layout.

    Raises:
        SAEError: the SAE has a threshold, experts or a run-time normalisation, which sparsify has
            not.
    """
    own = own_way(sae) if sae.threshold is None else "keeps latents above a threshold"
    if own:
        raise SAEError(
            f"{folder}: sparsify keeps the k largest latents of x as it is, but this SAE {own}: "
            "save it as SAELens does"
        )
    with atomic_path(folder) as tmp:
        tmp.mkdir()
        tensors = {
            "encoder.weight": sae.W_enc.T,
            "encoder.bias": sae.b_enc,
            "W_dec": sae.W_dec,
            "b_dec": sae.b_dec,
        }
        save_file(on_cpu(tensors), tmp / WEIGHTS)
        (tmp / "cfg.json").write_text(
            json.dumps(
                {
                    "activation": "topk",
                    "expansion_factor": sae.d_sae / sae.d_model,
                    "normalize_decoder": True,
                    "num_latents": sae.d_sae,
                    "k": sae.k,
                    "multi_topk": False,
                    "skip_connection": False,
                    "transcode": False,
                    "d_in": sae.d_model,
                },
                indent=1,
            )
            + "\n"
        )
