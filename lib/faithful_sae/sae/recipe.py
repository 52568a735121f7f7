"""What the paper leaves open about training, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Choices of a training; numbers of steps are shares of the whole.

    Attributes:
        betas: of Adam.
        warmup: share of the steps over which lr rises linearly.
        decay: share of the steps, at the end, over which lr falls linearly to 0.
        detach_residual: AuxK explains the residual without moving what made it.
        b_dec_from_mean: b_dec starts at the mean of the first batch instead of 0.
        renormalise_after: unit decoder rows after the step; before it, rows end up only near
            unit norm.
        train_b_enc: whether b_enc is trained at all.
        kaiming_encoder: the authors' initialisation of W_enc; otherwise W_enc = W_dec^T.
        dead_after: batches without firing that make a latent dead; None: a tenth of the training.
        aux_k: latents that AuxK may use; None: d_model / 2, at least 1.
    """

    betas: tuple[float, float]
    warmup: float
    decay: float
    detach_residual: bool
    b_dec_from_mean: bool
    renormalise_after: bool
    train_b_enc: bool
    kaiming_encoder: bool
    dead_after: int | None
    aux_k: int | None


RECIPES = {
    "default": Recipe((0.9, 0.999), 0.05, 0.2, True, True, True, True, False, None, None),
    # as in the authors' public code; the paper gives neither optimiser nor schedule
    "authors": Recipe((0.9, 0.99), 0.0, 0.0, False, False, False, False, True, 5, 512),
}
