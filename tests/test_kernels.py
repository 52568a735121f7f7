"""Every kernel in each of its forms against its equation in float64: the loops of the CPU, the
reference, and the Triton kernel, which TRITON_INTERPRET=1 (set in conftest.py) executes on a
machine without a GPU.
"""

import numpy as np
import pytest
import torch

from faithful_sae.kernels import (
    above_bound,
    backend,
    cosine_tiles,
    firing_counts,
    latent_sums,
    screen,
    sparse_decode,
    topk_encode,
)

FORMS = [
    "loops",
    pytest.param(
        "triton",
        marks=pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform"),
    ),
]
# B, D, F, k
SIZES = {
    "odd": (5, 7, 37, 4),
    "k = 1": (3, 40, 70, 1),
    "k = d_sae": (18, 9, 21, 21),
    "one token, one latent": (1, 1, 1, 1),
}


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """The public functions pick the CPU's loops, or are made to pick Triton. Memory that nothing
    was written to reads as NaN.
    """
    if request.param == "triton":
        monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu"})
        # so that small cases are also cut into parts
        monkeypatch.setattr(topk_encode, "LEAST_LATENTS", 48)
    torch.use_deterministic_algorithms(True)
    yield request.param
    torch.use_deterministic_algorithms(False)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(size, dtype=torch.float32):
    """x, W_enc^T, b_enc, b_dec, W_dec, k; the third token has no positive latent, and latents 1 and
    2 of an SAE are the same.
    """
    n_tokens, d_model, d_sae, k = SIZES[size]
    weight = normal(d_sae, d_model, seed=2)
    b_enc = 0.1 * normal(d_sae, seed=3)
    w_dec = normal(d_sae, d_model, seed=5)
    x = normal(n_tokens, d_model, seed=1)
    b_dec = 0.1 * normal(d_model, seed=4)
    if n_tokens > 2:
        x[2] = b_dec
        weight[2] = weight[1]
        b_enc = -b_enc.abs()
        b_enc[2] = b_enc[1]
    return *(t.to(dtype) for t in (x, weight, b_enc, b_dec, w_dec)), k


def dense(x, weight, b_enc, b_dec, k):
    """The k largest latents of each token, the others 0: [B, F]."""
    p = torch.relu((x - b_dec) @ weight.T + b_enc)
    order = p.detach().sort(dim=-1, descending=True, stable=True).indices[:, :k]
    return p * torch.zeros_like(p).scatter_(1, order, 1)


def scattered(values, indices, d_sae):
    return torch.zeros(len(values), d_sae, dtype=values.dtype).scatter_add_(1, indices, values)


def close(got, expected, tolerance=1e-6):
    """Equal up to a share of the largest element."""
    scale = max(expected.abs().max().item(), 1e-30)
    assert got.shape == expected.shape
    assert (got.double() - expected.double()).abs().max() <= tolerance * scale


@pytest.mark.parametrize("size", SIZES)
def test_encode_and_decode_with_gradients(form, size):
    """The gradients are put together as the equations say, which is how training does it."""
    *tensors, k = case(size)
    x, weight, b_enc, b_dec, w_dec = tensors
    wide = [t.double().requires_grad_() for t in tensors]
    values, indices = topk_encode.encode(x, weight, b_enc, b_dec, k)
    x_hat = sparse_decode.decode(values, indices, w_dec)
    z = dense(*wide[:4], k=k)
    expected = z @ wide[4]
    close(scattered(values, indices, len(weight)), z)
    close(x_hat, expected)
    assert ((values > 0).sum(1) == (z > 0).sum(1)).all()
    assert not indices[values == 0].any()
    if len(values) > 2:
        assert not values[2].any()
        assert not x_hat[2].any()
    slope = normal(*x_hat.shape, seed=9)
    (expected * slope).sum().backward()
    active = latent_sums.by_latent(values, indices, len(weight))
    to_values = sparse_decode.values_gradient(slope, values, indices, w_dec)
    to_b_enc = latent_sums.latent_sums(to_values, *active, torch.ones(len(x), 1)).squeeze(-1)
    gradients = (
        sparse_decode.decode(to_values, indices, weight),
        latent_sums.latent_sums(to_values, *active, x - b_dec),
        to_b_enc,
        -(to_b_enc @ weight),
        latent_sums.latent_sums(values, *active, slope),
    )
    for got, tensor in zip(gradients, wide, strict=True):
        close(got, tensor.grad)


