"""What SAEs of one variant and one L0 leave unexplained of held-out text: ours and others'.

    python tests/benchmarks/variant_quality.py                       Docs-NeoX, as quality.py
    python tests/benchmarks/variant_quality.py --model FOLDER --text FILE --layer 3

Every trainer gets the same activations in the same order. It warms up and decays its learning rate
as ours does, and its penalty over the first tenth of the steps; SAELens and dictionary_learning
scale activations first, each in its way, for which their penalties are meant. One seed, which is in
no number, says which learning rate leaves least, and, at each, which penalty (or k, where there is
none) gives an L0 of k. L0 and FVU are of held-out text, of each SAE as it is in use. A star is at
L0s that are further than 5 % from k, or at a learning rate at an end of the grid.
"""

import argparse
import contextlib
import functools
import io
import math
import statistics
import sys

import torch
from peers import train_dictionary_learning, train_sae_lens
from quality import Benchmark, given, stream
from scipy.stats import ttest_ind
from variants import own

from faithful_sae import train_saes
from faithful_sae.metrics.fidelity import fidelity_of_all
from faithful_sae.sae.penalty import excess, next_penalty
from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.variants import VARIANTS

SEARCHES, WITHIN = 6, 0.05
# {variant: {trainer: the penalty that is tried first}}; where there is none, k is divided by it
PENALTIES = {
    "topk": {},
    "batch_topk": {"dictionary_learning": 1.0, "SAELens": 1.0},
    "matryoshka": {"dictionary_learning": 1.0, "SAELens": 1.0},
    "jumprelu": {"here": 1.0, "dictionary_learning": 1.0, "SAELens": 1.0},
    "relu": {"here": 0.3, "dictionary_learning": 0.3, "SAELens": 3.0},
    "gated": {"here": 0.3, "dictionary_learning": 0.3, "SAELens": 3.0},
}
CHOOSING = 100


def here(variant, batches, d_sae, k, seed, lr, penalty):
    steps, batch_tokens, d_model = batches.shape
    kind = VARIANTS[variant]
    settings = {"l1": penalty}
    if "k" in kind.__dataclass_fields__:
        settings = {"k": max(round(k / (penalty or 1)), 1)}
    sizes = ([seed], lr, steps * batch_tokens, batch_tokens)
    return train_saes(batches, d_model, d_sae, kind(**settings), *sizes)[0]


