"""The large-scale assignment against scipy on dense float64 cosines, its parts against brute force,
its proof against tampering.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from tqdm import tqdm

from faithful_sae import match_features, matching
from faithful_sae.kernels import backend, cosine_tiles
from faithful_sae.matching import codes as codes_module
from faithful_sae.matching.codes import Rows, cosines
from faithful_sae.matching.scan import Codes, Kept, error_terms, scan
from faithful_sae.matching.search import MARGIN, Search, _possible
from faithful_sae.matching.sparse import Graph, centre, solve

on_triton = pytest.param(
    "triton", marks=pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform")
)


def unit(m):
    norm = np.linalg.norm(np.float64(m), axis=1, keepdims=True)
    return np.divide(np.float64(m), norm, out=np.zeros(m.shape), where=norm > 0)


def optimum(A, B):
    c = unit(A) @ unit(B).T
    return c[linear_sum_assignment(c, maximize=True)].sum()


def search(A, B, rounds=100, **kwargs):
    with tqdm(total=0, disable=True) as bar:
        return Search(Rows(A), Rows(B), bar, **kwargs).run(rounds)


KINDS = ("random", "ties", "duplicates", "zeros", "planted", "clusters", "hubs", "common mean")


def case(kind, n, d, seed):
    """Two float32 dictionaries [n, d] whose best partners are of a kind that gives trouble."""
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(2, n, d))
    if kind == "ties":
        A, B = rng.integers(-1, 2, (2, n, d))
    elif kind == "duplicates":
        A = A[rng.integers(0, max(n // 4, 1), n)]
        B = B[rng.integers(0, max(n // 4, 1), n)]
    elif kind == "zeros":
        A = A * (rng.random((n, 1)) < 0.7)
        B = B * (rng.random((n, 1)) < 0.8)
    elif kind == "planted":
        B = (A + rng.uniform(0, 1.5, (n, 1)) * B)[rng.permutation(n)]
    elif kind == "clusters":
        centres = rng.normal(size=(max(n // 8, 1), d))
        A, B = (centres[rng.integers(0, len(centres), n)] + 0.1 * noise for noise in (A, B))
    elif kind == "hubs":  # a few rows of B are near everything in A, and the other way round
        hub = rng.normal(size=d)
        A = A + 2 * hub
        B = np.where(rng.random((n, 1)) < 0.2, B + 4 * hub, B)
    elif kind == "common mean":
        A = A + 3
        B = B + 3
    return A.astype(np.float32), B.astype(np.float32)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(1, 24),
    st.integers(0, 10**6),
    st.sampled_from([4, 16, 200]),
)
def test_search_finds_scipys_optimum_and_proves_it(kind, n, m, d, seed, cap):
    """Square and rectangular, with lists so short that they overflow."""
    A, B = case(kind, max(n, m), d, seed)
    A = A[: min(n, m)]
    B = B[: max(n, m)]
    best = optimum(A, B)
    for options in ({"keep": 8, "degree": 3, "cap": cap}, {"dense": True}):
        found = search(A, B, **options)
        value = (unit(A) * unit(B)[found.match]).sum()
        assert len(set(found.match)) == len(A), options
        assert abs(value - best) <= 1e-9 * len(A), options
        assert best - 1e-12 * len(A) <= found.bound <= best + 1e-9 * len(A), options


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(0, 10**6),
)
def test_match_features_equals_scipy(kind, n, m, d, seed):
    A, B = case(kind, max(n, m), d, seed)
    A = A[:n]
    B = B[:m]
    found = match_features(A, B)
    matched = found.permutation >= 0
    assert found.certified
    assert matched.sum() == min(n, m)
    assert len(set(found.permutation[matched])) == min(n, m)
    assert found.permutation.dtype == np.int64
    assert np.isnan(found.cosine[~matched]).all()
    np.testing.assert_allclose(
        found.cosine[matched],
        (unit(A)[matched] * unit(B)[found.permutation[matched]]).sum(1),
        atol=1e-12,
    )
    assert abs(found.objective - optimum(A, B)) <= 1e-9 * n
    assert abs(found.objective - found.cosine[matched].sum()) < 1e-12 * n


# hundreds of equal rows take long at this size
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zeros"])
def test_over_several_tiles(kind):
    """Larger than a tile, through the front door, against scipy."""
    A, B = case(kind, 2300, 40, 3)
    found = match_features(A, B)
    assert found.certified
    assert abs(found.objective - optimum(A, B)) < 1e-9 * len(A)


def test_dictionaries_of_two_sizes():
    A, B = case("planted", 2500, 32, 5)
    wide, tall = match_features(A[:900], B), match_features(B, A[:900])
    assert wide.certified
    assert tall.certified
    assert abs(wide.objective - optimum(A[:900], B)) < 1e-9 * 900
    matched = np.flatnonzero(tall.permutation >= 0)
    assert len(matched) == 900
    assert np.array_equal(wide.permutation[tall.permutation[matched]], matched)


def test_a_noisy_shuffle_is_recovered_exactly():
    rng = np.random.default_rng(0)
    A = rng.normal(size=(3000, 64))
    order = rng.permutation(3000)
    found = match_features(A, (A + 0.3 * rng.normal(size=A.shape))[order])
    assert np.array_equal(order[found.permutation], np.arange(3000))
    assert found.certified


# --- the proof ------------------------------------------------------------------------------------


def test_a_worse_matching_is_not_certified(monkeypatch):
    """Two partners exchanged: the bound stays, the objective falls, and no certificate is given."""
    A, B = case("planted", 1200, 48, 1)
    run = Search.run

    def worsened(self, rounds):
        found = run(self, rounds)
        found.match[[3, 700]] = found.match[[700, 3]]
        return found

    honest = match_features(A, B)
    monkeypatch.setattr(Search, "run", worsened)
    found = match_features(A, B)
    assert honest.certified
    assert not found.certified
    assert found.gap == pytest.approx(honest.objective - found.objective, abs=1e-6)
    assert found.gap > 1e-3


def test_a_matching_that_is_optimal_on_a_poor_graph_is_not_certified(monkeypatch):
    """One round on a graph of two edges a row: equality of primal and dual there proves nothing,
    and is not taken for a proof.
    """
    A, B = case("clusters", 1500, 48, 2)
    best = optimum(A, B)
    poor = search(A, B, rounds=1, degree=2)
    assert poor.bound == np.inf
    assert (unit(A) * unit(B)[poor.match]).sum() < best - 1e-3
    monkeypatch.setattr(matching, "ROUNDS_ALONE", 1)
    monkeypatch.setattr(matching, "DENSE_ROWS", 0)
    monkeypatch.setattr(
        matching, "Search", lambda *args, limit: Search(*args, limit=limit, degree=2)
    )
    found = match_features(A, B)
    assert not found.certified
    assert found.gap == np.inf


@pytest.mark.parametrize("name, value", [("ROUNDS", 1), ("LIMIT", 0.01)])
def test_out_of_rounds_or_work_the_dense_solver_finishes(monkeypatch, name, value):
    A, B = case("clusters", 900, 48, 2)
    monkeypatch.setattr(matching, name, value)
    found = match_features(A, B)
    assert found.certified
    assert abs(found.objective - optimum(A, B)) < 1e-9 * len(A)


@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_processors_that_add_products_in_16_bits(isa):
    """Without VNNI a product of 8-bit integers saturates: codes must be smaller there. The library
    is told to forget its instructions.
    """
    code = """if True:
        import numpy as np
        from scipy.optimize import linear_sum_assignment
        from faithful_sae import match_features
        rng = np.random.default_rng(0)
        flat = rng.normal(size=(2, 1000, 16))
        signs = np.sign(rng.normal(size=(2, 1000, 64))) + 0.01 * rng.normal(size=(2, 1000, 64))
        for A, B in (flat, signs):
            A, B = (m / np.linalg.norm(m, axis=1, keepdims=True) for m in (A, B))
            found = match_features(A, B)
            c = A @ B.T
            assert found.certified
            assert found.rounds
            best = c[linear_sum_assignment(c, maximize=True)].sum()
            assert abs(found.objective - best) < 1e-6
    """
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    )


@pytest.mark.parametrize("price", [0, 10, 400, 3000])
def test_later_scans_miss_nothing_whatever_the_size_of_prices(price):
    """Pairs that are MARGIN below their prices, prices whose spacing in float32 is above MARGIN
    included.
    """
    A, B = (Rows(m) for m in case("planted", 700, 16, 0))
    with tqdm(total=0, disable=True) as bar:
        found = Search(A, B, bar)
    # nothing was kept
    found.kept.row[:] = 2
    found.kept.column[:] = 2
    i = np.arange(700)
    weight = found.weights(i, i)
    found.reference_u = price + np.random.default_rng(0).random(700)
    found.reference_v = weight - found.reference_u + MARGIN * (1 - 1e-9)
    found._scan_again(i, i, 700)
    assert set(i * 700 + i) <= set(found.extra[0])


@pytest.mark.parametrize("n", [300, 800])
@pytest.mark.parametrize("scale", [1e-310, 1e-170, 1e-161, 1e-50, 1e50, 1e170, 1e300])
def test_the_length_of_rows_does_not_matter(n, scale):
    A, B = case("planted", n, 8, 0)
    expected = match_features(A.astype(np.float64), B)
    A = A.astype(np.float64)
    A[::2] *= scale
    found = match_features(A, B.astype(np.float64) * scale if scale > 1e-300 else B)
    assert found.certified
    assert found.objective == pytest.approx(
        expected.objective, abs=1e-6 if scale < 1e-300 else 1e-9
    )


def test_types_that_float32_does_not_hold():
    A, B = (m.astype(np.float64) + 1e-9 for m in case("ties", 300, 8, 0))
    expected = match_features(A, B)
    for a in (A.astype(">f8"), A.astype(np.longdouble)):
        assert match_features(a, B).objective == expected.objective
    whole = np.random.default_rng(0).integers(2**30, 2**31, (2, 300, 8))
    assert match_features(*whole).objective == pytest.approx(optimum(*whole), abs=1e-9)
    assert match_features(*map(torch.from_numpy, whole)).certified
    with pytest.raises(ValueError, match="complex"):
        match_features(A + 0j, B)
    with pytest.raises(ValueError, match="real"):
        match_features(torch.from_numpy(A + 0j), torch.from_numpy(B))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_unseen_pairs_are_ruled_out_by_sorting_as_by_looking_at_each(n, m, seed):
    rng = np.random.default_rng(seed)
    price, threshold = rng.integers(-3, 4, (2, n)) / 2
    others_price, others_threshold = rng.integers(-3, 4, (2, m)) / 2
    pair = price[:, None] + others_price < np.minimum(threshold[:, None], others_threshold)
    assert np.array_equal(_possible(price, threshold, others_price, others_threshold), pair.any(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 7, 300])
def test_codes_are_within_their_bound(kind, d):
    A, B = case(kind, 90, d, 0)
    a, b = Rows(A), Rows(B)
    qa, sa, *_ = a.codes
    qb, sb, *_ = b.codes
    product = (qa[:90].long() @ qb[:90].long().T).numpy() * sa[:, None] * sb
    true = (unit(A) - unit(A).mean(0)) @ (unit(B) - unit(B).mean(0)).T
    np.testing.assert_allclose(
        true,
        unit(A) @ unit(B).T - a.times(b.mean)[:, None] - (b.times(a.mean) - a.mean @ b.mean),
        atol=1e-12,
    )
    row, column = error_terms(a, b)
    error = np.abs(true - product)
    assert (error <= row[:, None] + column).all()
    # and the bound is no idle one
    assert d < 300 or error.max() > 0.1 * (row.max() + column.max())


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["host", on_triton])
@pytest.mark.parametrize("cap", [3, 1000])
def test_scan_finds_exactly_the_pairs_above_their_threshold(monkeypatch, where, cap):
    """Ragged tiles, a subset of rows, both thresholds."""
    monkeypatch.setattr(cosine_tiles, "TILE", 64)
    if where == "triton":
        monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu"})
    A, B = (Rows(m) for m in case("planted", 150, 20, 0))
    rng = np.random.default_rng(0)
    kept = Kept(*rng.uniform(-0.1, 0.5, (2, 150)).astype(np.float32))
    kept.row[7] = np.inf  # nothing is known of row 7
    qa, sa, _, _ = A.codes
    qb, sb, _, _ = B.codes
    t = (
        qa[:150].numpy().astype(np.float32)
        @ qb[:150].numpy().astype(np.float32).T
        * sb.astype(np.float32)
        * sa.astype(np.float32)[:, None]
    )
    threshold = np.minimum(kept.row[:, None], kept.column)
    errors = (rng.uniform(0, 0.1, 150), rng.uniform(0, 0.1, 150))
    above = (rng.uniform(-0.3, 0, 150), rng.uniform(0, 0.3, 150))
    some_rows = np.sort(rng.choice(150, 77, False))
    some_columns = np.sort(rng.choice(150, 130, False))
    some_rows[np.searchsorted(some_rows, 7)] = 7
    sums = above[0].astype(np.float32)[:, None] + above[1].astype(np.float32)
    second = (t > sums) & ~((t > threshold) & (np.arange(150) != 7)[:, None])
    for rows, columns, extra, expected in (
        (None, None, None, t > threshold),
        (some_rows, some_columns, above, second),
    ):
        chosen = np.zeros((150, 150), bool)
        chosen[np.ix_(*(np.arange(150) if x is None else x for x in (rows, columns)))] = True
        expected = expected & chosen
        done = []
        parts = list(scan(Codes(A, rows), Codes(B, columns), kept, errors, done.append, cap, extra))
        i, j, upper, counts = (np.concatenate(p) for p in zip(*parts, strict=True))
        order = np.arange(150) if rows is None else rows
        assert np.array_equal(counts, expected[order].sum(1))
        assert sum(done) == chosen.sum()
        assert np.array_equal(np.bincount(i, minlength=150)[order], np.minimum(counts, cap))
        assert expected[i, j].all()
        assert len(set(zip(i, j, strict=True))) == len(i)
        assert cap < 150 or len(i) == expected.sum()
        np.testing.assert_allclose(
            upper, t[i, j] + errors[0][i] + errors[1][j], rtol=1e-6, atol=1e-6
        )


@pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform")
@pytest.mark.parametrize(
    "kind, n, m, d, cap",
    [
        ("random", 90, 90, 7, 200),
        ("ties", 70, 131, 5, 200),
        ("duplicates", 67, 67, 9, 16),
        ("zeros", 65, 80, 8, 4),
        ("planted", 190, 190, 40, 16),
        ("clusters", 150, 150, 24, 4),
        ("hubs", 64, 129, 33, 16),
    ],
)
def test_a_gpu_matches_as_the_host_does(kind, n, m, d, cap, monkeypatch):
    """Products by Triton: the same matching, bound and course to the last bit, whether lists
    overflow or not.
    """
    A, B = case(kind, m, d, 0)
    A = A[:n]
    calls = []
    by_triton = cosine_tiles.by_triton
    monkeypatch.setattr(
        cosine_tiles, "by_triton", lambda *args: calls.append(args) or by_triton(*args)
    )
    monkeypatch.setattr(matching, "DENSE_BELOW", 0)

    def run():
        found = search(A, B, keep=8, degree=3, cap=cap)
        whole = match_features(A, B)
        return (
            found.match.tolist(),
            found.bound,
            found.rounds,
            found.scanned,
            whole.permutation.tolist(),
            whole.gap,
            whole.certified,
        )

    host = run()
    assert not calls
    monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu"})
    found = run()
    assert found == host
    assert found[-1]
    # the first pass, and one against prices
    assert {len(row_terms) for _, _, row_terms, *_ in calls} == {3, 4}
    best = optimum(A, B)
    assert abs((unit(A) * unit(B)[found[0]]).sum() - best) <= 1e-9 * n
    assert best - 1e-12 * n <= found[1] <= best + 1e-9 * n


def test_tile_size_and_threads_change_nothing(monkeypatch):
    A, B = case("clusters", 1300, 30, 0)
    expected = match_features(A, B)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert np.array_equal(match_features(A, B).permutation, expected.permutation)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(cosine_tiles, "TILE", 96)
    found = match_features(A, B)
    assert np.array_equal(found.permutation, expected.permutation)
    assert found.objective == expected.objective


# --- the sparse solver ----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 40), st.integers(0, 30), st.integers(1, 6), st.booleans(), st.integers(0, 10**6)
)
def test_sparse_graphs_against_scipy(n, more, degree, whole, seed):
    """Optimal matching, feasible prices tight on it, free columns at their first price; also after
    centring.
    """
    rng = np.random.default_rng(seed)
    m = n + more
    adjacent = rng.random((n, m)) < degree / m
    adjacent[np.arange(n), rng.permutation(m)[:n]] = True  # some perfect matching exists
    weight = np.where(
        adjacent, rng.integers(-5, 6, (n, m)) if whole else rng.normal(size=(n, m)), np.nan
    )
    i, j = np.nonzero(adjacent)
    graph = Graph(
        np.concatenate([[0], np.cumsum(adjacent.sum(1))]),
        j.astype(np.int32),
        weight[i, j].astype(float),
        m,
    )
    floor = rng.normal(size=m) if more else np.full(m, -np.inf)
    solution = solve(graph, floor if more else np.zeros(m), fixed=more > 0)
    # a row that takes a column saves its first price: scipy is told so
    cost = csr_array((20 - (weight[i, j] - (floor[j] if more else 0)), (i, j)), shape=(n, m))
    r, c = min_weight_full_bipartite_matching(cost)
    best = (weight[r, c] - (floor[c] if more else 0)).sum()
    for _ in range(2):
        U = solution.U
        V = solution.V
        match = solution.match
        assert len(set(match)) == n
        assert adjacent[np.arange(n), match].all()
        assert (weight[np.arange(n), match] - (floor[match] if more else 0)).sum() == pytest.approx(
            best, abs=1e-9
        )
        assert (U[i] + V[j] >= weight[i, j] - 1e-9).all()
        np.testing.assert_allclose(U + V[match], weight[np.arange(n), match], atol=1e-9)
        free = np.setdiff1d(np.arange(m), match)
        if more:
            assert np.array_equal(V[free], floor[free])
            assert (V - floor >= -1e-9).all()
        centre(graph, solution, floor)


def test_centred_prices_leave_room_on_both_sides():
    """Two planted pairs, hand-worked: U_i may lie between the best other offer, 0.2, and 0.9 minus
    the column's best other, 0.2.
    """
    graph = Graph(
        np.array([0, 2, 4]), np.array([0, 1, 0, 1], np.int32), np.array([0.9, 0.2, 0.2, 0.9]), 2
    )
    solution = solve(graph, np.zeros(2))
    centre(graph, solution, np.full(2, -np.inf), sweeps=60)
    slack = solution.U[:, None] + solution.V - np.array([[0.9, 0.2], [0.2, 0.9]])
    np.testing.assert_allclose(slack, [[0, 0.7], [0.7, 0]], atol=1e-6)


def test_rows_without_a_column_are_left_alone():
    graph = Graph(np.array([0, 1, 2, 2]), np.array([0, 0], np.int32), np.array([1.0, 2.0]), 3)
    solution = solve(graph, np.zeros(3))
    assert sorted(solution.match) == [-1, -1, 0]
    assert solution.match[2] == -1
    assert (solution.owner[1:] == -1).all()


# --- kinds of input -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_float_type_is_matched_for_the_values_it_holds(dtype):
    A, B = (torch.from_numpy(m).to(dtype) for m in case("planted", 700, 33, 0))
    found = match_features(A, B)
    assert found.certified
    assert abs(found.objective - optimum(A.double().numpy(), B.double().numpy())) < 1e-9 * 700


def test_layout_gradients_and_read_only_arrays():
    A, B = case("planted", 700, 33, 0)
    expected = match_features(A, B)
    frozen = A.copy()
    frozen.flags.writeable = False
    for a, b in (
        (torch.from_numpy(A.T.copy()).T, torch.from_numpy(B).requires_grad_()),
        (frozen, np.asfortranarray(B)),
        (np.repeat(A, 2, 1)[:, ::2], B.astype(np.float64)),
    ):
        found = match_features(a, b)
        assert np.array_equal(found.permutation, expected.permutation)
        assert found.objective == pytest.approx(expected.objective, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_memory_map_gives_the_same_and_is_never_held_whole(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(codes_module, "BLOCK", 256)
    arrays = [m.astype(dtype) for m in case("planted", 1100, 33, 0)]
    maps = []
    for name, array in zip("AB", arrays, strict=True):
        array.tofile(tmp_path / name)
        maps.append(np.memmap(tmp_path / name, dtype=dtype, mode="r", shape=array.shape))
    sizes = []
    block = Rows.block
    monkeypatch.setattr(
        Rows, "block", lambda self, start: sizes.append(len(part := block(self, start))) or part
    )
    expected = match_features(*arrays)
    found = None
    sizes.clear()
    found = match_features(*maps)
    assert max(sizes) == 256
    assert found.certified
    assert np.array_equal(found.permutation, expected.permutation)
    assert found.objective == pytest.approx(expected.objective, abs=1e-9)
    i, j = np.random.default_rng(0).integers(0, 1100, (2, 5000))
    np.testing.assert_allclose(
        cosines(Rows(maps[0]), Rows(maps[1]), i, j),
        (unit(arrays[0])[i] * unit(arrays[1])[j]).sum(1),
        atol=1e-12,
    )


def test_a_row_of_zeros_has_cosine_0_with_everything():
    A, B = case("random", 800, 16, 0)
    A[5:300] = 0
    B[100] = 0
    found = match_features(A, B)
    assert found.certified
    assert (found.cosine[5:300] == 0).all()
    assert abs(found.objective - optimum(A, B)) < 1e-9 * 800


def test_match_pairs_prepares_each_dictionary_once(monkeypatch):
    made = []
    init = Rows.__init__
    monkeypatch.setattr(Rows, "__init__", lambda self, *args: made.append(1) or init(self, *args))
    a, b = case("planted", 700, 20, 0)
    dictionaries = {"a": a, "b": b, "c": case("random", 700, 20, 1)[0]}
    found = matching.match_pairs(dictionaries)
    assert len(made) == 3
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    for (first, second), pair in found.items():
        alone = match_features(dictionaries[first], dictionaries[second])
        assert np.array_equal(pair.permutation, alone.permutation)
        assert pair.objective == alone.objective
