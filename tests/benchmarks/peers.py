"""Other trainers' libraries (tests/peers.txt) as the benchmarks beside this file use them:
imported, built and run in one place.

A `train_*` function gives a library's own training loop batches of activations, float32 [S, B, D],
and returns what that loop leaves behind. What is not said in its arguments is the library's own
default; lr=None too.
"""

import contextlib
import os
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Trained:
    """An SAE by its own library's arithmetic, with what `fidelity` asks of one.

    encode: [.., D] -> dense latents [.., F]. decode: [.., F] -> x_hat [.., D].
    """

    d_model: int
    encode: Callable
    decode: Callable

    def reconstruct(self, x):
        with torch.no_grad():
            return self.decode(self.encode(x))


# --- sparsify -------------------------------------------------------------------------------------


def sparsify():
    """The module."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = (
        "1"  # its kernels need a GPU; without this it takes them where triton is installed
    )
    with contextlib.redirect_stdout(sys.stderr):
        import sparsify
    return sparsify


class _Stream(torch.nn.Module):
    """What sparsify's Trainer takes for a language model: token t of its text is activation t of
    the stream.
    """

    def __init__(self, x):
        super().__init__()
        self.activations = torch.nn.Embedding.from_pretrained(x)
        self.device = x.device
        self.dummy_inputs = {"token": torch.zeros(1, 1, dtype=torch.int64)}

    @property
    def base_model(self):
        return self

    def forward(self, token):
        return self.activations(token)


def train_sparsify(batches, d_sae, k, seed, lr=None, **options):
    """options: of its TrainConfig."""
    library = sparsify()
    steps, tokens, d_model = batches.shape
    precision = torch.get_float32_matmul_precision()
    with tempfile.TemporaryDirectory() as folder:
        config = library.TrainConfig(
            library.SparseCoderConfig(num_latents=d_sae, k=k),
            batch_size=1,
            lr=lr,
            hookpoints=["activations"],
            init_seeds=[seed],
            log_to_wandb=False,
            save_dir=folder,
            **options,
        )
        text = [{"input_ids": row} for row in torch.arange(steps * tokens).view(steps, tokens)]
        library.Trainer(config, text, _Stream(batches.flatten(0, 1))).fit()
        sae = library.SparseCoder.load_from_disk(
            f"{folder}/unnamed/activations"
        )  # schedule-free optimisers leave an average there
    torch.set_float32_matmul_precision(precision)  # which the trainer changes for the whole process

    def encode(x):
        values, indices, _ = sae.encode(x)
        return torch.zeros(*x.shape[:-1], d_sae).scatter_(-1, indices, values)

    return Trained(d_model, encode, lambda z: z @ sae.W_dec + sae.b_dec)


# --- SAELens --------------------------------------------------------------------------------------


def sae_lens_trainer(batches, d_model, d_sae, k, n_tokens, batch_tokens, lr=3e-4, **options):
    """Its SAETrainer; batches: an iterator. options: of its SAETrainerConfig."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_model, d_sae=d_sae, k=k))
    config = SAETrainerConfig(
        total_training_samples=n_tokens,
        train_batch_size_samples=batch_tokens,
        lr=lr,
        lr_end=lr / 10,
        **options,
    )
    return SAETrainer(config, sae, batches)


def train_sae_lens(batches, d_sae, k, seed, lr=None, **options):
    steps, tokens, d_model = batches.shape
    torch.manual_seed(seed)
    sae = sae_lens_trainer(
        iter(batches),
        d_model,
        d_sae,
        k,
        steps * tokens,
        tokens,
        **({"lr": lr} if lr else {}),
        **options,
    ).fit()
    return Trained(d_model, sae.encode, sae.decode)


# --- dictionary_learning --------------------------------------------------------------------------


def _dictionary_learning():
    sys.modules.setdefault(
        "nnsight", types.SimpleNamespace(LanguageModel=None)
    )  # imported for its buffer, not for its trainers
    from dictionary_learning import training
    from dictionary_learning.trainers import top_k

    return training, top_k


def dictionary_learning_config(d_model, d_sae, k, steps, lr=None, **options):
    """{"trainer": its TopKTrainer, and that one's arguments}, as its trainSAE takes them."""
    return {
        "trainer": _dictionary_learning()[1].TopKTrainer,
        "steps": steps,
        "activation_dim": d_model,
        "dict_size": d_sae,
        "k": k,
        "layer": 0,
        "lm_name": "none",
        "lr": lr,
        "device": "cpu",
        **options,
    }


def train_dictionary_learning(
    batches, d_sae, k, seed, lr=None, normalize_activations=False, **options
):
    training, top_k = _dictionary_learning()
    steps, _, d_model = batches.shape
    with tempfile.TemporaryDirectory() as folder:
        training.trainSAE(
            batches,
            [dictionary_learning_config(d_model, d_sae, k, steps, lr, seed=seed, **options)],
            steps,
            save_dir=folder,
            device="cpu",
            normalize_activations=normalize_activations,
        )
        sae = top_k.AutoEncoderTopK.from_pretrained(f"{folder}/trainer_0/ae.pt")
    return Trained(d_model, sae.encode, sae.decode)
