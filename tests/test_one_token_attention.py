"""Attention of one new token per row, in each of its forms, against its equation in float64, row by
row and head by head.
"""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from faithful_sae.kernels import backend
from faithful_sae.kernels.one_token_attention import (
    TILE,
    _power_of_2,
    one_token_attention,
    reference,
)

FORMS = [
    "loops",
    "reference",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform"),
    ),
]
# before the new token; 64 to a tile
LENGTHS = [0, 1, 63, 64, 65, 150]


@pytest.fixture(params=FORMS)
def attend(request, monkeypatch):
    if request.param == "triton":
        monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu"})
    return reference if request.param == "reference" else one_token_attention


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(heads, groups, width, spread=1.0):
    """Buffers of 8 rows that hold other documents' leftovers, of which six, not side by side, get a
    token.
    """
    keys, values = (normal(8, 3, groups, width, TILE, seed=seed) for seed in (1, 2))
    query = spread * normal(6, heads, width, seed=3)
    k = normal(6, groups, width, seed=4)
    v = normal(6, groups, width, seed=5)
    return query, k, v, keys, values, torch.tensor([0, 1, 3, 4, 5, 7]), torch.tensor(LENGTHS)


def by_hand(query, k, v, keys, values, slots, lengths, scale, softcap=None, window=None):
    # [rows, tokens, G, d]
    keys, values = (t.permute(0, 1, 4, 2, 3).flatten(1, 2).double().numpy() for t in (keys, values))
    out = np.empty(query.shape)
    for b, (slot, n) in enumerate(zip(slots, lengths, strict=True)):
        for h in range(query.shape[1]):
            g = h * k.shape[1] // query.shape[1]
            past = keys[slot, :n, g]
            contents = values[slot, :n, g]
            past = np.vstack([past, k[b, g].double()])
            contents = np.vstack([contents, v[b, g].double()])
            scores = scale * past @ query[b, h].double().numpy()
            scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
            first = 0 if window is None else max(n + 1 - window, 0)
            out[b, h] = softmax(scores[first:]) @ contents[first:]
    return torch.from_numpy(out)


@pytest.mark.parametrize("softcap, window", [(None, None), (2.0, None), (None, 6), (3.0, 100)])
@pytest.mark.parametrize("heads, groups, width", [(4, 2, 8), (3, 3, 12), (6, 1, 5), (1, 1, 4)])
def test_equals_the_equation(attend, heads, groups, width, softcap, window):
    arguments = case(heads, groups, width)
    expected = by_hand(*arguments, 0.3, softcap, window)
    before = [t.clone() for t in arguments[3:5]]
    got = attend(*arguments, max(LENGTHS), 0.3, softcap, window)
    assert got.dtype == torch.float32
    assert (got - expected).abs().max() < 2e-6
    _, k, v, *kept, slots, lengths = arguments
    # the new tokens are written, and nothing else
    for old, now, new in zip(before, kept, (k, v), strict=True):
        for b, (slot, n) in enumerate(zip(slots, lengths, strict=True)):
            old[slot, n // TILE, :, :, n % TILE] = new[b]
        assert torch.equal(old, now)


def test_scores_far_apart(attend):
    """A token that takes all, and scores in the thousands: neither overflows, and weights beyond
    float32 are 0.
    """
    arguments = case(4, 2, 8, spread=1000.0)
    got = attend(*arguments, max(LENGTHS), 1.0)
    assert got.isfinite().all()
    assert (got - by_hand(*arguments, 1.0)).abs().max() < 1e-4


def test_memory_without_meaning_is_not_read(attend):
    """What lies beyond a row's last token has no influence, whatever it is."""
    query, k, v, keys, values, slots, lengths = case(4, 2, 8)
    other = [t.clone() for t in (keys, values)]
    for t in other:
        for slot, n in zip(slots, lengths, strict=True):
            for token in range(int(n), 3 * TILE):
                t[slot, token // TILE, :, :, token % TILE] = 1e6
    first = attend(query, k, v, keys, values, slots, lengths, max(LENGTHS), 0.3)
    assert torch.equal(first, attend(query, k, v, *other, slots, lengths, max(LENGTHS), 0.3))


@pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform")
def test_bfloat16_on_triton(monkeypatch):
    monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu"})
    *tensors, slots, lengths = case(4, 2, 8)
    query, k, v, keys, values = (t.bfloat16() for t in tensors)
    got = one_token_attention(query, k, v, keys, values, slots, lengths, max(LENGTHS), 0.3)
    assert got.dtype == torch.bfloat16
    expected = by_hand(query, k, v, keys, values, slots, lengths, 0.3)
    assert (got.double() - expected).abs().max() < 0.02


def test_power_of_2():
    x = np.linspace(-130, 127, 100_001, dtype=np.float32)
    got = np.array([_power_of_2(value) for value in x], np.float64)
    expected = np.exp2(np.maximum(x, np.float32(-126)).astype(np.float64))
    assert (abs(got / expected - 1) < 2e-7).all()