@pytest.mark.parametrize("d_sae, k", [(70, 6), (200, 9)])
def test_encode_in_parts_that_are_no_whole_tiles(form, d_sae, k):
    """Each latent once: Triton's kernel cuts the latents into parts, and those into tiles."""
    x = normal(3, 9, seed=1)
    weight = normal(d_sae, 9, seed=2)
    b_enc = normal(d_sae, seed=3)
    b_dec = normal(9, seed=4)
    values, indices = topk_encode.encode(x, weight, b_enc, b_dec, k)
    close(
        scattered(values, indices, d_sae),
        dense(x.double(), weight.double(), b_enc.double(), b_dec.double(), k),
    )


@pytest.mark.skipif(backend.triton is None, reason="no Triton for this platform")
def test_bfloat16():
    """Sums are in float32: what is lost is the rounding of what goes in and comes out (in the
    interpreter, towards zero).
    """
    *tensors, k = case("odd", torch.bfloat16)
    x, weight, b_enc, b_dec, w_dec = tensors
    values, indices = topk_encode.by_triton(x, weight, b_enc, b_dec, k)
    centred = (x - b_dec).double()
    z = dense(centred, weight.double(), b_enc.double(), torch.zeros(x.shape[1]), k)
    close(scattered(values.double(), indices, len(weight)), z, 2**-7)
    close(scattered(values.double(), indices, len(weight)), z, 2**-6)
    z = scattered(values.double(), indices, len(weight))
    slope = normal(*x.shape).bfloat16()
    close(sparse_decode.by_triton(values, indices, w_dec), z @ w_dec.double(), 2**-7)
    to_values = sparse_decode.by_triton_values_gradient(slope, values, indices, w_dec)
    close(
        to_values,
        torch.where(values > 0, (slope.double() @ w_dec.double().T).gather(1, indices), 0),
        2**-7,
    )
    sums = torch.empty_like(w_dec)
    latent_sums.by_triton(values, *latent_sums.by_latent(values, indices, len(w_dec)), slope, sums)
    close(sums, z.T @ slope.double(), 2**-7)


# --- the exactness of the screen ------------------------------------------------------------------


@backend.loop
def all_dots(x, weight, b_enc, out):
    for t in range(len(x)):
        for f in range(len(weight)):
            out[t, f] = backend.dot(x[t], weight[f]) + b_enc[f]


def float32_choice(x, weight, b_enc, k):
    """The definition: every latent's float32 dot product, in the one order of summation, sorted; no
    screen.
    """
    out = np.empty((len(x), len(weight)), np.float32)
    all_dots(x.numpy(), weight.numpy(), b_enc.numpy(), out)
    order = np.argsort(-out, axis=1, kind="stable")[:, :k]
    return [{f: out[t, f] for f in order[t] if out[t, f] > 0} for t in range(len(x))]


def adversary(kind):
    """x, weight, b_enc: 60 tokens of 48, 500 latents."""
    x = normal(60, 48, seed=1)
    weight = normal(500, 48, seed=2)
    b_enc = 0.1 * normal(500, seed=3)
    if kind == "near ties":  # differences of the size of float32's rounding, far below bfloat16's
        weight = weight[:5].repeat(100, 1) * (1 + 3e-7 * normal(500, 1, seed=4))
        b_enc[:] = 0.1
    if kind == "ties":
        weight = weight[:5].repeat(100, 1)
        b_enc = torch.zeros(500)
    if kind == "below bfloat16's resolution":
        weight = weight[:1] + 1e-4 * weight
    if kind == "outlying dimension":
        # as of residual streams: it decides the norms but not the order
        x[:, 3] = 1000
        weight[:, 3] *= 1e-3
    if kind == "cancelling bias":
        x[:, 0] = 100
        weight[:, 0] = 10
        b_enc -= 1000
    if kind == "norms apart":
        weight *= 10 ** (2 * normal(500, 1, seed=4))
        x *= 10 ** (2 * normal(60, 1, seed=5))
    if kind == "mostly negative":
        b_enc -= 14
    return x, weight.contiguous(), b_enc


