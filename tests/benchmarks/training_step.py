"""What a training step costs: ours, the same step in plain dense PyTorch, and those of other
trainers that can be imported.

    python tests/benchmarks/training_step.py [--threads 1] [--rounds 9]

The unit is one product x @ W_enc in float32. Everything is timed in turn in one process, over and
over, so that a busy machine slows all alike, and the medians are compared. Each contestant does
what its own training loop does with a batch on the CPU, with Adam. The other trainers (eai-sparsify
1.3.3, dictionary-learning 0.1.0, sae-lens 6.54.0) are no dependencies of this repository: `make
bench` installs them in an environment of their own, .venv-peers. No latent is dead in these steps
but in the last row.
"""

import argparse
import sys

import peers
import torch
import torch.nn.functional as F
from steps import draw, measure, print_table

from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.sae.train import Training
from faithful_sae.sae.variants import TopK

SIZES = {
    "large": (768, 12288, 48, 2048),
    "laptop": (96, 512, 8, 2048),
    "stories260k": (64, 512, 8, 2048),
}  # D, F, k, B
LR, STEPS = 1e-3, 100_000


def ours(d_model, d_sae, k):
    sae = TopKSAE(d_model, d_sae, k, 0)
    return Training(sae, TopK(k), LR, RECIPES["default"], STEPS).step


def ours_with_dead(d_model, d_sae, k):
    sae = TopKSAE(d_model, d_sae, k, 0)
    training = Training(sae, TopK(k), LR, RECIPES["default"], STEPS)

    def step(i, x):
        training.since_fired[::10] = STEPS  # a tenth is dead
        training.step(i, x)

    return step


def dense(d_model, d_sae, k):
    w = {name: t.requires_grad_() for name, t in TopKSAE(d_model, d_sae, k, 0).weights.items()}
    optimiser = torch.optim.Adam(w.values(), lr=LR)

    def step(i, x):
        p = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        values, indices = p.topk(k, sorted=False)
        z = torch.zeros_like(p).scatter_(1, indices, values)
        loss = F.mse_loss(z @ w["W_dec"] + w["b_dec"], x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        w["W_dec"].data = F.normalize(w["W_dec"].data, dim=1)

    return step


def sparsify(d_model, d_sae, k):
    library = peers.sparsify()
    sae = library.SparseCoder(d_model, library.SparseCoderConfig(num_latents=d_sae, k=k))
    optimiser = torch.optim.Adam(sae.parameters(), lr=LR)

    def step(i, x):
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()
        torch.zeros(d_sae, dtype=torch.bool)[out.latent_indices.flatten()] = True

    return step


def dictionary_learning(d_model, d_sae, k):
    config = peers.dictionary_learning_config(d_model, d_sae, STEPS, LR, k=k)
    trainer = config.pop("trainer")(**config)
    return lambda i, x: trainer.update(i + 1, x)  # its step 0 would only look for a median


def sae_lens(d_model, d_sae, k):
    sae = peers.sae_lens_sae("topk", d_model, d_sae, k=k)
    trainer = peers.sae_lens_trainer(iter(()), sae, STEPS, 1, LR)
    return lambda i, x: trainer.step(x)


CONTESTANTS = {
    "this repository": ours,
    "plain dense PyTorch": dense,
    "sparsify": sparsify,
    "dictionary_learning": dictionary_learning,
    "SAELens": sae_lens,
    "this repository, a tenth dead": ours_with_dead,
}


def contestants(d_model, d_sae, k):
    """{name: its step} of those that can be imported."""
    steps = {}
    for name, make in CONTESTANTS.items():
        try:
            steps[name] = make(d_model, d_sae, k)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--rounds", type=int, default=9, help="of the large size; the others get ten times as many"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for size, (d_model, d_sae, k, n_tokens) in SIZES.items():
        steps = contestants(d_model, d_sae, k)
        rounds = arguments.rounds * (1 if size == "large" else 10)
        medians = measure(steps, d_sae, draw(d_model, n_tokens, 4), rounds)
        title = f"{size}: d_model {d_model}, d_sae {d_sae}, k {k}, batch {n_tokens}"
        print_table(title, "training step", medians, n_tokens)
