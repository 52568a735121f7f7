"""How long a training step of every SAE variant takes, here and with the libraries that have it:
forward, backward and Adam, in units of the product x @ W_enc in float32.

    python tests/benchmarks/variants.py [--size large] [--rounds 5]

Steps are interleaved, so that all see the same noise of the machine. Variants with a penalty are
measured as they are once it has done its work: biases are set so that as many latents are active as
in TopK. `at first` is a step before that, where half of all latents are active. The libraries
compute all latents, however few are active.
"""

import argparse
import functools
import sys

import peers
import torch
from steps import draw, measure, print_table

from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.train import Training
from faithful_sae.sae.variants import VARIANTS
from faithful_sae.sae.variants.base import threshold_above

# D, F, k, B, and how many times the rounds
SIZES = {"large": (768, 12288, 48, 2048, 1), "laptop": (96, 512, 8, 2048, 10)}
LR, STEPS = 1e-3, 100_000
# by which a variant's latents become active
BIASES = {"relu": "b_enc", "gated": "b_gate", "prolu": "b_enc"}


def here(d_model, d_sae, k, beginning):
    """{variant: its training's step}."""
    trainings = {}
    for name, kind in VARIANTS.items():
        variant = kind(**({"k": k} if "k" in kind.__dataclass_fields__ else {}))
        # its step is that of TopK and as much of a language model as lies behind the hook
        if variant.in_context:
            continue
        ways = [name, f"{name}, at first"] if name in BIASES else [name]
        for way in ways:
            sae = variant.new(d_model, d_sae, 0, "cpu")
            trainings[way] = Training(sae, variant, LR, RECIPES["default"], STEPS)
        if name in BIASES:
            training = trainings[name]
            x = beginning[:2048]
            z = training.sae.pre_activations(x)
            bias = getattr(training.sae, BIASES[name])
            bias -= threshold_above(z, torch.tensor([k * len(x)]))
        if variant.group > 1:
            trainings[name].peers = [trainings["topk"]]
    return {
        name: functools.partial(training.step, first=beginning)
        for name, training in trainings.items()
    }


def own(library, variant, d_sae, k):
    """What a library's SAE or trainer is given of its own."""
    widths = VARIANTS["matryoshka"](k).widths(d_sae)
    if variant == "matryoshka":
        if library == "SAELens":
            return {"k": k, "matryoshka_widths": list(widths)}
        sizes = [end - first for first, end in zip((0, *widths), widths, strict=False)]
        return {"k": k, "group_fractions": [size / d_sae for size in sizes]}
    if variant == "jumprelu":
        quadratic = {"jumprelu_sparsity_loss_mode": "quadratic"} if library == "SAELens" else {}
        return quadratic | {"target_l0": float(k)}
    return {"k": k} if variant in ("topk", "batch_topk") else {}


def theirs(d_model, d_sae, k):
    """{"variant, library": its trainer's step} of libraries that can be imported."""
    steps = {}
    for variant in peers.SAE_LENS:
        for library, make in LIBRARIES.items():
            try:
                step = make(variant, d_model, d_sae, own(library, variant, d_sae, k))
                steps[f"{variant}, {library}"] = step
            except ImportError as error:
                print(f"{variant} of {library} is left out: {error}", file=sys.stderr)
    return steps


def dictionary_learning(variant, d_model, d_sae, options):
    config = peers.dictionary_learning_config(d_model, d_sae, STEPS, LR, variant, **options)
    trainer = config.pop("trainer")(**config)
    # its step 0 would only look for a median
    return lambda i, x: trainer.update(i + 1, x)


def sae_lens(variant, d_model, d_sae, options):
    sae = peers.sae_lens_sae(variant, d_model, d_sae, **options)
    trainer = peers.sae_lens_trainer(iter(()), sae, STEPS, 1, LR)
    return lambda i, x: trainer.step(x)


LIBRARIES = {"dictionary_learning": dictionary_learning, "SAELens": sae_lens}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", choices=SIZES, action="append", help="default: all")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for size in arguments.size or SIZES:
        d_model, d_sae, k, n_tokens, times = SIZES[size]
        # enough for k-means with as many centroids as latents
        batches = draw(d_model, n_tokens, max(4, 2 * d_sae // n_tokens))
        steps = here(d_model, d_sae, k, torch.cat(batches)) | theirs(d_model, d_sae, k)
        medians = measure(steps, d_sae, batches, arguments.rounds * times)
        title = f"{size}: d_model {d_model}, d_sae {d_sae}, k {k}, batch {n_tokens}"
        print_table(title, "variant", medians, n_tokens)
