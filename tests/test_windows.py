"""Sparse codes against dense ones, and windows of text: of disjoint documents, silent where they
must be.
"""

import dataclasses

import numpy as np
import pytest
import torch

from faithful_sae import TopKSAE
from faithful_sae.features.codes import Codes, sparse_codes
from faithful_sae.features.index import FeatureError
from faithful_sae.features.windows import cut, windows_of
from faithful_sae.text.packing import Cut, pack

BOS, V, D, F = 0, 40, 6, 12
T, W = 17, 4


class StubModel:
    """Activations are small whole numbers of a token and the one before it, so that sums are exact
    in any order.
    """

    bos_id = BOS
    d_model = D

    def __init__(self):
        rng = np.random.default_rng(0)
        self.table = torch.from_numpy(rng.integers(-3, 4, (2, V, D))).float()

    def activations(self, ids):
        before = torch.cat([ids[:, :1], ids[:, :-1]], 1)
        return self.table[0][ids] + self.table[1][before]


def whole_numbers(seed, k=3):
    """An SAE with weights that are whole numbers; with k None, of a threshold."""
    sae = TopKSAE(D, F, k, seed)
    rng = np.random.default_rng(seed)
    sae.W_enc = torch.from_numpy(rng.integers(-2, 3, (D, F))).float()
    sae.b_enc = torch.from_numpy(rng.integers(-3, 1, F)).float()
    if k is None:
        sae.threshold = torch.full((F,), 4.0)
    return sae


def documents(rng, n, cut_off=0.0):
    """Document i has id i + 1 at all of its tokens."""
    for i in range(n):
        ids = np.full(rng.integers(1, 3 * T) if rng.random() < 0.3 else rng.integers(1, 12), i + 1)
        yield Cut(ids) if rng.random() < cut_off else ids


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    texts = (rng.integers(1, V, rng.integers(3, 40)) for _ in range(700))
    return pack(texts, BOS, T, 10_000)


@pytest.fixture(scope="module")
def dense(rows):
    z = whole_numbers(0).encode(StubModel().activations(torch.from_numpy(rows).long())).numpy()
    z[rows == BOS] = 0
    return z


@pytest.fixture(scope="module")
def codes(rows):
    return sparse_codes({"a": whole_numbers(0)}, StubModel(), rows)["a"]


@pytest.fixture(scope="module")
def pieces(rows):
    return cut(rows, BOS, W)


def assert_same(one, other):
    for field in dataclasses.fields(one):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(a):
            assert_same(a, b)
        else:
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), field.name


@pytest.mark.parametrize("k", [3, None])
def test_codes_are_the_dense_latents(rows, k):
    sae = whole_numbers(0, k)
    z = sae.encode(StubModel().activations(torch.from_numpy(rows).long())).numpy()
    z[rows == BOS] = 0
    found = sparse_codes({"a": sae}, StubModel(), rows)["a"]
    again = np.zeros((rows.size, F), np.float32)
    for latent in range(F):
        position, value = found.of(latent)
        assert (np.diff(position) > 0).all()
        again[position, latent] = value
    assert np.array_equal(again, z.reshape(-1, F))
    assert (found.value > 0).all()
    assert found.tokens == (rows != BOS).sum()
    np.testing.assert_allclose(found.density, (z[rows != BOS] > 0).mean(0), rtol=1e-12)


def test_codes_do_not_depend_on_batches_or_other_saes(rows):
    saes = {"a": whole_numbers(0), "b": whole_numbers(1, None)}
    together = sparse_codes(saes, StubModel(), rows, batch_rows=7)
    for name, sae in saes.items():
        alone = sparse_codes({name: sae}, StubModel(), rows, batch_rows=len(rows))[name]
        assert_same(together[name], alone)


def test_codes_refuse(rows):
    stub = StubModel()
    with pytest.raises(FeatureError, match="shape \\[0, 17\\]"):
        sparse_codes({}, stub, rows[:0])
    with pytest.raises(FeatureError, match="nothing but BOS"):
        sparse_codes({"a": whole_numbers(0)}, stub, np.zeros((2, T), np.int32))
    with pytest.raises(FeatureError, match="SAE 'b' takes activations of width 5"):
        sparse_codes({"b": TopKSAE(5, F, 2, 0)}, stub, rows)


def test_windows_of_rows_worked_out_by_hand():
    rows = np.array(
        [
            [BOS, 1, 2, 3, 4, 5, 6, 7],  # 1 2 3 | 4 5 6
            [BOS, 8, 9, BOS, 10, 11, 12, 13],  # 10 11 12
            [BOS, 1, 1, 1, 2, BOS, 3, 4],  # left out: the first row of the other side
            [BOS, 5, BOS, 5, 6, 7, 8, 9],  # the second with a BOS in it
            [BOS, 14, 15, BOS, 16, 17, BOS, 18],  # too short
            [BOS, BOS, 20, 21, 22, 23, 24, 25],  # 20 21 22 | 23 24 25
        ],
        np.int32,
    )
    # rows 0 to 2 explain, 3 to 5 test, so that 3 and 4 are left out
    found = cut(rows, BOS, 3, 2)
    assert found.ids.tolist() == [
        *([1, 2, 3], [4, 5, 6], [10, 11, 12], [1, 1, 1]),
        *([20, 21, 22], [23, 24, 25]),
    ]
    assert found.test.tolist() == [False] * 4 + [True] * 2
    assert found.start.tolist() == [1, 4, 12, 17, 42, 45]
    assert found.containing(1).tolist() == [0, 3]
    assert found.containing(19).tolist() == []
    inside = np.flatnonzero(found.window_at >= 0)
    assert inside.tolist() == sorted(s + i for s in found.start for i in range(3))
    assert np.array_equal(found.ids[found.window_at[inside], [0, 1, 2] * 6], rows.ravel()[inside])