KINDS = [
    "random",
    "near ties",
    "ties",
    "below bfloat16's resolution",
    "outlying dimension",
    "cancelling bias",
    "norms apart",
    "mostly negative",
]


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_that_of_float32(kind, bfloat16, monkeypatch):
    monkeypatch.setattr(screen, "bfloat16_is_fast", lambda: bfloat16)
    x, weight, b_enc = adversary(kind)
    for k in (1, 7, 40, 499, 500):
        values, indices = topk_encode.by_screening(x, weight, b_enc, torch.zeros(48), k)
        for row_values, row_indices, expected in zip(
            values.tolist(), indices.tolist(), float32_choice(x, weight, b_enc, k), strict=True
        ):
            pairs = zip(row_indices, row_values, strict=True)
            assert {f: value for f, value in pairs if value > 0} == expected
    # and float32 is what it should be
    exact = torch.relu(x.double() @ weight.double().T + b_enc.double())
    largest = x.double().norm(dim=1) * weight.double().norm(dim=1).max() + b_enc.abs().max()
    error = exact.sort(descending=True).values - values.sort(descending=True).values.double()
    assert (error.abs().max(1).values <= 48 * 2**-23 * largest).all()


@pytest.mark.parametrize("lost", ["x", "weight", "product"])
def test_each_term_of_the_bound_is_needed(lost, monkeypatch):
    """Latent 3 is the largest, but the screen puts it below latents 7 to 9, by what one rounding to
    bfloat16 loses.
    """
    monkeypatch.setattr(screen, "bfloat16_is_fast", lambda: True)
    x = torch.ones(2, 48)
    weight = torch.zeros(100, 48)
    b_enc = torch.full((100,), -1.0)
    almost = 1 + 2.0**-8 - 2.0**-12  # becomes 1
    weight[3, :32], weight[3, 40:] = 1, -4  # 32 - 32, where nothing is lost
    weight[7:10, 35] = 0.0625
    b_enc[[3, 7, 8, 9]] = 0
    if lost == "x":
        x[:, :32] = almost
    if lost == "weight":
        weight[3, :32] = almost
    if lost == "product":  # 32.12 and 32.05 both become 32
        weight[[3, 7, 8, 9]] = 0
        weight[[3, 7, 8, 9], :32] = 1
        weight[3, 32], weight[7:10, 32] = 0.12, 0.05
        b_enc[3], b_enc[7:10] = 0.02, 0.05
    screened = (x.bfloat16() @ weight.bfloat16().T).float() + b_enc
    assert (screened[:, 3] < screened[:, 7]).all()
    assert topk_encode.by_screening(x, weight, b_enc, torch.zeros(48), 1)[1].tolist() == [[3], [3]]


def test_the_screen_leaves_few(monkeypatch):
    """Bounds that let everything pass would be exact too, and slow. Latents that cannot be chosen
    may hold anything.
    """
    monkeypatch.setattr(screen, "bfloat16_is_fast", lambda: True)
    x, weight = normal(64, 256, seed=1), normal(2000, 256, seed=2)
    p = x @ weight.T
    hopeless = (p < 0.8 * p.topk(20).values[:, -1:]).float()
    assert hopeless.mean() > 0.95
    seen = []
    monkeypatch.setattr(
        topk_encode,
        "over_rows",
        lambda function, n, *arguments: (
            seen.append(arguments) or backend.over_rows(function, n, *arguments)
        ),
    )
    topk_encode.by_screening(x, weight, torch.zeros(2000), torch.zeros(256), 20)
    _, _, _, row_error, row_norm, _, _, w_norm, w_error, *_ = seen[-1]
    bound = row_error[:, None] * w_norm + row_norm[:, None] * w_error + 2**-8 * p.abs()
    assert ((p + bound) >= (p - bound).topk(20).values[:, -1:]).float().sum(1).mean() < 2 * 20


