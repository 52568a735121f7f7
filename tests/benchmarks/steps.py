"""What the benchmarks of training steps share: their batches, how they are timed, and the table."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def draw(d_model: int, n_tokens: int, n: int) -> list[Tensor]:
    """n batches [n_tokens, d_model] of tokens whose directions differ in how far they spread."""
    g = torch.Generator().manual_seed(0)
    mix = torch.randn(d_model, d_model, generator=g) * torch.linspace(1, 0.05, d_model)
    return [torch.randn(n_tokens, d_model, generator=g) @ mix for _ in range(n)]


def measure(
    steps: Mapping[str, Callable[[int, Tensor], object]],
    d_sae: int,
    batches: Sequence[Tensor],
    rounds: int,
) -> dict[str, float]:
    """{name: median seconds of a step (i, batch)}, each in turn, so that a busy machine slows all
    alike; and of the "unit", the product of a batch with [d_model, d_sae] in float32.
    """
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(batches[0].shape[1], d_sae, generator=g)
    timed = {"unit": lambda i, x: x @ weight, **steps}
    seconds = {name: [] for name in timed}
    for i in range(rounds + 2):
        for name, step in timed.items():
            start = time.perf_counter()
            step(i, batches[i % len(batches)])
            seconds[name].append(time.perf_counter() - start)
    # the first two compile and allocate, and look for what a training begins with
    return {name: statistics.median(found[2:]) for name, found in seconds.items()}


def print_table(title: str, what: str, medians: Mapping[str, float], n_tokens: int) -> None:
    """Of what `measure` found, in Markdown."""
    unit = medians["unit"]
    print(f"\n{title}; unit {1e3 * unit:.1f} ms, {torch.get_num_threads()} thread(s)\n")
    print(f"| {what} | units | ms | tokens/s |\n|---|---|---|---|")
    for name, s in medians.items():
        if name != "unit":
            print(f"| {name} | {s / unit:.2f} | {1e3 * s:.1f} | {n_tokens / s:,.0f} |")
