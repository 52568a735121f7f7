"""Assignment on a sparse graph: rows i, columns j, edges with weights w_ij, in compressed sparse
row form.

    maximise     sum_i w_i,match(i)
    dual prices  U_i + V_j >= w_ij on all edges, equality on matched ones

Three steps: an auction with falling bid increments (Bertsekas 1988) finds nearly optimal prices;
exact shortest augmenting paths (Jonker and Volgenant 1987) finish from there; then the prices are
centred. Planted pairs leave a whole interval of valid prices; at its end points a matched row looks
attractive to thousands of columns outside the graph, in its middle to none.

Where there are fewer rows than columns, a column that stays free must keep its first price
(complementary slackness), so prices start there and the auction, which forgets that, is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba import njit

TIGHT = 1e-12
INCREMENTS = (*(0.05 / 5**i for i in range(7)), 1e-6)


@dataclass
class Graph:
    """start int64 [n_rows + 1], column int32 [E], weight float64 [E]; row i has edges start[i] to
    start[i + 1], by rising column.
    """

    start: np.ndarray
    column: np.ndarray
    weight: np.ndarray
    n_columns: int

    @property
    def n_rows(self) -> int:
        return len(self.start) - 1

    @property
    def rows(self) -> np.ndarray:
        """int32 [E], the row of each edge."""
        return np.repeat(np.arange(self.n_rows, dtype=np.int32), np.diff(self.start))


@dataclass
class Solution:
    """U float64 [n_rows], V float64 [n_columns]; match int64 [n_rows], owner int64 [n_columns], -1
    where there is none.
    """

    U: np.ndarray
    V: np.ndarray
    match: np.ndarray
    owner: np.ndarray


class Exhausted(Exception):
    """More work than was allowed."""


def solve(
    graph: Graph,
    prices: np.ndarray,
    increments: Sequence[float] = INCREMENTS,
    fixed: bool = False,
    limit: float = np.inf,
) -> Solution:
    """Optimal assignment on the graph, from the given prices of the columns.

    Args:
        prices: float64 [n_columns] to start from.
        increments: of the auction's rounds; none: no auction.
        fixed: `prices` are what a column costs that stays free. With as many rows as columns none
            does, and they are a mere start.
        limit: on the number of edges looked at.

    Returns:
        rows that the graph cannot match stay at -1: their component has fewer columns than rows.
        The time is at worst that of one Dijkstra search per row; after an auction few rows are left
        and their searches are short.

    Raises:
        Exhausted: the limit is reached.
    """
    work = 0
    degree = max(len(graph.column), 1) / graph.n_rows
    V = prices.copy()
    match = np.full(graph.n_rows, -1)
    owner = np.full(graph.n_columns, -1)
    edges = graph.start, graph.column, graph.weight
    if not fixed:
        for increment in increments:
            match[:], owner[:] = -1, -1
            bids, complete = _auction(
                *edges, V, match, owner, increment, min(400.0 * graph.n_rows, limit / degree)
            )
            work += bids * degree
            if not complete:
                break
    U = np.empty(graph.n_rows)
    _tight(*edges, U, V, match, owner, fixed)
    _augmenting_row_reduction(*edges, V, match, owner, 4 * graph.n_rows)
    _tight(*edges, U, V, match, owner, True)
    space = _workspace(graph)
    for first in range(0, graph.n_rows, 64):  # so that Ctrl-C is heard
        work += _augment(*edges, U, V, match, owner, first, min(first + 64, graph.n_rows), *space)
        if work > limit:
            raise Exhausted
    return Solution(U, V, match, owner)


def centre(graph: Graph, solution: Solution, floor: np.ndarray, sweeps: int = 6) -> None:
    """Move the prices of matched pairs to the middle of what optimality allows, in place.

    Args:
        floor: float64 [n_columns], the lowest price a column may have: -inf, or the price of a free
            one.
        sweeps: over all pairs.
    """
    start, rows, edge = by_column(graph.start, graph.column, graph.n_columns)
    for _ in range(sweeps):
        _centre(
            graph.start,
            graph.column,
            graph.weight,
            start,
            rows,
            edge,
            solution.U,
            solution.V,
            solution.match,
            solution.owner,
            floor,
        )


def _workspace(graph: Graph) -> tuple[np.ndarray, ...]:
    n = graph.n_columns
    m = len(graph.column) + graph.n_columns
    return (
        np.full(n, np.inf),
        np.full(n, -1),
        np.zeros(n, np.int8),
        np.empty(n, np.int64),
        np.empty(m),
        np.empty(m, np.int64),
    )


@njit(cache=True)
def _best_two(start, column, weight, V, i):
    best = -np.inf
    second = -np.inf
    chosen = -1
    for e in range(start[i], start[i + 1]):
        value = weight[e] - V[column[e]]
        if value > best:
            best, second, chosen = value, best, column[e]
        elif value > second:
            second = value
    return best, second, chosen


@njit(cache=True)
def _auction(start, column, weight, V, match, owner, increment, limit):
    """Free rows bid for their best column what it is worth to them above the second best, and the
    increment.

    Returns (number of bids, whether all rows got a column).
    """
    n = len(match)
    queue = np.arange(n)
    head = 0
    waiting = n
    bids = 0
    while waiting and bids < limit:
        i = queue[head]
        head = (head + 1) % n
        waiting = waiting - 1
        bids = bids + 1
        best, second, j = _best_two(start, column, weight, V, i)
        if j < 0:
            continue
        V[j] += min(best - second, 1.0) + increment  # the only edge of a row has no second
        if owner[j] >= 0:
            match[owner[j]] = -1
            queue[(head + waiting) % n] = owner[j]
            waiting += 1
        match[i], owner[j] = j, i
    return bids, waiting == 0


@njit(cache=True)
def _tight(start, column, weight, U, V, match, owner, keep):
    """U_i = max_j (w_ij - V_j); matches that are not tight are given up, and free rows take free
    tight columns.
    """
    for i in range(len(match)):
        best, _, _ = _best_two(start, column, weight, V, i)
        U[i] = best
        if match[i] >= 0:
            tight = False
            for e in range(start[i], start[i + 1]):
                tight |= column[e] == match[i] and best - (weight[e] - V[column[e]]) <= TIGHT
            if not tight:
                owner[match[i]], match[i] = -1, -1
    for i in range(len(match)):
        if match[i] < 0:
            for e in range(start[i], start[i + 1]):
                if owner[column[e]] < 0 and U[i] - (weight[e] - V[column[e]]) <= TIGHT:
                    match[i], owner[column[e]] = column[e], i
                    break


@njit(cache=True)
def _augmenting_row_reduction(start, column, weight, V, match, owner, limit):
    """The auction without an increment: exact, and quick for most rows; those caught in a tie are
    left to _augment.
    """
    stack = np.flatnonzero(match < 0)[::-1].copy()
    steps = 0
    top = len(stack)
    while top and steps < limit:
        i = stack[top - 1]
        steps = steps + 1
        top -= 1
        best, second, j = _best_two(start, column, weight, V, i)
        if j < 0 or (owner[j] >= 0 and best - second <= TIGHT) or second == -np.inf:
            continue
        V[j] += best - second
        if owner[j] >= 0:
            match[owner[j]] = -1
            stack[top] = owner[j]
            top += 1
        match[i], owner[j] = j, i


@njit(cache=True)
def _augment(
    start,
    column,
    weight,
    U,
    V,
    match,
    owner,
    first,
    last,
    distance,
    previous,
    done,
    reached,
    heap_key,
    heap_column,
):
    """For each free row from first to last: Dijkstra over reduced costs U_i + V_j - w_ij to the
    nearest free column.

    Returns the number of edges looked at.
    """
    work = 0
    for free in range(first, last):
        if match[free] >= 0 or start[free] == start[free + 1]:
            continue
        size = 0
        n_reached = 0
        target = -1
        length = np.inf
        i = free
        base = 0.0
        while True:
            work += start[i + 1] - start[i]
            for e in range(start[i], start[i + 1]):
                j = column[e]
                if done[j]:
                    continue
                d = base + max(U[i] + V[j] - weight[e], 0.0)
                if d < distance[j] and d < length:
                    if distance[j] == np.inf:
                        reached[n_reached] = j
                        n_reached += 1
                    distance[j], previous[j] = d, i
                    if owner[j] < 0:
                        length = d
                        target = j
                    else:
                        size = _push(heap_key, heap_column, size, d, j)
            j = -1
            while size:
                d, j, size = _pop(heap_key, heap_column, size)
                if not done[j] and d <= distance[j]:
                    break
                j = -1
            if j < 0 or distance[j] >= length:
                break
            done[j], i, base = 1, owner[j], distance[j]
        if target >= 0:
            U[free] -= length
            for r in range(n_reached):
                j = reached[r]
                if done[j]:
                    V[j] += length - distance[j]
                    U[owner[j]] -= length - distance[j]
            j = target
            while True:
                i = previous[j]
                owner[j] = i
                match[i], j = j, match[i]
                if i == free:
                    break
        for r in range(n_reached):
            distance[reached[r]], done[reached[r]] = np.inf, 0
    return work


@njit(cache=True)
def _push(key, value, size, k, v):
    at = size
    while at and key[(at - 1) // 2] > k:
        key[at], value[at] = key[(at - 1) // 2], value[(at - 1) // 2]
        at = (at - 1) // 2
    key[at], value[at] = k, v
    return size + 1


@njit(cache=True)
def _pop(key, value, size):
    top_key = key[0]
    top_value = value[0]
    size = size - 1
    k = key[size]
    v = value[size]
    at = 0
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and key[child + 1] < key[child]:
            child += 1
        if key[child] >= k:
            break
        key[at], value[at] = key[child], value[child]
        at = child
    key[at], value[at] = k, v
    return top_key, top_value, size


@njit(cache=True)
def by_column(
    start: np.ndarray, column: np.ndarray, n_columns: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transposed graph: (start [n_columns + 1], row of each edge, its place before)."""
    column_start = np.zeros(n_columns + 1, np.int64)
    for j in column:
        column_start[j + 1] += 1
    column_start = np.cumsum(column_start)
    place = column_start[:-1].copy()
    rows = np.empty(len(column), np.int32)
    edge = np.empty(len(column), np.int64)
    for i in range(len(start) - 1):
        for e in range(start[i], start[i + 1]):
            rows[place[column[e]]], edge[place[column[e]]] = i, e
            place[column[e]] += 1
    return column_start, rows, edge


@njit(cache=True)
def _centre(start, column, weight, column_start, rows, edge, U, V, match, owner, floor):
    for i in range(len(match)):
        j = match[i]
        if j < 0:
            continue
        lowest = -np.inf
        paired = 0.0
        for e in range(start[i], start[i + 1]):
            if column[e] == j:
                paired = weight[e]
            else:
                lowest = max(lowest, weight[e] - V[column[e]])
        most = floor[j]  # what the column must at least cost
        for e in range(column_start[j], column_start[j + 1]):
            if rows[e] != i:
                most = max(most, weight[edge[e]] - U[rows[e]])
        highest = paired - most
        if lowest == -np.inf:
            lowest = highest - 1.0 if highest < np.inf else paired / 2
        if highest == np.inf:
            highest = lowest + 1.0
        if highest > lowest:  # otherwise, by rounding, there is nothing to choose
            U[i] = (lowest + highest) / 2
            V[j] = paired - U[i]
