"""What the readers of all formats share: opening a folder's two files, asking for tensors, and
folding flags into weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


class SAEError(ValueError):
    """A folder does not hold a usable SAE; the message names file and reason."""


@dataclass(eq=False, repr=False)
class Parts:
    """What TopKSAE is made of (see there). A reader, or a training, fills this in, then folds in
    what its format or variant does differently.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    router: Tensor | None = None
    b_router: Tensor | None = None
    normalisation: str = "none"
    firing: Tensor | None = None
    metadata: dict = field(default_factory=dict)

    def above(self, threshold: float | Tensor) -> None:
        """Keep the latents above a number, or each above its own, [F]."""
        self.k = None
        above = torch.as_tensor(threshold, dtype=torch.float32, device=self.W_dec.device)
        self.threshold = above.expand(len(self.W_dec)).contiguous()

    def uncentre(self) -> None:
        """For an encoder that sees x, not x - b_dec: x W + b = (x - b_dec) W + (b + b_dec W)."""
        self.b_enc = self.b_enc + self.b_dec @ self.W_enc

    def to_unit_decoder(self) -> None:
        """For latents in units of their decoder row's norm: |W_dec| moves to the encoder."""
        norm = self.W_dec.norm(dim=-1).clamp(min=1e-8)
        self.W_enc = self.W_enc * norm
        self.b_enc = self.b_enc * norm
        if self.threshold is not None:
            self.threshold = self.threshold * norm
        self.W_dec = self.W_dec / norm[:, None]

    def gate(self, r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> None:
        """Gated: ReLU(e^r u + b_mag) where u + b_gate > 0, with u = (x - b_dec) W: where e^r u +
        b_mag > b_mag - e^r b_gate.
        """
        self.W_enc = self.W_enc * r_mag.exp()
        self.b_enc = b_mag
        self.above(b_mag - r_mag.exp() * b_gate)


class Source:
    """The configuration and the tensors of an SAE folder.

    Raises:
        SAEError: a file is missing, truncated, not what its name says, or (pickled) holds anything
            but tensors and plain values; no code in it is ever run.
    """

    def __init__(self, folder: Path, config: str | None, weights: str) -> None:
        self.folder = folder
        self.file = folder / weights
        # without one, sizes are those of W_enc
        self.config_file = folder / (config or weights)
        self.config = read_json(self.config_file) if config else {}
        self.sizes = config or "W_enc"

    @cached_property
    def tensors(self) -> dict:
        """{name: tensor}, read when first asked for: what the configuration forbids is refused
        before.
        """
        return read_tensors(self.file)

    def __getitem__(self, key: str) -> Any:
        """A key of the configuration that must be there."""
        if key not in self.config:
            raise SAEError(f"{self.config_file}: key {key} is missing")
        return self.config[key]

    def section(self, key: str) -> dict:
        """A mapping inside the configuration, empty if it is not there."""
        values = self.config.get(key)
        if values is not None and not isinstance(values, dict):
            raise SAEError(
                f"{self.config_file}: {key} holds a {type(values).__name__}, not a mapping"
            )
        return values or {}

    def refuse(self, reason: str) -> SAEError:
        """SAEError for something that the configuration says and TopKSAE cannot represent."""
        return SAEError(f"{self.config_file}: {reason}")

    def count(self, name: str, value: Any, most: tuple[str, int] | None = None) -> int:
        """`value` as a whole number from 1 to `most` = (name, number)."""
        if type(value) is not int or value < 1 or (most and value > most[1]):
            limit = "be a whole number above 0"
            if most:
                limit = f"lie between 1 and {most[0]} = {most[1]}"
            raise SAEError(f"{self.config_file}: {name} = {value!r} must {limit}")
        return value

    def take(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """{name: float32 tensor} for {name: shape}, in that order.

        Raises:
            SAEError: one is missing, of another shape, or not finite.
        """
        for name, shape in shapes.items():
            tensor = self.tensors.get(name)
            if not isinstance(tensor, Tensor):
                raise SAEError(f"{self.file}: tensor {name} is missing")
            if tensor.shape != shape:
                turned = ", transposed" if tensor.shape == shape[::-1] else ""
                raise SAEError(
                    f"{self.file}: {name} is {list(tensor.shape)}{turned}; by {self.sizes} it is "
                    f"{list(shape)}"
                )
            if not tensor.isfinite().all():
                raise SAEError(f"{self.file}: {name} holds NaN or infinity")
        return {name: self.tensors[name].float() for name in shapes}


def read_json(path: Path) -> dict:
    """A JSON file that holds a mapping."""
    if not path.is_file():
        raise SAEError(f"{path} is missing: this is not a finished SAE folder")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SAEError(f"{path}: truncated or not JSON ({error})") from None
    if not isinstance(values, dict):
        raise SAEError(
            f"{path}: not an SAE's configuration: it holds a {type(values).__name__}, not a mapping"
        )
    return values


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file takes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def own_way(parts: Parts) -> str | None:
    """What an SAE does that only its own layout has a place for, to say why it is refused."""
    if parts.router is not None:
        return "has experts"
    if parts.normalisation != "none":
        return f"normalises its input ({parts.normalisation})"
    return None


def read_tensors(path: Path) -> dict:
    """{name: tensor} of a safetensors, NumPy (.npz) or pickled file, on the CPU."""
    if not path.is_file():
        raise SAEError(f"{path} is missing: this is not a finished SAE folder")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise SAEError(
                f"{path}: truncated or not a safetensors file ({error}): delete it and train or "
                "fetch it again"
            ) from None
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays}
        values = torch.load(path, map_location="cpu", weights_only=True)
    # of many types, depending on which byte is wrong
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:100]
        raise SAEError(
            f"{path}: not opened, since it is damaged or holds more than tensors, which could run "
            f"code ({reason}): fetch it again, or ask its author for the tensors alone"
        ) from None
    if not isinstance(values, dict):
        raise SAEError(f"{path}: holds a {type(values).__name__}, not tensors by name")
    return values
