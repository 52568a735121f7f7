"""The TopK sparse autoencoder (paper 2.5 and 3.2; Gao et al. 2024).

    z = TopK_k(ReLU((x - b_dec) W_enc + b_enc))        x_hat = z W_dec + b_dec        rows of W_dec have unit norm

B tokens, D model, F latents, K active ones.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from faithful_sae.provenance import atomic_path

SAELENS_VERSION = "6.0.0"   # the layout written here; readers dispatch on it


class SAEError(ValueError):
    """A folder does not hold a usable SAE; the message names file and reason."""


class TopKSAE:
    """Weights and the functions they define; training lives in train.py.

    Attributes:
        W_enc: float32 [D, F]. b_enc: [F]. W_dec: [F, D], unit rows. b_dec: [D].
        firing: float32 [F] or None, share of tokens each latent fired on at the end of training (fraction 0-1).
        metadata: dict saved with it (model, layer, corpus, seed, ...).
    """

    def __init__(self, d_model, d_sae, k, seed, device="cpu"):
        """W_dec's rows are random directions and W_enc is its transpose, so that a latent starts out aligned with itself.

        Raises:
            SAEError: k outside 1 to d_sae.
        """
        if not 1 <= k <= d_sae:
            raise SAEError(f"k = {k} must lie between 1 and d_sae = {d_sae}")
        generator = torch.Generator().manual_seed(seed)   # on the CPU, so that a seed means the same weights everywhere
        self.k, self.firing, self.metadata = k, None, {"seed": seed}
        self.W_dec = F.normalize(torch.randn(d_sae, d_model, generator=generator), dim=-1).to(device)
        self.W_enc = self.W_dec.T.clone(memory_format=torch.contiguous_format)
        self.b_enc, self.b_dec = torch.zeros(d_sae, device=device), torch.zeros(d_model, device=device)

    @property
    def d_model(self):
        return self.W_dec.shape[1]

    @property
    def d_sae(self):
        return self.W_dec.shape[0]

    @property
    def weights(self):
        """The four parameters by name."""
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}

    def pre_activations(self, x):
        """ReLU((x - b_dec) W_enc + b_enc): [.., D] -> [.., F]."""
        return F.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def encode_topk(self, x):
        """The k largest latents of each token: (values float [.., K], indices int64 [.., K]); a value may be 0."""
        return self.pre_activations(x).topk(self.k, dim=-1, sorted=False)

    def encode(self, x):
        """Dense latents [.., F], at most k of them above 0."""
        values, indices = self.encode_topk(x)
        return torch.zeros(*x.shape[:-1], self.d_sae, dtype=values.dtype, device=x.device).scatter_(-1, indices, values)

    def decode(self, z):
        """x_hat [.., D] from dense latents [.., F]."""
        return z @ self.W_dec + self.b_dec

    def decode_topk(self, values, indices):
        """x_hat [.., D] from the active latents alone: k rows of W_dec per token instead of all of them."""
        flat = F.embedding_bag(indices.reshape(-1, self.k), self.W_dec, per_sample_weights=values.reshape(-1, self.k), mode="sum")
        return flat.view(*values.shape[:-1], self.d_model) + self.b_dec

    def reconstruct(self, x):
        """decode(encode(x)): [.., D] -> [.., D]."""
        return self.decode_topk(*self.encode_topk(x))

    def to(self, device):
        """Move the weights to a device, in place."""
        for name, tensor in self.weights.items():
            setattr(self, name, tensor.to(device))
        return self

    def save(self, folder):
        """Write the SAELens v6 layout: cfg.json, sae_weights.safetensors, and sparsity.safetensors (log10 firing frequency)."""
        m = self.metadata
        config = {
            "architecture": "topk", "d_in": self.d_model, "d_sae": self.d_sae, "k": self.k, "dtype": "float32", "device": "cpu",
            "rescale_acts_by_decoder_norm": False, "apply_b_dec_to_input": True, "normalize_activations": "none",
            "reshape_activations": "none", "metadata": m | {
                "sae_lens_version": SAELENS_VERSION, "hook_name": f"blocks.{m.get('layer')}.hook_resid_pre", "hook_head_index": None,
                "model_name": m.get("model"), "context_size": m.get("sequence_length"), "prepend_bos": True}}
        with atomic_path(folder) as tmp:
            tmp.mkdir()
            save_file({name: w.detach().cpu().contiguous() for name, w in self.weights.items()}, tmp / "sae_weights.safetensors")
            if self.firing is not None:
                save_file({"sparsity": torch.log10(self.firing.cpu() + 1e-10)}, tmp / "sparsity.safetensors")
            (tmp / "cfg.json").write_text(json.dumps(config, indent=1) + "\n")

    def to_sparsify(self, folder):
        """Write sparsify's layout: cfg.json and sae.safetensors (encoder transposed, W_dec as it is)."""
        with atomic_path(folder) as tmp:
            tmp.mkdir()
            save_file({"encoder.weight": self.W_enc.detach().cpu().T.contiguous(), "encoder.bias": self.b_enc.detach().cpu(),
                       "W_dec": self.W_dec.detach().cpu().contiguous(), "b_dec": self.b_dec.detach().cpu()}, tmp / "sae.safetensors")
            (tmp / "cfg.json").write_text(json.dumps(
                {"activation": "topk", "expansion_factor": self.d_sae / self.d_model, "normalize_decoder": True, "num_latents": self.d_sae,
                 "k": self.k, "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": self.d_model}, indent=1) + "\n")


