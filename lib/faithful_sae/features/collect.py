"""One pass over the token rows of a corpus: the language model, the SAE, and what
kernels/latent_statistics.py keeps of every latent.

Memory: F x (N + S m) windows of left + 1 + right float32 (N top contexts, S strata of m samples)
and F x M token counters, however long the corpus. M is the vocabulary where that fits in
EXACT_BYTES, and TOKEN_COUNTERS otherwise. A killed pass goes on from its checkpoint, to the same
bytes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from faithful_sae.features.index import FeatureError
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.kernels import latent_statistics
from faithful_sae.lm.model import LanguageModel
from faithful_sae.sae.activations import as_ids
from faithful_sae.sae.sae import TopKSAE

# An exact count of every token for every latent, int64, may take this much. It is what GPT-2's
# weights take in float32, so a machine that holds a language model holds it too, three times even,
# as while a checkpoint is written: 64 million counts, which is 4,096 latents of 16,384 tokens or
# 1,024 of 65,536. GPT-2's 12,288 latents of 50,257 tokens would take 5 GB, more than all else in
# the notebook.
EXACT_BYTES = 2**29
# M where that is not enough: a count is too low by at most 1/65 of the latent's firings
TOKEN_COUNTERS = 64


@dataclass(frozen=True)
class Kept:
    """What a pass keeps of each latent.

    Attributes:
        top: contexts with the largest activations.
        samples: contexts sampled from each level of activation.
        strata: levels of activation.
        left, right: tokens shown before and after the peak.
        seed: of the sample.
    """

    top: int = 16
    samples: int = 4
    strata: int = 4
    left: int = 24
    right: int = 8
    seed: int = 0


def exact_counts(d_sae: int, vocab_size: int) -> bool:
    """Whether a pass counts every token of every latent (EXACT_BYTES), or has TOKEN_COUNTERS."""
    return 8 * d_sae * vocab_size <= EXACT_BYTES


def collect(
    lm: LanguageModel,
    sae: TopKSAE,
    rows: np.ndarray,
    kept: Kept,
    include_bos: bool = False,
    batch_rows: int = 32,
    checkpoint: Checkpoint | None = None,
    description: str = "features",
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Go through the rows once.

    Args:
        rows: int [R, T] token rows, an array or memory map.
        kept: what is kept of each latent.
        include_bos: whether BOS positions are counted as tokens; what latents do there is left out
            otherwise.
        batch_rows: in a forward pass.
        checkpoint: None: a killed pass starts again.
        description: of the bar.

    Returns:
        (state, token_counts): latent_statistics' state, and how often each token was counted, int64
            [vocab_size].

    Raises:
        FeatureError: no rows, nothing but BOS in them, or an SAE of another width than the model.
    """
    if sae.d_model != lm.d_model:
        raise FeatureError(
            f"the SAE takes activations of width {sae.d_model}, but the model's are {lm.d_model} "
            "wide"
        )
    if len(rows) == 0:
        raise FeatureError("no token rows to index: the corpus is empty")
    vocab_size = lm.model.config.vocab_size
    exact = exact_counts(sae.d_sae, vocab_size)
    state = latent_statistics.empty(
        sae.d_sae,
        top=kept.top,
        strata=kept.strata,
        samples=kept.samples,
        window=kept.left + 1 + kept.right,
        tokens=vocab_size if exact else TOKEN_COUNTERS,
        exact=exact,
    )
    state["tokens"] = np.zeros(vocab_size, np.int64)
    begin = 0
    if checkpoint and (saved := checkpoint.load()):
        begin, tensors, _ = saved
        state = {name: tensor.numpy() for name, tensor in tensors.items()}
    with tqdm(
        total=len(rows) * rows.shape[1],
        initial=begin * rows.shape[1],
        unit="token",
        unit_scale=True,
        desc=description,
    ) as bar:
        for row in range(begin, len(rows), batch_rows):
            ids = as_ids(rows[row : row + batch_rows])
            counted = torch.ones_like(ids, dtype=torch.bool) if include_bos else ids != lm.bos_id
            values, indices = sae.encode_topk(lm.activations(ids).flatten(0, 1))
            values = (values * counted.flatten()[:, None].to(values.device)).cpu()
            latent_statistics.add_rows_of_tokens(
                state, values, indices.cpu(), ids.numpy(), row, kept.left, kept.seed
            )
            state["tokens"] += np.bincount(ids[counted].numpy(), minlength=len(state["tokens"]))
            bar.update(ids.numel())
            if checkpoint and checkpoint.due:
                checkpoint.save(
                    row + len(ids),
                    {name: torch.from_numpy(array) for name, array in state.items()},
                    {},
                )
    if not state["tokens"].any():
        raise FeatureError(
            "the token rows hold nothing but BOS, and BOS is left out (include_bos: false)"
        )
    return state, state.pop("tokens")
