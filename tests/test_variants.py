"""The variants of SAE: each against its equation in NumPy, worked out by hand, and against the
variants that it must equal.
"""

import copy
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from torch.autograd.gradcheck import GradcheckError, gradcheck

from conftest import SEED_DEPENDENCE
from faithful_sae import TopKSAE, load_sae, train_saes
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.kernels import above_bound, backend
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.sae import SAEError
from faithful_sae.sae.settings import SETTINGS
from faithful_sae.sae.train import Training
from faithful_sae.sae.variants import (
    PCA,
    VARIANTS,
    Archetypal,
    BatchTopK,
    Causal,
    EndToEnd,
    FeatureChoice,
    Gated,
    JumpReLU,
    Matryoshka,
    Mutual,
    MutualChoice,
    ProLU,
    ReLU,
    Switch,
    Tilted,
    TopK,
    places,
)
from faithful_sae.sae.variants.base import Bounded, Moment, spread, threshold_above
from faithful_sae.sae.variants.jumprelu import Jump, Step
from faithful_sae.sae.variants.mutual_choice import zipf
from faithful_sae.sae.variants.prolu import Gate
from faithful_sae.sae.variants.switch import imbalance
from faithful_sae.stages.corpus import make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s02_train_sae import STAGE, VARIANT, sae_settings
from faithful_sae.stages.s08_seed_dependence import train_seeds
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import train_all, variant_of

D, F, K, B = 6, 20, 3, 40
G = torch.Generator().manual_seed(0)
X = (
    torch.randn(B, D, generator=G, dtype=torch.float64) @ torch.linspace(0.5, 3, D).double().diag()
    + 1
)
DEAD = torch.tensor([1, 4, 7, 8, 15])
ALIVE = torch.tensor([], dtype=torch.int64)

# what an SAE may be coupled with
PEERS = [
    torch.nn.functional.normalize(torch.randn(F, D, generator=G).double(), dim=-1) for _ in range(2)
]

EVERY = {
    "relu": ReLU(),
    "batch_topk": BatchTopK(K),
    "matryoshka": Matryoshka(K, (0.25, 1.0)),
    "jumprelu": JumpReLU(K),
    "jumprelu_step": JumpReLU(K, sparsity="step", weight=0.01),
    "gated": Gated(),
    "prolu": ProLU(),
    "prolu_relu_sqrt": ProLU(sparsity="sqrt", gradient="relu"),
    "switch": Switch(K, experts=4),
    "mutual_choice": MutualChoice(K),
    "feature_choice": FeatureChoice(K),
    "feature_choice_zipf": FeatureChoice(K, exponent=0.5),
    "archetypal": Archetypal(K),
    "tilted": Tilted(K),
    "mutual": Mutual(K),
}
every = pytest.mark.parametrize("variant", EVERY.values(), ids=EVERY)


def moment(share=1.0, dead=ALIVE):
    return Moment(share, dead, RECIPES["default"])


def some(variant, scale=0.3) -> Any:
    """An SAE of a variant in training, float64, with parameters that look trained."""
    sae: Any = variant.new(D, F, 1, "cpu")
    g = torch.Generator().manual_seed(2)
    sae.b_enc = sae.b_enc.double()
    for name, w in variant.parameters(sae).items():
        setattr(sae, name, w.double() + scale * torch.randn(w.shape, generator=g).double())
    if variant.unit_rows:
        sae.W_dec = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    if "threshold" in variant.parameters(sae):
        sae.threshold = sae.threshold.abs()
    return sae


def evaluated(variant, sae, x=X, at=None):
    """(loss, {name: gradient}) of one step."""
    gradients = {name: torch.full_like(w, torch.nan) for name, w in variant.parameters(sae).items()}
    loss, *_ = variant.loss_and_gradients(sae, x, at or moment(), gradients)
    return loss.item(), gradients


def numeric(variant, sae, name, x=X, at=None, h=1e-6):
    """The derivative of the loss for one parameter, by differences."""
    found = torch.zeros_like(getattr(sae, name))
    for place in np.ndindex(*found.shape):
        ends = []
        for sign in (1, -1):
            moved = copy.copy(sae)
            w = getattr(sae, name).clone()
            w[place] += sign * h
            setattr(moved, name, w)
            ends.append(variant.loss(moved, x, at or moment())[0])
        found[place] = (ends[0] - ends[1]) / (2 * h)
    return found


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- what they share ------------------------------------------------------------------------------


def test_thresholds_by_hand():
    z = torch.tensor([[5.0, 0.0], [1.0, 2.0], [3.0, 8.0]])
    close(threshold_above(z, torch.tensor([1, 2])), torch.tensor([4.0, 1.0]))
    none, all_three = threshold_above(z, torch.tensor([0, 3]))
    assert 1e38 < none < torch.inf
    assert all_three == 0
    close(threshold_above(z, torch.tensor([2])), torch.tensor([4.0]))
    # of all that are there, 0 is next
    close(threshold_above(z, torch.tensor([6])), torch.tensor([0.0]))
    close(threshold_above(z[1:], torch.tensor([2, 2])), torch.tensor([0.5, 1.0]))


def test_spread_by_hand():
    assert spread(torch.tensor([[1.0, 0.0], [4.0, 4.0]])).item() == 2.5


def test_a_penalty_rises_over_its_warm_up():
    assert [moment(share).ramp(0.2) for share in (0, 0.05, 0.1, 0.2, 0.9)] == [0, 0.25, 0.5, 1, 1]
    assert moment(0.0).ramp(0.0) == 1
    for variant in (ReLU(), Gated(), ProLU(), JumpReLU(K, weight=3.0)):
        sae = some(variant)
        none, half, full = (
            evaluated(variant, sae, at=moment(share))[0] for share in (0.0, 0.05, 0.5)
        )
        assert half == pytest.approx((none + full) / 2, rel=1e-12)
        assert full > none


@every
def test_the_scale_of_the_activations_does_not_matter(variant):
    """Tokens c times as large, and an SAE that sees them so: c^2 the loss, and the same fraction
    explained. Biases and thresholds are in the tokens' units.
    """
    sae = some(variant)
    larger = copy.copy(sae)
    for name in ("b_enc", "b_dec", "b_gate", "threshold"):
        if getattr(sae, name, None) is not None:
            setattr(larger, name, getattr(sae, name) * 7)
    if sae.router is not None:
        larger.router, larger.b_router = sae.router / 7, sae.b_router * 7
    one, large = (
        evaluated(variant, *pair, moment(dead=DEAD)) for pair in ((sae, X), (larger, 7 * X))
    )
    assert large[0] == pytest.approx(49 * one[0], rel=1e-12)
    for name, gradient in one[1].items():
        units = {name: 7 for name in ("b_enc", "b_dec", "b_gate", "threshold", "b_router")}
        units = (units | {"router": 7**3}).get(name, 49)
        close(large[1][name], gradient * units, 1e-9)


@pytest.mark.parametrize("name", ["relu", "gated", "prolu", "jumprelu", "switch"])
def test_a_training_on_larger_tokens_is_the_same_but_for_their_unit(name):
    """Adam moves all parameters by as much: biases would lag behind where tokens are large."""
    data = X.float().repeat(5, 1)
    variant = EVERY[name]
    one, large = (
        train_saes((c * data).split(50), D, F, variant, [5], 1e-2, len(data), 50)[0]
        for c in (1, 64)
    )
    units = dict.fromkeys(("b_enc", "b_dec", "threshold", "b_router"), 64) | {"router": 1 / 64}
    for part in one.tensors:
        close(getattr(large, part) / units.get(part, 1), getattr(one, part), 1e-3)