def test_bounds_hold():
    """The screen's error against float64 is below its bound, and the bound is not idle: some error
    comes near it.
    """
    # bfloat16 rounds all of this down, so that the errors add up
    x = torch.full((2, 64), 1 + 2.0**-9)
    rounded, norm, error = (
        screen._rounded(x)
        if screen.bfloat16_is_fast()
        else (x.bfloat16(), x.norm(dim=1), (x - x.bfloat16()).norm(dim=1))
    )
    close(norm, x.norm(dim=1))
    close(error, (x - x.bfloat16().float()).norm(dim=1))
    assert torch.equal(rounded, x.bfloat16())
    lost = (x.double() @ x.double().T - rounded.double() @ rounded.double().T).abs().max()
    bound = norm[0] * error[0] * 2
    assert 0.99 * bound < lost < 1.001 * bound


def test_rounding_is_torchs():
    x = torch.cat(
        [
            normal(40, 64),
            torch.tensor(
                [[1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 0.0, 1e-40, 3e38] + [1e-30] * 58]
            ),
        ]
    )
    if screen.bfloat16_is_fast():
        assert torch.equal(screen._rounded(x)[0], x.bfloat16())


# --- above bounds ---------------------------------------------------------------------------------


def by_slots(found):
    """[{latent: value}] of each token."""
    values, indices, counts = found
    rows = zip(values.tolist(), indices.tolist(), counts.tolist(), strict=True)
    return [dict(zip(f[:n], v[:n], strict=True)) for v, f, n in rows]


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_below_its_bound_is_that_of_float32(kind, bfloat16, monkeypatch):
    monkeypatch.setattr(screen, "bfloat16_is_fast", lambda: bfloat16)
    x, weight, b_enc = adversary(kind)
    p = np.empty((60, 500), np.float32)
    all_dots(x.numpy(), weight.numpy(), b_enc.numpy(), p)
    # of the p that are there, so that some are equal to it
    for rank in (3, 60, 2000):
        bound = np.full(500, np.sort(p.ravel())[-rank])
        bound[1::2] += 1
        given = (x, weight, b_enc, torch.zeros(48), torch.from_numpy(bound))
        found = above_bound.above(*given, 500)
        expected = [{f: row[f] for f in np.flatnonzero(row >= bound)} for row in p]
        assert found is not None
        assert by_slots(found) == expected


