"""The sparse autoencoder, as it is used: TopK (paper 2.5 and 3.2; Gao et al. 2024).

    z = TopK_k(ReLU((x - b_dec) W_enc + b_enc))        x_hat = z W_dec + b_dec
    rows of W_dec have unit norm

An SAE that others published may differ: it keeps the latents above a threshold instead of the k
largest (BatchTopK as it is used after training, JumpReLU), sees a normalised x, and has rows of
other norms. In a Switch SAE a router says which latents a token may have.

B tokens, D model, F latents, K active ones.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from faithful_sae.sae.formats import dictionary_learning, read_folder, saelens, sparsify
from faithful_sae.sae.formats.source import Parts, SAEError

if TYPE_CHECKING:
    import pandas as pd


class TopKSAE(Parts):
    """Weights and the functions they define; training lives in train.py.

    Attributes:
        W_enc: float32 [D, F].
        b_enc: [F].
        W_dec: [F, D], unit rows.
        b_dec: [D].
        k: active latents per token; None where there is a threshold.
        threshold: float32 [F]: a latent is kept if it is above its own and above 0; None where the
            k largest are kept.
        router: float32 [D, E], and b_router, [D]: each token has the latents of one of E experts
            alone, a block of F / E (see `routed`); None where there are no experts.
        normalisation: of each token before it is encoded, undone in `reconstruct`. "none";
            "layer_norm": less its mean, by its unbiased standard deviation + 1e-5;
            "constant_norm_rescale": to norm sqrt(D).
        firing: float32 [F] or None, share of tokens each latent fired on at the end of training
            (fraction 0-1).
        training_log: rows of train_saes, which alone sets it.
        metadata: saved with it (model, layer, corpus, seed, ...).
    """

    training_log: "pd.DataFrame"

    def __init__(
        self, d_model: int, d_sae: int, k: int | None, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        """W_dec's rows are random directions and W_enc is its transpose, so that a latent starts
        out aligned with itself.

        Args:
            k: None: there is a threshold, of 0 to begin with.

        Raises:
            SAEError: k outside 1 to d_sae.
        """
        if k is not None and not 1 <= k <= d_sae:
            raise SAEError(f"k = {k} must lie between 1 and d_sae = {d_sae}")
        # on the CPU, so that a seed means the same weights everywhere
        generator = torch.Generator().manual_seed(seed)
        directions = F.normalize(torch.randn(d_sae, d_model, generator=generator), dim=-1)
        self.k = k
        self.threshold = None if k else torch.zeros(d_sae, device=device)
        self.router = None
        self.b_router = None
        self.normalisation = "none"
        self.firing = None
        self.metadata = {"seed": seed}
        self.W_dec = directions.to(device)
        self.W_enc = self.W_dec.T.clone(memory_format=torch.contiguous_format)
        self.b_enc = torch.zeros(d_sae, device=device)
        self.b_dec = torch.zeros(d_model, device=device)

    @property
    def d_model(self) -> int:
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_dec.shape[0]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The four parameters by name."""
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that say what it computes, by name."""
        own = ("threshold", "router", "b_router")
        found = {name: getattr(self, name) for name in own if getattr(self, name) is not None}
        return self.weights | found

    @property
    def is_topk(self) -> bool:
        """Whether it keeps the k largest latents of x as it is, and does nothing else."""
        return self.threshold is None and self.router is None and self.normalisation == "none"

    @property
    def is_relu(self) -> bool:
        """Whether it keeps every positive latent: no threshold is above 0."""
        return self.threshold is not None and not bool((self.threshold > 0).any())

    def frame(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the normalisation of each token subtracts and divides by.

        Args:
            x: [.., D].

        Returns:
            (shift, scale), each [.., 1].
        """
        if self.normalisation == "layer_norm":
            return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)
        norm = x.norm(dim=-1, keepdim=True)
        return torch.zeros_like(norm), norm / self.d_model**0.5

    def affine(self, x: Tensor) -> Tensor:
        """(x - b_dec) W_enc + b_enc of the normalised x: [.., D] of any dtype -> [.., F].

        Raises:
            SAEError: x of another width than d_model.
        """
        x = _fitting(x, self.d_model, "activations x", "d_model").to(self.W_enc.dtype)
        if self.normalisation != "none":
            shift, scale = self.frame(x)
            x = (x - shift) / (scale + 1e-5 if self.normalisation == "layer_norm" else scale)
        return (x - self.b_dec) @ self.W_enc + self.b_enc

    def pre_activations(self, x: Tensor) -> Tensor:
        """ReLU of `affine`, [.., F]."""
        return F.relu(self.affine(x))

    def experts(self, x: Tensor) -> Tensor:
        """How probable the router holds each expert, softmax((x - b_router) router) (Mudide et al.
        2024): [.., D] -> [.., E].
        """
        assert self.router is not None and self.b_router is not None
        return ((x.to(self.W_enc.dtype) - self.b_router) @ self.router).softmax(-1)

    def routed(self, x: Tensor) -> Tensor:
        """What latents are multiplied by: the probability of the token's most probable expert for
        its own, 0 for the others: [.., D] -> [.., F].
        """
        p = self.experts(x)
        best, expert = p.max(-1, keepdim=True)
        only = torch.zeros_like(p).scatter(-1, expert, best)
        return only.repeat_interleave(self.d_sae // p.shape[-1], -1)

    def encode_topk(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of each token that are kept.

        Args:
            x: [.., D].

        Returns:
            (values [.., K], indices int64 [.., K]); a value may be 0. K is k, or, with a threshold,
            the most that any token of x has.
        """
        p = self.pre_activations(x)
        k = self.k
        if self.router is not None:
            p = p * self.routed(x)
        if self.threshold is not None:
            p = p * (p > self.threshold)
            k = max([1, *(p > 0).sum(-1).flatten().tolist()])
        assert k is not None, "either k or threshold is set"
        values, indices = p.topk(k, dim=-1, sorted=False)
        return values, indices

    def encode(self, x: Tensor) -> Tensor:
        """Dense latents [.., F]; without a threshold, at most k of them are above 0."""
        values, indices = self.encode_topk(x)
        return torch.zeros(*x.shape[:-1], self.d_sae, dtype=values.dtype, device=x.device).scatter_(
            -1, indices, values
        )

    def decode(self, z: Tensor) -> Tensor:
        """x_hat [.., D] from dense latents [.., F]; of the normalised x, if there is a
        normalisation.

        Raises:
            SAEError: z of another width than d_sae.
        """
        z = _fitting(z, self.d_sae, "latents z", "d_sae").to(self.W_dec.dtype)
        return z @ self.W_dec + self.b_dec

    def decode_topk(self, values: Tensor, indices: Tensor) -> Tensor:
        """As decode, from the active latents alone: K rows of W_dec per token instead of all.

        Args:
            values: [.., K].
            indices: int64 [.., K].
        """
        rows = (-1, values.shape[-1])
        flat = F.embedding_bag(
            indices.reshape(rows), self.W_dec, per_sample_weights=values.reshape(rows), mode="sum"
        )
        return flat.view(*values.shape[:-1], self.d_model) + self.b_dec

    def reconstruct(self, x: Tensor) -> Tensor:
        """decode(encode(x)), less the normalisation: [.., D] -> [.., D]."""
        x_hat = self.decode_topk(*self.encode_topk(x))
        if self.normalisation != "none":
            shift, scale = self.frame(x.to(x_hat.dtype))
            x_hat = x_hat * scale + shift
        return x_hat

    def to(self, device: torch.device | str) -> Self:
        """Move the weights to a device, in place."""
        for name, tensor in self.tensors.items():
            setattr(self, name, tensor.to(device))
        return self

    def save(self, folder: Path | str) -> None:
        """Write SAELens' version 6 layout: cfg.json, sae_weights.safetensors, and
        sparsity.safetensors (log10 firing frequency).
        """
        saelens.write(self, folder)

    def to_sparsify(self, folder: Path | str) -> None:
        """Write sparsify's layout: cfg.json and sae.safetensors (encoder transposed, W_dec as it
        is).

        Raises:
            SAEError: the SAE has a threshold or experts, or normalises, which that layout has no
                place for.
        """
        sparsify.write(self, folder)

    def to_dictionary_learning(self, folder: Path | str) -> None:
        """Write dictionary_learning's layout: config.json and ae.pt, of class AutoEncoderTopK,
        AutoEncoder (ReLU) or JumpReluAutoEncoder.

        Raises:
            SAEError: the SAE has experts, or normalises, which that layout has no place for.
        """
        dictionary_learning.write(self, folder)


def load_sae(folder: Path | str) -> TopKSAE:
    """Read an SAE folder of SAELens (version 5 or 6), sparsify, dictionary_learning, the authors'
    BatchTopK or Gemma Scope (see formats/).

    Args:
        folder: or a file in it.

    Raises:
        SAEError: missing, truncated or foreign files; shapes or values that disagree with the
            configuration; a pickled file that holds more than tensors; a function that TopKSAE
            cannot represent.
    """
    sae = TopKSAE.__new__(TopKSAE)
    vars(sae).update(vars(read_folder(folder)))
    return sae


def _fitting(tensor, width, what, name):
    if not tensor.ndim or tensor.shape[-1] != width:
        raise SAEError(
            f"{what} of shape {list(tensor.shape)} do not fit an SAE with {name} = {width}: the "
            "last axis must be that"
        )
    return tensor


def sae_bytes(d_model: int, d_sae: int) -> int:
    """Bytes of W_enc, W_dec, b_enc, b_dec in float32: 4 (2 F D + F + D)."""
    return 4 * (2 * d_sae * d_model + d_sae + d_model)
