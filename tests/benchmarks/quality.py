"""What SAEs of one size, trained on the same activations in the same order, leave unexplained of
held-out text: ours and others'.

    python tests/benchmarks/quality.py   the laptop profile's Docs-NeoX, trained first (3 minutes,
                                         once)
    python tests/benchmarks/quality.py --model FOLDER --text FILE --layer 3   any language model and
                                                                              text

Each contestant is its library's own training loop, run at the learning rate the library chooses for
itself and at those of one grid for all, with one seed; the best of the grid by held-out FVU then
with the other seeds. FVU is 1 - explained_variance of faithfulness.py, without BOS, by each
library's own encoder and decoder. Dead: fires on none of the last tenth of the training's tokens.
`our schedule`: the warm-up and decay of our default recipe, where a library has such options.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import statistics
import sys
import time

import torch
from peers import train_dictionary_learning, train_sae_lens, train_sparsify

from faithful_sae import load_model, train_saes
from faithful_sae.files import ROOT
from faithful_sae.metrics.fidelity import fidelity_of_all
from faithful_sae.runs.params import load_params
from faithful_sae.sae.activations import ActivationStream
from faithful_sae.sae.recipe import RECIPES
from faithful_sae.stages.model import open_model, train_embedded_model
from faithful_sae.stages.text import documents
from faithful_sae.text import read
from faithful_sae.text.packing import pack, tokenize

# of the laptop profile, chosen on Docs-NeoX; of the paper's Table 5
OUR_LR = {"default": 8e-3, "authors": 2e-4}


def ours(batches, d_sae, k, seed, lr=None, recipe="default"):
    steps, batch_tokens, d_model = batches.shape
    return train_saes(
        batches,
        d_model,
        d_sae,
        k,
        [seed],
        lr or OUR_LR[recipe],
        steps * batch_tokens,
        batch_tokens,
        recipe,
    )[0]


def contestants(steps):
    """{name: function of (batches [S, B, D], d_sae, k, seed, lr) that returns an SAE}"""
    warmup, decay = (
        round(share * steps) for share in (RECIPES["default"].warmup, RECIPES["default"].decay)
    )
    return {
        "here, default": ours,
        "here, authors": functools.partial(ours, recipe="authors"),
        "sparsify": train_sparsify,
        "sparsify, Adam": functools.partial(train_sparsify, optimizer="adam"),
        "sparsify, Adam, our warm-up": functools.partial(
            train_sparsify, optimizer="adam", lr_warmup_steps=warmup
        ),
        "SAELens": train_sae_lens,
        "SAELens, our schedule": functools.partial(
            train_sae_lens, lr_warm_up_steps=warmup, lr_decay_steps=decay
        ),
        "dictionary_learning": train_dictionary_learning,
        "dictionary_learning, our schedule": functools.partial(
            train_dictionary_learning, warmup_steps=warmup, decay_start=steps - decay
        ),
    }


def language_model(model, text, layer):
    """(LanguageModel, its texts): a folder and a file, or the laptop profile's, kept apart from
    what `make paper` makes.
    """
    if model:
        return load_model(model, layer), (record[0] for record in read.read_records(text, ["text"]))
    run = dataclasses.replace(
        load_params("params/laptop/neox.yaml"), file=ROOT / "params" / "benchmarks" / "neox.yaml"
    )
    train_embedded_model(run)
    return open_model(run), documents(run, run.embedded.corpus)


def stream(lm, rows, n_tokens, batch_tokens):
    """The activations of training rows, float32 [S, B, D], in the order in which every contestant
    gets them.
    """
    batches = ActivationStream(
        lm,
        rows,
        n_tokens=n_tokens,
        batch_tokens=batch_tokens,
        buffer_tokens=65536,
        lm_batch_rows=32,
        include_bos=False,
        seed=0,
    )
    return torch.stack(list(batches))


class Benchmark:
    """Trains and measures SAEs of one size."""

    def __init__(self, lm, heldout, batches, d_sae, k):
        self.lm = lm
        self.heldout = heldout
        self.batches = batches
        self.d_sae = d_sae
        self.k = k

    def measure(self, jobs):
        """{job: (FVU, CE difference, share of dead latents, tokens/s)} of jobs {(name, lr, seed):
        function as above}.
        """
        saes = {}
        measured = {}
        for (name, lr, seed), train in jobs.items():
            start = time.perf_counter()
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):  # the libraries' bars
                saes[name, lr, seed] = train(self.batches, self.d_sae, self.k, seed, lr)
            measured[name, lr, seed] = (
                self.dead(saes[name, lr, seed]),
                self.batches[..., 0].numel() / (time.perf_counter() - start),
            )
            print(
                f"{name}, lr {lr or 'its own'}, seed {seed}: {time.perf_counter() - start:.0f} s",
                file=sys.stderr,
            )
        found, _ = fidelity_of_all(saes, self.lm, self.heldout, modes=(False,))
        return {
            job: (1 - found[job, False].explained_variance, found[job, False].ce_diff, *rest)
            for job, rest in measured.items()
        }

    @torch.no_grad()
    def dead(self, sae):
        fired = torch.zeros(self.d_sae, dtype=torch.bool)
        for x in self.batches[-len(self.batches) // 10 :]:
            fired |= (sae.encode(x) > 0).any(0)
        return 1 - fired.float().mean().item()


def given(arguments):
    """(LanguageModel, training batches as `stream`, held-out rows)."""
    lm, texts = language_model(arguments.model, arguments.text, arguments.layer)
    rows = pack(tokenize(texts, lm.tokenizer), lm.bos_id, 128, 700_000)
    cut = len(rows) - len(rows) // 10
    n_tokens = arguments.tokens // arguments.batch * arguments.batch
    return lm, stream(lm, rows[:cut], n_tokens, arguments.batch), rows[cut:]


def main(arguments):
    lm, batches, heldout = given(arguments)
    benchmark = Benchmark(lm, heldout, batches, arguments.d_sae, arguments.k)
    trains = contestants(len(batches))
    first, *others = range(arguments.seeds)
    results = benchmark.measure(
        {(name, lr, first): train for name, train in trains.items() for lr in (None, *arguments.lr)}
    )
    best = {name: min(arguments.lr, key=lambda lr: results[name, lr, first][0]) for name in trains}
    results |= benchmark.measure(
        {(name, best[name], seed): train for name, train in trains.items() for seed in others}
    )

    print(
        f"\nd_model {lm.d_model}, d_sae {arguments.d_sae}, k {arguments.k}: "
        f"{batches[..., 0].numel():,} activations, batch {arguments.batch}; held out "
        f"{heldout[:, 1:].size:,} tokens; {arguments.seeds} seeds, "
        f"{torch.get_num_threads()} thread(s)\n"
    )
    print(
        f"FVU of the first seed\n\n| | {' | '.join(f'{lr:g}' for lr in arguments.lr)} "
        f"|\n|---|{'---|' * len(arguments.lr)}"
    )
    for name in trains:
        print(
            f"| {name} | "
            f"{' | '.join(f'{results[name, lr, first][0]:.4f}' for lr in arguments.lr)} |"
        )
    print(
        "\n| | FVU at its own lr, first seed | best lr | FVU there | of the seeds | CE "
        "difference, nats | dead, % | tokens/s |\n" + "|---" * 8 + "|"
    )
    for name in trains:
        fvu, ce, dead, speed = zip(
            *(results[name, best[name], seed] for seed in (first, *others)), strict=True
        )
        print(
            f"| {name} | {results[name, None, first][0]:.4f} | {best[name]:g} | "
            f"{statistics.mean(fvu):.4f} | {min(fvu):.4f} to {max(fvu):.4f} "
            f"| {statistics.mean(ce):.3f} | {100 * statistics.mean(dead):.1f} | "
            f"{statistics.mean(speed):,.0f} |"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--model", help="folder of a language model; without it, the laptop profile's"
    )
    parser.add_argument(
        "--text", help="file of text for it: jsonl, csv or parquet with a column `text`, or txt"
    )
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1_024_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3, 1.6e-2])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if bool(arguments.model) != bool(arguments.text):
        parser.error("--model and --text go together")
    if arguments.tokens // arguments.batch <= 1000:
        parser.error(
            "--tokens must be more than 1,000 times --batch: two of the trainers warm up over so "
            "many steps"
        )
    torch.set_num_threads(arguments.threads)
    main(arguments)
