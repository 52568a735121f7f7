"""One file from which a killed training goes on as if nothing had happened: tensors and numbers,
replaced atomically.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from faithful_sae.files import atomic_path, remove


class Checkpoint:
    """The file, and when it is to be saved again.

    Args:
        path: of the file.
        key: hash of all the training depends on; a file with another key is not used.
        every: least seconds between two savings. A saving that takes long makes the next wait 20
            times as long.
    """

    def __init__(self, path: Path | str, key: str, every: float = 60.0) -> None:
        self.path = Path(path)
        self.key = key
        self.every = every
        self.next = time.monotonic() + every
        self.step: int | None = None

    @property
    def due(self) -> bool:
        """Whether it is time to save again."""
        return time.monotonic() >= self.next

    def save(self, step: int, tensors: Mapping[str, Tensor], numbers: Any) -> None:
        """Replace the file.

        Args:
            step: how many are done.
            tensors: of any device, by name.
            numbers: whatever JSON can hold, floats to the last bit.

        Raises:
            DiskFullError: the file saved before is kept.
        """
        start = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as tmp:
            kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            about = {"key": self.key, "step": str(step), "numbers": json.dumps(numbers)}
            save_file(kept, tmp, about | {"sha256": checksum(kept, about)})
        end = time.monotonic()
        self.next = end + max(self.every, 20 * (end - start))
        self.step = step

    def load(self) -> tuple[int, dict[str, Tensor], Any] | None:
        """(step, tensors, numbers) as saved, or None: nothing there, damaged, or of another
        training.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self.key:
                    return None
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
            written = about.pop("sha256")
            step = int(about["step"])
            numbers = json.loads(about["numbers"])
            if checksum(tensors, about) == written:
                self.step = step
                return step, tensors, numbers
        except (SafetensorError, OSError, KeyError, ValueError):
            pass
        print(f"note: {self.path} is damaged: training starts again")
        return None

    def remove(self) -> None:
        """The training is done and saved elsewhere."""
        remove(self.path)

    def __str__(self) -> str:
        if self.step is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.path}, step {self.step}"


def checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> str:
    """SHA-256 of contiguous tensors on the CPU, with their names, and of `about`."""
    total = hashlib.sha256(json.dumps([sorted(tensors), about], sort_keys=True).encode())
    for name in sorted(tensors):
        total.update(tensors[name].view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