def dictionary_learning(variant, batches, d_sae, k, seed, lr, penalty):
    steps = len(batches)
    schedule = {"warmup_steps": warmed(steps), "decay_start": steps - decayed(steps)}
    if variant in ("jumprelu", "relu", "gated"):
        schedule["sparsity_warmup_steps"] = steps // 10
    elif variant != "topk":
        # its threshold is a running mean, which begins at a step and is to forget where
        schedule |= {"threshold_start_step": steps // 2, "threshold_beta": 0.99}
    options = own("dictionary_learning", variant, d_sae, k)
    options |= asked("dictionary_learning", variant, k, penalty)
    return train_dictionary_learning(
        batches, d_sae, k, seed, lr, variant, True, options, **schedule
    )


def sae_lens(variant, batches, d_sae, k, seed, lr, penalty):
    steps = len(batches)
    options = own("SAELens", variant, d_sae, k) | asked("SAELens", variant, k, penalty)
    options["normalize_activations"] = "expected_average_only_in"
    if variant in ("relu", "gated"):
        options["l1_warm_up_steps"] = steps // 10
    if variant == "jumprelu":
        options["l0_warm_up_steps"] = steps // 10
    schedule = {"lr_warm_up_steps": warmed(steps), "lr_decay_steps": decayed(steps)}
    return train_sae_lens(batches, d_sae, k, seed, lr, variant, options, **schedule)


def asked(library, variant, k, penalty):
    """What a library calls a penalty, or the k that stands in its place."""
    if penalty is None:
        return {}
    if variant in ("relu", "gated"):
        return {"l1_penalty" if library == "dictionary_learning" else "l1_coefficient": penalty}
    if variant == "jumprelu":
        return {"target_l0": k / penalty}
    # dictionary_learning's is a whole number
    return {"k": k / penalty if library == "SAELens" else max(round(k / penalty), 1)}


TRAINERS = {"here": here, "dictionary_learning": dictionary_learning, "SAELens": sae_lens}


def warmed(steps):
    return round(RECIPES["default"].warmup * steps)


def decayed(steps):
    return round(RECIPES["default"].decay * steps)


class Comparison(Benchmark):
    """Trains SAEs of one variant after another, at one L0."""

    def __init__(self, *given):
        super().__init__(*given)
        n_tokens = self.batches.shape[1]
        self.x = stream(self.lm, self.heldout, 16_384, n_tokens).flatten(0, 1)

    def trained(self, variant, trainer, lr, seed, penalty=None):
        """(SAE, its L0)."""
        train = functools.partial(TRAINERS[trainer], variant)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            sae = train(self.batches, self.d_sae, self.k, seed, lr, penalty)
        with torch.no_grad():
            l0 = (sae.encode(self.x) > 0).sum(1).float().mean().item()
        at = "" if penalty is None else f", penalty {penalty:.3g}"
        print(f"{variant}, {trainer}, lr {lr:g}, seed {seed}{at}: L0 {l0:.2f}", file=sys.stderr)
        return sae, l0

    def searched(self, variant, trainer, lr, seed):
        """(SAE, its L0, its penalty) of the L0 nearest to k."""
        if trainer not in PENALTIES[variant]:
            return *self.trained(variant, trainer, lr, seed), None
        found, tried = {}, {}
        while len(tried) < SEARCHES:
            penalty = next_penalty(tried, self.k) if tried else PENALTIES[variant][trainer]
            if penalty in tried:
                break
            found[penalty] = self.trained(variant, trainer, lr, seed, penalty)
            tried[penalty] = found[penalty][1]
            if abs(excess(tried[penalty], self.k)) <= math.log(1 + WITHIN):
                break
        best = min(tried, key=lambda penalty: abs(excess(tried[penalty], self.k)))
        return *found[best], best

    def fvu(self, saes):
        found, _ = fidelity_of_all(saes, self.lm, self.heldout, modes=(False,))
        return {name: 1 - found[name, False].explained_variance for name in saes}

    def row(self, variant, trainer, rates, seeds):
        """(FVU of each seed, L0 of each, the learning rate, the penalty)."""
        at = {lr: self.searched(variant, trainer, lr, CHOOSING) for lr in rates}
        measured = self.fvu({lr: sae for lr, (sae, *_) in at.items()})
        # an SAE at another L0 is no better for what it explains
        off = {lr: abs(excess(at[lr][1], self.k)) for lr in rates}
        near = [lr for lr in rates if off[lr] <= math.log(1 + WITHIN)]
        best = min(near, key=measured.__getitem__) if near else min(rates, key=off.__getitem__)
        penalty = at[best][2]
        saes = {seed: self.trained(variant, trainer, best, seed, penalty) for seed in seeds}
        fvu = self.fvu({seed: sae for seed, (sae, _) in saes.items()})
        return [*fvu.values()], [l0 for _, l0 in saes.values()], best, penalty


def main(arguments):
    lm, batches, heldout = given(arguments)
    comparison = Comparison(lm, heldout, batches, arguments.d_sae, arguments.k)
    print(
        f"\nd_model {lm.d_model}, d_sae {arguments.d_sae}, k {arguments.k}: "
        f"{batches[..., 0].numel():,} activations, batch {arguments.batch}; {arguments.seeds} "
        f"seeds, {torch.get_num_threads()} thread\n"
    )
    print("| variant | trainer | L0 | FVU | of the seeds | ours less this | lr | penalty |")
    print("|---" * 8 + "|", flush=True)
    for variant in arguments.variant or PENALTIES:
        ours = []
        for trainer in TRAINERS:
            seeds = range(arguments.seeds)
            fvu, l0, lr, penalty = comparison.row(variant, trainer, arguments.lr, seeds)
            ours = ours or fvu
            off = abs(excess(statistics.mean(l0), arguments.k)) > math.log(1 + WITHIN)
            edge = lr in (min(arguments.lr), max(arguments.lr))
            print(
                f"| {variant} | {trainer} | {statistics.mean(l0):.2f}{'*' * off} | "
                f"{statistics.mean(fvu):.4f} | {min(fvu):.4f} to {max(fvu):.4f} | "
                f"{'' if fvu is ours else difference(ours, fvu)} | {lr:g}{'*' * edge} | "
                f"{'' if penalty is None else f'{penalty:.3g}'} |",
                flush=True,
            )


def difference(ours, theirs):
    """Of means, with its 95 % interval of Welch's t."""
    if len(ours) < 2:
        return f"{ours[0] - theirs[0]:+.4f}"
    interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    mean = statistics.mean(ours) - statistics.mean(theirs)
    return f"{mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--variant", choices=PENALTIES, action="append", help="default: all")
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1_024_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, nargs="+", default=[5e-4, 2e-3, 8e-3, 3.2e-2])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments)
