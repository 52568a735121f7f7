"""SAEs of every variant, trained here for a few steps: what other libraries are given."""

import torch

from faithful_sae import TopKSAE, train_saes
from faithful_sae.sae.variants import (
    BatchTopK,
    FeatureChoice,
    Gated,
    JumpReLU,
    Matryoshka,
    MutualChoice,
    ProLU,
    ReLU,
    TopK,
    Variant,
)
from faithful_sae.sae.variants.untrained import PCA

D, F, K = 6, 20, 4
VARIANTS: dict[str, Variant] = {
    "topk": TopK(K),
    "relu": ReLU(),
    "batch_topk": BatchTopK(K),
    "matryoshka": Matryoshka(K, (0.25, 1.0)),
    "jumprelu": JumpReLU(K),
    "gated": Gated(),
    "prolu": ProLU(),
    "mutual_choice": MutualChoice(K),
    "feature_choice": FeatureChoice(K),
    "pca": PCA(K),
}


def trained(name: str) -> TopKSAE:
    """An SAE that reads the input of block 3 of gpt2."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(2000, D, generator=generator) + 1
    (sae,) = train_saes(x.split(40), D, F, VARIANTS[name], [0], 1e-2, len(x), 40)
    sae.metadata |= {"model": "gpt2", "layer": 3, "sequence_length": 128}
    return sae