@pytest.mark.parametrize("cut_off", [0, 0.5, 0.9])
@pytest.mark.parametrize("missing", [0, 0.2])
def test_no_document_has_windows_on_both_sides(cut_off, missing):
    crossing = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = pack(documents(rng, 400, cut_off), BOS, T, 10**6)
        rows = rows[rng.random(len(rows)) >= missing]
        found = cut(rows, BOS, 2, 12)
        shown, tested = (np.unique(found.ids[found.test == side]) for side in (False, True))
        assert not np.intersect1d(shown, tested).size
        assert min(len(shown), len(tested)) > 20
        sections = np.array_split(rows, 12)
        of = [np.setdiff1d(np.concatenate(sections[i::2]), [BOS]) for i in (0, 1)]
        crossing += len(np.intersect1d(*of))
    # without rows left out there would be some
    assert crossing > 20


def test_few_rows_are_left_out():
    rows = pack(documents(np.random.default_rng(0), 3000), BOS, T, 10**6)
    found = cut(rows, BOS, 1, 16)
    lost = 1 - len(found) / (rows != BOS).sum()
    # 15 changes of side, at each of them two rows, and a few that have no BOS
    assert lost < 15 * 4 / len(rows)


def test_windows_refuse(rows):
    with pytest.raises(FeatureError, match="windows of 17 tokens do not fit rows of 17"):
        cut(rows, BOS, 17)
    with pytest.raises(FeatureError, match="sections = 1 must be at least 2"):
        cut(rows, BOS, W, 1)
    endless = np.ones((40, T), np.int32)
    endless[:, 0] = BOS
    with pytest.raises(FeatureError, match="no window of 4 on the test side"):
        cut(endless, BOS, W)


def test_kinds_of_windows_are_what_they_say(codes, pieces, rows, dense):
    z, scored = dense.reshape(-1, F), 0
    for latent in range(F):
        chosen = windows_of(codes, pieces, latent, n=20, least=5)
        if chosen is None:
            continue
        scored += 1
        own = z[pieces.start[:, None] + np.arange(W), latent]
        shown = {(i.tobytes(), a.tobytes()) for i, a in zip(pieces.ids, own, strict=True)}
        parts = (chosen.explanation, chosen.active, chosen.random, chosen.hard)
        for part in parts:
            pairs = zip(part.ids, part.activations, strict=True)
            assert {(i.tobytes(), a.tobytes()) for i, a in pairs} <= shown
        assert chosen.active.active.all()
        for silent in (chosen.random, chosen.hard):
            assert not silent.activations.any()
            assert len(silent) <= 20
        assert (chosen.hard.ids == chosen.top_token).any(1).all()
        fired = pieces.ids[~pieces.test][own[~pieces.test] > 0]
        assert np.bincount(fired).argmax() == chosen.top_token
        assert chosen.explanation.active.sum() <= 20
        assert len(chosen.explanation) <= 60
        assert chosen.density == codes.density[latent]
    assert scored > F / 2


def test_sides_and_silence_are_kept(pieces):
    """Every window of a latent that fires on one token of each side alone."""
    start, test = pieces.start, pieces.test
    fires = np.sort([*start[test][:30], *start[~test][:30]])
    value = np.ones(60, np.float32)
    codes = Codes(np.array([0, 60]), fires.astype(np.int32), value, 1000)
    chosen = windows_of(codes, pieces, 0, n=30)
    assert chosen.active.ids.tolist() == pieces.ids[test][:30].tolist()
    shown = chosen.explanation
    assert shown.ids[shown.active].tolist() == pieces.ids[~test][:30].tolist()
    assert chosen.density == 0.06
    assert windows_of(codes, pieces, 0, n=31) is None
    assert len(windows_of(codes, pieces, 0, n=31, least=30).active) == 30


def test_active_windows_come_from_all_tenths_alike(pieces):
    chosen_of = np.concatenate([np.flatnonzero(pieces.test == side)[:200] for side in (0, 1)])
    chosen_of.sort()
    value = np.random.default_rng(0).permutation(len(chosen_of)).astype(np.float32) + 1
    start = np.array([0, len(chosen_of)])
    codes = Codes(start, pieces.start[chosen_of].astype(np.int32), value, 10_000)
    chosen = windows_of(codes, pieces, 0, n=40)
    edges = np.quantile(value[pieces.test[chosen_of]], np.arange(1, 10) / 10)
    tenth = np.digitize(chosen.active.activations.max(1), edges)
    assert np.bincount(tenth).tolist() == [4] * 10


def test_windows_are_drawn_by_seed(codes, pieces):
    one, again = (windows_of(codes, pieces, 1, n=10, seed=3) for _ in range(2))
    assert_same(one, again)
    other = windows_of(codes, pieces, 1, n=10, seed=4)
    assert one.random.ids.tobytes() != other.random.ids.tobytes()
    with pytest.raises(FeatureError, match="latent 12 is out of range: there are 0 to 11"):
        windows_of(codes, pieces, F)
    with pytest.raises(FeatureError, match="n = 0 and least = 0 must be at least 1"):
        windows_of(codes, pieces, 0, n=0)