def load_sae(folder) -> TopKSAE:
    """Read an SAE that `save` wrote (the SAELens v6 layout of a TopK SAE).

    Raises:
        SAEError: missing, truncated or foreign files; shapes or values that disagree with cfg.json.
    """
    folder = Path(folder)
    for name in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / name).is_file():
            raise SAEError(f"{folder / name} is missing: this is not a finished SAE folder")
    try:
        config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        architecture, shape, k = config["architecture"], (config["d_in"], config["d_sae"]), config["k"]
    except (ValueError, KeyError, TypeError) as error:
        raise SAEError(f"{folder / 'cfg.json'}: not a SAELens v6 configuration ({error!r})") from None
    changed = {key: config.get(key, plain) for key, plain in
               (("rescale_acts_by_decoder_norm", False), ("apply_b_dec_to_input", True), ("normalize_activations", "none"))
               if config.get(key, plain) != plain}
    if architecture != "topk" or changed:
        raise SAEError(f"{folder / 'cfg.json'}: a plain topk SAE is needed, not {architecture} {changed or ''}".rstrip())
    tensors = _read(folder / "sae_weights.safetensors")
    d_model, d_sae = shape
    expected = {"W_enc": (d_model, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}
    for name, size in expected.items():
        if name not in tensors:
            raise SAEError(f"{folder / 'sae_weights.safetensors'}: tensor {name} is missing")
        if tuple(tensors[name].shape) != size:
            raise SAEError(f"{folder}: {name} is {list(tensors[name].shape)} but cfg.json says {list(size)}")
        if not tensors[name].isfinite().all():
            raise SAEError(f"{folder / 'sae_weights.safetensors'}: {name} holds NaN or infinity")
    sae = TopKSAE.__new__(TopKSAE)
    if not isinstance(k, int) or not 1 <= k <= d_sae:
        raise SAEError(f"{folder / 'cfg.json'}: k = {k!r} must lie between 1 and d_sae = {d_sae}")
    sae.k, sae.metadata, sae.firing = k, config.get("metadata", {}), None
    for name in expected:
        setattr(sae, name, tensors[name].float())
    if (folder / "sparsity.safetensors").is_file():
        sae.firing = 10 ** _read(folder / "sparsity.safetensors")["sparsity"] - 1e-10
    return sae


def _read(path):
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SAEError(f"{path}: truncated or not a safetensors file ({error}): delete its folder and train it again") from None
