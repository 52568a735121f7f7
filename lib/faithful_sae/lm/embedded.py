"""Language models small enough to be trained on the spot on one CPU core, in the formats of those
they stand in for.

A GPT-NeoX (Pythia's architecture) or a Llama with its own byte-level BPE, saved as a Hugging Face
folder: everything downstream treats it as any other model. The budget is minutes, so the optimiser
decides how much is learned: hidden matrices are trained with Muon, whose orthogonal updates need
about half of AdamW's tokens at this size, everything else with AdamW.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from faithful_sae.files import atomic_path
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.lm.architectures import Shape

BOS = "<|endoftext|>"  # begins and ends a document, as in GPT-2 and Pythia
INITIALIZER_RANGE = 0.02
# rows of the training log, and how many of them have a held-out cross-entropy
LOGS = 100
EVALUATIONS = 5
CHECKPOINTS = 10
ADAMW_LR = 0.5  # times Muon's learning rate


class EmbeddedConfig(Protocol):
    """What is asked for: `gpt_neox` or `llama`, its sizes, and how it is trained."""

    @property
    def architecture(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def d_model(self) -> int: ...

    @property
    def d_mlp(self) -> int: ...

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...

    @property
    def context(self) -> int: ...

    @property
    def train_tokens(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def batch_rows(self) -> int: ...

    @property
    def lr(self) -> float: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def weight_decay(self) -> float: ...


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, GPT-2's kind; the same texts give the same tokenizer.

    Args:
        texts: to count pairs in.
        vocab_size: 257 or more: all bytes and the special token, the rest are merges. Texts without
            enough distinct pairs give fewer tokens.

    Returns:
        any text round-trips; `<|endoftext|>` (id 0) is BOS and EOS and is not added by itself.

    Raises:
        ValueError: a vocabulary that does not hold the bytes.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 1:
        raise ValueError(
            f"vocab_size = {vocab_size} must be at least {len(alphabet) + 1}: all bytes and {BOS}"
        )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, clean_up_tokenization_spaces=False
    )


def initialise(config: EmbeddedConfig, seed: int) -> PreTrainedModel:
    """A causal LM with random weights, float32.

    Raises:
        ValueError: an architecture other than "gpt_neox" and "llama".
    """
    sizes: dict[str, Any] = dict(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        max_position_embeddings=config.context,
        initializer_range=INITIALIZER_RANGE,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.architecture == "gpt_neox":
            # Pythia rotates a quarter of each head; a head of 32 dimensions needs them all
            rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}
            return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, rope_parameters=rope))
        if config.architecture == "llama":
            return LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=config.n_heads))
    raise ValueError(f"architecture must be gpt_neox or llama, got {config.architecture!r}")


def train_language_model(
    config: EmbeddedConfig,
    rows: Any,
    heldout_rows: Any,
    tokenizer: PreTrainedTokenizerFast,
    out_dir: str | Path,
    seed: int,
    key: str,
    progress: bool = True,
) -> pd.DataFrame:
    """Train a language model from scratch on packed rows and save it as a Hugging Face folder.

    Rows are drawn epoch by epoch without replacement; the learning rate rises linearly over
    `warmup_steps` and falls linearly to 0. A run that was stopped goes on from its last checkpoint,
    `<out_dir>.partial`, and ends with the same bytes as one that was not (same machine, same number
    of threads).

    Args:
        config: architecture, sizes, steps, batch_rows, lr, warmup_steps, weight_decay.
        rows: int [R, T], each row starting with BOS; T <= config.context.
        heldout_rows: int [H, T], never trained on.
        tokenizer: of at most config.vocab_size tokens.
        out_dir: the folder, which appears when training is complete.
        seed: of the initial weights and the order of the rows.
        key: hash of all that the training depends on; a checkpoint of another key is not used.
        progress: show a bar with tokens per second and the cross-entropy of the last batch.

    Returns:
        also saved as training.csv: step; tokens seen; train_ce, the mean over the steps since the
        row before; and heldout_ce, NaN where it was not measured. Nats per token, over every token
        but the first of each row.

    Raises:
        ValueError: rows that are empty, too long, or hold ids outside the vocabulary.
    """
    rows = _as_rows(rows, config, "rows")
    heldout_rows = _as_rows(heldout_rows, config, "heldout_rows")
    model = initialise(config, seed).train()
    both = optimisers(model, config)
    order = _order(len(rows), config, seed)
    checkpoint = Checkpoint(Path(f"{out_dir}.partial"), key)
    step, log, losses = _resume(checkpoint, model, both)
    log_every, evaluate_every, save_every = (
        max(config.steps // n, 1) for n in (LOGS, EVALUATIONS, CHECKPOINTS)
    )
    tokens = config.batch_rows * rows.shape[1]
    with tqdm(
        total=config.steps * tokens,
        initial=step * tokens,
        unit="tok",
        unit_scale=True,
        disable=not progress,
        desc=f"training {config.architecture}",
        mininterval=1,
    ) as bar:
        while step < config.steps:
            fraction = min(
                (step + 1) / config.warmup_steps,
                (config.steps - step) / (config.steps - config.warmup_steps),
                1,
            )
            losses.append(_step(model, both, rows[order[step]], fraction))
            step += 1
            bar.update(tokens)
            bar.set_postfix(ce=f"{losses[-1]:.2f}", refresh=False)
            last = step == config.steps
            evaluated = last or step % evaluate_every == 0
            if evaluated or step % log_every == 0:
                heldout = math.nan
                if evaluated:
                    heldout = evaluate(model, heldout_rows, config.batch_rows)
                log.append([step, step * tokens, float(np.mean(losses)), heldout])
                losses = []
            if not last and step % save_every == 0:
                checkpoint.save(step, _state(model, both), {"log": log, "losses": losses})
    log = pd.DataFrame(log, columns=["step", "tokens", "train_ce", "heldout_ce"])
    with atomic_path(out_dir) as folder:
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        log.to_csv(folder / "training.csv", index=False, lineterminator="\n")
    checkpoint.remove()
    return log


@torch.no_grad()
def evaluate(model: PreTrainedModel, rows: torch.Tensor, batch_rows: int) -> float:
    """Mean cross-entropy in nats per token of every token but the first of each row.

    Args:
        model: a causal LM.
        rows: int64 [R, T].
        batch_rows: in a forward pass.
    """
    return sum(
        cross_entropy(model, batch).item() * len(batch) for batch in rows.split(batch_rows)
    ) / len(rows)


def cross_entropy(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Mean over every token but the first of each row of a batch, int64 [B, T]; with gradient."""
    # a label for the last position too, which is ignored: slicing the logits would copy them
    # forward and backward
    labels = F.pad(rows[:, 1:], (0, 1), value=-100)
    return F.cross_entropy(
        model(input_ids=rows, use_cache=False).logits.flatten(0, 1),
        labels.flatten(),
        ignore_index=-100,
    )


