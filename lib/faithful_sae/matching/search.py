"""Column generation: solve on the graph of likely pairs, search all others for one that the dual
prices do not rule out, repeat.

With prices U_i + V_j >= t_ij for *every* pair, sum U + sum V bounds any matching's total from above
(weak duality); when it equals the matching's own total, the matching is optimal and the prices are
the proof. On the graph alone equality proves nothing, so each pair outside it is covered in one of
three ways:

    1. it was kept by the first pass, with an upper bound of its t: compared with the prices each
       round, exactly where that is close;
    2. it was not kept, so t_ij <= min(row_i, column_j) + its error bound: compared with the prices
       for all pairs at once by sorting;
    3. what remains (rows x columns, some percent) is scanned again, against prices U0, V0 that are
       remembered: a pair not found has t_ij <= U0_i + V0_j - MARGIN, so only rows and columns
       whose price has fallen since need another scan.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit
from tqdm import tqdm

from faithful_sae.kernels.backend import over_rows
from faithful_sae.matching.codes import Rows, cosines
from faithful_sae.matching.dense import dense_start
from faithful_sae.matching.scan import Codes, Kept, error_terms, sampled_thresholds, scan
from faithful_sae.matching.sparse import (
    INCREMENTS,
    Exhausted,
    Graph,
    Solution,
    by_column,
    centre,
    solve,
)

# a pair may exceed its prices by this, and n of it is added to the bound
TOLERANCE = 2e-10
# pairs this close to their prices join the graph before they are violated
MARGIN = 1.5e-3
# pairs of a row that the first pass keeps, and of these the graph's; fewer leave clusters without a
# matching
KEEP = 128
DEGREE = 28


@dataclass(frozen=True)
class Certified:
    """What a search found.

    Attributes:
        match: int64 [n_A].
        bound: least dual bound found on the sum of cosines, infinite if not all pairs could be
            covered.
        rounds: of column generation.
        scanned: products looked at after the first pass, in units of n_A n_B.
    """

    match: np.ndarray
    bound: float
    rounds: int
    scanned: float


class Search:
    """One problem: maximise the sum of cosines between rows of A and rows of B, A.n <= B.n, every
    row of A matched.

    Args:
        bar: of pairs.
        dense: whether all cosines are held at once, and scipy's answer is where it starts.
        keep, degree, cap: pairs of a row that the first pass is to keep, that join the graph, that
            are kept at most; they decide the time, not the result.
        limit: in units of n_A n_B, on the edges that a solution may look at, and of 256 n_A on the
            pairs close to their prices: beyond it, the dense solver is faster.
        seed: of the rows by which thresholds are sampled.
    """

    def __init__(
        self,
        A: Rows,
        B: Rows,
        bar: tqdm,
        dense: bool = False,
        keep: int = KEEP,
        degree: int = DEGREE,
        cap: int = 16 * KEEP,
        limit: float = np.inf,
        seed: int = 0,
    ):
        self.A = A
        self.B = B
        self.bar = bar
        self.scanned = 0
        self.dense = dense
        self.fixed = A.n < B.n
        self.limit = limit
        # pairs of a row that a later scan looks at; doubled when that hides something
        self.again = 2 * KEEP
        self.offset_a = np.zeros(A.n)
        self.offset_b = np.zeros(B.n)
        if not dense:
            self.offset_a = A.times(B.mean)
            self.offset_b = B.times(A.mean) - A.mean @ B.mean
        # a free column costs nothing
        self.floor = -self.offset_b if self.fixed else np.full(B.n, -np.inf)
        # infinite: not scanned again so far
        self.reference_u = np.full(A.n, np.inf)
        self.reference_v = np.full(B.n, np.inf)
        self.extra = np.empty(0, np.int64), np.empty(0)
        if dense:
            self._keep_all()
        else:
            self._keep_likely(keep, cap, np.random.default_rng(seed))
            self._first_graph(np.flatnonzero(self._largest(degree)))

    def weights(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """t_ij = s_ij - a_i - c_j in float64."""
        return cosines(self.A, self.B, rows, columns) - self.offset_a[rows] - self.offset_b[columns]

    def _keep_all(self):
        """For small problems: every pair is kept, and the graph holds those close to the prices of
        scipy's assignment.
        """
        upper, U, self.prices = dense_start(self.A, self.B)
        self.kept = Kept(np.full(self.A.n, -np.inf), np.full(self.B.n, -np.inf))
        self.errors = np.zeros(self.A.n), np.zeros(self.B.n)
        self.start = np.arange(self.A.n + 1) * self.B.n
        self.column = np.tile(np.arange(self.B.n, dtype=np.int32), self.A.n)
        self.upper = upper.ravel()
        self.increments = ()
        self.first = U, self.prices
        self._first_graph(np.flatnonzero(upper > (U - MARGIN)[:, None] + self.prices))

    def _keep_likely(self, keep, cap, rng):
        """For large ones: pairs above a threshold of their row or column."""
        self.errors = error_terms(self.A, self.B)
        self.prices = np.zeros(self.B.n)
        self.increments = INCREMENTS
        kept = Kept(
            sampled_thresholds(self.A, self.B, keep, rng),
            sampled_thresholds(self.B, self.A, keep, rng),
        )
        parts = list(scan(Codes(self.A), Codes(self.B), kept, self.errors, self.bar.update, cap))
        _, self.column, self.upper, counts = map(np.concatenate, zip(*parts, strict=True))
        kept.row[counts > cap] = np.inf
        self.kept = kept
        self.start = np.concatenate([[0], np.cumsum(np.minimum(counts, cap))])

    def _largest(self, degree):
        """bool [kept pairs]: the `degree` largest of each row and column."""
        chosen = np.zeros(len(self.column), bool)
        start, _, edge = by_column(self.start, self.column, self.B.n)
        _mark_largest(self.start, np.arange(len(edge)), self.upper, degree, chosen)
        _mark_largest(start, edge, self.upper, degree, chosen)
        return chosen

    def _first_graph(self, place):
        rows = np.searchsorted(self.start, place, side="right") - 1
        columns = self.column[place]
        self.upper[place] = -np.inf  # in the graph: nothing more to ask about them
        self.graph = Graph(_starts(rows, self.A.n), columns, self.weights(rows, columns), self.B.n)

    def run(self, rounds: int) -> Certified:
        """Solve and search until nothing is found, or for a number of rounds, or until the limit is
        reached.
        """
        prices = self.prices
        increments = self.increments
        bound = np.inf
        match = np.empty(0, np.int64)
        done = 0
        try:
            for done in range(1, rounds + 1):
                solution = self._solve(prices, increments)
                if not self.dense:  # whose prices are right for all pairs from the start
                    centre(self.graph, solution, self.floor)
                prices = solution.V
                match = solution.match
                violated = self._kept_pairs(solution) or self._unseen_pairs(solution)
                self.bar.set_postfix(round=done, violated=violated)
                if violated == 0:
                    bound = self._bound(solution)
                    break
                many = violated > 0.002 * self.A.n and not self.dense
                increments = (2e-3, 4e-4, 8e-5, 1.6e-5, 1e-6) if many else ()
        except Exhausted:
            pass
        return Certified(match, bound, done, self.scanned / (self.A.n * self.B.n))

    def _solve(self, prices: np.ndarray, increments: tuple[float, ...]) -> Solution:
        """An optimum of the graph; pairs of free rows with free columns are added until there is a
        perfect matching.
        """
        while True:
            solution = solve(
                self.graph,
                self.floor if self.fixed else prices,
                increments,
                self.fixed,
                self.limit * self.A.n * self.B.n,
            )
            rows, columns = np.flatnonzero(solution.match < 0), np.flatnonzero(solution.owner < 0)
            if not len(rows):
                return solution
            each = min(len(columns), 64)
            columns = columns[
                (np.arange(len(rows))[:, None] + np.arange(each)) % len(columns)
            ].ravel()
            rows = np.repeat(rows, each)
            self._add(rows, columns, self.weights(rows, columns))
            prices = solution.V
            increments = ()

    def _add(self, rows, columns, weights):
        """New edges; those the graph has already are left out."""
        graph = self.graph
        have = graph.rows * np.int64(self.B.n) + graph.column
        new = rows * np.int64(self.B.n) + columns
        new, first = np.unique(new, return_index=True)
        at = np.searchsorted(have, new)
        absent = (
            have[np.minimum(at, len(have) - 1)] != new if len(have) else np.ones(len(new), bool)
        )
        at = at[absent]
        first = first[absent]
        column = np.insert(graph.column, at, columns[first])
        weight = np.insert(graph.weight, at, weights[first])
        self.graph = Graph(graph.start + _starts(rows[first], self.A.n), column, weight, self.B.n)

    def _judge(self, solution, rows, columns, weights):
        """Add the pairs that violate the prices or nearly do; how many do, and which were added."""
        excess = weights - solution.U[rows] - solution.V[columns]
        close = excess > -MARGIN
        self._add(rows[close], columns[close], weights[close])
        return int((excess > TOLERANCE).sum()), close

    def _close(self, U, V):
        """(places of the kept pairs that may come close to the prices, how many there are of each
        row).
        """
        counts = np.zeros(self.A.n, np.int64)
        over_rows(_count_close, self.A.n, self.start, self.column, self.upper, U, V, counts)
        place = np.empty(counts.sum(), np.int64)
        over_rows(
            _list_close,
            self.A.n,
            self.start,
            self.column,
            self.upper,
            U,
            V,
            np.cumsum(counts) - counts,
            place,
        )
        return place, counts

    def _kept_pairs(self, solution):
        """Coverage 1: number of violated pairs among those the first pass kept."""
        if self.dense:
            U, V = self.first
            # pairs outside the graph were MARGIN below the first prices
            if (U - solution.U).max() + (V - solution.V).max() < MARGIN:
                return 0
        place, counts = self._close(solution.U, solution.V)
        rows = np.repeat(np.arange(self.A.n), counts)
        columns = self.column[place]
        weights = self.weights(rows, columns)
        violated, close = self._judge(solution, rows, columns, weights)
        self.upper[place] = np.where(
            close, -np.inf, np.nextafter(weights.astype(np.float32), np.float32(np.inf))
        )
        return violated

    def _unseen_pairs(self, solution):
        """Coverage 2 and 3: number of violated pairs among those the first pass did not keep."""
        U = solution.U
        V = solution.V
        least_u = U - self.errors[0]
        least_v = V - self.errors[1]
        rows = _possible(least_u, self.kept.row, least_v, self.kept.column)
        columns = _possible(least_v, self.kept.column, least_u, self.kept.row)
        unknown = self.kept.row == np.inf
        rows |= unknown
        columns |= unknown.any()
        fallen_rows = _follow(self.reference_u, U, rows)
        fallen_columns = _follow(self.reference_v, V, columns)
        new_rows = rows & fallen_rows
        new_columns = columns & fallen_columns
        all_rows, all_columns = np.isfinite(self.reference_u), np.isfinite(self.reference_v)
        crowded = np.concatenate(
            [
                self._scan_again(np.flatnonzero(new_rows), np.flatnonzero(all_columns), self.again),
                self._scan_again(
                    np.flatnonzero(all_rows & ~new_rows), np.flatnonzero(new_columns), self.again
                ),
            ]
        )
        violated = self._judge_extra(solution)
        if len(crowded) and not violated:
            # nothing wrong with what was looked at: look at all of it
            self._scan_again(crowded, np.flatnonzero(all_columns), self.B.n)
            return self._judge_extra(solution)
        # to be scanned again, at prices that make them less attractive
        self.reference_u[crowded] = np.inf
        self.again *= 2 if len(crowded) else 1
        return violated

    def _judge_extra(self, solution):
        pair, weights = self.extra
        return self._judge(solution, pair // self.B.n, pair % self.B.n, weights)[0]

    def _scan_again(self, rows, columns, cap):
        """Remember the pairs of these rows and columns that were not kept and come close to the
        reference prices.

        Returns:
            int64, the rows that have more than `cap` such pairs, of which only so many were looked
            at.
        """
        if not len(rows) or not len(columns):
            return rows[:0]
        self.scanned += len(rows) * len(columns)
        self.bar.total += len(rows) * len(columns)
        finite = [
            price[np.isfinite(price)]
            for price in (self.reference_u[rows], self.reference_v[columns])
        ]
        # of sums of prices in float32
        rounding = 2.0**-22 * (4 + sum(np.abs(price).max() for price in finite))
        above = (
            self.reference_u - self.errors[0] - MARGIN - rounding,
            self.reference_v - self.errors[1],
        )
        pairs = [self.extra[0]]
        weights = [self.extra[1]]
        crowded = []
        for i, j, _, counts in scan(
            Codes(self.A, rows),
            Codes(self.B, columns),
            self.kept,
            self.errors,
            self.bar.update,
            cap,
            above,
        ):
            weight = self.weights(i, j)
            near = weight > self.reference_u[i] + self.reference_v[j] - MARGIN
            pairs.append(i[near] * np.int64(self.B.n) + j[near])
            weights.append(weight[near])
            crowded.append(counts > cap)
            if np.isfinite(self.limit) and sum(map(len, pairs)) > 256 * self.A.n:
                raise Exhausted
        pair, first = np.unique(np.concatenate(pairs), return_index=True)
        self.extra = pair, np.concatenate(weights)[first]
        return rows[np.concatenate(crowded)]

    def _bound(self, solution):
        """Weak duality in cosines: sum of all prices, of the columns beyond what a free one costs,
        and n tolerances.
        """
        excess = self.graph.weight - solution.U[self.graph.rows] - solution.V[self.graph.column]
        slack = max(excess.max(), TOLERANCE) * self.A.n
        free = self.floor if self.fixed else -self.offset_b
        return float((solution.U + self.offset_a).sum() + (solution.V - free).sum() + slack)


def _starts(rows, n):
    """int64 [n + 1]: how many of `rows` are below each number."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))])


