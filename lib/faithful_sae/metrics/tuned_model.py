"""What SAEs owe to the model they were trained in, and what to the text they were trained on.

A language model (base) becomes another one (tuned), and each writes text. SAEs are trained in each
model m on each text t, so that a number y(m, t) of theirs, as their explained variance in one of
the models, is a table of two by two (Yates 1937, The design and analysis of factorial experiments):

    model        (y(tuned, base) + y(tuned, tuned) - y(base, base) - y(base, tuned)) / 2
    text         (y(base, tuned) + y(tuned, tuned) - y(base, base) - y(tuned, base)) / 2
    interaction  (y(base, base) + y(tuned, tuned) - y(base, tuned) - y(tuned, base)) / 2

Each is a contrast: a sum of the four, whose weights add up to 0. `model` - `text` is
y(tuned, base) - y(base, tuned): which half of the way to the tuned model leads further.

How far the model moved at the hook is how well its new activations x' are explained by the old
ones x of the same tokens, in the place of a reconstruction:

    kept = 1 - sum |x' - x|^2 / sum |x' - mean x'|^2

1: the two are one model there; below 0: the old activation says less than the mean.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from faithful_sae.sae.activations import moderate_limit, rows_in_batches
from faithful_sae.sae.sae import TopKSAE

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

# {(model, text): weight}, of SAEs trained in the one on the other
Contrast = dict[tuple[str, str], float]


def effects(base: str, tuned: str) -> dict[str, Contrast]:
    """{model, text, interaction: its contrast}, by what the two are called."""
    signs = {base: -1, tuned: 1}
    cells = [(model, text) for model in signs for text in signs]
    return {
        "model": {cell: signs[cell[0]] / 2 for cell in cells},
        "text": {cell: signs[cell[1]] / 2 for cell in cells},
        "interaction": {cell: signs[cell[0]] * signs[cell[1]] / 2 for cell in cells},
    }


def kept(
    base: "LanguageModel",
    tuned: "LanguageModel",
    rows: np.ndarray,
    batch_rows: int = 16,
    max_norm: float | None = None,
) -> float:
    """How well the activations of a model are explained by those of the model it was, BOS left out.

    Args:
        base, tuned: of one width, hooked at one place.
        rows: int [R, T], rows that start with BOS.
        batch_rows: rows per forward pass.
        max_norm: activations of the tuned model above so many times their median norm are left out.

    Returns:
        at most 1; NaN where all activations are alike.
    """
    limit = moderate_limit(tuned, rows, False, batch_rows, max_norm)
    sums = torch.zeros(tuned.d_model, dtype=torch.float64)
    squares = moved = 0.0
    count = 0
    for ids in rows_in_batches(rows, batch_rows):
        x = tuned.activations(ids)
        some = (ids.to(x.device) != tuned.bos_id) & (x.norm(dim=-1) <= limit)
        new, old = x[some].double().cpu(), base.activations(ids)[some].double().cpu()
        sums += new.sum(0)
        squares += float(new.square().sum())
        moved += float((new - old).square().sum())
        count += len(new)
    variance = squares - float(sums.square().sum()) / max(count, 1)
    return 1 - moved / variance if variance > 0 else float("nan")


def mean_active(
    saes: Mapping[Any, TopKSAE], lm: "LanguageModel", rows: np.ndarray, batch_rows: int = 16
) -> dict[Any, float]:
    """{name: active latents per token} (L0) of SAEs in a model, BOS left out.

    Args:
        saes: by name, on the model's device.
        rows: int [R, T], rows that start with BOS.
        batch_rows: rows per forward pass.
    """
    totals = dict.fromkeys(saes, 0)
    tokens = 0
    for ids in rows_in_batches(rows, batch_rows):
        x = lm.activations(ids)[ids.to(lm.device) != lm.bos_id]
        tokens += len(x)
        for name, sae in saes.items():
            totals[name] += int((sae.encode_topk(x)[0] != 0).sum())
    return {name: total / tokens for name, total in totals.items()}
