"""A stand-in for a language model that has read some token rows once, and gives out the same
activations whenever it is asked: for many streams of the same text, in other orders.

R rows, B of them, T tokens, D model.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from faithful_sae.sae.activations import rows_in_batches

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


@dataclass
class Remembered:
    """A language model that knows the activations of some rows: an ActivationStream takes it for
    a model.

    Attributes:
        places: of each row, by the bytes of its ids, in x.
        x: float32 [R, T, D], R T D 4 bytes on the model's device.
    """

    lm: "LanguageModel"
    places: dict[bytes, int]
    x: Tensor

    def __getattr__(self, name: str) -> Any:
        # while it is copied it has no model yet
        if name == "lm":
            raise AttributeError(name)
        return getattr(self.lm, name)

    def activations(self, ids: Tensor) -> Tensor:
        """float32 [B, T, D].

        Raises:
            KeyError: a row that was not read.
        """
        places = [self.places[row.tobytes()] for row in ids.cpu().numpy()]
        return self.x[torch.tensor(places, device=self.x.device)]


def remembered(lm: "LanguageModel", rows: np.ndarray, batch_rows: int) -> Remembered:
    """Read some rows.

    Args:
        rows: int [R, T].
        batch_rows: per forward pass.
    """
    # of rows that are alike one is enough
    places = {row.tobytes(): i for i, row in enumerate(np.asarray(rows, np.int64))}
    batches = rows_in_batches(rows, batch_rows)
    return Remembered(lm, places, torch.cat([lm.activations(ids).float() for ids in batches]))
