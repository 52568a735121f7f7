"""The decoder on the active latents alone, and its gradients.

    x_hat[t] = sum_j values[t, j] W_dec[indices[t, j]]
    dL/dvalues[t, j] = dL/dx_hat[t] . W_dec[indices[t, j]]
            where values[t, j] > 0, else 0 (the ReLU before it)
    dL/dW_dec = latent_sums(values, dL/dx_hat)

k rows of W_dec are read per token, instead of all F, and no dense latents [B, F] are made. B
tokens, K latents per token.
"""

import torch

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
from faithful_sae.kernels.latent_sums import by_latent, latent_sums


def reference(values, indices, w_dec):
    return (values[..., None] * w_dec[indices]).sum(1)


def reference_values_gradient(to_x_hat, values, indices, w_dec):
    return torch.where(values > 0, (to_x_hat[:, None] * w_dec[indices]).sum(-1), 0)


@loop
def _loop(first, last, values, indices, w_dec, x_hat):
    for t in range(first, last):
        x_hat[t] = 0
        add_rows(x_hat[t], values[t], w_dec, indices[t])


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


def by_triton(values, indices, w_dec):
    (n_tokens, k), n_dims = values.shape, w_dec.shape[1]
    x_hat = w_dec.new_empty(n_tokens, n_dims)
    block = min(1024, triton.next_power_of_2(n_dims))
    _kernel[(n_tokens, triton.cdiv(n_dims, block))](values, indices, w_dec, x_hat, n_dims, k, block)
    return x_hat


def by_triton_values_gradient(to_x_hat, values, indices, w_dec):
    (n_tokens, k), n_dims, out = values.shape, w_dec.shape[1], torch.empty_like(values)
    _kernel_values_gradient[(n_tokens,)](
        to_x_hat, values, indices, w_dec, out, n_dims, k, triton.next_power_of_2(n_dims)
    )
    return out


def decode(values, indices, w_dec):
    """x_hat without autograd, by whatever suits the device."""
    if on_triton(values):
        return by_triton(values, indices, w_dec)
    if not compiled(values, indices, w_dec):
        return reference(values, indices, w_dec)
    x_hat = torch.empty(len(values), w_dec.shape[1])
    over_rows(_loop, len(values), values, indices, w_dec, x_hat)
    return x_hat


def values_gradient(to_x_hat, values, indices, w_dec):
    """dL/dvalues without autograd, by whatever suits the device."""
    if on_triton(values):
        return by_triton_values_gradient(to_x_hat, values, indices, w_dec)
    if not compiled(to_x_hat, values, indices, w_dec):
        return reference_values_gradient(to_x_hat, values, indices, w_dec)
    out = torch.empty_like(values)
    over_rows(_loop_values_gradient, len(values), to_x_hat, values, indices, w_dec, out)
    return out


class _SparseDecode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, indices, w_dec):
        ctx.save_for_backward(values, indices, w_dec)
        return decode(values, indices, w_dec)

    @staticmethod
    def backward(ctx, to_x_hat):
        values, indices, w_dec = ctx.saved_tensors
        to_x_hat = to_x_hat.contiguous()
        to_w_dec = (
            latent_sums(values, *by_latent(values, indices, len(w_dec)), to_x_hat)
            if ctx.needs_input_grad[2]
            else None
        )
        to_values = (
            values_gradient(to_x_hat, values, indices, w_dec) if ctx.needs_input_grad[0] else None
        )
        return to_values, None, to_w_dec


def sparse_decode(values, indices, w_dec):
    """x_hat [B, D] of the equation above, with gradients for `values` and `w_dec`.

    Args:
        values: [B, K], at least 0. indices: int64 [B, K], of latents; where the value is 0 any
            latent will do. w_dec: [F, D].
    """
    return _SparseDecode.apply(values.contiguous(), indices.contiguous(), w_dec.contiguous())
