"""The fake feature ratio (paper 3.5): latents that fire often on text that is no text at all,
uniformly random tokens.

    FFR = 100 x |latents that fire on more than tau of the random tokens| / d_sae

in percent, as in the paper's Table 7.

Tokens that a model never meets in its training have embeddings that hardly moved from where they
began. Where a vocabulary has many, uniform ids measure reactions to these, so that the ratio is
also taken with ids that occur in text alone.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm import tqdm

from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.sae.sae import TopKSAE

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

# the authors' code counts a latent as firing only above this activation; the paper says > 0
AUTHORS_ACTIVATION = 1.0
# rows of random tokens in a forward pass
BATCH_ROWS = 32


def random_batches(
    n_tokens: int,
    sequence_length: int,
    ids: torch.Tensor,
    bos_id: int,
    seed: int,
    batch_rows: int,
) -> Iterator[torch.Tensor]:
    """Yield int64 [<= batch_rows, T]: rows of BOS and ids drawn uniformly from `ids`, n_tokens of
    them in all; the last row may be short.
    """
    generator = torch.Generator().manual_seed(seed)
    width = sequence_length - 1
    full, rest = divmod(n_tokens, width)
    shapes = [(min(batch_rows, full - start), width) for start in range(0, full, batch_rows)]
    if rest:
        shapes.append((1, rest))
    for shape in shapes:
        yield torch.cat(
            [
                torch.full((shape[0], 1), bos_id),
                ids[torch.randint(len(ids), shape, generator=generator)],
            ],
            dim=1,
        )


def firing_frequency(
    saes: Sequence[TopKSAE],
    lm: "LanguageModel",
    n_tokens: int,
    sequence_length: int,
    seed: int = 0,
    activations: Sequence[float] = (0.0,),
    batch_rows: int = BATCH_ROWS,
    ids: ArrayLike | None = None,
) -> list[np.ndarray]:
    """How often every latent of several SAEs fires on random tokens. One pass of the language model
    serves all of them.

    Args:
        saes: S of them, on the model's device.
        n_tokens: random tokens, BOS not counted.
        sequence_length: tokens in a row, BOS counted.
        seed: of the tokens.
        activations: A thresholds; firing means above one.
        batch_rows: rows per forward pass.
        ids: int [N], which tokens are drawn; None: all that the model has.

    Returns:
        S arrays float64 [A, F], fractions 0-1.

    Raises:
        ValueError: n_tokens < 1, sequence_length < 2, no ids.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens = {n_tokens} must be at least 1")
    if sequence_length < 2:
        raise ValueError(f"sequence_length = {sequence_length} must be at least 2: BOS and a token")
    drawn = torch.arange(lm.vocab_size) if ids is None else torch.tensor(np.asarray(ids))
    if not len(drawn):
        raise ValueError("ids is empty: there is no token to draw")
    counts = [torch.zeros(len(activations), sae.d_sae, dtype=torch.int64) for sae in saes]
    with tqdm(total=n_tokens, unit="token", unit_scale=True, desc="random tokens") as bar:
        for batch in random_batches(n_tokens, sequence_length, drawn, lm.bos_id, seed, batch_rows):
            x = lm.activations(batch)[:, 1:].flatten(0, 1)
            for sae, count in zip(saes, counts, strict=True):
                values, indices = sae.encode_topk(x)
                for row, threshold in zip(count, activations, strict=True):
                    row += firing_counts(values, indices, sae.d_sae, threshold).cpu()
            bar.update(len(x))
    return [(count.double() / n_tokens).numpy() for count in counts]


def fake_ratio(frequencies: ArrayLike, tau: float) -> float:
    """FFR in percent from firing frequencies [F] on random tokens: 100 x the share above tau."""
    return 100 * float(np.mean(np.asarray(frequencies) > tau))


def fake_feature_ratio(
    sae: TopKSAE,
    lm: "LanguageModel",
    n_tokens: int = 1_000_000,
    frequency: float = 0.1,
    activation: float = 0.0,
    seed: int = 0,
    sequence_length: int = 128,
) -> float:
    """FFR of one SAE, in percent (paper 3.5: 1M tokens, tau = 0.1).

    Args:
        n_tokens: random tokens, BOS not counted.
        frequency: tau, the share of tokens above which a latent is fake.
        activation: above which it fires; 0 is the paper's, 1.0 the authors' code's.
        seed: of the tokens.
        sequence_length: tokens in a row, BOS counted; fewer if the model takes no more.

    Raises:
        ValueError: as firing_frequency; an SAE of another width than the model.
    """
    (frequencies,) = firing_frequency(
        [sae], lm, n_tokens, min(sequence_length, lm.context), seed, (activation,)
    )
    return fake_ratio(frequencies[0], frequency)
