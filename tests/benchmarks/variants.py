"""How long a training step of every SAE variant takes: forward, backward and Adam, in units of the
product x @ W_enc in float32.

Steps are interleaved, so that all variants see the same noise of the machine. They are the first of
a training, where variants with a penalty have more active latents than they end with.
"""

import argparse
import functools

import torch
from steps import draw, measure, print_table

from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.train import Training
from faithful_sae.sae.variants import VARIANTS

# D, F, k, B, rounds
SIZES = {"large": (768, 12288, 48, 2048, 3), "laptop": (96, 512, 8, 2048, 40)}
LR, STEPS = 1e-3, 100_000


def variants(d_model, d_sae, k, beginning):
    """{name: its training's step}."""
    trainings = {}
    for name, kind in VARIANTS.items():
        variant = kind(**({"k": k} if "k" in kind.__dataclass_fields__ else {}))
        # its step is that of TopK and as much of a language model as lies behind the hook
        if variant.in_context:
            continue
        sae = variant.new(d_model, d_sae, 0, "cpu")
        trainings[name] = Training(sae, variant, LR, RECIPES["default"], STEPS)
        if variant.group > 1:
            trainings[name].peers = [trainings["topk"]]
    return {
        name: functools.partial(training.step, first=beginning)
        for name, training in trainings.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in arguments.size or SIZES:
        d_model, d_sae, k, n_tokens, rounds = SIZES[size]
        # enough for k-means with as many centroids as latents
        batches = draw(d_model, n_tokens, max(4, 2 * d_sae // n_tokens))
        steps = variants(d_model, d_sae, k, torch.cat(batches))
        medians = measure(steps, d_sae, batches, rounds)
        title = f"{size}: d_model {d_model}, d_sae {d_sae}, k {k}, batch {n_tokens}"
        print_table(title, "variant", medians, n_tokens)
