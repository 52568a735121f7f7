"""Processor time of a pass that reads activations, in units of the bare matrix products of the
blocks that it runs through.

    python tests/benchmarks/activations.py MODEL --layer 22 [--rows 16] [--length 128]
    [--dtypes float32 bfloat16] [--rounds 5]

MODEL is a folder or Hub id. The products are of the same shapes and dtype, on inputs that lie
ready; attention, norms and rotations come on top of them. Both are run in turn on one thread, and
the medians are compared.
"""

import argparse
import statistics
import time

import torch
from transformers.pytorch_utils import Conv1D

from faithful_sae.lm.model import load_model


def products(lm, ids):
    """(input, weight as [out, in]) of every linear layer that a pass runs through."""
    found = []

    def keep(module, inputs, _output):
        weight = module.weight.T if isinstance(module, Conv1D) else module.weight
        found.append((inputs[0].detach().clone(), weight.detach()))

    layers = [m for m in lm.model.modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
    handles = [layer.register_forward_hook(keep) for layer in layers]
    lm.activations(ids)
    for handle in handles:
        handle.remove()
    return found


def multiply(pairs):
    for x, weight in pairs:
        torch.nn.functional.linear(x, weight)


def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--layer", type=int, required=True)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| dtype | pass, tokens per s | products alone | ratio |\n|---|---|---|---|")
    for dtype in arguments.dtypes:
        lm = load_model(arguments.model, arguments.layer, "cpu", dtype)
        generator = torch.Generator().manual_seed(0)
        shape = (arguments.rows, arguments.length)
        ids = torch.randint(lm.vocab_size, shape, generator=generator)
        with torch.inference_mode():
            pairs = products(lm, ids)
            # the first of each warms up
            times = [
                (seconds(lm.activations, ids), seconds(multiply, pairs))
                for _ in range(arguments.rounds + 1)
            ][1:]
        whole, bare = (statistics.median(column) for column in zip(*times, strict=True))
        rates = (f"{ids.numel() / took:,.0f}" for took in (whole, bare))
        print(f"| {dtype} | {' | '.join(rates)} | {whole / bare:.2f} |")
