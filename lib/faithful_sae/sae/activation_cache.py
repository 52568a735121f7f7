"""Activations on disk, so that the language model goes over a corpus once, whatever the number of
epochs and of trainings.

One safetensors file for each group of rows of an ActivationStream, with the SHA-256 of its numbers;
files are memory-mapped, and read when they are used. What is not there, or not as it was written,
is computed again. Cost: N x D numbers, of two bytes for a model in bfloat16 or float16, else four;
reading is bound by the disk and the checksum (1 to 2 GB/s), not by the size of the model.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from faithful_sae.files import atomic_path
from faithful_sae.files.checkpoint import checksum

NARROW = (torch.bfloat16, torch.float16)


class ActivationCache:
    """The files of one stream.

    Args:
        folder: another model, layer, corpus or order of rows is another folder.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def read(self, group: int) -> Tensor | None:
        """float32 [N, D] of a group, or None: not there, truncated or changed."""
        try:
            with safe_open(self._file(group), "pt") as file:
                x = file.get_tensor("x")
                written = (file.metadata() or {}).get("sha256")
        except (SafetensorError, OSError):
            return None
        return x.float() if checksum({"x": x}) == written else None

    def write(self, group: int, x: Tensor) -> None:
        """Keep the activations float32 [N, D] of a group.

        Raises:
            DiskFullError: the other groups are kept.
        """
        x = x.detach().cpu()
        kept = {"x": _narrow(x).contiguous()}
        with atomic_path(self._file(group)) as tmp:
            save_file(kept, tmp, {"sha256": checksum(kept)})

    def _file(self, group):
        return self.folder / f"group_{group:06d}.safetensors"


def _narrow(x):
    """The same numbers in two bytes each, if the model computes in them."""
    for dtype in NARROW:
        same = x.to(dtype)
        if torch.equal(same.float(), x):
            return same
    return x


def activations_disk(tokens: int, d_model: int, bytes_per_weight: int) -> int:
    """Bytes of the activations that are kept: tokens x D numbers in the model's dtype."""
    return tokens * d_model * bytes_per_weight
