"""SAEs that are known beforehand: what a measure gives for them is its floor or its ceiling.

    identity    latents x_i and -x_i, above 0       x_hat = x, exactly
    zero        no latent fires                     x_hat = 0
    mean        no latent fires                     x_hat = the mean
    PCA         n principal components about the mean, each with both signs, since a latent has
                but one: no affine code of n numbers has a smaller mean squared error

Nothing is trained, and nothing depends on a seed but directions of latents that never fire.
"""

import torch
from torch import Tensor

from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.variants.untrained import PCA


def identity_sae(d_model: int, device: torch.device | str = "cpu") -> TopKSAE:
    """The SAE that reconstructs every x exactly, with 2 D latents and k = D.

    Args:
        d_model: D.
    """
    sae = TopKSAE(d_model, 2 * d_model, d_model, 0, device)
    eye = torch.eye(d_model, device=device)
    sae.W_dec = torch.cat([eye, -eye])
    sae.W_enc = sae.W_dec.T.contiguous()
    return sae


def mean_sae(mean: Tensor) -> TopKSAE:
    """The SAE that reconstructs the same vector whatever it is given, with two silent latents.

    Args:
        mean: [D]; the SAE is float32 on its device.
    """
    # a dictionary of one row has no geometry
    sae = TopKSAE(len(mean), 2, 1, 0, mean.device)
    sae.W_enc = torch.zeros_like(sae.W_enc)
    sae.b_dec = mean.float()
    return sae


def zero_sae(d_model: int, device: torch.device | str = "cpu") -> TopKSAE:
    """The SAE that reconstructs 0: ablation of the hooked activation.

    Args:
        d_model: D.
    """
    return mean_sae(torch.zeros(d_model, device=device))


def pca_sae(x: Tensor, n: int) -> TopKSAE:
    """The SAE of the first n principal components, with 2 n latents and k = n.

    Args:
        x: [N, D], activations that mean and components are taken of; memory for three as large.
        n: components.

    Raises:
        ValueError: n outside 1 to the number of components that x has.
    """
    most = min(len(x) - 1, x.shape[1])
    if not 1 <= n <= most:
        raise ValueError(
            f"n = {n} components of activations of shape {list(x.shape)} must be 1 to {most}: take "
            "fewer, or more activations"
        )
    variant = PCA(n)
    sae = variant.new(x.shape[1], 2 * n, 0, x.device)
    sae.b_dec = x.double().mean(0).float()
    variant.begin(sae, x.float())
    return sae
