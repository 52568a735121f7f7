"""Companion to FaithfulSAE: sparse autoencoders trained on text the language model itself wrote.

The names below are loaded when first used, so that reading a parameter file does not wait for
torch.
"""

import importlib

PUBLIC = {
    "TopKSAE": "sae.sae",
    "load_sae": "sae.sae",
    "match_features": "matching",
    "shared_feature_ratio": "metrics.sfr",
    "fake_feature_ratio": "metrics.ffr",
    "fidelity": "metrics.fidelity",
    "train_saes": "sae.train",
    "load_model": "lm.model",
}
__all__ = list(PUBLIC)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name):
    if name in PUBLIC:
        return getattr(importlib.import_module(f"faithful_sae.{PUBLIC[name]}"), name)
    raise AttributeError(f"module 'faithful_sae' has no attribute {name!r}")
