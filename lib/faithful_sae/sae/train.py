"""Training SAEs: several seeds from one stream of activations, each batch given to all of them in
turn.

What is minimised, and how its gradients are found, is the variant's (see variants/). Here are the
optimiser, its schedule, unit decoder rows, counting, and going on from checkpoints.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, cast

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.sae.activations import ActivationStream
from faithful_sae.sae.in_context import InContext, RowStream
from faithful_sae.sae.recipe import RECIPES, Recipe
from faithful_sae.sae.sae import TopKSAE, sae_bytes
from faithful_sae.sae.variants import TopK, Variant
from faithful_sae.sae.variants.base import Moment, keep_to_the_sphere, spread

# rows of the training curve per SAE
LOG_POINTS = 100


class Training:
    """One SAE on its way: parameters, optimiser, counts.

    The encoder is trained as its transpose, a row per latent like the decoder; `sae.W_enc` is a
    view of it. Each step writes gradients into the same arrays.

    Args:
        sae: from `variant.new`.
        lr: peak learning rate of Adam.
        n_steps: in all, which the schedule is laid over.
    """

    def __init__(
        self, sae: TopKSAE, variant: Variant, lr: float, recipe: Recipe, n_steps: int
    ) -> None:
        self.sae = sae
        self.variant = variant
        self.recipe = recipe
        self.n_steps = n_steps
        self.lr = lr
        if recipe.kaiming_encoder:
            generator = torch.Generator().manual_seed(sae.metadata["seed"])
            # kaiming_uniform_ of a [D, F] matrix: fan_in is F
            bound = (6 / sae.d_sae) ** 0.5
            w = (torch.rand(sae.d_model, sae.d_sae, generator=generator) * 2 - 1) * bound
            sae.W_enc = w.to(sae.W_enc.device)
            sae.W_dec = F.normalize(w.T, dim=-1).contiguous().to(sae.W_dec.device)
        encoder = sae.W_enc.T.contiguous()
        sae.W_enc = encoder.T
        trained = variant.parameters(sae)
        self.parameters = {name: encoder if name == "W_enc" else w for name, w in trained.items()}
        self.gradients = {}
        for name, w in self.parameters.items():
            w.grad = torch.zeros_like(w)
            self.gradients[name] = w.grad.T if name == "W_enc" else w.grad
        moved = [name for name in self.parameters if name != "b_enc" or recipe.train_b_enc]
        powers = {name: variant.in_units.get(name, 0) for name in moved}
        # of s, that of each group's unit
        self.powers = sorted({*powers.values()})
        groups = [[self.parameters[n] for n in moved if powers[n] == p] for p in self.powers]
        self.optimiser = torch.optim.Adam(
            [{"params": group} for group in groups],
            lr=lr,
            betas=recipe.betas,
            fused=True,
        )
        # s of the first batch
        self.unit = 1.0
        # in batches
        self.since_fired = torch.zeros(sae.d_sae, dtype=torch.int64, device=encoder.device)
        self.dead_after = recipe.dead_after or max(n_steps // 10, 1)
        self.fired = torch.zeros(sae.d_sae, device=encoder.device)
        self.counted = 0
        self.log = []
        # those of the SAEs that it is coupled with
        self.peers: list[Training] = []
        # batches that the variant is calibrated on
        self.last: deque[Tensor] = deque(maxlen=variant.calibration)

    def evaluate(
        self, i: int, x: Tensor, in_context: InContext | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Fill in the `gradients` of step i from a batch x [B, D], which may be one of whole rows.

        Returns:
            (loss, x_hat - x [B, D], how often each latent fired int64 [F]).
        """
        dead = (self.since_fired >= self.dead_after).nonzero().squeeze(-1)
        peers = [peer.sae.W_dec for peer in self.peers]
        moment = Moment(i / self.n_steps, dead, self.recipe, peers, in_context)
        return self.variant.loss_and_gradients(self.sae, x, moment, self.gradients)

    def step(
        self,
        i: int,
        x: Tensor,
        checkpoint: Checkpoint | None = None,
        first: Tensor | None = None,
        in_context: InContext | None = None,
    ) -> None:
        """Step i of the optimiser, on a batch x [B, D].

        Args:
            checkpoint: named in the error.
            first: [N, D], the first batches, for what the variant sets before step 0; None: x.
            in_context: where the tokens stand, if they are whole rows.

        Raises:
            ValueError: a value of x is not finite.
            FloatingPointError: the loss is no longer finite.
        """
        sae = self.sae
        recipe = self.recipe
        if i == 0 and recipe.b_dec_from_mean:
            sae.b_dec.copy_(x.mean(0))
        if i == 0:
            self.variant.begin(sae, x if first is None else first)
            # one token has no spread
            self.unit = spread(x).item() or 1.0
        rate = self.lr * min(
            1,
            (i + 1) / max(recipe.warmup * self.n_steps, 1),
            (self.n_steps - i) / max(recipe.decay * self.n_steps, 1),
        )
        for group, power in zip(self.optimiser.param_groups, self.powers, strict=True):
            group["lr"] = rate * self.unit**power
        loss, error, counts = self.evaluate(i, x, in_context)
        if not torch.isfinite(loss):
            saved = f"; {checkpoint}" if checkpoint else ""
            if not x.isfinite().all():
                raise ValueError(
                    f"batch {i}: its activations hold NaN or infinity: the language model's "
                    f"weights are damaged, or its dtype is too narrow{saved}"
                )
            raise FloatingPointError(
                f"seed {sae.metadata['seed']}: the loss is {loss.item()} at step {i}: lower "
                f"sae.lr = {self.lr}{saved}"
            )
        if not recipe.renormalise_after:
            self._unit_rows()
        if self.on_the_sphere:
            keep_to_the_sphere(self.gradients["W_dec"], sae.W_dec)
        self.optimiser.step()
        if recipe.renormalise_after:
            self._unit_rows()
        self.variant.constrain(sae)
        self.last.append(x)
        self._count(i, x, error, counts, loss)

    @property
    def on_the_sphere(self) -> bool:
        """Whether rows of W_dec are trained and have unit norm."""
        return self.variant.unit_rows and "W_dec" in self.parameters

    def _unit_rows(self):
        if self.on_the_sphere:
            _normalise(self.sae.W_dec)

    def _count(self, i, x, error, counts, loss):
        self.since_fired = torch.where(counts > 0, 0, self.since_fired + 1)
        if i >= self.n_steps - max(self.n_steps // 10, 1):
            self.fired += counts
            self.counted += len(x)
        if i % max(self.n_steps // LOG_POINTS, 1) == 0 or i == self.n_steps - 1:
            fvu = float("nan")
            # one token has no variance
            if len(x) > 1:
                fvu = (error.square().sum() / (x - x.mean(0)).square().sum()).item()
            self.log.append(
                {
                    "seed": self.sae.metadata["seed"],
                    "step": i,
                    "loss": loss.item(),
                    "fvu": fvu,
                    "l0": counts.sum().item() / len(x),
                    "dead": int((self.since_fired >= self.dead_after).sum()),
                }
            )

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """(tensors, numbers) that the steps to come depend on."""
        tensors = dict(self.parameters, since_fired=self.since_fired, fired=self.fired)
        # copies: SAEs trained together have the same ones, and a file holds no tensor twice
        tensors |= {f"last{i}": x.clone() for i, x in enumerate(self.last)}
        for name, w in self.parameters.items():
            for key, value in self.optimiser.state.get(w, {}).items():
                tensors[f"{name}.{key}"] = value
        numbers = {"counted": self.counted, "log": self.log, "last": len(self.last)}
        return tensors, numbers | {"unit": self.unit}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping) -> None:
        """Go on from a `state`."""
        for name, w in self.parameters.items():
            w.copy_(tensors[name])
            moments = {
                key: tensors[f"{name}.{key}"].to(w.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{name}.{key}" in tensors
            }
            if moments:
                self.optimiser.state[w] = moments
        self.since_fired = tensors["since_fired"].to(self.fired.device)
        self.fired = tensors["fired"].to(self.fired.device)
        self.counted = numbers["counted"]
        self.unit = numbers["unit"]
        self.log = numbers["log"]
        kept = [tensors[f"last{i}"] for i in range(numbers["last"])]
        self.last.extend(x.to(self.fired.device) for x in kept)

    def finish(self) -> TopKSAE:
        """The trained SAE, with its firing frequencies over the last tenth of the training and its
        `training_log`.

        Raises:
            FloatingPointError: a weight is not finite.
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
        self._unit_rows()
        sae.firing = self.fired / max(self.counted, 1)
        sae.training_log = pd.DataFrame(self.log)
        last = torch.cat([sae.W_dec[:0], *self.last])
        return self.variant.finish(sae, last)


def train_saes(
    batches: Iterable[Tensor] | Iterable[InContext],
    d_model: int,
    d_sae: int | Sequence[int],
    k: int | Variant | Sequence[int | Variant],
    seeds: Sequence[int],
    lr: float | Sequence[float],
    n_tokens: int | Sequence[int],
    batch_tokens: int,
    recipe: str = "default",
    device: torch.device | str = "cpu",
    description: str = "SAEs",
    checkpoint: Checkpoint | None = None,
) -> list[TopKSAE]:
    """Train one SAE per seed on the same batches in the same order (paper 3.2, Table 5).

    On a CPU a step takes an SAE about as long as one float32 product of [B, D] with [D, F]. For
    the memory see training_bytes.

    Args:
        batches: [B, D], or [.., T, D], of any float dtype; n_tokens in all, batch_tokens in each
            but perhaps the last. A RowStream's for variants that are trained in context.
        d_model: D.
        d_sae: F, for all SAEs or one for each; so are k, lr and n_tokens.
        k: active latents per token of a TopK SAE; or a Variant with settings of its own.
        seeds: each initialises one SAE and nothing else.
        lr: peak learning rate of Adam.
        n_tokens: an SAE with fewer tokens than others is trained on the first of them, on a
            schedule of its own.
        recipe: "default" or "authors" (see recipe.py).
        description: of the progress bar.
        checkpoint: to go on from and to save to now and then; `batches` is an ActivationStream
            or a RowStream then. On a CPU a training that was killed, however often, ends with the
            same bytes as one that was not.

    Returns:
        the SAEs in the order of `seeds`, each with `.firing` and `.training_log` (step, loss, fvu,
        l0, dead).

    Raises:
        SAEError: k > d_sae.
        FloatingPointError: a loss that is not finite though the activations are, with the step and
            the last good checkpoint.
        DiskFullError: while saving a checkpoint; the one before is kept.
        ValueError: no batch, or one that is empty, too long, of another width or not finite; no
            seed; a list of another length than seeds; a number that is not positive; no such
            recipe.
    """
    if not len(seeds):
        raise ValueError("no seeds: name one for each SAE")
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} must be one of {', '.join(RECIPES)}")
    widths = _one_each(d_sae, seeds, "d_sae")
    variants = [v if isinstance(v, Variant) else TopK(v) for v in _one_each(k, seeds, "k")]
    rates = _one_each(lr, seeds, "lr")
    budgets = _one_each(n_tokens, seeds, "n_tokens")
    positive = {"lr": rates, "n_tokens": budgets, "batch_tokens": [batch_tokens]}
    for name, values in positive.items():
        if not all(0 < value < float("inf") for value in values):
            raise ValueError(f"{name} = {values} must be above 0 and finite")
    trainings = [
        Training(
            variant.new(d_model, width, seed, device),
            variant,
            rate,
            RECIPES[recipe],
            -(-tokens // batch_tokens),
        )
        for seed, width, variant, rate, tokens in zip(
            seeds, widths, variants, rates, budgets, strict=True
        )
    ]
    for together in _coupled(trainings):
        for training in together:
            training.peers = [other for other in together if other is not training]
    # which it is where there is a checkpoint
    stream = cast(ActivationStream | RowStream, batches)
    first = _resume(checkpoint, trainings, stream) if checkpoint else 0
    step = first - 1
    given = iter(batches)
    # read before the first step, for what variants begin with
    most = 0 if first else max(variant.beginning for variant in variants)
    ahead = deque(islice(given, most))
    with tqdm(
        total=max(budgets),
        initial=min(first * batch_tokens, max(budgets)),
        unit="token",
        unit_scale=True,
        desc=description,
    ) as bar:
        for step, batch in enumerate(_taken(ahead, given), first):
            x, in_context = _rows(batch, d_model, batch_tokens, step)
            for training, tokens in zip(trainings, budgets, strict=True):
                beginning = None
                if step == 0:
                    rest = islice(ahead, training.variant.beginning - 1)
                    found = [
                        _rows(one, d_model, batch_tokens, i)[0] for i, one in enumerate(rest, 1)
                    ]
                    beginning = torch.cat([x, *found])[:tokens]
                if step < training.n_steps:
                    # rows are whole
                    own = x if in_context else x[: tokens - step * batch_tokens]
                    training.step(step, own, checkpoint, beginning, in_context)
            bar.update(min(batch_tokens, max(budgets) - step * batch_tokens))
            last = trainings[0].log[-1]
            if last["step"] == step:
                bar.set_postfix(
                    fvu=f"{last['fvu']:.3f}",
                    l0=f"{last['l0']:.1f}",
                    dead=last["dead"],
                    refresh=False,
                )
            # not where the stream is further than the training
            level = step + 1 >= most
            if checkpoint and level and checkpoint.due and (position := stream.state()):
                _save(checkpoint, step + 1, trainings, position)
    if step < 0:
        raise ValueError("no batch of activations to train on")
    return [training.finish() for training in trainings]


def _taken(ahead, given):
    """What was read ahead, which is let go, and then the rest."""
    while ahead:
        yield ahead.popleft()
    yield from given


def _coupled(trainings):
    """Those that a variant couples: of one variant and size, `variant.group` at a time, in their
    order.
    """
    alike = {}
    for training in trainings:
        if training.variant.group > 1:
            key = training.variant, training.sae.d_sae, training.n_steps
            alike.setdefault(key, []).append(training)
    for (variant, *_), found in alike.items():
        for start in range(0, len(found), variant.group):
            yield found[start : start + variant.group]


def _rows(batch, d_model, batch_tokens, step):
    """(float32 [B, D] of a batch [.., D], where it stands if it is of whole rows)."""
    if isinstance(batch, InContext):
        return batch.x, batch
    shape = list(batch.shape)
    if shape[-1:] != [d_model] or not batch.numel():
        raise ValueError(
            f"batch {step} has the shape {shape}: activations [B, {d_model}] are needed"
        )
    x = batch.reshape(-1, d_model).float()
    if len(x) > batch_tokens:
        raise ValueError(
            f"batch {step} has {len(x)} activations, more than batch_tokens = {batch_tokens}"
        )
    return x, None


def _save(checkpoint, step, trainings, position):
    states = [training.state() for training in trainings]
    tensors = {
        f"{i}.{name}": tensor for i, (part, _) in enumerate(states) for name, tensor in part.items()
    }
    numbers = {
        "trainings": [numbers for _, numbers in states],
        **{name: value for name, value in position.items() if not torch.is_tensor(value)},
    }
    tensors |= {name: value for name, value in position.items() if torch.is_tensor(value)}
    checkpoint.save(step, tensors, numbers)


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
    # the trainings' names have their number in front
    batches.resume(numbers | tensors)
    return step


def _normalise(rows):
    """Unit rows, in place."""
    rows.div_(torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(1e-12))


def _one_each(value: Any, seeds, name) -> list:
    """A number as a list with one for each seed; a list as it is."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * len(seeds)
    if len(values) != len(seeds):
        raise ValueError(f"{name} has {len(values)} entries for {len(seeds)} SAEs")
    return values


def training_bytes(
    d_model: int,
    d_saes: Sequence[int],
    variants: Sequence[type[Variant]],
    batch_tokens: int,
    buffer_tokens: int,
) -> int:
    """Memory of SAEs in training, and of the activations they are trained on.

    Each has its weights, gradients and Adam's two moments, in float32. One at a time does a step,
    or begins. There are two windows of buffer_tokens + B activations, with the order of one, and
    the batches that are read ahead.

    Args:
        d_saes: F of each SAE.
        variants: of each.
    """
    each = list(zip(d_saes, variants, strict=True))
    kept = sum(4 * (sae_bytes(d_model, n) + 4 * kind.beside(d_model, n)) for n, kind in each)
    step = max(kind.bytes(d_model, n, batch_tokens) for n, kind in each)
    # once as they were read, and in a row for the SAE that begins
    ahead = 2 * (max(kind.beginning for kind in variants) - 1) * batch_tokens
    windows = (buffer_tokens + batch_tokens) * (2 * 4 * d_model + 8)
    return kept + step + windows + ahead * 4 * d_model


def training_disk(d_model: int, d_saes: Sequence[int], variants: Sequence[type[Variant]]) -> int:
    """Bytes on disk of SAEs and of two checkpoints with Adam's moments: 7 times their weights, and
    6 times what they have beside them.

    Args:
        d_saes: F of each SAE.
        variants: of each.
    """
    return sum(
        7 * sae_bytes(d_model, n) + 6 * 4 * kind.beside(d_model, n)
        for n, kind in zip(d_saes, variants, strict=True)
    )
