"""How often each latent fires.

    counts[f] = number of (t, j) with indices[t, j] = f and values[t, j] > above

B tokens, K latents per token, F latents. The counts are integers: the order of additions does not
matter.
"""

import torch
from torch import Tensor

from faithful_sae.kernels.backend import jit, on_triton, tl, triton


def reference(values: Tensor, indices: Tensor, d_sae: int, above: float) -> Tensor:
    return torch.bincount(indices[values > above], minlength=d_sae)


@jit
def _kernel(values, indices, counts, above, N, BLOCK: tl.constexpr):
    """One program adds BLOCK slots to the counts."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    active = (e < N) & (tl.load(values + e, mask=e < N, other=0) > above)
    tl.atomic_add(counts + tl.load(indices + e, mask=e < N, other=0), 1, mask=active)


def by_triton(values: Tensor, indices: Tensor, d_sae: int, above: float) -> Tensor:
    counts = torch.zeros(d_sae, dtype=torch.int32, device=values.device)
    _kernel[(triton.cdiv(values.numel(), 1024),)](
        values.contiguous(), indices.contiguous(), counts, above, values.numel(), 1024
    )
    return counts.long()


def firing_counts(values: Tensor, indices: Tensor, d_sae: int, above: float = 0.0) -> Tensor:
    """counts int64 [F] of the equation above.

    Args:
        values: [B, K].
        indices: int64 [B, K].
        d_sae: F.
        above: an activation counts if it is larger.
    """
    return (by_triton if on_triton(values) else reference)(values, indices, d_sae, above)
