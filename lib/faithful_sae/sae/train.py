"""Training TopK SAEs: several seeds from one stream of activations, each batch given to all of them
in turn.

    loss = mean over tokens and dimensions of (x - x_hat)^2 + 1/32 AuxK

AuxK (Gao et al. 2024, A.2) lets the dead latents' best aux_k explain the residual x - x_hat, so
that they come back to life.
"""

from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from faithful_sae.kernels.latent_sums import by_latent, latent_sums
from faithful_sae.kernels.sparse_decode import decode, values_gradient
from faithful_sae.kernels.topk_encode import encode
from faithful_sae.sae.sae import TopKSAE

AUX_COEFFICIENT = 1 / 32
BLOCK = 1024  # rows of W_dec at a time: temporaries of this size stay in the cache
LOG_POINTS = 100  # rows of the training curve per SAE


@dataclass(frozen=True)
class Recipe:
    """What the paper leaves open about training."""

    betas: tuple[float, float]
    warmup: float  # share of the steps over which lr rises linearly
    decay: float  # share of the steps, at the end, over which lr falls linearly to 0
    detach_residual: bool  # AuxK explains the residual without moving what made it
    b_dec_from_mean: bool  # start at the mean of the first batch instead of 0
    renormalise_after: (
        bool  # unit decoder rows after the step; before it, rows end up only near unit norm
    )
    train_b_enc: bool
    kaiming_encoder: bool  # the authors' initialisation of W_enc; otherwise W_enc = W_dec^T
    dead_after: int | None  # batches without firing; None: a tenth of the training
    aux_k: int | None  # None: d_model / 2, at least 1


RECIPES = {
    "default": Recipe((0.9, 0.999), 0.05, 0.2, True, True, True, True, False, None, None),
    # as in the authors' public code; the paper gives neither optimiser nor schedule
    "authors": Recipe((0.9, 0.99), 0.0, 0.0, False, False, False, False, True, 5, 512),
}