SMOOTH = ["relu", "batch_topk", "matryoshka", "switch", "mutual_choice", "feature_choice_zipf"]
SMOOTH += ["archetypal", "tilted", "mutual"]


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_by_differences(name):
    variant = EVERY[name]
    sae = some(variant)
    # which detaches nothing
    at = Moment(1.0, DEAD, RECIPES["authors"], PEERS)
    _, gradients = evaluated(variant, sae, at=at)
    # which are set once
    assert not gradients.pop("archetypes", torch.zeros(1)).any()
    for parameter, gradient in gradients.items():
        close(gradient, numeric(variant, sae, parameter, at=at), 1e-6)
        assert gradient.abs().max() > 1e-3


BOUNDED = {name: variant for name, variant in EVERY.items() if isinstance(variant, Bounded)}
bounded = pytest.mark.parametrize("variant", BOUNDED.values(), ids=BOUNDED)


@pytest.fixture
def few(monkeypatch):
    """However many latents there are, and in any dtype, they are looked at alone."""
    monkeypatch.setattr(places, "FEW", 1.0)
    monkeypatch.setattr(places, "compiled", lambda x: True)
    monkeypatch.setattr(above_bound, "MOST", 100)


@pytest.mark.parametrize("form", ["loops", "torch", "triton"])
@bounded
def test_chosen_latents_give_the_loss_and_the_gradients_of_all(variant, form, few, monkeypatch):
    """By the kernels, and by what stands in for them elsewhere."""
    if form == "triton":
        if backend.triton is None:
            pytest.skip("no Triton for this platform")
        monkeypatch.setattr(backend, "TRITON_DEVICES", {"cpu"})
    dtype = torch.float64 if form == "torch" else torch.float32
    sae = some(variant)
    for name, w in sae.tensors.items():
        setattr(sae, name, w.to(dtype))
    for name in variant.parameters(sae):
        setattr(sae, name, getattr(sae, name).to(dtype))
    x, at = X.to(dtype), moment(dead=DEAD)
    assert variant.chosen(sae, x) is not None
    gradients = {name: torch.full_like(w, torch.nan) for name, w in variant.parameters(sae).items()}
    loss, error, counts = variant.loss_and_gradients(sae, x, at, gradients)
    every = {name: torch.full_like(w, torch.nan) for name, w in gradients.items()}
    expected = variant.differentiated(sae, every, lambda leaf: variant.loss(leaf, x, at))
    tolerance = 1e-12 if form == "torch" else 1e-5
    assert loss.item() == pytest.approx(expected[0].item(), rel=tolerance)
    close(error, expected[1], 20 * tolerance)
    assert torch.equal(counts, expected[2])
    for name, gradient in gradients.items():
        close(gradient, every[name], 20 * tolerance)


def test_where_many_latents_are_active_all_are_looked_at():
    sae = ReLU().new(D, F, 1, "cpu")
    x = X.float()
    assert ReLU().chosen(sae, x) is None
    sae.b_enc -= 9
    assert isinstance(ReLU().chosen(sae, x), places.Chosen)
    # one token with many would give all as many slots
    sae.b_enc[:] = -1e3
    x[0] = 1e5
    assert ReLU().chosen(sae, x) is None


def test_where_there_are_no_kernels_all_are_looked_at():
    sae = some(ReLU())
    sae.b_enc -= 9
    assert ReLU().chosen(sae, X) is None


@bounded
def test_a_training_on_few_latents_is_that_on_all(variant, few, monkeypatch):
    """But for rounding; and it goes on from its state to the same bytes."""
    data = torch.randn(12, 30, D, generator=torch.Generator().manual_seed(3))

    def training():
        return Training(variant.new(D, F, 1, "cpu"), variant, 1e-3, RECIPES["default"], 12)

    first, second = training(), training()
    for i, x in enumerate(data):
        assert i == 0 or variant.chosen(first.sae, x) is not None
        first.step(i, x)
        if i == 5:
            tensors, numbers = first.state()
            kept = {name: w.clone() for name, w in tensors.items()}
            second.restore(kept, {**numbers, "log": [*numbers["log"]]})
    for i in range(6, 12):
        second.step(i, data[i])
    monkeypatch.setattr(places, "FEW", 0.0)
    dense = training()
    for i, x in enumerate(data):
        dense.step(i, x)
    done, resumed, dense = (one.finish() for one in (first, second, dense))
    for name, w in done.tensors.items():
        assert torch.equal(getattr(resumed, name), w)
        close(getattr(dense, name), w, 1e-4)


def test_the_kb_largest_are_found_where_the_tokens_that_are_asked_have_large_ones(few):
    """What they leave is too little, so that less of them is asked, and then all is looked at."""
    variant = BatchTopK(K)
    sae = variant.new(D, F, 1, "cpu")
    x = torch.randn(256, D, generator=torch.Generator().manual_seed(4))
    for larger, there in ((1.0, True), (1.3, True), (100.0, False)):
        # those that say where the largest may begin
        x_of = x.clone()
        x_of[::4] *= larger
        found = variant.chosen(sae, x_of)
        assert (found is not None) == there
        if found:
            dense = variant.latents(sae, x_of)
            assert torch.equal(found.counts(found.values.clamp(min=0)), (dense > 0).sum(0))


@every
def test_it_trains_and_is_saved_and_read(variant, tmp_path):
    data = X.float().repeat(20, 1)[
        torch.randperm(20 * B, generator=torch.Generator().manual_seed(1))
    ]
    (sae,) = train_saes(data.split(50), D, F, variant, [5], 1e-2, len(data), 50)
    log = sae.training_log
    assert log.fvu.iloc[-1] < 0.7 * log.fvu.iloc[0]
    close(sae.W_dec.norm(dim=-1), torch.ones(F), 1e-5)
    topk = not isinstance(variant, Bounded) or isinstance(variant, Switch)
    assert (sae.threshold is None) == (sae.k is not None) == topk
    assert (sae.router is not None) == isinstance(variant, Switch)
    sae.save(tmp_path / "sae")
    again = load_sae(tmp_path / "sae")
    assert torch.equal(again.encode(data), sae.encode(data))
    assert torch.equal(again.reconstruct(data), sae.reconstruct(data))


@every
def test_in_use_the_latents_fire_that_did_in_training(variant):
    sae = some(variant)
    *_, counts = variant.loss(sae, X, moment())
    fires = variant.finish(sae, X).encode(X) > 0
    assert torch.equal(fires.sum(0), counts)
    assert 0 < fires.double().mean() < 0.6


@every
def test_a_batch_of_one_token_is_survived(variant):
    """A training's last one may be, and it has no spread."""
    x = X.float()
    (sae,) = train_saes([*x.split(20), x[:1]], D, F, variant, [5], 1e-2, B + 1, 20)
    assert all(w.isfinite().all() for w in sae.weights.values())
    assert np.isfinite(sae.training_log.loss).all()


@every
def test_a_training_goes_on_from_its_state_at_any_step(variant):
    """To the same bytes, near its end too, where batches are kept."""
    data = torch.randn(12, 30, D, generator=torch.Generator().manual_seed(3))

    def training():
        return Training(variant.new(D, F, 1, "cpu"), variant, 1e-2, RECIPES["default"], 12)

    first = training()
    states = []
    for i, x in enumerate(data):
        first.step(i, x)
        tensors, numbers = first.state()
        kept = {name: w.clone() for name, w in tensors.items()}
        states.append((kept, {**numbers, "log": [*numbers["log"]]}))
    done = first.finish()
    for i, state in enumerate(states):
        second = training()
        second.restore(*state)
        for j in range(i + 1, 12):
            second.step(j, data[j])
        resumed = second.finish()
        for name, w in done.tensors.items():
            assert torch.equal(getattr(resumed, name), w), (i, name)


def test_only_what_is_calibrated_keeps_batches():
    x = X.float()
    for variant in EVERY.values():
        training = Training(variant.new(D, F, 1, "cpu"), variant, 1e-2, RECIPES["default"], 9)
        for i in range(9):
            training.step(i, x)
        calibrated = isinstance(variant, (BatchTopK, FeatureChoice))
        assert len(training.last) == (4 if calibrated else 0)


# --- ReLU -----------------------------------------------------------------------------------------


