"""The rule by which a statement is said to agree with what was measured, for the paper's claims
(07) and for those of Paulo and Belrose (08).

A statement is a number of differences that should be above 0, each with its interval over seeds
(metrics.uncertainty). They come in cases: a language model, or a task of one.

    agrees          every difference of a case is above 0: its one-sided 95 % bound is. No
                    correction: all must hold at once (an intersection-union test, Berger 1982)
    disagrees       one of them is below 0, by its bound, where 5 % are shared among all
                    differences of the statement (Bonferroni): of many, one looks so by chance
    no difference   all lie within a margin around 0, by their 90 % intervals (two one-sided tests)
    undecided       none of these: the seeds are too few for a difference of this size, or all gave
                    the same number, so that nothing tells how far another would be
    not testable    a number would come out like this whatever the text of the SAEs, as where a
                    probe is at chance; or the profile has not what is compared

A statement on all cases agrees where each does, and disagrees where one does. One on most cases
agrees where more than half do, and disagrees where that can no longer happen. A case that is not
measured yet counts as undecided, one that is not testable does not count.

Beside the verdict stands p of the side to which the numbers lean: for "all" the largest of the
cases' p, for "most" that of a partial conjunction (Benjamini and Heller 2008), twice the smaller of
the two sides; and Holm's over all statements of a table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from faithful_sae.metrics.uncertainty import LEVEL, Estimate

AGREES = "agrees"
DISAGREES = "disagrees"
NO_DIFFERENCE = "no difference"
UNDECIDED = "undecided"
NOT_TESTABLE = "not testable"
NOT_MEASURED = "not measured"
VERDICTS = (AGREES, DISAGREES, NO_DIFFERENCE, UNDECIDED, NOT_TESTABLE, NOT_MEASURED)
# margins within which a difference is none, in the units of what is compared
SHARE = 0.02
NATS = 0.02
PERCENT = 0.1
COLUMNS = ("measured", "effect", "low", "high", "seeds", "seeds_needed", "p", "p_holm", "verdict")


@dataclass(frozen=True)
class Difference:
    """What should be above 0, and what it is called: "above alpaca"."""

    name: str
    estimate: Estimate
    digits: int = 3

    def __str__(self) -> str:
        e = self.estimate
        number = f"{self.name} {e.value:+.{self.digits}f}"
        if math.isnan(e.error):
            return f"{number} (no interval: {e.seeds} seed{'s' if e.seeds > 1 else ''})"
        if e.silent:
            return f"{number} (no interval: the same with each of {e.seeds} seeds)"
        low, high = e.interval()
        return f"{number} [{low:+.{self.digits}f}, {high:+.{self.digits}f}]"


@dataclass(frozen=True)
class Case:
    """One language model, or one task of it.

    Attributes:
        name: in tables.
        differences: that should all be above 0.
        excluded: why nothing can be said of it, in words; None where something can.
        fact: for a statement without noise, whether it holds.
        words: what was measured, where no difference says it.
    """

    name: str
    differences: tuple[Difference, ...] = ()
    excluded: str | None = None
    fact: bool | None = None
    words: str = ""

    def __post_init__(self) -> None:
        if not self.differences and self.excluded is None and self.fact is None:
            raise ValueError(f"{self.name}: no difference, no fact, nothing to judge")

    def verdict(self, margin: float, cases: int = 1) -> str:
        """By the rule above.

        Args:
            margin: within which a difference is none.
            cases: that the statement is on.
        """
        if self.excluded is not None:
            return NOT_TESTABLE
        if self.fact is not None:
            return AGREES if self.fact else DISAGREES
        bounds = [d.estimate.bounds() for d in self.differences]
        telling = [d.estimate for d in self.differences if not d.estimate.silent]
        all_tell = len(telling) == len(bounds)
        if all_tell and all(low > 0 for low, _ in bounds):
            return AGREES
        shared = 1 - (1 - LEVEL) / (cases * len(self.differences))
        if any(estimate.bounds(shared)[1] < 0 for estimate in telling):
            return DISAGREES
        inside = all(-margin < low and high < margin for low, high in bounds)
        return NO_DIFFERENCE if all_tell and inside else UNDECIDED

    def p(self) -> tuple[float, float]:
        """(that all differences are above 0, that one is below), one-sided; NaN of a fact."""
        if self.fact is not None:
            return math.nan, math.nan
        above = max(d.estimate.p_above() for d in self.differences)
        below = min(d.estimate.negative().p_above() for d in self.differences)
        return above, min(1.0, len(self.differences) * below)

    def __str__(self) -> str:
        said = "; ".join(filter(None, [self.words, *map(str, self.differences)]))
        if self.excluded is not None:
            said = f"{said}; {self.excluded}" if said else self.excluded
        return f"{self.name}: {said}"


def judge(
    cases: Sequence[Case], missing: Sequence[str] = (), most: bool = False, margin: float = 0.0
) -> dict[str, Any]:
    """The verdict on one statement, as the columns of a table.

    Args:
        cases: that are measured.
        missing: names of those that are not yet.
        most: whether the statement is on most cases, not on all.
        margin: within which a difference is none.

    Returns:
        measured (in words); effect, low, high of the difference that is weakest for the
        statement, and the seeds behind it; of an undecided statement seeds_needed, to tell every
        difference that is open from 0 (NA where no number of seeds would do); p, and verdict.
    """
    words = [*map(str, cases), *([f"not measured: {', '.join(missing)}"] if missing else [])]
    said = "; ".join(words)
    counted = [case for case in cases if case.excluded is None]
    if not counted:
        verdict = NOT_MEASURED if missing and not cases else NOT_TESTABLE
        return {"measured": said or "the profile has not what this compares", "verdict": verdict}
    verdicts = [case.verdict(margin, len(counted) + len(missing)) for case in counted]
    row: dict[str, Any] = {
        "measured": f"{verdicts.count(AGREES)} of {len(counted)} agree. {said}",
        "verdict": _together(verdicts, len(missing), most),
    }
    differences = [d.estimate for case in counted for d in case.differences]
    if differences:
        weakest = min(differences, key=_strength)
        low, high = (math.nan, math.nan) if weakest.silent else weakest.interval()
        row |= {"effect": weakest.value, "low": low, "high": high, "seeds": weakest.seeds}
        if row["verdict"] == UNDECIDED:
            row["seeds_needed"] = _seeds_needed(counted, verdicts)
        row["p"] = _p([case.p() for case in counted], len(missing), most)
    return row


def _strength(estimate):
    """How far above 0, in its own errors; where nothing is known of these, weakest of all."""
    return -math.inf if estimate.silent else estimate.value / estimate.error


def _together(verdicts, waiting, most):
    n = len(verdicts) + waiting
    for_it, against = verdicts.count(AGREES), verdicts.count(DISAGREES)
    if most:
        if for_it > n / 2:
            return AGREES
        if n - against <= n / 2:
            return DISAGREES
    else:
        if for_it == n:
            return AGREES
        if against:
            return DISAGREES
    return NO_DIFFERENCE if verdicts.count(NO_DIFFERENCE) == n else UNDECIDED


def _seeds_needed(cases, verdicts):
    needed = [
        difference.estimate.seeds_needed()
        for case, verdict in zip(cases, verdicts, strict=True)
        if verdict == UNDECIDED
        for difference in case.differences
        if difference.estimate.bounds()[0] <= 0 or difference.estimate.silent
    ]
    return pd.NA if not needed or None in needed else max(needed)


def _p(sides, waiting, most):
    above, below = (np.sort([*side, *[1.0] * waiting]) for side in zip(*sides, strict=True))
    n = len(above)
    if np.isnan(above).any():
        return math.nan
    if most:
        # so many must hold for the statement to hold, and so many fail for it to fail
        hold, fail = n // 2 + 1, n - n // 2
        p = (n - hold + 1) * above[hold - 1], (n - fail + 1) * below[fail - 1]
    else:
        p = above[-1], n * below[0]
    return float(min(1.0, 2 * min(p)))


def table_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Judged statements, each a dict of its own columns and those of `judge`, with Holm's p."""
    table = pd.DataFrame(rows)
    own = [column for column in table if column not in COLUMNS]
    table = table.reindex(columns=[*own, *COLUMNS])
    known = table.p.notna()
    table.loc[known, "p_holm"] = holm(table.p[known].astype(float))
    whole = {"seeds": "Int64", "seeds_needed": "Int64"}
    floats = dict.fromkeys(("effect", "low", "high", "p", "p_holm"), float)
    return table.astype(whole | floats)


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's (1979) adjusted p values: the smallest times n, the next times n - 1, ..., none below
    one before it, none above 1.
    """
    p = np.asarray(p, float)
    order = p.argsort()
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    out = np.empty(len(p))
    out[order] = np.minimum(steps, 1)
    return out