class _Training:
    """One SAE on its way: parameters, optimiser, dead counters.

    The encoder is trained as its transpose, a row per latent like the decoder; `sae.W_enc` is a
    view of it. Each step reads and writes the rows of active latents alone, with gradients by hand
    (see `kernels`), into the same arrays every time.
    """

    def __init__(self, sae, lr, recipe, n_steps):
        self.sae = sae
        self.recipe = recipe
        self.n_steps = n_steps
        self.lr = lr
        if recipe.kaiming_encoder:
            generator = torch.Generator().manual_seed(sae.metadata["seed"])
            bound = (6 / sae.d_sae) ** 0.5  # kaiming_uniform_ of a [D, F] matrix: fan_in is F
            w = (torch.rand(sae.d_model, sae.d_sae, generator=generator) * 2 - 1) * bound
            sae.W_enc, sae.W_dec = (
                w.to(sae.W_enc.device),
                F.normalize(w.T, dim=-1).contiguous().to(sae.W_dec.device),
            )
        self.encoder = sae.W_enc.T.contiguous()
        sae.W_enc = self.encoder.T
        self.parameters = {
            "W_enc": self.encoder,
            "b_enc": sae.b_enc,
            "W_dec": sae.W_dec,
            "b_dec": sae.b_dec,
        }
        for w in self.parameters.values():
            w.grad = torch.zeros_like(w)
        self.optimiser = torch.optim.Adam(
            [w for name, w in self.parameters.items() if name != "b_enc" or recipe.train_b_enc],
            lr=lr,
            betas=recipe.betas,
            fused=True,
        )
        self.since_fired = torch.zeros(
            sae.d_sae, dtype=torch.int64, device=sae.W_enc.device
        )  # batches
        self.dead_after = recipe.dead_after or max(n_steps // 10, 1)
        self.aux_k = recipe.aux_k or max(sae.d_model // 2, 1)
        self.fired = torch.zeros(sae.d_sae, device=sae.W_enc.device)
        self.counted = 0
        self.log = []

    def gradients(self, x):
        """Fills the parameters' `.grad` from a batch x [B, D].

        Returns:
            (loss, x_hat - x [B, D], how often each latent fired int64 [F]).
        """
        sae = self.sae
        encoder = self.encoder
        values, indices = encode(x, encoder, sae.b_enc, sae.b_dec, sae.k)
        error = decode(values, indices, sae.W_dec).add_(sae.b_dec).sub_(x)
        centred = x - sae.b_dec
        loss = error.square().mean()
        to_x_hat = error * (2 / x.numel())
        dead = (self.since_fired >= self.dead_after).nonzero().squeeze(-1)
        if len(dead):
            aux_loss, to_explained, of_dead = self._auxk(centred, error, dead)
            loss += aux_loss
            if not self.recipe.detach_residual:  # then AuxK moves x_hat as well
                to_x_hat += to_explained
        start, order = by_latent(values, indices, sae.d_sae)
        latent_sums(values, start, order, to_x_hat, sae.W_dec.grad)
        to_values = values_gradient(to_x_hat, values, indices, sae.W_dec)
        latent_sums(to_values, start, order, centred, encoder.grad)
        latent_sums(to_values, start, order, torch.ones_like(x[:, :1]), sae.b_enc.grad[:, None])
        if len(dead):
            for gradient, part in zip((sae.W_dec.grad, encoder.grad, sae.b_enc.grad), of_dead):
                gradient.index_add_(0, dead, part)
        torch.sum(to_x_hat, 0, out=sae.b_dec.grad).sub_(
            sae.b_enc.grad @ encoder
        )  # b_dec is also taken off before the encoder
        return loss, error, start.diff()

    def _auxk(self, centred, error, dead):
        """AuxK's loss; its gradient for what the dead latents explain; its gradients for their
        W_dec, W_enc^T, b_enc.

        Up to half of d_model latents are active for each token, often all that are dead: products
        of those columns alone are several times as fast as gathers.
        """
        w_enc = self.encoder[dead]
        w_dec = self.sae.W_dec[dead]
        z = F.relu(torch.addmm(self.sae.b_enc[dead], centred, w_enc.T))
        if len(dead) > self.aux_k:
            values, indices = z.topk(self.aux_k, dim=-1, sorted=False)
            z = torch.zeros_like(z).scatter_(-1, indices, values)
        difference = torch.addmm(error, z, w_dec)  # explained - (x - x_hat)
        to_explained = difference * (AUX_COEFFICIENT * 2 / difference.numel())
        to_z = (to_explained @ w_dec.T).mul_(z > 0)
        return (
            AUX_COEFFICIENT * difference.square().mean(),
            to_explained,
            (z.T @ to_explained, to_z.T @ centred, to_z.sum(0)),
        )

    def step(self, i, x, checkpoint=None):
        """One optimiser step; raises FloatingPointError when the loss is no longer finite."""
        sae = self.sae
        recipe = self.recipe
        if i == 0 and recipe.b_dec_from_mean:
            sae.b_dec.copy_(x.mean(0))
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr * min(
                1,
                (i + 1) / max(recipe.warmup * self.n_steps, 1),
                (self.n_steps - i) / max(recipe.decay * self.n_steps, 1),
            )
        loss, error, counts = self.gradients(x)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"seed {sae.metadata['seed']}: the loss is {loss.item()} at step {i}: lower "
                f"sae.lr = {self.lr}" + (f"; {checkpoint}" if checkpoint else "")
            )
        if not recipe.renormalise_after:
            _normalise(sae.W_dec)
        for gradient, w in zip(
            sae.W_dec.grad.split(BLOCK), sae.W_dec.split(BLOCK)
        ):  # keep to the sphere
            gradient.addcmul_(torch.linalg.vecdot(gradient, w)[:, None], w, value=-1)
        self.optimiser.step()
        if recipe.renormalise_after:
            _normalise(sae.W_dec)
        self._count(i, x, error, counts, loss)

    def _count(self, i, x, error, counts, loss):
        self.since_fired = torch.where(counts > 0, 0, self.since_fired + 1)
        if i >= self.n_steps - max(self.n_steps // 10, 1):
            self.fired += counts
            self.counted += len(x)
        if i % max(self.n_steps // LOG_POINTS, 1) == 0 or i == self.n_steps - 1:
            fvu = (
                error.square().sum() / (x - x.mean(0)).square().sum()
                if len(x) > 1
                else torch.tensor(torch.nan)
            )  # one has no variance
            self.log.append(
                {
                    "seed": self.sae.metadata["seed"],
                    "step": i,
                    "loss": loss.item(),
                    "fvu": fvu.item(),
                    "l0": counts.sum().item() / len(x),
                    "dead": int((self.since_fired >= self.dead_after).sum()),
                }
            )

    def state(self):
        """(tensors, numbers) that the steps to come depend on."""
        tensors = dict(self.parameters, since_fired=self.since_fired, fired=self.fired)
        for name, w in self.parameters.items():
            tensors |= {
                f"{name}.{key}": value for key, value in self.optimiser.state.get(w, {}).items()
            }
        return tensors, {"counted": self.counted, "log": self.log}

    def restore(self, tensors, numbers):
        """Go on from a `state`."""
        for name, w in self.parameters.items():
            w.copy_(tensors[name])
            moments = {
                key: tensors[f"{name}.{key}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in tensors
            }
            if moments:
                self.optimiser.state[w] = {
                    key: value.to(w.device) for key, value in moments.items()
                }
        self.since_fired, self.fired = (
            tensors[name].to(self.fired.device) for name in ("since_fired", "fired")
        )
        self.counted, self.log = numbers["counted"], numbers["log"]

    def finish(self):
        """The trained SAE, with its firing frequencies over the last tenth of the training and its
        `training_log`.
        """
        sae = self.sae
        if not all(w.isfinite().all() for w in self.parameters.values()):
            raise FloatingPointError(
                f"seed {sae.metadata['seed']}: weights are not finite after the last step: lower "
                f"sae.lr = {self.lr}"
            )
        for w in self.parameters.values():
            w.grad = None
        sae.W_enc = sae.W_enc.contiguous()
        _normalise(sae.W_dec)
        sae.firing = self.fired / max(self.counted, 1)
        sae.training_log = pd.DataFrame(self.log)
        return sae


def train_saes(
    batches,
    d_model,
    d_sae,
    k,
    seeds,
    lr,
    n_tokens,
    batch_tokens,
    recipe="default",
    device="cpu",
    description="SAEs",
    checkpoint=None,
) -> list[TopKSAE]:
    """Train one TopK SAE per entry of `seeds` on the same batches in the same order (paper 3.2,
    Table 5).

    Args:
        batches: iterable of float32 [B, D] tensors, n_tokens in all, batch_tokens in each but
            perhaps the last.
        d_model, d_sae, k: sizes D, F, K. seeds: each initialises one SAE and nothing else.
        lr: peak learning rate of Adam. recipe: "default" or "authors" (see RECIPES).
        d_sae, k, lr, n_tokens: one number for all SAEs, or a list with one for each. An SAE with
            fewer tokens is trained on the first of them, on a schedule of its own.
        checkpoint: Checkpoint to go on from and to save to now and then; `batches` is an
            ActivationStream then. On a CPU a training that was killed, however often, ends with the
            same bytes as one that was not.

    Returns:
        the SAEs in the order of `seeds`, each with `.firing` and `.training_log` (step, loss, fvu,
        l0, dead).
        Per SAE and step on a CPU: about as long as one float32 product of [B, D] with [D, F];
            memory of eight [D, F] arrays (weights,
        gradients, Adam's two moments), and one bfloat16 copy of W_enc.

    Raises:
        SAEError: k > d_sae. FloatingPointError: a loss that is not finite, with the step and the
            last good checkpoint. DiskFullError: while saving a checkpoint; the one before is kept.
            ValueError: no batch; a list of another length than seeds.
    """
    d_sae, k, lr, n_tokens = (
        _one_each(value, seeds, name)
        for name, value in (("d_sae", d_sae), ("k", k), ("lr", lr), ("n_tokens", n_tokens))
    )
    trainings = [
        _Training(
            TopKSAE(d_model, sizes[0], sizes[1], seed, device),
            rate,
            RECIPES[recipe],
            -(-tokens // batch_tokens),
        )
        for seed, *sizes, rate, tokens in zip(seeds, d_sae, k, lr, n_tokens)
    ]
    first = _resume(checkpoint, trainings, batches) if checkpoint else 0
    step = first - 1
    with tqdm(
        total=max(n_tokens),
        initial=min(first * batch_tokens, max(n_tokens)),
        unit="token",
        unit_scale=True,
        desc=description,
    ) as bar:
        for step, x in enumerate(batches, first):
            for training, tokens in zip(trainings, n_tokens):
                if step < training.n_steps:
                    training.step(step, x[: tokens - step * batch_tokens], checkpoint)
            bar.update(len(x))
            if (last := trainings[0].log[-1])["step"] == step:
                bar.set_postfix(
                    fvu=f"{last['fvu']:.3f}",
                    l0=f"{last['l0']:.1f}",
                    dead=last["dead"],
                    refresh=False,
                )
            if checkpoint and checkpoint.due and (position := batches.state()):
                _save(checkpoint, step + 1, trainings, position)
    if step < 0:
        raise ValueError("no batch of activations to train on")
    return [training.finish() for training in trainings]


def _save(checkpoint, step, trainings, position):
    states = [training.state() for training in trainings]
    tensors = {
        f"{i}.{name}": tensor for i, (part, _) in enumerate(states) for name, tensor in part.items()
    }
    numbers = {
        "trainings": [numbers for _, numbers in states],
        "window": position["window"],
        "given": position["given"],
    }
    checkpoint.save(step, tensors | {"left": position["left"]}, numbers)


def _resume(checkpoint, trainings, batches):
    """Number of steps done before, which the trainings and the stream are set to."""
    if (saved := checkpoint.load()) is None:
        return 0
    step, tensors, numbers = saved
    for i, (training, own) in enumerate(zip(trainings, numbers["trainings"], strict=True)):
        training.restore(
            {
                name.removeprefix(f"{i}."): tensor
                for name, tensor in tensors.items()
                if name.startswith(f"{i}.")
            },
            own,
        )
    batches.resume(
        {"window": numbers["window"], "given": numbers["given"], "left": tensors["left"]}
    )
    return step


def _normalise(rows):
    """Unit rows, in place."""
    rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(1e-12))


def _one_each(value, seeds, name):
    """A number as a list with one for each seed; a list as it is."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * len(seeds)
    if len(values) != len(seeds):
        raise ValueError(f"{name} has {len(values)} entries for {len(seeds)} SAEs")
    return values
