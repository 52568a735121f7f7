"""The authors' folders, which are BatchTopK's: config.json and sae.pt, a pickled state_dict.

    topk      z = top k of ReLU((x - b_dec) W_enc): the b_enc that is stored is not used
    vanilla   z = ReLU((x - b_dec) W_enc + b_enc)
    jumprelu  z = ReLU(x W_enc + b_enc) where it is above e^log_threshold
    all       x_hat = z W_dec + b_dec

`input_unit_norm` is SAELens' layer_norm: each token less its mean, by its unbiased standard
deviation + 1e-5, and undone at the end.
"""

from pathlib import Path

import torch

from faithful_sae.sae.formats.hooks import describe
from faithful_sae.sae.formats.source import Parts, Source

WEIGHTS = "sae.pt"


def read(folder: Path) -> Parts:
    """Read a checkpoint folder."""
    source = Source(folder, "config.json", WEIGHTS)
    config = source.config
    kind = source["sae_type"]
    D = source.count("act_size", source["act_size"])
    F = source.count("dict_size", source["dict_size"])
    if kind == "batchtopk":
        raise source.refuse(
            "sae_type batchtopk keeps the largest latents of a whole batch, so that a token's "
            "depend on its neighbours; a threshold, which would replace that, is not stored"
        )
    if kind not in ("topk", "vanilla", "jumprelu"):
        raise source.refuse(f"sae_type {kind} is none of topk, vanilla, jumprelu")
    parts = Parts(**source.take({"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}))
    if kind == "topk":
        parts.k = source.count("top_k", source["top_k"], ("dict_size", F))
        parts.b_enc = torch.zeros(F)
    elif kind == "vanilla":
        parts.above(0)
    else:
        parts.above(source.take({"jumprelu.log_threshold": (F,)})["jumprelu.log_threshold"].exp())
        parts.uncentre()
    parts.normalisation = "layer_norm" if config.get("input_unit_norm") else "none"
    known = {
        "seed": config.get("seed"),
        "sequence_length": config.get("seq_len"),
        "dataset_path": config.get("dataset_path"),
    }
    parts.metadata = describe(
        {key: value for key, value in known.items() if value is not None},
        config.get("model_name"),
        config.get("hook_point"),
    )
    return parts