def language_model_training_bytes(config: EmbeddedConfig, shape: Shape) -> int:
    """Memory of the training: weights, gradients, two moments and what Muon computes of them; of
    each token in a batch the activations of all layers (16 D + 4 d_mlp numbers each) and five times
    its logits; the corpus as text, and counts of five-grams (250 bytes a token).
    """
    tokens = config.batch_rows * config.context
    activations = (
        tokens * 4 * (shape.layers * (16 * shape.d_model + 4 * shape.d_mlp) + 5 * shape.vocab_size)
    )
    return 6 * 4 * shape.parameters + activations + 250 * config.train_tokens


def _step(model, both, batch, fraction):
    """One optimiser step at a fraction of the learning rates; returns the loss before it."""
    loss = cross_entropy(model, batch)
    loss.backward()
    for optimiser in both:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * fraction
        optimiser.step()
        optimiser.zero_grad()
    return loss.item()


def _as_rows(rows, config, name):
    rows = torch.as_tensor(np.asarray(rows), dtype=torch.int64)
    if rows.ndim != 2 or len(rows) == 0 or not 2 <= rows.shape[1] <= config.context:
        raise ValueError(
            f"{name} must have shape [R, T], R >= 1, 2 <= T <= context = {config.context}, got "
            f"{list(rows.shape)}"
        )
    if rows.min() < 0 or rows.max() >= config.vocab_size:
        raise ValueError(
            f"{name} must hold ids in 0..{config.vocab_size - 1}, got {rows.min()}..{rows.max()}"
        )
    return rows


