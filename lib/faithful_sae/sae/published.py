"""SAEs that are read instead of trained: which files they have, whether they are the ones that were
asked for, and how they do on a text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from faithful_sae.files import file_hash
from faithful_sae.kernels.firing_counts import firing_counts
from faithful_sae.lm.architectures import Hook
from faithful_sae.sae.activations import (
    SAMPLE,
    moderate,
    moderate_limit,
    rows_in_batches,
    token_activations,
)
from faithful_sae.sae.formats import READERS
from faithful_sae.sae.formats.hooks import check_hook
from faithful_sae.sae.sae import SAEError, TopKSAE, load_sae

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

# all that the readers of formats/ open; a run of sparsify has its config.json one or two folders up
FILES = (
    *READERS,
    "cfg.json",
    "config.json",
    "sparsity.safetensors",
    "activation_scaler.json",
    "../config.json",
    "../../config.json",
)


def source_hashes(folder: Path) -> dict[str, str]:
    """{name: hash} of the files an SAE is read from."""
    return {
        name: file_hash(folder / name)
        for name in FILES
        if "/" not in name and (folder / name).is_file()
    }


def weights_hash(folder: Path) -> str:
    """Hash of the file that holds an SAE's weights."""
    return next(file_hash(folder / file) for file in READERS if (folder / file).is_file())


def load_fitting(
    folder: Path,
    model: str,
    layer: int,
    sizes: dict[str, int],
    width: int | None,
    source: Path,
    hook: Hook = "residual",
    module: str | None = None,
) -> TopKSAE:
    """Read a published SAE, converted to float32 and to what sae.py computes.

    Args:
        model: that it is to be used with, as in check_hook; so are layer, hook and
            module.
        sizes: d_sae and k it must have; one with a threshold has no k.
        width: the model's d_model, if it is known already.
        source: the file that says so, for the message.

    Raises:
        SAEError: as load_sae and check_hook; another width, d_sae or k.
    """
    sae = load_sae(folder)
    check_hook(sae, model, layer, folder, hook, module)
    if width not in (None, sae.d_model):
        raise SAEError(
            f"{folder}: takes activations of width {sae.d_model}, but those of {model} are "
            f"{width} wide"
        )
    for key, wanted in sizes.items():
        found = getattr(sae, key)
        if found not in (None, wanted):
            raise SAEError(
                f"{folder}: has {key} = {found}, but {source} says sae.{key} = {wanted}: write "
                f"{found} there, or take another SAE"
            )
    return sae


@torch.no_grad()
def measure(
    saes: Sequence[TopKSAE],
    lm: "LanguageModel",
    rows: np.ndarray,
    n_tokens: int,
    include_bos: bool,
    batch_rows: int,
    batch_tokens: int,
    max_norm: float | None = None,
) -> list[dict]:
    """What training would have logged at its end, of SAEs that were trained elsewhere.

    Args:
        saes: on the model's device.
        rows: int [R, T].
        n_tokens: how many tokens of the rows are measured on, from the first on.
        include_bos: whether BOS is among them.
        batch_rows: rows per forward pass.
        batch_tokens: encoded at once.
        max_norm: activations of a norm above so many times the median are left out, as in training
            (sae/activations.py). The median is that of the first ones.

    Returns:
        per SAE a dict: fvu (sum |x - x_hat|^2 / sum |x - mean x|^2 over all tokens, in float64), l0
        (latents above 0 per token), dead (latents that never fired), tokens, and firing, float32
        [F], the share of tokens each latent fired on.

    Raises:
        ValueError: nothing but BOS in the rows, and BOS left out.
    """
    tokens = read = 0
    limit = moderate_limit(lm, rows, include_bos, batch_rows, max_norm, SAMPLE)
    total = torch.zeros(lm.d_model, dtype=torch.float64, device=lm.device)
    squares = 0.0
    errors = [0.0] * len(saes)
    counts = [torch.zeros(sae.d_sae, dtype=torch.int64) for sae in saes]
    for ids in rows_in_batches(rows, batch_rows):
        if read >= n_tokens:
            break
        activations = token_activations(lm, ids, include_bos)[: n_tokens - read]
        read += len(activations)
        for x in moderate(activations, limit).split(batch_tokens):
            tokens = tokens + len(x)
            total = total + x.double().sum(0)
            squares = squares + x.double().pow(2).sum().item()
            for i, sae in enumerate(saes):
                errors[i] += (x - sae.reconstruct(x)).double().pow(2).sum().item()
                values, indices = sae.encode_topk(x)
                counts[i] += firing_counts(values, indices, sae.d_sae).cpu()
    if not tokens:
        raise ValueError(
            "the token rows hold nothing but BOS, and BOS is left out (include_bos: false)"
        )
    variance = squares - total.pow(2).sum().item() / tokens
    return [
        {
            "fvu": error / variance,
            "l0": count.sum().item() / tokens,
            "dead": int((count == 0).sum()),
            "tokens": tokens,
            "firing": count.float() / tokens,
        }
        for error, count in zip(errors, counts, strict=True)
    ]
