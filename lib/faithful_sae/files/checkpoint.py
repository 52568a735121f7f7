"""One file from which a killed training goes on as if nothing had happened: tensors and numbers,
replaced atomically.
"""

import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from faithful_sae.files import atomic_path, remove


class Checkpoint:
    """Args:
    path: of the file. key: hash of all the training depends on; a file with another key is not
    used. every: least seconds between two savings. A saving that takes long makes the next wait 20
    times as long.
    """

    def __init__(self, path, key, every=60.0):
        self.path = Path(path)
        self.key = key
        self.every = every
        self.next = time.monotonic() + every
        self.step = None

    @property
    def due(self):
        """Whether it is time to save again."""
        return time.monotonic() >= self.next

    def save(self, step, tensors, numbers):
        """Replace the file. step: how many are done. tensors: {name: tensor}; numbers: whatever
        JSON can hold, floats to the last bit.

        Raises:
            DiskFullError: the file saved before is kept.
        """
        start = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as tmp:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            about = {"key": self.key, "step": str(step), "numbers": json.dumps(numbers)}
            save_file(tensors, tmp, about | {"sha256": checksum(tensors, about)})
        end = time.monotonic()
        self.next = end + max(self.every, 20 * (end - start))
        self.step = step

    def load(self):
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
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            written = about.pop("sha256")
            step = int(about["step"])
            numbers = json.loads(about["numbers"])
            whole = checksum(tensors, about) == written
        except (SafetensorError, OSError, KeyError, ValueError):
            whole = False
        if not whole:
            print(f"note: {self.path} is damaged: training starts again")
            return None
        self.step = step
        return step, tensors, numbers

    def remove(self):
        """The training is done and saved elsewhere."""
        remove(self.path)

    def __str__(self):
        return (
            f"the last good checkpoint is {self.path}, step {self.step}"
            if self.step is not None
            else "there is no checkpoint yet"
        )


def checksum(tensors, about=None):
    """SHA-256 of a dict of contiguous tensors on the CPU, with their names, and of what is said
    `about` them, {name: text}.
    """
    total = hashlib.sha256(json.dumps([sorted(tensors), about], sort_keys=True).encode())
    for name in sorted(tensors):
        total.update(tensors[name].view(-1).view(torch.uint8).numpy())
    return total.hexdigest()