def _order(n_rows, config, seed):
    """The rows of every step, int64 [steps, batch_rows]: fixed beforehand, so that a resumed run
    needs no random state.
    """
    generator = torch.Generator().manual_seed(seed)
    wanted = config.steps * config.batch_rows
    epochs = [
        torch.randperm(n_rows, generator=generator) for _ in range(math.ceil(wanted / n_rows))
    ]
    return torch.cat(epochs)[:wanted].view(config.steps, config.batch_rows)


# --- optimiser ------------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised (Jordan et al. 2024).

    `torch.optim.Muon` computes the same in bfloat16, which is slow on a CPU without instructions
    for it and differs between those with and without; here it is float32, and matrices of one shape
    are orthogonalised together.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ):
        super().__init__(parameters, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every matrix along its orthogonalised momentum."""
        for group in self.param_groups:
            shapes = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for shape, weights in shapes.items():
                gradients = torch.stack([weight.grad for weight in weights])
                # one buffer for all matrices of a shape, kept with the first of them
                buffer = self.state[weights[0]].setdefault("momentum", torch.zeros_like(gradients))
                buffer.lerp_(gradients, 1 - group["momentum"])
                updates = orthogonalise(gradients.lerp(buffer, group["momentum"]))
                scale = math.sqrt(max(1, shape[0] / shape[1]))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(
                        update, alpha=group["lr"] * scale
                    )


def orthogonalise(x: torch.Tensor) -> torch.Tensor:
    """Move the singular values of each matrix in [N, m, n] to about 1 with five Newton-Schulz steps
    (Jordan et al. 2024).
    """
    wide = x.mT if x.shape[1] > x.shape[2] else x
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide.mT if x.shape[1] > x.shape[2] else wide


def optimisers(model: Any, config: EmbeddedConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for all else. Each group keeps its largest
    learning rate as `initial_lr`.
    """
    hidden = [weight for weight in model.base_model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in hidden}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    both = [
        Muon(hidden, config.lr, config.weight_decay),
        torch.optim.AdamW(
            others, config.lr * ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]
    for optimiser in both:
        for group in optimiser.param_groups:
            group["initial_lr"] = group["lr"]
    return both


# --- checkpoints ----------------------------------------------------------------------------------


def _state(model, both):
    """All tensors of a training, by name; learning rates follow from the step."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for number, optimiser in enumerate(both):
        for weight, state in optimiser.state_dict()["state"].items():
            tensors |= {f"{number}.{weight}.{name}": tensor for name, tensor in state.items()}
    return tensors


def _resume(checkpoint, model, both):
    """Go on from a checkpoint, if there is one; (step, log, losses since the last log row)."""
    saved = checkpoint.load()
    if saved is None:
        return 0, [], []
    step, tensors, numbers = saved
    weights = {}
    states = [{}, {}]
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "model":
            weights[rest] = tensor
        else:
            weight, _, name = rest.partition(".")
            states[int(part)].setdefault(int(weight), {})[name] = tensor
    model.load_state_dict(weights)
    for optimiser, state in zip(both, states, strict=True):
        optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
    return step, numbers["log"], numbers["losses"]
