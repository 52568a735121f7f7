"""What training and reading of text take, worked out from the parameters: shared by several stages.

Each formula of a stage's `needs` that another stage has as well stands here, once; those that ask
the code of training stand in training_budget.py.
"""

from collections.abc import Sequence
from typing import Any

from faithful_sae.lm.architectures import Shape, forward_bytes
from faithful_sae.runs.schema import Run
from faithful_sae.sae.settings import SETTINGS

# bytes per logit: logits, log p, log q, three terms of KL, in float32; one in the model's own dtype
LOGIT = 26


def train_tokens(run: Run) -> int:
    """Tokens of a corpus that SAEs are trained on, if it has corpus_tokens."""
    return round(run.corpus_tokens * (1 - run.heldout))


def budget(run: Run, tokens: int) -> int:
    """Tokens an SAE is trained on: at most sae.max_epochs passes of a corpus of corpus_tokens."""
    return min(tokens, train_tokens(run) * run.sae.max_epochs)


def tokens_read(run: Run, tokens: int) -> int:
    """Tokens that the language model reads for SAEs of so many: all of them, or each once where
    activations are kept.
    """
    wanted = budget(run, tokens)
    return min(wanted, train_tokens(run)) if run.sae.cache_activations else wanted


def kept_bytes(run: Run, shape: Shape) -> int:
    """Disk for the activations of a corpus that are kept (sae.cache_activations)."""
    from faithful_sae.sae.activation_cache import activations_disk

    if not run.sae.cache_activations:
        return 0
    return activations_disk(train_tokens(run), shape.d_model, shape.bytes_per_weight)


def group_bytes(run: Run, shape: Shape) -> int:
    """A forward pass of the activation stream, float32 results included."""
    s = run.sae
    most = max(s.buffer_tokens, run.sequence_length)
    tokens = min(s.lm_batch_rows * run.sequence_length, most)
    return forward_bytes(shape, tokens) + 4 * tokens * shape.d_model


def context_bytes(run: Run, shape: Shape, variants: Sequence[Any]) -> int:
    """What a step takes beside that of its SAE, where one of some variants (their sections) is
    trained on whole rows: a forward pass, and up to two through the rest of the model, of which
    everything is kept for the derivatives. Beside each there are logits, log p and gradients.
    """
    if not any(SETTINGS[variant.name].in_context for variant in variants):
        return 0
    tokens = run.sae.batch_tokens
    later = shape.layers - run.layer
    blocks = (1 + 2 * later) * forward_bytes(shape, tokens) + 3 * 4 * later * tokens * shape.d_model
    return blocks + 12 * 4 * tokens * shape.vocab_size


def saes_bytes(run: Run, shape: Shape, seeds: tuple[int, ...] | None = None) -> int:
    """All SAEs of a run, or those of some seeds."""
    from faithful_sae.sae.sae import sae_bytes

    return count_saes(run, seeds) * sae_bytes(shape.d_model, run.sae.d_sae)


def count_saes(run: Run, seeds: tuple[int, ...] | None = None) -> int:
    """How many SAEs a run has, one per corpus (or baseline) and seed, or how many of some seeds."""
    return len(run.sae_names) * len(run.sae.seeds if seeds is None else seeds)


def scoring_bytes(run: Run, shape: Shape) -> int:
    """A forward pass of fidelity.batch_rows rows, with all that is computed of their logits.

    These are not there yet while the blocks run, and latents are gone when KL is computed.
    """
    tokens = run.fidelity.batch_rows * run.sequence_length
    return forward_bytes(shape, tokens) + tokens * shape.vocab_size * LOGIT


def random_tokens_bytes(run: Run, shape: Shape) -> int:
    """A forward pass of random tokens, and the latents of one SAE on them."""
    from faithful_sae.metrics.ffr import BATCH_ROWS

    tokens = BATCH_ROWS * run.sequence_length
    return forward_bytes(shape, tokens) + 2 * 4 * tokens * run.sae.d_sae


def reading_bytes(run: Run) -> int:
    """A corpus while it is packed: its ids, joined, then cut into rows."""
    return 3 * 4 * run.corpus_tokens


def saving_bytes(run: Run, state: int) -> int:
    """A checkpoint on its way from a GPU to the disk; from RAM it is written as it stands."""
    return state if run.device == "cuda" else 0
