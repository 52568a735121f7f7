"""The features of a text typed in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from faithful_sae.features.index import FeatureError
from faithful_sae.features.vocabulary import display_strings
from faithful_sae.text.packing import text_tokens

# the explorer works without a model, and then need not wait for transformers
if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel
    from faithful_sae.sae.sae import TopKSAE


def text_ids(lm: LanguageModel, text: str, room: int = 0) -> torch.Tensor:
    """int64 [1, T]: BOS and the ids of a text.

    Args:
        room: tokens that must still fit into the model's context behind it.

    Raises:
        FeatureError: an empty text, or one longer than the model's context.
    """
    (ids,) = text_tokens([text], lm.tokenizer)
    if not ids:
        raise FeatureError(f"the text {text!r} has no tokens: type at least one word")
    if 1 + len(ids) + room > lm.context:
        more = f" and {room} more" if room else ""
        raise FeatureError(
            f"the text has {len(ids)} tokens, and with BOS{more} the model's context of "
            f"{lm.context} is exceeded: shorten it"
        )
    return torch.tensor([[lm.bos_id, *ids]])


def features_of_text(lm: LanguageModel, sae: TopKSAE, text: str) -> pd.DataFrame:
    """What fires where in a text: one row per token and active latent, the strongest of a token
    first.

    Returns:
        position (0 is the first token after BOS, on which nothing is counted), token (str), latent,
        activation.

    Raises:
        FeatureError: as text_ids; an SAE of another width than the model.
    """
    if sae.d_model != lm.d_model:
        raise FeatureError(
            f"the SAE takes activations of width {sae.d_model}, but the model's are {lm.d_model} "
            "wide"
        )
    ids = text_ids(lm, text)
    tokens = display_strings(lm.tokenizer, ids[0, 1:].tolist())
    values, latents = (t.cpu().numpy() for t in sae.encode_topk(lm.activations(ids)[0, 1:]))
    positions, slots = np.nonzero(values > 0)
    table = pd.DataFrame(
        {
            "position": positions,
            "token": [tokens[p] for p in positions],
            "latent": latents[positions, slots],
            "activation": values[positions, slots],
        }
    )
    return table.sort_values(
        ["position", "activation", "latent"], ascending=[True, False, True], ignore_index=True
    )
