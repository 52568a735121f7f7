"""The calls of a language model: what they will cost, and what became of them."""

import math
from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Estimate:
    """What judging costs, answers already on disk not taken off.

    Attributes:
        calls: of the model.
        read, written: tokens; those written at most.
        cost: in the currency of the prices; NaN where there are none.
    """

    calls: int
    read: int
    written: int
    cost: float

    def __str__(self) -> str:
        cost = "" if math.isnan(self.cost) else f", at most {self.cost:.2f} at the prices given"
        return (
            f"about {self.calls:,} calls, {self.read:,} tokens read and at most "
            f"{self.written:,} written{cost}; answers already on disk are free"
        )


@dataclass
class Tally:
    """What became of the prompts of a judge.

    Attributes:
        called: prompts that the model was given.
        kept: prompts answered from disk.
        unasked: prompts left out after max_calls.
        failed: {why: prompts without an answer that can be read}.
        models: what those who answered call the model.
    """

    called: int = 0
    kept: int = 0
    unasked: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    models: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        failed = "; ".join(f"{n} failed: {why}" for why, n in sorted(self.failed.items()))
        return (
            f"{self.called} prompts asked, {self.kept} answered from disk, {self.unasked} left "
            f"out, {self.failed.total()} failed{f' ({failed})' if failed else ''}; model: "
            f"{', '.join(sorted(self.models)) or 'none'}"
        )
