"""Text that the model writes after given texts, each document after one of its own, where
`sampling.sample` writes all documents after the same.
"""

import numpy as np
import torch

from faithful_sae.lm.decoding import open_decoder
from faithful_sae.lm.model import LanguageModel
from faithful_sae.lm.sampling import draw_tokens, end_ids, next_token_probabilities


@torch.inference_mode()
def continue_each(
    lm: LanguageModel,
    starts: np.ndarray,
    max_new_tokens: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[np.ndarray]:
    """Sample a document after each of some starts, side by side (ours).

    Args:
        lm: to sample from.
        starts: ids int [B, S], at least one each, which stand before the documents and are no part
            of them.
        max_new_tokens: a document ends here, or where the model samples one of end_ids (kept as its
            last id).
        generator: on the model's device; the only source of randomness.
        temperature: divides the logits.
        top_p: sample from the smallest set of tokens with this probability mass.

    Returns:
        B int32 arrays, the ids after each start.
    """
    rows, given = starts.shape
    ends = [*end_ids(lm.tokenizer, ())]
    text = np.concatenate([starts, np.empty((rows, max_new_tokens), starts.dtype)], axis=1)
    lengths = np.full(rows, max_new_tokens)
    slots = np.arange(rows)
    with open_decoder(lm.model, rows, given + max_new_tokens - 1) as decoder:
        for place in range(given + max_new_tokens - 1):
            ids = torch.from_numpy(text[slots, place].astype(np.int64))
            logits = decoder.step(ids, torch.from_numpy(slots))[:, : lm.vocab_size].float()
            if place < given - 1:
                continue
            p = next_token_probabilities(logits, temperature, top_p)
            drawn = draw_tokens(p, generator)[:, 0].cpu().numpy()
            text[slots, place + 1] = drawn
            ended = np.isin(drawn, ends)
            lengths[slots[ended]] = place + 2 - given
            slots = slots[~ended]
            if not len(slots):
                break
    return [
        ids[given : given + length].astype(np.int32)
        for ids, length in zip(text, lengths, strict=True)
    ]