def relu_by_hand(sae, x, weight):
    """loss = (|e|^2 + weight s sum_i f_i |d_i|) / D, mean over tokens, and its derivatives."""
    w = {name: t.numpy() for name, t in sae.weights.items()}
    x = x.numpy()
    s = np.sqrt(((x - x.mean(0)) ** 2).sum(1).mean())
    z = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    f = np.maximum(z, 0)
    e = f @ w["W_dec"] + w["b_dec"] - x
    norms = np.linalg.norm(w["W_dec"], axis=1)
    loss = ((e**2).sum(1) + weight * s * (f * norms).sum(1)).mean() / D
    to_f = (2 * e @ w["W_dec"].T + weight * s * norms) * (z > 0) / x.size
    to_w_dec = (2 * f.T @ e + weight * s * f.sum(0)[:, None] * w["W_dec"] / norms[:, None]) / x.size
    return loss, {
        "W_enc": (x - w["b_dec"]).T @ to_f,
        "b_enc": to_f.sum(0),
        "W_dec": to_w_dec,
        "b_dec": 2 * e.sum(0) / x.size - to_f.sum(0) @ w["W_enc"].T,
    }


def test_relu_by_hand():
    variant = ReLU(0.7)
    sae = some(variant)
    loss, gradients = relu_by_hand(sae, X, 0.7)
    found, by_autograd = evaluated(variant, sae)
    assert found == pytest.approx(loss, rel=1e-12)
    for name, gradient in gradients.items():
        close(by_autograd[name], torch.tensor(gradient))


def test_relu_is_not_cheated_by_moving_a_factor_to_the_decoder():
    variant = ReLU(0.7)
    sae = some(variant)
    moved = copy.copy(sae)
    c = torch.linspace(0.1, 4, F).double()
    moved.W_enc, moved.b_enc, moved.W_dec = sae.W_enc * c, sae.b_enc * c, sae.W_dec / c[:, None]
    assert evaluated(variant, moved)[0] == pytest.approx(evaluated(variant, sae)[0], rel=1e-12)


