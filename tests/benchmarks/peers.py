"""Other trainers' libraries (tests/peers.txt) as the benchmarks beside this file use them:
imported, built and run in one place.

A `train_*` function gives a library's own training loop batches of activations, float32 [S, B, D],
and returns what that loop leaves behind. What is not said in its arguments is the library's own
default; lr=None too.
"""

import contextlib
import importlib
import itertools
import os
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

# batches that norms are estimated on
MEASURED = 16


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


def sae_lens_trainer(batches, own, n_tokens, batch_tokens, lr=3e-4, **options):
    """Its SAETrainer; own: of sae_lens_sae; batches: an iterator. options: of its
    SAETrainerConfig.
    """
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = SAETrainerConfig(
        total_training_samples=n_tokens,
        train_batch_size_samples=batch_tokens,
        lr=lr,
        lr_end=lr / 10,
        **options,
    )
    return SAETrainer(config, own, batches)


# {variant: module, class of its configuration, class of an SAE in training}
SAE_LENS = {
    "topk": ("topk_sae", "TopKTrainingSAE"),
    "batch_topk": ("batchtopk_sae", "BatchTopKTrainingSAE"),
    "matryoshka": ("matryoshka_batchtopk_sae", "MatryoshkaBatchTopKTrainingSAE"),
    "jumprelu": ("jumprelu_sae", "JumpReLUTrainingSAE"),
    "relu": ("standard_sae", "StandardTrainingSAE"),
    "gated": ("gated_sae", "GatedTrainingSAE"),
}


def sae_lens_sae(variant, d_model, d_sae, **options):
    """An SAE in training; options: of its configuration."""
    module, name = SAE_LENS[variant]
    module = importlib.import_module(f"sae_lens.saes.{module}")
    config = getattr(module, f"{name}Config")(d_in=d_model, d_sae=d_sae, **options)
    return getattr(module, name)(config)


def train_sae_lens(batches, d_sae, k, seed, lr=None, variant="topk", own=None, **options):
    """own: of the SAE's configuration, instead of `k`."""
    steps, tokens, d_model = batches.shape
    torch.manual_seed(seed)
    sae = sae_lens_sae(variant, d_model, d_sae, **({"k": k} if own is None else own))
    if sae.cfg.normalize_activations != "none":
        # which its trainer looks at first
        options["n_batches_for_norm_estimate"] = MEASURED
        batches = itertools.chain(batches[:MEASURED], batches)
    rate = {"lr": lr} if lr else {}
    trainer = sae_lens_trainer(iter(batches), sae, steps * tokens, tokens, **rate, **options)
    trained = trainer.fit()
    if variant == "topk":
        return Trained(d_model, trained.encode, trained.decode)
    # thresholds are those of the SAE in use
    from sae_lens import SAE

    with tempfile.TemporaryDirectory() as folder:
        trained.save_inference_model(folder)
        used = SAE.load_from_disk(folder)
    return Trained(d_model, used.encode, used.decode)


# --- dictionary_learning --------------------------------------------------------------------------


# {variant: module of trainers, trainer, module of the SAE, its class}
DICTIONARY_LEARNING = {
    "topk": ("top_k", "TopKTrainer", "trainers.top_k", "AutoEncoderTopK"),
    "batch_topk": ("batch_top_k", "BatchTopKTrainer", "trainers.batch_top_k", "BatchTopKSAE"),
    "matryoshka": (
        "matryoshka_batch_top_k",
        "MatryoshkaBatchTopKTrainer",
        "trainers.matryoshka_batch_top_k",
        "MatryoshkaBatchTopKSAE",
    ),
    "jumprelu": ("jumprelu", "JumpReluTrainer", "dictionary", "JumpReluAutoEncoder"),
    "relu": ("standard", "StandardTrainerAprilUpdate", "dictionary", "AutoEncoder"),
    "gated": ("gdm", "GatedSAETrainer", "dictionary", "GatedAutoEncoder"),
}