def _follow(reference, price, wanted):
    """Update reference prices in place; bool [n], which have fallen (or are new), so that their
    bound is no longer valid.

    A reference may rise without a scan, since that only weakens what it states; if it stayed
    behind, the next scan would find everything close to it.
    """
    fallen = ~(price >= reference - MARGIN / 2)
    reference[fallen] = np.where(wanted, price, np.inf)[fallen]
    risen = price > reference + MARGIN / 2
    reference[risen] = price[risen]
    return fallen


def _possible(price, threshold, others_price, others_threshold):
    """bool [n]: whether some other has price + other's price < min(threshold, other's threshold),
    in n log n.

    Where the other's threshold is the larger, the least of their prices decides; where it is the
    smaller, the largest of threshold - price.
    """
    order = np.argsort(others_threshold, kind="stable")
    sorted_threshold = others_threshold[order].astype(np.float64)
    sorted_price = others_price[order]
    least_price = np.append(np.minimum.accumulate(sorted_price[::-1])[::-1], np.inf)
    largest = np.insert(np.maximum.accumulate(sorted_threshold - sorted_price), 0, -np.inf)
    at = np.searchsorted(sorted_threshold, threshold, side="left")
    return (price + least_price[at] < threshold) | (price < largest[at])


@njit(cache=True)
def _mark_largest(start, edge, value, degree, chosen):
    """Mark the `degree` largest values of every segment."""
    for s in range(len(start) - 1):
        part = edge[start[s] : start[s + 1]]
        if len(part) <= degree:
            for e in part:
                chosen[e] = True
        else:
            least = np.partition(value[part], len(part) - degree)[len(part) - degree]
            for e in part:
                if value[e] >= least:
                    chosen[e] = True


@njit(nogil=True, cache=True)
def _count_close(first, last, start, column, upper, U, V, counts):
    for i in range(first, last):
        for e in range(start[i], start[i + 1]):
            counts[i] += upper[e] > U[i] + V[column[e]] - MARGIN


@njit(nogil=True, cache=True)
def _list_close(first, last, start, column, upper, U, V, offset, place):
    for i in range(first, last):
        at = offset[i]
        for e in range(start[i], start[i + 1]):
            if upper[e] > U[i] + V[column[e]] - MARGIN:
                place[at] = e
                at += 1
