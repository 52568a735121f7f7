"""How far a measured number would be another one with other seeds, rows or texts.

The unit is the seed. A number of one SAE depends on one seed, a number of a pair of SAEs (SFR) on
two, and pairs that have a seed in common are not independent. The mean over all pairs is a
U-statistic; its standard error is that of the delete-one-seed jackknife (Arvesen 1969; Efron and
Stein 1981), and its intervals are Student's with S - 1 degrees of freedom:

    error^2 = (S - 1) / S  x  sum over seeds s of (theta without s - mean of these)^2

What is measured on some rows or texts would also be another number on others of their kind. That
part is the bootstrap's (Efron 1979), and is added in quadrature.

Language model, training text and its order are given once: an interval speaks of seeds, rows and
texts alone.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import ArrayLike

# the seeds that a number depends on -> the number
Values = Mapping[tuple[int, ...], float]
LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
# an error this small a part of a number is that of adding up, not of seeds
ROUNDING = 1e-12
# numbers of a resample that are in memory together
AT_ONCE = 2**22


@dataclass(frozen=True)
class Estimate:
    """A number and its standard errors, in its own unit.

    Attributes:
        value: what was measured.
        seeds: S, how many seeds it was measured with.
        seed_error: what other seeds would do; NaN where so few do not tell.
        text_error: what other rows or texts would do.
    """

    value: float
    seeds: int
    seed_error: float
    text_error: float = 0.0

    @property
    def error(self) -> float:
        return math.hypot(self.seed_error, self.text_error)

    @property
    def silent(self) -> bool:
        """Whether nothing says how far another number would be: the seeds are too few, or all gave
        the same number. A share of latents is a multiple of one latent, and may do so by chance.
        """
        return math.isnan(self.error) or self.error <= ROUNDING * abs(self.value)

    def half_width(self, level: float = LEVEL) -> float:
        """Half of the two-sided interval; NaN where the error is not known."""
        if math.isnan(self.error):
            return math.nan
        return float(scipy.stats.t.ppf((1 + level) / 2, self.seeds - 1)) * self.error

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Two-sided."""
        half = self.half_width(level)
        return self.value - half, self.value + half

    def bounds(self, level: float = LEVEL) -> tuple[float, float]:
        """One-sided, each by itself: what the number is above, and what it is below."""
        return self.interval(2 * level - 1)

    def p_above(self) -> float:
        """One-sided p of the hypothesis that the number is 0 or less; 1 where nothing tells."""
        if self.silent:
            return 1.0
        return float(scipy.stats.t.sf(self.value / self.error, self.seeds - 1))

    def minus(self, number: float) -> "Estimate":
        """The same, less a number that has no error."""
        return replace(self, value=self.value - number)

    def negative(self) -> "Estimate":
        """The same with its sign turned."""
        return replace(self, value=-self.value)

    def seeds_needed(self) -> int | None:
        """With how many seeds a difference of this size would be told from 0 four times out of
        five; None where it would take more than a thousand, or where more rows or texts are needed
        instead.

        The error of seeds is taken to fall as 1 / sqrt(S).
        """
        if self.silent:
            return None
        seeds, quantiles = _told_apart()
        errors = np.hypot(self.seed_error * np.sqrt(self.seeds / seeds), self.text_error)
        enough = abs(self.value) >= quantiles * errors
        return int(seeds[enough.argmax()]) if enough.any() else None


@functools.cache
def _told_apart() -> tuple[np.ndarray, np.ndarray]:
    """(numbers of seeds, how many standard errors a difference must be for each of them)."""
    seeds = np.arange(2, MOST_SEEDS + 1)
    return seeds, scipy.stats.t.ppf(LEVEL, seeds - 1) + scipy.stats.t.ppf(POWER, seeds - 1)


def mean_over_seeds(values: Values, others: Values | None = None) -> Estimate:
    """The mean of some numbers, or what it is above the mean of others, over seeds.

    Args:
        values: by the seeds they depend on: (s,) for a number of one SAE, (a, b) for one of a pair.
        others: of other SAEs with the same seeds; a seed is left out of both at once.

    Returns:
        an estimate; its seed_error is NaN where a seed cannot be left out, as of one seed or of
        one pair.

    Raises:
        ValueError: no numbers; others with other seeds.
    """
    groups = [values] if others is None else [values, others]
    seeds = sorted({seed for key in values for seed in key})
    if not all(groups):
        raise ValueError("no numbers to take a mean of")
    if any({seed for key in group for seed in key} != {*seeds} for group in groups):
        raise ValueError("the numbers that are compared have different seeds")

    def statistic(chosen: Sequence[int]) -> float:
        means = [mean_within(group, chosen) for group in groups]
        return means[0] - sum(means[1:])

    return jackknife(statistic, seeds)


def mean_within(values: Values, chosen: Iterable[int]) -> float:
    """Mean of the numbers that depend on no other seeds than these; NaN of none."""
    chosen = {*chosen}
    kept = [value for key, value in values.items() if chosen.issuperset(key)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def jackknife(statistic: Callable[[Sequence[int]], float], seeds: Sequence[int]) -> Estimate:
    """Any statistic of SAEs, by leaving out one seed at a time.

    Args:
        statistic: of some of the seeds; NaN where they are too few.
        seeds: all of them.
    """
    without = np.array([statistic([s for s in seeds if s != out]) for out in seeds])
    square = (len(seeds) - 1) / len(seeds) * np.square(without - without.mean()).sum()
    error = math.sqrt(square) if len(seeds) > 1 else math.nan
    return Estimate(float(statistic(seeds)), len(seeds), error)


def bootstrap_error(sums: ArrayLike, counts: ArrayLike, draws: int = 1000, seed: int = 0) -> float:
    """Standard error of a mean over tokens that come in rows, or over texts: the rows are drawn
    again, with replacement.

    Args:
        sums: [R], of each row.
        counts: [R], how many tokens each sum is over; ones for texts.
        draws: resamples.
        seed: of the resamples.

    Returns:
        the standard deviation of sum(sums) / sum(counts) over resamples; NaN of fewer than two
        rows.
    """
    sums, counts = np.asarray(sums, float), np.asarray(counts, float)
    n = len(sums)
    if n < 2:
        return math.nan
    # a few draws at a time: of many texts, all at once would fill the memory
    at_once = max(1, AT_ONCE // n)
    ratios = []
    for number, start in enumerate(range(0, draws, at_once)):
        chosen = _drawn(n, min(at_once, draws - start), (seed, number))
        with np.errstate(invalid="ignore"):
            ratios.append((chosen @ sums) / (chosen @ counts))
    return float(np.nanstd(np.concatenate(ratios), ddof=1))


@functools.lru_cache(maxsize=4)
def _drawn(n: int, draws: int, seed: tuple[int, int]) -> np.ndarray:
    """float64 [draws, n]: how often each of n rows is drawn; many numbers are on the same texts."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
