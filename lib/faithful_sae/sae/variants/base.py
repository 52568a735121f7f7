"""What a variant of SAE is: the latents that are active in training, and the loss.

Optimiser, schedule, unit decoder rows, counting and checkpoints are the training's (train.py).
B tokens, D model, F latents, K slots for the active ones.
"""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.sae.recipe import Recipe
from faithful_sae.sae.sae import TopKSAE


@dataclass(frozen=True)
class Moment:
    """What a loss may depend on beside the SAE and its tokens.

    Attributes:
        share: of the steps that are done, 0 to 1, for coefficients that change during a run.
        dead: int64, the latents that have not fired for so long that they count as dead.
        recipe: of the training.
    """

    share: float
    dead: Tensor
    recipe: Recipe


class Variant(ABC):
    """Which latents are active, and what is minimised; a dataclass of the variant's settings.

    An SAE in training is a TopKSAE (see there), W_enc being a view of its transpose, which has a
    contiguous row per latent.
    """

    @abstractmethod
    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        """An SAE to start from.

        Raises:
            SAEError: settings that do not go with d_sae.
        """

    def parameters(self, sae: TopKSAE) -> dict[str, Tensor]:
        """What is trained, by the SAE's names: its four weights, unless a variant adds others or
        leaves some as they are.
        """
        return sae.weights

    def encode_active(self, sae: TopKSAE, x: Tensor) -> tuple[Tensor, Tensor]:
        """The latents that are active in training: those active in use, unless a variant differs.

        Args:
            x: [B, D].

        Returns:
            (values [B, K], indices int64 [B, K]); a value of 0 fills a slot that is not used.
        """
        return sae.encode_topk(x)

    def loss(
        self, sae: TopKSAE, x: Tensor, moment: Moment
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mean over tokens and dimensions of (x - x_hat)^2, to which a variant may add.

        Args:
            x: [B, D].

        Returns:
            (loss, x_hat - x [B, D], and values and indices of `encode_active`).
        """
        values, indices = self.encode_active(sae, x)
        error = sae.decode_topk(values, indices) - x
        return error.square().mean(), error, values, indices

    def loss_and_gradients(
        self, sae: TopKSAE, x: Tensor, moment: Moment, gradients: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation of `loss` and its derivatives, by autograd.

        Args:
            x: [B, D].
            gradients: filled in, by the names of `parameters` and in their shapes.

        Returns:
            (loss, x_hat - x [B, D], how often each latent fired int64 [F]).
        """
        leaves = {name: w.detach().requires_grad_() for name, w in self.parameters(sae).items()}
        differentiable = copy.copy(sae)
        vars(differentiable).update(leaves)
        with torch.enable_grad():
            loss, error, values, indices = self.loss(differentiable, x, moment)
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        for name, gradient in zip(leaves, found, strict=True):
            gradients[name].copy_(gradient)
        return loss.detach(), error.detach(), firing_counts(values, indices, sae.d_sae)

    def finish(self, sae: TopKSAE) -> TopKSAE:
        """The SAE in use that a trained one amounts to: itself, unless a variant differs."""
        return sae

    @staticmethod
    @abstractmethod
    def bytes(d_model: int, d_sae: int, batch_tokens: int) -> int:
        """Memory of one step, beside the parameters, their gradients and Adam's moments."""
