"""The fake feature ratio (paper 3.5): latents that fire often on text that is no text at all,
uniformly random tokens.

FFR = 100 x |latents that fire on more than tau of the random tokens| / d_sae        in percent, as
in the paper's Table 7
"""

import numpy as np
import torch
from tqdm import tqdm

from faithful_sae.kernels.firing_counts import firing_counts

# the authors' code counts a latent as firing only above this activation; the paper says > 0
AUTHORS_ACTIVATION = 1.0


def random_batches(n_tokens, sequence_length, vocab_size, bos_id, seed, batch_rows):
    """Yield int64 [<= batch_rows, T]: rows of BOS and uniformly random ids, n_tokens random ids in
    all; the last row may be short.
    """
    generator = torch.Generator().manual_seed(seed)
    width = sequence_length - 1
    full, rest = divmod(n_tokens, width)
    shapes = [(min(batch_rows, full - start), width) for start in range(0, full, batch_rows)] + [
        (1, rest)
    ] * (rest > 0)
    for shape in shapes:
        yield torch.cat(
            [
                torch.full((shape[0], 1), bos_id),
                torch.randint(vocab_size, shape, generator=generator),
            ],
            dim=1,
        )


def firing_frequency(
    saes, lm, n_tokens, sequence_length, seed=0, activations=(0.0,), batch_rows=32
):
    """How often every latent of several SAEs fires on random tokens. One pass of the language model
    serves all of them.

    Args:
        saes: list of S TopKSAE. n_tokens: random tokens, BOS not counted. activations: A
            thresholds; firing means above one.

    Returns:
        list of S float64 [A, F] arrays, fractions 0-1.

    Raises:
        ValueError: n_tokens < 1.
    """
    if n_tokens < 1:
        raise ValueError(f"n_tokens = {n_tokens} must be at least 1")
    counts = [torch.zeros(len(activations), sae.d_sae, dtype=torch.int64) for sae in saes]
    with tqdm(total=n_tokens, unit="token", unit_scale=True, desc="random tokens") as bar:
        for ids in random_batches(
            n_tokens, sequence_length, lm.vocab_size, lm.bos_id, seed, batch_rows
        ):
            x = lm.activations(ids)[:, 1:].flatten(0, 1)
            for sae, count in zip(saes, counts):
                values, indices = sae.encode_topk(x)
                for row, threshold in zip(count, activations):
                    row += firing_counts(values, indices, sae.d_sae, threshold).cpu()
            bar.update(len(x))
    return [(count.double() / n_tokens).numpy() for count in counts]


def fake_ratio(frequencies, tau) -> float:
    """FFR in percent from firing frequencies [F] on random tokens: the share above tau, times 100."""
    return 100 * float(np.mean(np.asarray(frequencies) > tau))


def fake_feature_ratio(
    sae, lm, n_tokens=1_000_000, frequency=0.1, activation=0.0, seed=0, sequence_length=128
) -> float:
    """FFR of one SAE, in percent (paper 3.5: 1M tokens, tau = 0.1).

    Args:
        frequency: tau, the share of tokens above which a latent is fake. activation: 0 is the
            paper's, 1.0 the authors' code's.
    """
    (frequencies,) = firing_frequency(
        [sae], lm, n_tokens, min(sequence_length, lm.context), seed, (activation,)
    )
    return fake_ratio(frequencies[0], frequency)