def _dictionary_learning(module):
    # imported for its buffer, not for its trainers
    sys.modules.setdefault("nnsight", types.SimpleNamespace(LanguageModel=None))
    return importlib.import_module(f"dictionary_learning.{module}")


def dictionary_learning_config(d_model, d_sae, steps, lr=None, variant="topk", **options):
    """{"trainer": its trainer of a variant, and that one's arguments}, as its trainSAE takes them.
    options: of the trainer.
    """
    module, name, *_ = DICTIONARY_LEARNING[variant]
    return {
        "trainer": getattr(_dictionary_learning(f"trainers.{module}"), name),
        "steps": steps,
        "activation_dim": d_model,
        "dict_size": d_sae,
        "layer": 0,
        "lm_name": "none",
        **({"lr": lr} if lr or variant == "topk" else {}),
        "device": "cpu",
        **options,
    }


def train_dictionary_learning(
    batches, d_sae, k, seed, lr=None, variant="topk", normalize=False, own=None, **options
):
    """own: of the trainer, instead of `k`."""
    steps, _, d_model = batches.shape
    options |= {"k": k} if own is None else own
    config = dictionary_learning_config(d_model, d_sae, steps, lr, variant, seed=seed, **options)
    with tempfile.TemporaryDirectory() as folder:
        _dictionary_learning("training").trainSAE(
            # it divides them in place
            batches.clone() if normalize else batches,
            [config],
            steps,
            save_dir=folder,
            device="cpu",
            normalize_activations=normalize,
        )
        *_, module, name = DICTIONARY_LEARNING[variant]
        sae = getattr(_dictionary_learning(module), name)
        sae = sae.from_pretrained(f"{folder}/trainer_0/ae.pt")
    return Trained(d_model, sae.encode, sae.decode)


# --- llama.cpp ------------------------------------------------------------------------------------


def llama_cpp(path, threads):
    """A model in a GGUF file, sampled by llama.cpp; what it says goes to no place."""
    import llama_cpp as library

    return _LlamaCpp(library, path, threads)


class _LlamaCpp:
    def __init__(self, library, path, threads):
        self.library = library
        self.threads = threads
        self.silent = library.llama_log_callback(lambda *said: None)
        library.llama_log_set(self.silent, None)
        library.llama_backend_init()
        options = library.llama_model_default_params()
        self.model = library.llama_model_load_from_file(str(path).encode(), options)
        if not self.model:
            raise ValueError(f"llama.cpp cannot read {path}")

    def sample(self, bos_id, n_tokens, batch, seed):
        """int32 [batch, n_tokens], each row behind BOS, by its sampler of the plain distribution:
        all rows go through the model together, one token of each at a time.
        """
        library = self.library
        options = library.llama_context_default_params()
        options.n_ctx = batch * (n_tokens + 1)
        options.n_batch = options.n_ubatch = options.n_seq_max = batch
        options.n_threads = options.n_threads_batch = self.threads
        context = library.llama_init_from_model(self.model, options)
        sampler = library.llama_sampler_init_dist(seed)
        step = library.llama_batch_init(batch, 0, 1)
        step.n_tokens = batch
        for row in range(batch):
            step.n_seq_id[row] = 1
            step.seq_id[row][0] = row
            step.logits[row] = True
        ids = np.empty((batch, n_tokens), np.int32)
        last = np.full(batch, bos_id)
        for place in range(n_tokens):
            for row in range(batch):
                step.token[row] = int(last[row])
                step.pos[row] = place
            if library.llama_decode(context, step):
                raise RuntimeError(f"llama.cpp cannot decode a batch of {batch}")
            last = [library.llama_sampler_sample(sampler, context, row) for row in range(batch)]
            ids[:, place] = last
        library.llama_batch_free(step)
        library.llama_sampler_free(sampler)
        library.llama_free(context)
        return ids
