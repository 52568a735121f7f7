"""How long a training step of every SAE variant takes: forward, backward and Adam, in units of the
product x @ W_enc in float32.

Steps are interleaved, so that all variants see the same noise of the machine. They are the first of
a training, where variants with a penalty have more active latents than they end with.
"""

import argparse
import statistics
import time

import torch

from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.train import Training
from faithful_sae.sae.variants import VARIANTS

# D, F, k, B, rounds
SIZES = {"large": (768, 12288, 48, 2048, 3), "laptop": (96, 512, 8, 2048, 40)}
LR, STEPS = 1e-3, 100_000


def measure(d_model: int, d_sae: int, k: int, n_tokens: int, rounds: int) -> dict[str, float]:
    """{name: median seconds of a step}, and of the unit."""
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(d_model, d_model, generator=g) * torch.linspace(1, 0.05, d_model)
    batches = [torch.randn(n_tokens, d_model, generator=g) @ mix for _ in range(4)]
    beginning = torch.randn(max(2 * d_sae, n_tokens), d_model, generator=g) @ mix
    weight = torch.randn(d_model, d_sae, generator=g)
    trainings = {}
    for name, kind in VARIANTS.items():
        variant = kind(**({"k": k} if "k" in kind.__dataclass_fields__ else {}))
        sae = variant.new(d_model, d_sae, 0, "cpu")
        trainings[name] = Training(sae, variant, LR, RECIPES["default"], STEPS)
        if variant.group > 1:
            trainings[name].peers = [trainings["topk"]]
    seconds = {name: [] for name in ["unit", *trainings]}
    for i in range(rounds + 2):
        x = batches[i % 4]
        start = time.perf_counter()
        x @ weight
        seconds["unit"].append(time.perf_counter() - start)
        for name, training in trainings.items():
            start = time.perf_counter()
            training.step(i, x, first=beginning)
            seconds[name].append(time.perf_counter() - start)
    # the first two compile, allocate and look for centroids
    return {name: statistics.median(found[2:]) for name, found in seconds.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in arguments.size or SIZES:
        d_model, d_sae, k, n_tokens, _ = SIZES[size]
        medians = measure(*SIZES[size])
        unit = medians.pop("unit")
        print(
            f"\n{size}: d_model {d_model}, d_sae {d_sae}, k {k}, batch {n_tokens}; unit "
            f"{1e3 * unit:.1f} ms, one thread\n"
        )
        print("| variant | units | ms | tokens/s |\n|---|---|---|---|")
        for name, s in medians.items():
            print(f"| {name} | {s / unit:.2f} | {1e3 * s:.1f} | {n_tokens / s:,.0f} |")