def test_slots_without_a_latent_are_far_below_and_come_last():
    weight = torch.eye(5)
    x = torch.tensor([[0.0, 2, 0, 3, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    zeros = torch.zeros(5)
    found = above_bound.above(x, weight, zeros, zeros, zeros + 1, 5)
    assert found
    values, indices, counts = found
    none = torch.tensor(above_bound.BELOW).item()
    assert values.tolist() == [[2, 3], [none, none], [1, none]]
    assert indices.tolist() == [[1, 3], [0, 0], [0, 0]]
    assert counts.tolist() == [2, 0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_more_than_are_asked_for_are_not_looked_for(dtype):
    weight, x = torch.eye(4, dtype=dtype), torch.ones(3, 4, dtype=dtype)
    zeros = torch.zeros(4, dtype=dtype)
    assert above_bound.above(x, weight, zeros, zeros, zeros, 3.9) is None
    assert above_bound.above(x, weight, zeros, zeros, zeros, 4) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_token_may_not_have_many_more_than_are_asked_for(dtype):
    """All tokens would have as many slots."""
    weight = torch.eye(100, dtype=dtype)
    x = torch.zeros(50, 100, dtype=dtype)
    x[3, :9] = 1
    zeros = torch.zeros(100, dtype=dtype)
    assert above_bound.above(x, weight, zeros, zeros, zeros + 1, 2.0) is None
    x[3, 8:] = 0
    assert above_bound.above(x, weight, zeros, zeros, zeros + 1, 2.0) is not None


def test_both_ways_find_the_same_above_bounds(monkeypatch):
    x, weight = normal(70, 24, seed=1), normal(90, 24, seed=2)
    b_enc, b_dec, bound = normal(90, seed=3), normal(24, seed=4), 4 + normal(90, seed=5)
    by_loops = above_bound.above(x, weight, b_enc, b_dec, bound, 90)
    monkeypatch.setattr(above_bound, "compiled", lambda *given: False)
    by_torch = above_bound.above(x, weight, b_enc, b_dec, bound, 90)
    assert by_loops and by_torch
    close(by_loops[0].clamp(min=0), by_torch[0].clamp(min=0))
    assert torch.equal(by_loops[1], by_torch[1])
    assert torch.equal(by_loops[2], by_torch[2])


# --- the smaller ones -----------------------------------------------------------------------------


def test_without_triton_a_gpu_is_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(backend, "TRITON_DEVICES", {"meta"})
    assert backend.on_triton(torch.empty(1, device="meta")) == (backend.triton is not None)
    monkeypatch.setattr(backend, "triton", None)
    assert not backend.on_triton(torch.empty(1, device="meta"))


def some_latents(n_tokens=30, k=5, d_sae=17):
    # the last two never fire
    indices = torch.randint(d_sae - 2, (n_tokens, k), generator=torch.Generator().manual_seed(1))
    return torch.relu(normal(n_tokens, k)), indices, d_sae


def test_firing_counts_and_pattern(form):
    values, indices, d_sae = some_latents()
    counts = [int(((indices == f) & (values > 0)).sum()) for f in range(d_sae)]
    assert firing_counts.firing_counts(values, indices, d_sae).tolist() == counts
    assert counts[-1] == 0 < min(counts[:-2])
    start, order = latent_sums.by_latent(values, indices, d_sae)
    assert start.diff().tolist() == counts
    for f in range(d_sae):
        own = order[start[f] : start[f + 1]].tolist()
        assert own == [
            e
            for e in range(values.numel())
            if indices.flatten()[e] == f and values.flatten()[e] > 0
        ]


@pytest.mark.parametrize("n_dims", [1, 13, 300])
def test_latent_sums(form, n_dims):
    values, indices, d_sae = some_latents()
    # latent 3 is active on every token
    indices[:, 0] = 3
    values[:, 0] += 1
    weights, rows = normal(30, 5, seed=7), normal(30, n_dims, seed=8)
    pattern = latent_sums.by_latent(values, indices, d_sae)
    expected = scattered(weights.double() * (values > 0), indices, d_sae).T @ rows.double()
    close(latent_sums.latent_sums(weights, *pattern, rows), expected)
    close(latent_sums.reference(weights, *pattern, rows), expected)
    written = torch.full((d_sae, n_dims), 7.0)
    close(latent_sums.latent_sums(weights, *pattern, rows, written), expected)
    close(written, expected)
    assert not latent_sums.latent_sums(weights, *pattern, rows)[-2:].any()


def test_references():
    x, weight, b_enc, b_dec, w_dec, k = case("odd")
    values, indices = topk_encode.reference(x, weight, b_enc, b_dec, k)
    z = dense(x.double(), weight.double(), b_enc.double(), b_dec.double(), k)
    close(scattered(values, indices, len(weight)), z)
    close(sparse_decode.reference(values, indices, w_dec), z @ w_dec.double())
    to_values = sparse_decode.reference_values_gradient(x, values, indices, w_dec)
    close(to_values, torch.where(values > 0, (x.double() @ w_dec.double().T).gather(1, indices), 0))


def some_codes(n, m, n_dims, prices):
    """Codes of [n] and [m] rows, with some rows more than are asked for, and their terms; a pair
    exactly at each threshold, row 7's infinite, the first row of both sides as large as codes can
    be.
    """
    g = torch.Generator().manual_seed(n_dims)
    a, b = (
        torch.randint(-127, 128, (size + 3, n_dims), generator=g, dtype=torch.int8)
        for size in (n, m)
    )
    a[0] = 127
    b[0] = -127
    terms = [torch.rand(4 if prices else 3, size, generator=g) for size in (n, m)]
    for t in terms:
        t[0] = 0.01 + 0.01 * t[0]
        t[1] *= n_dims**0.5
        t[3:] = (t[3:] - 0.3) * n_dims**0.5
    if n > 8:

        def product(i):
            p = np.float32(int(a[i].int() @ b[9].int()))
            return float(p * terms[1][0, 9].numpy() * terms[0][0, i].numpy())

        terms[0][1, 5] = terms[1][1, 9] = product(5)
        terms[0][1, 7] = float("inf")
        if prices:
            terms[0][3, 6] = product(6)
            terms[1][3, 9] = 0
    return a, b, *terms


def pairs_by_hand(a, b, rows, columns, cap):
    """The definition, pair by pair, in NumPy's float32."""
    a = a.long().numpy()
    b = b.long().numpy()
    rows = rows.numpy()
    columns = columns.numpy()
    found = []
    for i in range(rows.shape[1]):
        found.append([])
        for j in range(columns.shape[1]):
            p = np.float32((a[i] * b[j]).sum()) * columns[0, j] * rows[0, i]
            likely = p > min(rows[1, i], columns[1, j])
            passes = likely
            if len(rows) == 4:
                unknown = not likely or rows[1, i] == np.inf
                passes = unknown and p > rows[3, i] + columns[3, j]
            if passes:
                found[-1].append((j, p + rows[2, i] + columns[2, j]))
    given = [pair for row in found for pair in row[:cap]]
    return [j for j, _ in given], [u for _, u in given], [len(row) for row in found]


@pytest.mark.parametrize("prices", [False, True])
@pytest.mark.parametrize(
    "n, m, n_dims, cap",
    [(70, 131, 96, 131), (70, 131, 96, 9), (129, 40, 32, 1), (1, 1, 32, 1), (3, 65, 288, 64)],
)
def test_cosine_tiles(form, n, m, n_dims, cap, prices, monkeypatch):
    """To the last bit, with rows in several bands and tiles."""
    monkeypatch.setattr(cosine_tiles, "TILE", 32)
    codes = some_codes(n, m, n_dims, prices)
    reported = []
    bands = list(cosine_tiles.cosine_tiles(*codes, cap=cap, report=reported.append))
    expected = pairs_by_hand(*codes, cap=cap)
    assert sum(reported) == n * m
    assert len(bands) == -(-n // 32)
    assert n < 70 or min(cap, 9) < max(expected[2]) <= m
    dtypes = np.int32, np.float32, np.int64
    for got, reference, wanted, dtype in zip(
        zip(*bands, strict=True),
        cosine_tiles.reference(*codes, cap=cap),
        expected,
        dtypes,
        strict=True,
    ):
        got = np.concatenate(got)
        assert got.dtype == dtype
        assert got.tolist() == np.array(wanted, dtype).tolist() == reference.tolist()


def test_a_band_that_nothing_passes(form):
    a, b, rows, columns = some_codes(40, 50, 32, False)
    rows[1], columns[1] = 1e6, 1e6
    ((columns, upper, counts),) = cosine_tiles.cosine_tiles(a, b, rows, columns, 5, lambda n: None)
    assert not len(columns)
    assert not len(upper)
    assert counts.tolist() == [0] * 40


def test_threads_change_nothing(monkeypatch):
    """Rows are shared out among threads; none is summed in parts."""
    x = normal(200, 24)
    weight = normal(300, 24)
    b_enc = normal(300)
    b_dec = normal(24)
    w_dec = normal(300, 24)

    def run():
        values, indices = topk_encode.encode(x, weight, b_enc, b_dec, 6)
        x_hat = sparse_decode.decode(values, indices, w_dec)
        return (
            values,
            indices,
            x_hat,
            latent_sums.latent_sums(values, *latent_sums.by_latent(values, indices, 300), x_hat),
        )

    alone = run()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(alone, run(), strict=True))
