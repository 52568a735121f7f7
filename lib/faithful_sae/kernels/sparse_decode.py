"""The decoder on the active latents alone, and its gradients.

    x_hat[t]          = sum_j values[t, j] W_dec[indices[t, j]]
    dL/dvalues[t, j]  = dL/dx_hat[t] . W_dec[indices[t, j]]   where values[t, j] > 0,
                        0                                     elsewhere (the ReLU before it)
    dL/dW_dec         = latent_sums(values, dL/dx_hat)

k rows of W_dec are read per token, instead of all F, and no dense latents [B, F] are made. B
tokens, K latents per token.
"""

import torch
from torch import Tensor

from faithful_sae.kernels.backend import (
    add_rows,
    compiled,
    dot,
    jit,
    loop,
    on_triton,
    over_rows,
    tl,
    triton,
)


def reference(values: Tensor, indices: Tensor, w_dec: Tensor) -> Tensor:
    return (values[..., None] * w_dec[indices]).sum(1)


def reference_values_gradient(
    to_x_hat: Tensor, values: Tensor, indices: Tensor, w_dec: Tensor
) -> Tensor:
    return torch.where(values > 0, (to_x_hat[:, None] * w_dec[indices]).sum(-1), 0)


@loop
def _loop(first, last, values, indices, w_dec, x_hat):
    for t in range(first, last):
        x_hat[t] = 0
        used = values.shape[1]
        # whole fours that are empty, at the end, add nothing
        while used >= 4 and not values[t, used - 4 : used].any():
            used -= 4
        add_rows(x_hat[t], values[t, :used], w_dec, indices[t, :used])


@loop
def _loop_values_gradient(first, last, to_x_hat, values, indices, w_dec, out):
    for t in range(first, last):
        for j in range(values.shape[1]):
            out[t, j] = dot(to_x_hat[t], w_dec[indices[t, j]]) if values[t, j] > 0 else 0


@jit
def _kernel(values, indices, w_dec, x_hat, D, K, BLOCK_D: tl.constexpr):
    """One program decodes one token, over one block of dimensions, in float32."""
    t = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    for j in range(K):
        value = tl.load(values + t * K + j).to(tl.float32)
        if value != 0:
            latent = tl.load(indices + t * K + j)
            total += value * tl.load(w_dec + latent * D + d, mask=d < D, other=0).to(tl.float32)
    tl.store(x_hat + t * D + d, total.to(x_hat.dtype.element_ty), mask=d < D)


@jit
def _kernel_values_gradient(to_x_hat, values, indices, w_dec, out, D, K, BLOCK_D: tl.constexpr):
    """One program holds one token's gradient and takes its product with each active row; D fits in
    one block.
    """
    t = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    gradient = tl.load(to_x_hat + t * D + d, mask=d < D, other=0).to(tl.float32)
    for j in range(K):
        product = 0.0
        if tl.load(values + t * K + j).to(tl.float32) > 0:
            latent = tl.load(indices + t * K + j)
            product = tl.sum(
                gradient * tl.load(w_dec + latent * D + d, mask=d < D, other=0).to(tl.float32)
            )
        tl.store(out + t * K + j, product)


def by_triton(values: Tensor, indices: Tensor, w_dec: Tensor) -> Tensor:
    n_tokens, k = values.shape
    n_dims = w_dec.shape[1]
    x_hat = w_dec.new_empty(n_tokens, n_dims)
    block = min(1024, triton.next_power_of_2(n_dims))
    _kernel[(n_tokens, triton.cdiv(n_dims, block))](values, indices, w_dec, x_hat, n_dims, k, block)
    return x_hat


def by_triton_values_gradient(
    to_x_hat: Tensor, values: Tensor, indices: Tensor, w_dec: Tensor
) -> Tensor:
    n_tokens, k = values.shape
    n_dims = w_dec.shape[1]
    out = torch.empty_like(values)
    _kernel_values_gradient[(n_tokens,)](
        to_x_hat, values, indices, w_dec, out, n_dims, k, triton.next_power_of_2(n_dims)
    )
    return out


def decode(values: Tensor, indices: Tensor, w_dec: Tensor) -> Tensor:
    """x_hat [B, D] of the equation above, by whatever suits the device; without autograd.

    Args:
        values: [B, K], at least 0, contiguous.
        indices: int64 [B, K], contiguous; where the value is 0 any latent will do.
        w_dec: [F, D], contiguous.
    """
    if on_triton(values):
        return by_triton(values, indices, w_dec)
    if not compiled(values, indices, w_dec):
        return reference(values, indices, w_dec)
    x_hat = torch.empty(len(values), w_dec.shape[1])
    over_rows(_loop, len(values), values, indices, w_dec, x_hat)
    return x_hat


def values_gradient(to_x_hat: Tensor, values: Tensor, indices: Tensor, w_dec: Tensor) -> Tensor:
    """dL/dvalues [B, K] from dL/dx_hat [B, D] and what `decode` was given."""
    if on_triton(values):
        return by_triton_values_gradient(to_x_hat, values, indices, w_dec)
    if not compiled(to_x_hat, values, indices, w_dec):
        return reference_values_gradient(to_x_hat, values, indices, w_dec)
    out = torch.empty_like(values)
    over_rows(_loop_values_gradient, len(values), to_x_hat, values, indices, w_dec, out)
    return out
