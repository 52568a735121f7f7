"""What a variant of SAE is: the latents that are active in training, and the loss.

Optimiser, schedule, counting and checkpoints are the training's (train.py). B tokens, D model, F
latents.

Coefficients do not depend on the scale of the activations: with s^2 = mean |x - mean x|^2 of the
batch, what is minimised is D / s^2 times the loss,

    FVU + penalty(f / s)        FVU = mean |x - x_hat|^2 / s^2

as if tokens were centred and scaled to a mean squared norm of 1, as Gemma Scope does (Lieberum et
al. 2024). The loss itself is that of TopK, a mean over tokens and dimensions.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from faithful_sae.kernels.above_bound import above
from faithful_sae.sae.in_context import InContext
from faithful_sae.sae.recipe import Recipe
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.settings import Settings
from faithful_sae.sae.variants.places import EVERYWHERE, Chosen, Places, most

# rows of W_dec at a time: temporaries of this size stay in the cache
BLOCK = 1024


@dataclass(frozen=True)
class Moment:
    """What a loss may depend on beside the SAE and its tokens.

    Attributes:
        share: of the steps that are done, 0 to 1, for coefficients that change during a run.
        dead: int64, the latents that have not fired for so long that they count as dead.
        recipe: of the training.
        peers: [F, D] each, W_dec of the SAEs that this one is coupled with.
        in_context: where the tokens stand, for a variant that is trained on whole rows.
    """

    share: float
    dead: Tensor
    recipe: Recipe
    peers: Sequence[Tensor] = ()
    in_context: InContext | None = None

    @property
    def batch(self) -> InContext:
        """`in_context`, for a variant that cannot be trained without.

        Raises:
            ValueError: there is none.
        """
        if self.in_context is None:
            raise ValueError(
                "this variant looks at what the language model makes of x_hat: it is trained on "
                "batches of whole rows (RowStream), not of activations alone"
            )
        return self.in_context

    def ramp(self, warmup: float) -> float:
        """Rises from 0 to 1 over a share of the steps, then stays."""
        return min(1.0, self.share / warmup) if warmup else 1.0


class Variant(Settings, ABC):
    """Which latents are active, and what is minimised; a dataclass of the variant's settings.

    An SAE in training is a TopKSAE (see there), W_enc being a view of its transpose, which has a
    contiguous row per latent.

    Attributes:
        unit_rows: whether the training keeps rows of W_dec to unit norm. Without it, `finish` has
            to see to it.
        calibration: how many of the training's last batches `finish` is given.
        in_units: {name: power} of those `parameters` that are trained in units of a power of s, as
            if the tokens had been scaled to a spread of 1: Adam moves all that it trains by as
            much, and where s is large, biases that decide what is active would never get there.
    """

    unit_rows: ClassVar[bool] = True
    calibration: ClassVar[int] = 0
    in_units: ClassVar[Mapping[str, int]] = {}

    @abstractmethod
    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        """An SAE to start from.

        Raises:
            SAEError: settings that do not go with d_sae.
        """

    def begin(self, sae: TopKSAE, x: Tensor) -> None:
        """Set what depends on the data, before the first step: nothing, unless a variant differs.

        Args:
            x: [N, D], the first `beginning` batches.

        Raises:
            SAEError: they are too few.
        """

    def constrain(self, sae: TopKSAE) -> None:
        """Bring parameters, in place, back to where they have to be, after every step: nothing,
        unless a variant differs. Of unit rows the training takes care.
        """

    def parameters(self, sae: TopKSAE) -> dict[str, Tensor]:
        """What is trained, by the SAE's names: its four weights, unless a variant adds others or
        leaves some as they are.
        """
        return sae.weights

    @abstractmethod
    def loss(self, sae: TopKSAE, x: Tensor, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        """What is minimised.

        Args:
            x: [B, D].

        Returns:
            (loss, x_hat - x [B, D], how often each latent fired int64 [F]).
        """

    def loss_and_gradients(
        self, sae: TopKSAE, x: Tensor, moment: Moment, gradients: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One evaluation of `loss` and its derivatives, by autograd.

        Args:
            x: [B, D].
            gradients: filled in, by the names of `parameters` and in their shapes.

        Returns:
            as `loss`.
        """
        return self.differentiated(sae, gradients, lambda leaf: self.loss(leaf, x, moment))

    def differentiated(
        self,
        sae: TopKSAE,
        gradients: dict[str, Tensor],
        loss: Callable[[TopKSAE], tuple[Tensor, Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`loss` of the SAE, and its derivatives for `parameters` in `gradients`, by autograd."""
        leaves = {name: w.detach().requires_grad_() for name, w in self.parameters(sae).items()}
        differentiable = copy.copy(sae)
        vars(differentiable).update(leaves)
        with torch.enable_grad():
            found, error, counts = loss(differentiable)
        to = torch.autograd.grad(found, list(leaves.values()), materialize_grads=True)
        for name, gradient in zip(leaves, to, strict=True):
            gradients[name].copy_(gradient)
        return found.detach(), error.detach(), counts

    def finish(self, sae: TopKSAE, x: Tensor) -> TopKSAE:
        """The SAE in use that a trained one amounts to: itself, unless a variant differs.

        Args:
            x: [N, D], the last `calibration` batches.
        """
        return sae

    @staticmethod
    def beside(d_model: int, d_sae: int) -> int:
        """How many numbers an SAE in training has beside its four weights: few enough not to be
        counted, unless a variant differs.
        """
        return 0

    @staticmethod
    @abstractmethod
    def bytes(d_model: int, d_sae: int, batch_tokens: int) -> int:
        """Memory of one step, beside the parameters, their gradients and Adam's moments."""


class Bounded(Variant):
    """A variant whose latents are active above bounds, however many they are, and may be penalised
    beside the error.

    Once few may be active, loss and gradients are of these alone (see places.py).
    """

    def new(self, d_model: int, d_sae: int, seed: int, device: torch.device | str) -> TopKSAE:
        """Latents are small at first (Conerly et al. 2024): Adam moves rows of any norm by as much,
        so the penalty would close those of long rows before these have turned to the tokens.
        """
        sae = TopKSAE(d_model, d_sae, None, seed, device)
        sae.W_enc *= 0.1
        return sae

    def bias(self, sae: TopKSAE) -> Tensor | None:
        """What is added to the products z of tokens and latents, [F]: b_enc, unless a variant
        differs.
        """
        return sae.b_enc

    def bound(self, sae: TopKSAE, x: Tensor) -> Tensor:
        """What z may be below and have no part in the loss, [F]: 0, unless a variant differs."""
        return torch.zeros_like(sae.b_enc)

    def latents(self, sae: TopKSAE, x: Tensor, at: Places = EVERYWHERE) -> Tensor:
        """Those of x [B, D] in training at some places: ReLU's, unless a variant differs."""
        return torch.relu(at.affine(sae, x, self.bias(sae)))

    def penalty(
        self, sae: TopKSAE, x: Tensor, error: Tensor, f: Tensor, moment: Moment, at: Places
    ) -> Tensor | float:
        """What is added to the mean of error^2: nothing, unless a variant differs.

        Args:
            x: [B, D].
            error: x_hat - x [B, D].
            f: the latents at these places.
        """
        return 0.0

    def loss_at(
        self, sae: TopKSAE, x: Tensor, moment: Moment, at: Places
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`loss`, which looks at latents at some places."""
        f = self.latents(sae, x, at)
        error = at.decode(f, sae.W_dec) + sae.b_dec - x
        loss = error.square().mean() + self.penalty(sae, x, error, f, moment, at)
        return loss, error, at.counts(f)

    def loss(self, sae: TopKSAE, x: Tensor, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        return self.loss_at(sae, x, moment, EVERYWHERE)

    def chosen(self, sae: TopKSAE, x: Tensor) -> Chosen | None:
        """The places of latents that have a part in the loss; None where they are many."""
        return self.above(sae, x, self.bound(sae, x))

    def above(self, sae: TopKSAE, x: Tensor, bound: Tensor) -> Chosen | None:
        """The places where z is not below a bound [F]; None where they are many."""
        found = self.found(sae, x, bound)
        return Chosen(*found, sae.d_sae) if found else None

    def found(self, sae: TopKSAE, x: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """z where it is not below a bound [F], as kernels.above_bound.above."""
        if not (few := most(x, sae.d_sae)):
            return None
        bias = self.bias(sae)
        bias = torch.zeros_like(sae.b_enc) if bias is None else bias
        return above(x, sae.W_enc.T.contiguous(), bias, sae.b_dec, bound, few)

    def loss_and_gradients(
        self, sae: TopKSAE, x: Tensor, moment: Moment, gradients: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        at = self.chosen(sae, x) or EVERYWHERE
        return self.differentiated(sae, gradients, lambda leaf: self.loss_at(leaf, x, moment, at))

    @staticmethod
    def bytes(d_model: int, d_sae: int, batch_tokens: int) -> int:
        """Eight arrays [B, F], of latents and gradients, or of the latents of the last batches, and
        twelve [B, D], with those batches; the screen's copy of W_enc, both gradients, and AuxK's
        copies and gradients.
        """
        weights = (2 + 2 * 4 + 4 * 4) * d_sae * d_model
        return weights + 4 * batch_tokens * (8 * d_sae + 12 * d_model)


def keep_to_the_sphere(gradient: Tensor, rows: Tensor) -> None:
    """Take off a gradient [F, D], in place, what would change the norms of unit rows [F, D]."""
    for part, w in zip(gradient.split(BLOCK), rows.split(BLOCK), strict=True):
        part.addcmul_(torch.linalg.vecdot(part, w)[:, None], w, value=-1)


def spread(x: Tensor) -> Tensor:
    """s of tokens x [B, D]: the root of their mean squared distance from their mean."""
    return (x - x.mean(0)).square().sum(-1).mean().sqrt()


def threshold_above(z: Tensor, n: Tensor) -> Tensor:
    """A threshold for each latent that the n largest of its activations are above: midway between
    the n-th and the next.

    Args:
        z: [N, F], not negative.
        n: int64 [F], each 0 to N; or [1] for one threshold on the largest of all, 1 to N F.

    Returns:
        as n; beyond all activations where n is 0, but finite, as files have it.
    """
    columns = z.reshape(-1, len(n))
    most = min(int(n.max()) + 1, len(columns))
    # below the smallest of all there is 0
    top = torch.nn.functional.pad(columns.topk(most, dim=0).values, (0, 0, 1, 1))
    top[0] = torch.finfo(torch.float32).max
    return (top.gather(0, n[None]) + top.gather(0, n[None] + 1))[0] / 2
