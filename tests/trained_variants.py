"""SAEs of every variant, trained here for a few steps: what other libraries are given."""

import torch

from faithful_sae import TopKSAE, train_saes
from faithful_sae.sae import variants

D, F, K = 6, 20, 4
OWN = {
    "topk": [K],
    "relu": [],
    "batch_topk": [K],
    "matryoshka": [K, (0.25, 1.0)],
    "jumprelu": [K],
    "gated": [],
    "prolu": [],
    "mutual_choice": [K],
    "feature_choice": [K],
    "pca": [K],
}
VARIANTS = {name: variants.VARIANTS[name](*own) for name, own in OWN.items()}


def trained(name: str) -> TopKSAE:
    """An SAE that reads the input of block 3 of gpt2."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(2000, D, generator=generator) + 1
    (sae,) = train_saes(x.split(40), D, F, VARIANTS[name], [0], 1e-2, len(x), 40)
    sae.metadata |= {"model": "gpt2", "layer": 3, "sequence_length": 128}
    return sae