def sparse_coding(x, sae, l1):
    """The least loss of any latents with a decoder of unit rows, by scikit-learn's Lasso, whose
    objective is 1 / (2 D) |x - b_dec - f W_dec|^2 + alpha sum f.
    """
    s = spread(x).item()
    alpha = l1 * s / (2 * D)
    solver = Lasso(alpha, positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
    centred, rows = (x - sae.b_dec).numpy(), sae.W_dec.numpy()
    f = np.stack([solver.fit(rows.T, token).coef_ for token in centred])
    return ((centred - f @ rows) ** 2).mean() + l1 * s / D * f.sum(1).mean()


def test_no_encoder_does_better_than_sparse_coding():
    variant = ReLU(0.3, warmup=0)
    sae = some(variant)
    sae.W_dec = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    loss, _ = evaluated(variant, sae)
    assert loss > sparse_coding(X, sae, 0.3)


def test_with_orthogonal_directions_an_encoder_is_sparse_coding():
    """Each latent is its coordinate less l1 s / 2."""
    variant = ReLU(0.3, warmup=0)
    sae = variant.new(D, 2 * D, 1, "cpu")
    sae.W_dec = torch.cat([torch.eye(D), -torch.eye(D)]).double()
    sae.W_enc = sae.W_dec.T
    sae.b_dec = X.mean(0)
    sae.b_enc = torch.full((2 * D,), -0.15 * spread(X).item()).double()
    loss, *_ = variant.loss(sae, X, moment())
    assert loss.item() == pytest.approx(sparse_coding(X, sae, 0.3), rel=1e-8)


def test_a_lone_feature_is_shrunk_by_half_the_penalty():
    """Tokens are 0 or a d: |a d - f d|^2 + l1 s f is least at f = a - l1 s / 2."""
    variant = ReLU(0.3)
    sae = TopKSAE(3, 1, None, 0)
    d = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    x = torch.cat([2 * d.repeat(10, 1), torch.zeros(30, 3)])
    sae.W_dec, sae.b_enc, sae.b_dec = d[None], torch.zeros(1).double(), torch.zeros(3).double()
    best = 2 - 0.3 * spread(x).item() / 2
    for size, slope in ((best, 0), (best + 0.1, 1), (best - 0.1, -1)):
        sae.W_enc = d[:, None] * size / 2
        _, gradients = evaluated(variant, sae, x)
        along = (d @ gradients["W_enc"]).item()
        assert abs(along) < 1e-15 if slope == 0 else along * slope > 1e-3


def test_relu_in_use_has_unit_rows_and_the_same_reconstruction():
    sae = some(ReLU())
    z = torch.relu((X - sae.b_dec) @ sae.W_enc + sae.b_enc)
    x_hat = z @ sae.W_dec + sae.b_dec
    norms = sae.W_dec.norm(dim=-1)
    assert (norms - 1).abs().max() > 0.1
    used = ReLU().finish(sae, X[:0])
    close(used.W_dec.norm(dim=-1), torch.ones(F).double())
    close(used.encode(X), z * norms)
    close(used.reconstruct(X), x_hat)


def test_a_threshold_moves_with_the_norms():
    sae = some(JumpReLU(K))
    sae.W_dec = sae.W_dec * torch.linspace(0.2, 3, F).double()[:, None]
    before = sae.reconstruct(X)
    sae.to_unit_decoder()
    close(sae.reconstruct(X), before)
    close(sae.W_dec.norm(dim=-1), torch.ones(F).double())


# --- BatchTopK ------------------------------------------------------------------------------------


def largest(p, n):
    """p where among the n largest of all, else 0."""
    kept = np.zeros(p.size)
    order = np.argsort(-p, axis=None)[:n]
    kept[order] = p.flatten()[order]
    return kept.reshape(p.shape)


def test_batch_topk_by_hand():
    sae = some(BatchTopK(K))
    f = BatchTopK(K).latents(sae, X)
    close(f, torch.tensor(largest(sae.pre_activations(X).numpy(), K * B)))
    assert (f > 0).sum() == K * B
    assert len((f > 0).sum(1).unique()) > 3


def test_batch_topk_of_one_token_is_topk():
    batch, single = BatchTopK(K), TopK(K)
    sae = some(batch)
    for x in X[:10, None]:
        assert torch.equal(batch.latents(sae, x), sae.encode(x))
        ours, topk = (evaluated(v, sae, x, moment(dead=DEAD)) for v in (batch, single))
        assert ours[0] == pytest.approx(topk[0], rel=1e-12)
        for name, gradient in ours[1].items():
            close(gradient, topk[1][name])


def test_the_order_of_tokens_does_not_matter_to_batch_topk():
    sae = some(BatchTopK(K))
    order = torch.randperm(B, generator=torch.Generator().manual_seed(1))
    f = BatchTopK(K).latents(sae, X)
    assert torch.equal(BatchTopK(K).latents(sae, X[order]), f[order])


def test_fewer_than_k_positive_latents_are_all_kept():
    sae = some(BatchTopK(K))
    sae.b_enc = sae.b_enc - 8
    f = BatchTopK(K).latents(sae, X)
    assert 0 < (f > 0).sum() < K * B
    assert torch.equal(f, sae.pre_activations(X))


@pytest.mark.parametrize("k", [1, K, F])
def test_in_use_batch_topk_has_k_per_token_on_the_calibration(k):
    """By one threshold it keeps what it would choose of all of them as one batch."""
    variant = BatchTopK(k)
    sae = some(variant)
    chosen = variant.latents(sae, X)
    used = variant.finish(sae, X)
    assert torch.equal(used.encode(X), chosen)
    assert (used.encode(X) > 0).sum() == min(k * B, (sae.pre_activations(X) > 0).sum())
    assert len(used.threshold.unique()) == 1


def test_calibration_is_on_the_last_four_batches():
    data = torch.randn(9, 50, D, generator=torch.Generator().manual_seed(3))
    # the last is not full
    batches = [*data, data[0, :7]]
    (sae,) = train_saes(batches, D, F, BatchTopK(K), [5], 1e-2, 457, 50)
    last = torch.cat(batches[-4:])
    assert (sae.encode(last) > 0).sum() == K * len(last)
    first = torch.cat(batches[:4])
    assert (sae.encode(first) > 0).sum() != K * len(first)


# --- Matryoshka -----------------------------------------------------------------------------------


def test_matryoshka_by_hand():
    """The sum of the losses of the first 5, 10 and 20 latents, each decoded on its own; a row of
    W_dec gets the derivatives of all that it is in.
    """
    variant = Matryoshka(K, (0.25, 0.5, 1.0))
    sae = some(variant)
    f = largest(sae.pre_activations(X).numpy(), K * B)
    w_dec, b_dec = sae.W_dec.numpy(), sae.b_dec.numpy()
    errors = {w: f[:, :w] @ w_dec[:w] + b_dec - X.numpy() for w in (5, 10, 20)}
    loss, gradients = evaluated(variant, sae)
    assert loss == pytest.approx(sum((e**2).mean() for e in errors.values()), rel=1e-12)
    for i in (0, 4, 5, 9, 10, 19):
        expected = sum(2 * f[:, i] @ e / X.numel() for w, e in errors.items() if i < w)
        close(gradients["W_dec"][i], torch.tensor(expected))


def test_matryoshka_of_one_dictionary_is_batch_topk():
    variant = Matryoshka(K, (1.0,))
    sae = some(variant)
    ours, flat = (evaluated(v, sae, at=moment(dead=DEAD)) for v in (variant, BatchTopK(K)))
    assert ours[0] == pytest.approx(flat[0], rel=1e-12)
    for name, gradient in ours[1].items():
        close(gradient, flat[1][name])


@pytest.mark.parametrize("shares", [(0.5,), (0.5, 0.5, 1.0), (0.01, 1.0), (1.0, 0.5)])
def test_dictionaries_that_do_not_nest(shares):
    with pytest.raises(SAEError, match="shares = .* must rise to 1"):
        Matryoshka(K, shares).new(D, F, 0, "cpu")


# --- JumpReLU -------------------------------------------------------------------------------------


def test_straight_through_estimators_by_hand():
    """Three tokens, two latents; z = 1.2 and 0.9 lie within 1/4 of t = 1, and 2.6 of 2.5."""
    z = torch.tensor([[1.2, 2.6], [0.9, 0.4], [3.0, -2.0]], requires_grad=True)
    t = torch.tensor([1.0, 2.5], requires_grad=True)
    width = torch.tensor(0.5)
    f: Any = Jump.apply(z, t, width)
    close(f.detach(), torch.tensor([[1.2, 2.6], [0.0, 0.0], [3.0, 0.0]]))
    to_f = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    to_z, to_t = torch.autograd.grad(f, (z, t), to_f)
    close(to_z, torch.tensor([[1.0, 10.0], [0.0, 0.0], [4.0, 0.0]]))
    # -(t / width) times what reaches the tokens in the kernel: 1 + 2, and 10
    close(to_t, torch.tensor([-2.0 * 3, -5.0 * 10]), 1e-6)
    h: Any = Step.apply(z, t, width)
    close(h.detach(), torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
    to_z, to_t = torch.autograd.grad(h, (z, t), to_f, allow_unused=True)
    assert to_z is None
    close(to_t, torch.tensor([-2.0 * 3, -2.0 * 10]), 1e-6)


def test_the_kernel_sees_z_and_not_f():
    """A threshold below half the width: tokens whose z is far below 0 are outside, those just below
    it inside.
    """
    z = torch.tensor([[-3.0], [-0.1], [0.05], [0.3]])
    t = torch.tensor([0.1], requires_grad=True)
    h: Any = Step.apply(z, t, torch.tensor(0.5))
    (to_t,) = torch.autograd.grad(h.sum(), t)
    assert to_t.item() == pytest.approx(-3 / 0.5)


def test_the_mean_of_the_estimator_is_the_derivative_of_the_mean():
    """Over z spread evenly from -1 to 3, whose density is 1/4: d/dt of mean z H(z - t) is -t / 4,
    of mean H(z - t) -1 / 4.
    """
    z = torch.linspace(-1, 3, 400_001).double()[:, None]
    t = torch.tensor([0.7]).double().requires_grad_()
    width = torch.tensor(0.2).double()
    for function, expected in ((Jump, -0.7 / 4), (Step, -1 / 4)):
        mean: Any = function.apply(z, t, width)
        (found,) = torch.autograd.grad(mean.mean(), t)
        assert found.item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("sparsity", ["quadratic", "step"])
def test_jumprelu_by_hand(sparsity):
    variant = JumpReLU(K, sparsity=sparsity, weight=0.3, bandwidth=0.2)
    sae = some(variant)
    x = X.numpy()
    z = ((X - sae.b_dec) @ sae.W_enc + sae.b_enc).numpy()
    t = sae.threshold.numpy()
    s2 = ((x - x.mean(0)) ** 2).sum(1).mean()
    f = z * (z > t)
    e = f @ sae.W_dec.numpy() + sae.b_dec.numpy() - x
    l0 = (z > t).sum(1).mean()
    penalty, slope = {"quadratic": ((l0 / K - 1) ** 2, 2 * (l0 / K - 1) / K), "step": (l0, 1)}[
        sparsity
    ]
    loss, gradients = evaluated(variant, sae)
    assert loss == pytest.approx((e**2).mean() + 0.3 * s2 / D * penalty, rel=1e-12)
    width = 0.2 * np.sqrt(s2)
    inside = np.abs(z - t) < width / 2
    assert inside.sum() > 30
    to_f = 2 * e @ sae.W_dec.numpy().T / x.size
    to_l0 = 0.3 * s2 / D * slope / B
    expected = -((t * to_f + to_l0) * inside).sum(0) / width
    close(gradients["threshold"], torch.tensor(expected))
    # what reaches z does so where it is active, and not through L0
    close(gradients["b_enc"], torch.tensor((to_f * (z > t)).sum(0)))


def test_jumprelu_with_thresholds_of_0_is_relu():
    sae = some(JumpReLU(K))
    sae.threshold = torch.zeros(F).double()
    without = JumpReLU(K, weight=0.0), ReLU(0.0)
    jump, relu = (evaluated(variant, sae) for variant in without)
    assert jump[0] == pytest.approx(relu[0], rel=1e-12)
    for name, gradient in relu[1].items():
        close(jump[1][name], gradient)


def test_thresholds_begin_where_k_latents_are_active():
    variant = JumpReLU(K)
    sae = some(variant)
    variant.begin(sae, X)
    assert (sae.encode(X) > 0).sum() == K * B
    assert len(sae.threshold.unique()) == 1


def test_a_token_alone_has_no_spread_and_moves_no_threshold():
    variant = JumpReLU(K)
    loss, gradients = evaluated(variant, some(variant), X[:1])
    assert np.isfinite(loss)
    assert not gradients["threshold"].any()


# --- Gated ----------------------------------------------------------------------------------------


def gated_by_hand(sae, x, weight, decoder=None):
    """(loss, f), the auxiliary term with a decoder (W_dec, b_dec) of its own."""
    w_dec, b_dec = decoder or (sae.W_dec, sae.b_dec)
    s = (x - x.mean(0)).square().sum(1).mean().sqrt()
    u = (x - sae.b_dec) @ sae.W_enc
    gate = u + sae.b_gate
    f = torch.where(gate > 0, torch.relu(torch.exp(sae.r_mag) * u + sae.b_enc), 0)
    by_gates = torch.relu(gate) @ w_dec + b_dec
    terms = (
        (f @ sae.W_dec + sae.b_dec - x).square().sum(1),
        weight * s * torch.relu(gate).sum(1),
        (by_gates - x).square().sum(1),
    )
    return sum(term.mean() for term in terms) / D, f


def test_gated_by_hand():
    variant = Gated(0.7)
    sae = some(variant)
    loss, gradients = evaluated(variant, sae)
    assert loss == pytest.approx(gated_by_hand(sae, X, 0.7)[0].item(), rel=1e-12)
    # sg: by differences, with the decoder of the auxiliary term held fast
    held = sae.W_dec.clone(), sae.b_dec.clone()
    for name, gradient in gradients.items():
        expected = torch.zeros_like(gradient)
        for place in np.ndindex(*expected.shape):
            ends = []
            for sign in (1, -1):
                moved = copy.copy(sae)
                w = getattr(sae, name).clone()
                w[place] += sign * 1e-6
                setattr(moved, name, w)
                ends.append(gated_by_hand(moved, X, 0.7, held)[0])
            expected[place] = (ends[0] - ends[1]) / 2e-6
        close(gradient, expected, 1e-6)
        assert gradient.abs().max() > 1e-3


def test_gated_is_jumprelu():
    variant = Gated()
    sae = some(variant)
    _, f = gated_by_hand(sae, X, 0.0)
    x_hat = f @ sae.W_dec + sae.b_dec
    assert ((f > 0).sum(0) > 0).sum() > F / 2
    used = variant.finish(sae, X[:0])
    close(used.encode(X), f)
    close(used.reconstruct(X), x_hat)


def test_gated_with_one_bias_is_relu():
    sae = some(Gated())
    sae.r_mag = torch.zeros(F).double()
    sae.b_gate = sae.b_enc
    close(gated_by_hand(sae, X, 0.0)[1], torch.relu((X - sae.b_dec) @ sae.W_enc + sae.b_enc))
    close(Gated().finish(sae, X[:0]).encode(X), gated_by_hand(sae, X, 0.0)[1])


# --- ProLU ----------------------------------------------------------------------------------------

M = torch.tensor([[2.0, 2.0], [0.5, -1.0], [3.0, 0.25]])
BIAS = torch.tensor([-1.0, 0.5])


@pytest.mark.parametrize(
    "gradient, to_m, to_b",
    [
        ("relu", [[1.0, 10.0], [0.0, 0.0], [4.0, 40.0]], [1.0 + 4, 10.0 + 40]),
        # 1 + m where open; m
        ("ste", [[3.0, 30.0], [0.0, 0.0], [16.0, 50.0]], [2.0 + 12, 20.0 + 10]),
    ],
)
def test_both_gradients_of_prolu_by_hand(gradient, to_m, to_b):
    """In units of s = 1: of the first latent m = 2 and 3 pass b = -1, and 0.5 does not."""
    m, b = M.clone().requires_grad_(), BIAS.clone().requires_grad_()
    f: Any = Gate.apply(m, b, gradient, torch.tensor(1.0))
    close(f.detach(), torch.tensor([[2.0, 2.0], [0.0, 0.0], [3.0, 0.25]]))
    to_f = torch.tensor([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    found = torch.autograd.grad(f, (m, b), to_f)
    close(found[0], torch.tensor(to_m))
    close(found[1], torch.tensor(to_b))


def test_the_gradients_of_prolu_are_made_up():
    """True ones are 0 for b, and 1 for an open m."""
    unit = torch.tensor(1.0).double()
    for gradient in ("relu", "ste"):
        b = BIAS.double().requires_grad_()
        with pytest.raises(GradcheckError):
            gradcheck(lambda b, kind=gradient: Gate.apply(M.double(), b, kind, unit), b)


@pytest.mark.parametrize("sparsity", ["l1", "sqrt"])
def test_prolu_by_hand(sparsity):
    variant = ProLU(0.7, sparsity=sparsity)
    sae = some(variant)
    m = (X - sae.b_dec) @ sae.W_enc
    f = torch.where((m > 0) & (m + sae.b_enc > 0), m, 0)
    s = spread(X)
    p = f.sum(1) / s if sparsity == "l1" else (f / s).sqrt().sum(1)
    e = f @ sae.W_dec + sae.b_dec - X
    loss, gradients = evaluated(variant, sae)
    expected = (e.square().sum(1) + 0.7 * s**2 * p).mean() / D
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    close(variant.latents(sae, X), f)


def test_prolu_is_jumprelu():
    variant = ProLU()
    sae = some(variant)
    f = variant.latents(sae, X)
    without_bias = torch.relu((X - sae.b_dec) @ sae.W_enc)
    above = sae.b_enc >= 0
    assert 0 < above.sum() < F
    # a bias above 0 does nothing
    close(f[:, above], without_bias[:, above])
    assert (f[:, ~above] != without_bias[:, ~above]).any()
    close(variant.finish(sae, X[:0]).encode(X), f)


# --- Switch ---------------------------------------------------------------------------------------


def test_switch_by_hand():
    """Token by token: the most probable of four experts, the k largest of its five latents, and the
    probability times these.
    """
    variant = Switch(K, experts=4, balance=0.7)
    sae = some(variant)
    w = {name: t.numpy() for name, t in sae.tensors.items()}
    f, chosen, probabilities = np.zeros((B, F)), [], []
    for i, x in enumerate(X.numpy()):
        logits = (x - w["b_router"]) @ w["router"]
        p = np.exp(logits) / np.exp(logits).sum()
        j = int(np.argmax(logits))
        block = slice(5 * j, 5 * j + 5)
        f[i, block] = p[j] * largest(np.maximum((x - w["b_dec"]) @ w["W_enc"][:, block], 0), K)
        chosen.append(j)
        probabilities.append(p)
    assert {*chosen} == {0, 1, 2, 3}
    close(sae.encode(X), torch.tensor(f))
    close(sae.reconstruct(X), torch.tensor(f @ w["W_dec"] + w["b_dec"]))
    share = np.bincount(chosen, minlength=4) / B
    spread_out = 4 * share @ np.mean(probabilities, 0)
    x_hat = f @ w["W_dec"] + w["b_dec"]
    error = ((x_hat - X.numpy()) ** 2).mean()
    s2 = ((X - X.mean(0)) ** 2).sum(1).mean().item()
    loss, _ = evaluated(variant, sae)
    assert loss == pytest.approx(error + 0.7 * s2 / D * spread_out, rel=1e-12)


def test_switch_with_one_expert_is_topk_without_b_enc():
    sae = some(Switch(K, experts=1))
    plain = copy.copy(sae)
    plain.router = plain.b_router = None
    assert not sae.b_enc.any()
    close(sae.encode(X), plain.encode(X))
    ours, topk = evaluated(Switch(K, experts=1, balance=0.0), sae), evaluated(TopK(K), plain)
    assert ours[0] == pytest.approx(topk[0], rel=1e-12)
    for name in ("W_enc", "W_dec", "b_dec"):
        close(ours[1][name], topk[1][name])


def test_imbalance_is_1_where_experts_are_used_alike_and_e_where_one_is():
    even = torch.eye(4).repeat(3, 1)
    assert imbalance(even).item() == pytest.approx(1)
    assert imbalance(even[:1].repeat(7, 1)).item() == pytest.approx(4)
    leaning = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.6, 0.4], [0.5001, 0.4999]])
    share, mean = np.array([0.75, 0.25]), leaning.mean(0).numpy()
    assert imbalance(leaning).item() == pytest.approx(2 * share @ mean)


def test_disjoint_subspaces_are_routed_to_experts_of_their_own():
    """Tokens of two far clusters, each in two dimensions of its own."""
    g = torch.Generator().manual_seed(0)
    cluster = torch.arange(4000) % 2
    x = torch.zeros(4000, 4)
    x[cluster == 0, :2] = 3 + torch.rand(2000, 2, generator=g)
    x[cluster == 1, 2:] = 3 + torch.rand(2000, 2, generator=g)
    (sae,) = train_saes(x.split(100), 4, 8, Switch(2, experts=2), [0], 2e-2, 4000, 100)
    expert = sae.experts(x).argmax(-1)
    assert (expert == cluster).all() or (expert == 1 - cluster).all()
    assert sae.training_log.fvu.iloc[-1] < 0.05


def test_a_switch_sae_is_not_taken_for_a_topk_sae(tmp_path):
    sae = some(Switch(K, experts=4))
    assert not sae.is_topk
    with pytest.raises(SAEError, match="this SAE has experts"):
        sae.to_sparsify(tmp_path / "a")
    sae.save(tmp_path / "b")
    assert json.loads((tmp_path / "b" / "cfg.json").read_text())["architecture"] not in (
        "topk",
        "jumprelu",
        "standard",
    )


@pytest.mark.parametrize("experts", [3, 10])
def test_experts_that_do_not_divide_the_latents(experts):
    with pytest.raises(SAEError, match=f"experts = {experts} must divide d_sae = {F}"):
        Switch(K, experts=experts).new(D, F, 0, "cpu")


# --- Mutual Choice --------------------------------------------------------------------------------


def test_zipfs_law_is_fitted_as_numpy_does():
    counts = torch.tensor([40, 3, 0, 20, 11, 1, 0, 9])
    ranks = np.array([1, 5, 7, 2, 3, 6, 8, 4])
    there = counts.numpy() > 0
    slope, start = np.polyfit(np.log(ranks[there]), np.log(counts.numpy()[there]), 1)
    close(zipf(counts), torch.tensor(np.exp(start + slope * np.log(ranks))), 1e-9)
    # one rank is no line
    assert not zipf(torch.tensor([0, 5, 0])).any()


def test_mutual_choice_without_seldom_latents_is_batch_topk():
    sae = some(BatchTopK(K))
    for dead in (ALIVE, DEAD):
        mutual, batch = (
            evaluated(v, sae, at=moment(dead=dead)) for v in (MutualChoice(K, 0.0), BatchTopK(K))
        )
        assert mutual[0] == batch[0]
        assert all(torch.equal(w, batch[1][name]) for name, w in mutual[1].items())


def test_seldom_latents_are_treated_as_dead():
    """Those below half of the law, worked out here, beside those that are dead."""
    variant = MutualChoice(K, 0.5)
    sae = some(variant)
    counts = (variant.latents(sae, X) > 0).sum(0).numpy()
    ranks = np.empty(F)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(1, F + 1)
    there = counts > 0
    slope, start = np.polyfit(np.log(ranks[there]), np.log(counts[there]), 1)
    weak = counts < 0.5 * np.exp(start + slope * np.log(ranks))
    assert 0 < weak.sum() < F / 2
    weak[DEAD.numpy()] = True
    treated = torch.tensor(np.flatnonzero(weak))
    mutual = evaluated(variant, sae, at=moment(dead=DEAD))
    batch = evaluated(BatchTopK(K), sae, at=moment(dead=treated))
    assert mutual[0] == batch[0]
    assert mutual[0] > evaluated(BatchTopK(K), sae)[0]


# --- Feature Choice -------------------------------------------------------------------------------


def test_feature_choice_is_topk_of_the_columns():
    """k B / F = 6 tokens of each latent."""
    variant = FeatureChoice(K)
    sae = some(variant)
    p = sae.pre_activations(X)
    values, tokens = p.T.topk(6)
    assert torch.equal(
        variant.latents(sae, X), torch.zeros(F, B).double().scatter(1, tokens, values).T
    )


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n_tokens", [40, 333])
def test_feature_choice_spends_k_per_token(exponent, n_tokens):
    m = FeatureChoice(K, exponent).tokens(n_tokens, F, "cpu")
    assert m.sum() == K * n_tokens
    law = np.arange(1, F + 1) ** -exponent
    # rounded as it is summed, so by less than 1
    assert np.abs(m.numpy() - law / law.sum() * K * n_tokens).max() < 1
    assert (FeatureChoice(1, 9.0).tokens(10, F, "cpu") <= 10).all()


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_in_use_each_latent_has_its_tokens_on_the_calibration(exponent):
    variant = FeatureChoice(K, exponent)
    sae = some(variant)
    positive = (sae.pre_activations(X) > 0).sum(0)
    used = variant.finish(sae, X)
    m = variant.tokens(B, F, "cpu")
    assert torch.equal((used.encode(X) > 0).sum(0), torch.minimum(m, positive))
    assert len(used.threshold.unique()) > F / 2


# --- Archetypal -----------------------------------------------------------------------------------


def begun(variant, x=X, seed=1) -> Any:
    """An SAE that has archetypes, float64."""
    sae: Any = variant.new(D, F, seed, "cpu")
    for name, w in (variant.parameters(sae) | sae.weights).items():
        setattr(sae, name, w.double())
    sae.b_dec = x.mean(0)
    variant.begin(sae, x)
    return sae


def test_archetypal_by_hand():
    variant = Archetypal(K)
    sae = some(variant)
    rows = sae.mixture.numpy() / F @ sae.archetypes.numpy() + sae.relaxation.numpy()
    directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    p = np.maximum((X - sae.b_dec).numpy() @ sae.W_enc.numpy() + sae.b_enc.numpy(), 0)
    least = -np.sort(-p, axis=1)[:, K - 1 : K]
    f = p * (p >= least)
    x_hat = f @ directions + sae.b_dec.numpy()
    loss, error, counts = variant.loss(sae, X, moment())
    assert loss.item() == pytest.approx(np.mean((x_hat - X.numpy()) ** 2), rel=1e-12)
    close(error, torch.from_numpy(x_hat) - X)
    assert counts.tolist() == (f > 0).sum(0).tolist()
    used = variant.finish(sae, X)
    close(used.reconstruct(X), torch.from_numpy(x_hat))


def test_archetypal_without_archetypes_is_topk_of_the_relaxation():
    """Whose gradient has no part along the rows, since their norms are not W_dec's to have."""
    variant = Archetypal(K)
    sae = some(variant)
    sae.mixture.zero_()
    plain = copy.copy(sae)
    plain.W_dec = torch.nn.functional.normalize(sae.relaxation, dim=-1)
    at = moment(dead=DEAD)
    loss, gradients = evaluated(variant, sae, at=at)
    expected, of_topk = evaluated(TopK(K), plain, at=at)
    assert loss == pytest.approx(expected, rel=1e-12)
    close(gradients["W_enc"], of_topk["W_enc"])
    along = (of_topk["W_dec"] * plain.W_dec).sum(-1, keepdim=True) * plain.W_dec
    norms = sae.relaxation.norm(dim=-1, keepdim=True)
    close(gradients["relaxation"], (of_topk["W_dec"] - along) / norms)


def test_directions_begin_at_the_centroids_of_clusters():
    """Two tokens at each of F corners, a little apart: centroids are between them."""
    corners = 10 * torch.randn(F, D, generator=torch.Generator().manual_seed(5)).double()
    apart = 0.01 * torch.randn(F, D, generator=torch.Generator().manual_seed(6)).double()
    x = torch.cat([corners - apart, corners + apart])
    variant = Archetypal(K)
    used = variant.finish(begun(variant, x), x)
    expected = torch.nn.functional.normalize(corners - corners.mean(0), dim=-1)
    nearest = (used.W_dec @ expected.T).max(-1)
    close(nearest.values, torch.ones(F).double(), 1e-4)
    assert sorted(nearest.indices.tolist()) == [*range(F)]


def test_seeds_begin_alike_only_where_centroids_are_shared():
    for centroids, alike in (("shared", True), ("own", False)):
        variant = Archetypal(K, centroids=centroids)
        one, other = (begun(variant, seed=seed) for seed in (1, 2))
        assert torch.equal(one.archetypes, other.archetypes) == alike
        assert not torch.equal(one.W_enc, other.W_enc)


def test_an_archetypal_training_stays_in_the_hull_and_a_relaxed_one_within_delta_of_it():
    """By non-negative least squares: how far a row is from the cone of the archetypes."""
    for delta in (0.0, 0.05):
        variant = Archetypal(K, delta)
        training = Training(variant.new(D, F, 1, "cpu"), variant, 0.05, RECIPES["default"], 60)
        for i in range(60):
            training.step(i, X.float())
        sae: Any = training.sae
        mixture = sae.mixture.double().numpy() / F
        assert mixture.min() >= 0
        assert mixture.sum(1) == pytest.approx(1, abs=1e-5)
        # it has left where it began
        assert mixture.max(1).mean() < 0.9
        archetypes = sae.archetypes.double().numpy()
        rows = mixture @ archetypes + sae.relaxation.double().numpy()
        lengths = np.linalg.norm(rows, axis=1)
        directions = training.finish().W_dec.double().numpy()
        assert directions * lengths[:, None] == pytest.approx(rows, abs=1e-5)
        off = [nnls(archetypes.T, row)[1] for row in rows]
        assert max(off) <= delta + 1e-5
        relaxed = max(np.linalg.norm(rows - mixture @ archetypes, axis=1))
        assert relaxed == pytest.approx(delta, abs=1e-6)


def test_an_archetypal_training_needs_as_many_activations_as_latents():
    with pytest.raises(SAEError, match="begins with as many centroids: .* have 19 activations"):
        train_saes([X[:19].float()], D, F, Archetypal(K), [1], 1e-2, 19, 40)


def test_k_means_sees_the_first_batches_of_a_training():
    """What the first step alone saw would be one batch."""
    batches = [*X.float().repeat(20, 1).split(30)]
    seen = []

    class Seen(Archetypal):
        def begin(self, sae, x):
            seen.append(x)
            super().begin(sae, x)

    train_saes(batches, D, F, Seen(K), [1, 2], 1e-2, 20 * B, 30)
    assert [len(x) for x in seen] == [16 * 30] * 2
    close(seen[0], torch.cat(batches[:16]))
    seen.clear()
    train_saes(batches, D, F, Seen(K), [1, 2], 1e-2, [100, 700], 30)
    assert [len(x) for x in seen] == [100, 16 * 30]


# --- Tilted ---------------------------------------------------------------------------------------


def test_the_tilted_mean_by_hand():
    """Two tokens with errors 1 and 3, of spread 5: 25 / 2 (1 / t) log of the mean of e^(t l)."""
    x = torch.tensor([[3.0, 4.0], [-3.0, -4.0]]).double()
    error = torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double()
    variant = Tilted(1, 10.0)
    expected = 25 / 2 / 10 * np.log((np.exp(10 / 25) + np.exp(90 / 25)) / 2)
    assert variant.distance(x, error, moment()).item() == pytest.approx(expected, rel=1e-12)
    weights = np.exp([10 / 25, 90 / 25])
    weights /= weights.sum()
    gradient = variant.distance_and_gradient(x, error, moment())[1]
    close(gradient, torch.tensor([[weights[0], 0.0], [0.0, 3 * weights[1]]]).double())


def test_without_tilt_it_is_topk_and_with_much_the_worst_token_is_all():
    sae = some(TopK(K))
    error = sae.reconstruct(X) - X
    at = moment(dead=DEAD)
    for name, gradient in evaluated(Tilted(K, 1e-7), sae, at=at)[1].items():
        close(gradient, evaluated(TopK(K), sae, at=at)[1][name], 1e-6)
    worst = error.square().sum(1).argmax()
    much = Tilted(K, 1e5)
    gradient = much.distance_and_gradient(X, error, moment())[1]
    close(gradient[worst], 2 * error[worst] / D)
    assert not gradient[np.arange(B) != worst.item()].any()
    largest = error[worst].square().mean().item()
    assert much.distance(X, error, moment()).item() == pytest.approx(largest, 1e-3)


def test_the_rare_are_reconstructed_better_with_tilt():
    """Of 50 tokens one is in a direction of its own; there is room for all but a few directions."""
    g = torch.Generator().manual_seed(0)
    common = torch.randn(2000, D - 1, generator=g)
    x = torch.cat([common, torch.zeros(2000, 1)], 1)
    x[::50] = 0
    x[::50, -1] = 4.0
    x = x[torch.randperm(2000, generator=g)]
    rare = x[:, -1] > 0
    errors = []
    for variant in (TopK(1), Tilted(1, 5.0)):
        (sae,) = train_saes(x.repeat(3, 1).split(100), D, 4, variant, [1], 1e-2, 6000, 100)
        errors.append((sae.reconstruct(x) - x).square().sum(1)[rare].mean().item())
    assert errors[1] < 0.8 * errors[0]


# --- Mutual feature regularisation ----------------------------------------------------------------


def coupled(variant, seeds, data=None, rate=1e-2):
    data = X.float().repeat(20, 1) if data is None else data
    return train_saes(data.split(40), D, F, variant, seeds, rate, len(data), 40)


def nearest_cosines(one, other):
    """Mean over rows of `one` of the largest cosine to a row of `other`, NumPy's."""
    return (one.W_dec.double().numpy() @ other.W_dec.double().numpy().T).max(1).mean()


def test_the_penalty_of_mutual_regularisation_by_hand():
    """None where an SAE is coupled with its own copy; 1 where directions are orthogonal."""
    variant = Mutual(1, weight=2.0, warmup=0.0)
    eye = torch.eye(D).double()
    scale = spread(X).item() ** 2 / D
    for own, peers, expected in (
        (eye[:3], [eye[:3]], 0.0),
        (eye[:3], [eye[3:]], 1.0),
        (eye[:3], [eye[:3], eye[3:]], 0.5),
        # one of three is shared, and it is the nearest of all four
        (eye[:3], [torch.stack([eye[0], eye[0], eye[0], eye[5]])], 1 - (1 / 3 + 3 / 4) / 2),
    ):
        sae: Any = TopKSAE(D, 3, 1, 0)
        sae.W_dec, sae.W_enc = own, own.T
        sae.b_enc, sae.b_dec = sae.b_enc.double(), sae.b_dec.double()
        at = Moment(1.0, ALIVE, RECIPES["default"], peers)
        plain = TopK(1).loss(sae, X, at)[0].item()
        assert variant.loss(sae, X, at)[0].item() == pytest.approx(plain + 2 * scale * expected)


def test_coupled_saes_without_weight_are_those_that_are_trained_alone():
    """To the same bytes; and so is an SAE that has no other in its group."""
    alone = coupled(TopK(K), [1, 2, 3])
    for variant in (Mutual(K, weight=0.0), Mutual(K, weight=5.0, group=2)):
        saes = coupled(variant, [1, 2, 3])
        same = [
            all(torch.equal(w, one.weights[name]) for name, w in other.weights.items())
            for one, other in zip(alone, saes, strict=True)
        ]
        assert same == ([True] * 3 if variant.weight == 0 else [False, False, True])


def test_coupled_saes_share_more_and_groups_are_their_own():
    saes = coupled(Mutual(K, weight=3.0), [1, 2, 3, 4])
    within = [nearest_cosines(saes[i], saes[j]) for i, j in ((0, 1), (1, 0), (2, 3), (3, 2))]
    across = [nearest_cosines(saes[i], saes[j]) for i in (0, 1) for j in (2, 3)]
    alone = coupled(TopK(K), [1, 2, 3, 4])
    before = [nearest_cosines(alone[i], alone[j]) for i, j in ((0, 1), (2, 3))]
    assert min(within) > max(before) + 0.05
    assert min(within) > max(across) + 0.05


def test_saes_of_one_group_alone_are_coupled():
    """Not those of another size or k, nor those beside them of another variant."""
    saes = train_saes(
        X.float().repeat(5, 1).split(40),
        D,
        [F, F, F - 2, F],
        [Mutual(K, 3.0), Mutual(K + 1, 3.0), Mutual(K, 3.0), TopK(K)],
        [1, 2, 3, 4],
        1e-2,
        5 * B,
        40,
    )
    for sae, k in zip(saes, (K, K + 1, K, K), strict=True):
        seed = sae.metadata["seed"]
        (alone,) = train_saes(
            X.float().repeat(5, 1).split(40), D, sae.d_sae, k, [seed], 1e-2, 5 * B, 40
        )
        assert torch.equal(sae.W_dec, alone.W_dec)


@pytest.mark.parametrize(
    "name, why",
    [
        ("mutual", "couples seeds"),
        ("pca", "is the same for all"),
        ("archetypal", "begins at the same centroids"),
    ],
)
def test_seeds_of_the_papers_own_tables_differ_by_chance_alone(make_run, name, why):
    with pytest.raises(ParamsError, match=f"sae.variant.* {name} {why}"):
        make_run({"sae.variant": {"name": name}})


def test_first_batches_that_hold_too_few_activations_for_the_centroids(make_run):
    own = {"name": "archetypal", "centroids": "own"}
    assert make_run({"sae.variant": own, "sae.batch_tokens": 2}).sae.variant.name == "archetypal"
    with pytest.raises(
        ParamsError, match="sae.batch_tokens = 1: Archetypal .* have 16 activations"
    ):
        make_run({"sae.variant": own, "sae.batch_tokens": 1})


class Context:
    """What a training is given its batches from, where it has checkpoints."""

    def __init__(self, batches):
        self.batches = batches
        self.done = 0

    def __iter__(self):
        while self.done < len(self.batches):
            self.done += 1
            yield self.batches[self.done - 1]

    def state(self):
        return {"done": self.done}

    def resume(self, state):
        self.done = state["done"]


def test_what_reads_ahead_and_what_is_coupled_goes_on_from_any_step(tmp_path):
    """Broken off after each step in turn, with a checkpoint wherever one may be."""

    class BrokenError(Exception):
        pass

    class Breaking(Checkpoint):
        @property
        def due(self):
            return True

        def save(self, step, *args):
            super().save(step, *args)
            if step == self.at:
                raise BrokenError

    data = torch.randn(20, 30, D, generator=torch.Generator().manual_seed(3))
    variants = [Archetypal(K), Mutual(K), Mutual(K)]
    sizes = (D, F, variants, [1, 2, 3], 1e-2, 600, 30)
    whole = train_saes(data, *sizes)
    steps = []
    for at in range(1, 20):
        path = tmp_path / str(at)
        breaking: Any = Breaking(path, "key", every=0)
        breaking.at = at
        try:
            train_saes(Context(data), *sizes, checkpoint=breaking)
        except BrokenError:
            steps.append(at)
        resumed = train_saes(Context(data), *sizes, checkpoint=Checkpoint(path, "key", every=0))
        for one, other in zip(whole, resumed, strict=True):
            assert all(torch.equal(w, other.weights[name]) for name, w in one.weights.items()), at
    # before, the stream is further than the training
    assert steps == [*range(16, 20)]


# --- in a parameter file --------------------------------------------------------------------------


def test_topk_is_what_is_trained_where_a_file_names_no_variant(make_run):
    run = make_run()
    assert variant_of(run.sae, 4) == TopK(4)
    named = make_run({"sae.variant": {"name": "topk"}})
    assert sae_settings(named, "text") == sae_settings(run, "text")


def test_a_file_sets_every_setting_and_k_is_the_sections(make_run):
    """One value for each field, none of them its default."""
    chosen = {
        "relu": ({"l1": 2, "warmup": 0.5}, ReLU(2.0, 0.5)),
        "batch_topk": ({}, BatchTopK(4)),
        "matryoshka": ({"shares": [0.5, 1]}, Matryoshka(4, (0.5, 1.0))),
        "jumprelu": (
            {"sparsity": "step", "weight": 2.0, "warmup": 0.2, "bandwidth": 0.3},
            JumpReLU(4, "step", 2.0, 0.2, 0.3),
        ),
        "gated": ({"l1": 0.2, "warmup": 0.3}, Gated(0.2, 0.3)),
        "prolu": (
            {"l1": 0.2, "warmup": 0.3, "sparsity": "sqrt", "gradient": "relu"},
            ProLU(0.2, 0.3, "sqrt", "relu"),
        ),
        "switch": ({"experts": 2, "balance": 0.5}, Switch(4, 2, 0.5)),
        "mutual_choice": ({"seldom": 0.25}, MutualChoice(4, 0.25)),
        "feature_choice": ({"exponent": 1.5}, FeatureChoice(4, 1.5)),
        "pca": ({}, PCA(4)),
        "tilted": ({"tilt": 2.0}, Tilted(4, 2.0)),
        "mutual": ({"weight": 0.5, "warmup": 0.3, "group": 3}, Mutual(4, 0.5, 0.3, 3)),
        "archetypal": ({"delta": 0.5, "centroids": "own"}, Archetypal(4, 0.5, "own")),
        "end_to_end": (
            {"kl": 0.5, "downstream": 2.0, "local": 0.3},
            EndToEnd(4, 0.5, 2.0, 0.3),
        ),
        "causal": ({"weight": 0.5, "warmup": 0.3}, Causal(4, 0.5, 0.3)),
    }
    assert {"topk", *chosen} == {*SETTINGS}
    for name, (values, variant) in chosen.items():
        assert {*vars(variant)} <= {*values, "k"}
        if variant.dependent:
            # which notebook 10 alone may train
            run = make_run()
            section = VARIANT[name](name=name, **values)
            run = run.changed(sae=run.sae.changed(variant=section))
        else:
            # a batch of whole rows
            own = {"name": name, **values}
            run = make_run({"sae.variant": own, "sae.batch_tokens": 60})
        assert variant_of(run.sae, run.sae.k) == variant, name
        assert type(variant_of(run.sae, 4)) is VARIANTS[name]
        assert isinstance(variant, SETTINGS[name])


def test_what_a_variant_is_decides_whether_saes_are_current(make_run):
    made = [
        sae_settings(make_run({"sae.variant": chosen}), "text")
        for chosen in ({"name": "topk"}, {"name": "relu"}, {"name": "relu", "l1": 0.2})
    ]
    assert made[0] != made[1] != made[2]


@pytest.mark.parametrize("name, own", [("jumprelu", {}), ("switch", {"experts": 2})])
def test_the_stages_train_and_load_the_variant(make_run, name, own):
    chosen = {"name": name, **own}
    run = make_run({"sae.variant": chosen, "seed_dependence": SEED_DEPENDENCE})
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    saes = load_saes(run, lm)
    assert len(saes) == 4
    for sae in saes.values():
        assert (sae.router is not None) == (name == "switch")
        assert (sae.threshold is not None) == (name == "jumprelu")
        assert sae.metadata["variant"]["name"] == name
    studied, _ = train_seeds(run)
    assert {sae.router is not None for sae in studied.values()} == {name == "switch"}
    changed = make_run({"sae.variant": {"name": "relu"}})
    with pytest.raises(SAEError, match="was made with sae.variant"):
        load_saes(changed, lm)


def test_parameter_files_are_checked_without_pytorch():
    code = "import sys, faithful_sae.runs.params as p; p.run_class(); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_memory_is_that_of_the_variant(make_run):
    runs = {name: make_run({"sae.variant": {"name": name}}) for name in ("topk", "relu")}
    shape = open_model(runs["topk"]).shape
    steps = {name: VARIANTS[name].bytes(16, 24, 64) for name in runs}
    memory = {name: STAGE.memory(run, shape).device for name, run in runs.items()}
    assert memory["relu"] - memory["topk"] == steps["relu"] - steps["topk"] != 0


def test_every_variant_is_tested():
    tested = {type(variant) for variant in EVERY.values()}
    # in test_train.py, test_untrained.py and test_in_context.py
    others = {"topk", "frozen_decoder", "random_dictionary", "pca", "end_to_end", "causal"}
    assert {VARIANTS[name] for name in VARIANTS if name not in others} == tested
