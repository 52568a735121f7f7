"""Training against a dense float64 derivation by hand, and the stream of activations it is fed
from.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from faithful_sae import TopKSAE, shared_feature_ratio, train_saes
from faithful_sae.kernels.topk_encode import encode
from faithful_sae.sae.activation_cache import ActivationCache
from faithful_sae.sae.activations import ActivationStream, rows_in_batches
from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.train import Training
from faithful_sae.sae.variants import TopK, Variant
from faithful_sae.sae.variants.base import Bounded, Moment
from faithful_sae.sae.variants.places import EVERYWHERE

D, F, K, B, STEPS, LR = 8, 24, 3, 40, 100, 1e-3
X = torch.randn(B, D, generator=torch.Generator().manual_seed(5)) + 0.5


def start(recipe, dead=()):
    """A training whose weights are not at their initialisation; the latents `dead` have not fired
    for long.
    """
    sae = TopKSAE(D, F, K, seed=1)
    g = torch.Generator().manual_seed(2)
    training = Training(sae, TopK(K), LR, RECIPES[recipe], STEPS)
    sae.W_enc += 0.2 * torch.randn(D, F, generator=g)
    sae.b_enc.copy_(0.1 * torch.randn(F, generator=g))
    sae.b_dec.copy_(0.1 * torch.randn(D, generator=g))
    training.since_fired[list(dead)] = training.dead_after
    return training


def top(pre, n):
    """The n largest of each row, the others 0."""
    out = np.zeros_like(pre)
    order = np.argsort(-pre, axis=1)[:, :n]
    np.put_along_axis(out, order, np.take_along_axis(pre, order, 1), 1)
    return out


def dense_loss_and_gradients(sae, x, dead, aux_k, detach):
    """loss = mean (x - x_hat)^2 + 1/32 mean (z_dead W_dec - (x - x_hat))^2, and its derivatives,
    all in float64.
    """
    w = {name: t.detach().double().numpy() for name, t in sae.weights.items()}
    x = x.double().numpy()
    pre = np.maximum((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"], 0)
    z = top(pre, sae.k)
    x_hat = z @ w["W_dec"] + w["b_dec"]
    loss = np.mean((x_hat - x) ** 2)
    to_x_hat = 2 * (x_hat - x) / x.size
    to_pre, to_w_dec = np.zeros_like(pre), np.zeros_like(w["W_dec"])
    if len(dead):
        alive = np.setdiff1d(np.arange(sae.d_sae), dead)
        candidates = pre.copy()
        candidates[:, alive] = 0
        z_dead = top(candidates, min(aux_k, len(dead)))
        error = z_dead @ w["W_dec"] - (x - x_hat)
        loss += np.mean(error**2) / 32
        to_error = 2 * error / x.size / 32
        if not detach:
            to_x_hat = to_x_hat + to_error
        to_w_dec += z_dead.T @ to_error
        to_pre += (to_error @ w["W_dec"].T) * (z_dead > 0)
    to_w_dec += z.T @ to_x_hat
    to_pre += (to_x_hat @ w["W_dec"].T) * (z > 0)
    return loss, {
        "W_enc": (x - w["b_dec"]).T @ to_pre,
        "b_enc": to_pre.sum(0),
        "W_dec": to_w_dec,
        "b_dec": to_x_hat.sum(0) - (to_pre @ w["W_enc"].T).sum(0),
    }


CASES = pytest.mark.parametrize(
    "recipe, dead", [(r, d) for r in RECIPES for d in ((), (0, 5, 11, 17, 20, 23))]
)


@CASES
def test_loss_and_gradients(recipe, dead):
    training = start(recipe, dead)
    aux_k = {"default": D // 2, "authors": 512}[recipe]
    loss, gradients = dense_loss_and_gradients(
        training.sae, X, np.array(dead, int), aux_k, detach=recipe == "default"
    )
    assert abs(training.evaluate(0, X)[0].item() / loss - 1) < 1e-6
    for name, gradient in training.gradients.items():
        expected = gradients[name]
        np.testing.assert_allclose(
            gradient.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max(), err_msg=name
        )
        assert np.abs(expected).max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@CASES
def test_gradients_by_hand_are_autograds(recipe, dead, dtype):
    training = start(recipe, dead)
    sae = training.sae
    for name, w in sae.weights.items():
        setattr(sae, name, w.to(dtype))
    moment = Moment(0.0, torch.tensor(dead, dtype=torch.int64), RECIPES[recipe])
    found = []
    for function in (TopK.loss_and_gradients, Variant.loss_and_gradients):
        gradients = {name: torch.full_like(w, torch.nan) for name, w in sae.weights.items()}
        found.append((*function(TopK(K), sae, X.to(dtype), moment, gradients), gradients))
    (loss, error, counts, by_hand), (auto_loss, auto_error, auto_counts, by_autograd) = found
    close = {"rtol": 0, "atol": {torch.float32: 1e-6, torch.float64: 1e-14}[dtype]}
    torch.testing.assert_close(loss, auto_loss, **close)
    torch.testing.assert_close(error, auto_error, **close)
    assert torch.equal(counts, auto_counts)
    for name, gradient in by_hand.items():
        torch.testing.assert_close(gradient, by_autograd[name], **close)
    assert not auto_loss.requires_grad
    assert not sae.W_enc.requires_grad


def test_training_and_measuring_choose_the_same_latents():
    """TopK's kernels and the SAE's own encoder, on an SAE of many latents; values to rounding."""
    sae = TopKSAE(64, 1000, 20, seed=0)
    g = torch.Generator().manual_seed(1)
    sae.b_enc = 0.1 * torch.randn(1000, generator=g)
    sae.b_dec = 0.1 * torch.randn(64, generator=g)
    x = torch.randn(500, 64, generator=g)
    values, indices = encode(x, sae.W_enc.T.contiguous(), sae.b_enc, sae.b_dec, sae.k)
    trained = torch.zeros(500, 1000).scatter_add_(1, indices, values)
    measured = sae.encode(x)
    assert torch.equal(trained > 0, measured > 0)
    torch.testing.assert_close(trained, measured, rtol=1e-5, atol=1e-6)


def test_auxk_depends_on_the_recipe():
    """Where the two recipes differ, the derivation above does: the case can tell a detached
    residual from one that is not.
    """
    sae = start("default").sae
    dead = np.array([0, 5, 11, 17])
    attached, detached = (
        dense_loss_and_gradients(sae, X, dead, 4, detach)[1]["W_dec"] for detach in (False, True)
    )
    assert np.abs(attached - detached).max() > 1e-3 * np.abs(attached).max()


@CASES
def test_one_step(recipe, dead):
    """Adam's first step moves every weight by lr against its gradient's sign; W_dec's gradient is
    first made tangent.
    """
    training = start(recipe, dead)
    training.sae.b_dec.data.copy_(
        X.mean(0)
    ) if recipe == "default" else None  # where the step puts it by itself
    before = {name: w.detach().double().numpy().copy() for name, w in training.sae.weights.items()}
    _, g = dense_loss_and_gradients(
        training.sae,
        X,
        np.array(dead, int),
        {"default": D // 2, "authors": 512}[recipe],
        recipe == "default",
    )
    g["W_dec"] -= (g["W_dec"] * before["W_dec"]).sum(1, keepdims=True) * before["W_dec"]
    training.step(0, X)
    lr = LR / 5 if recipe == "default" else LR  # warm-up over 5 of the 100 steps
    for name, w in training.sae.weights.items():
        if name == "b_enc" and recipe == "authors":
            assert np.array_equal(w.detach().numpy(), before[name])
            continue
        expected = before[name] - lr * g[name] / (np.abs(g[name]) + 1e-8)
        if name == "W_dec" and recipe == "default":
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        sure = (np.abs(g[name]) > 1e-6) | (
            g[name] == 0
        )  # a rounded gradient near 0 has no certain sign
        assert sure.mean() > 0.9
        np.testing.assert_allclose(
            w.detach().numpy()[sure], expected[sure], atol=0.02 * lr, err_msg=name
        )


def test_learning_rate_rises_and_falls():
    training = start("default")
    seen = []
    for i in range(STEPS):
        training.step(i, X)
        seen.append(training.optimiser.param_groups[0]["lr"])
    assert np.allclose(seen[:5], LR * np.arange(1, 6) / 5)
    assert np.allclose(seen[5:80], LR)
    assert np.allclose(seen[80:], LR * np.arange(20, 0, -1) / 20)


def test_dead_latents_are_counted_and_come_back():
    training = start("default")
    training.dead_after = 3
    training.sae.b_enc.data[:4] = -1e3  # these four cannot fire
    for i in range(4):
        training.step(i, X)
    fired = (training.sae.encode(X).detach() > 0).any(0)
    assert (training.since_fired[:4] == 4).all()
    assert not fired[:4].any()
    assert (training.since_fired[fired] == 0).float().mean() > 0.9
    assert training.log[-1]["dead"] == (training.since_fired >= 3).sum()


# --- whole trainings ------------------------------------------------------------------------------


def batches_of(data, size):
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_seeds_together_equal_seeds_alone(recipe):
    data = torch.randn(1500, D, generator=torch.Generator().manual_seed(0))

    def run(seeds):
        return train_saes(batches_of(data, 64), D, F, K, seeds, 3e-3, len(data), 64, recipe)

    together = run([1, 2, 3])
    for sae, seed in zip(together, (1, 2, 3), strict=True):
        (alone,) = run([seed])
        for name, w in sae.weights.items():
            assert torch.equal(w, getattr(alone, name)), name
        assert sae.training_log.equals(alone.training_log)
        assert torch.equal(sae.firing, alone.firing)
        np.testing.assert_allclose(np.linalg.norm(sae.W_dec.numpy(), axis=1), 1, atol=1e-6)
        assert not sae.W_dec.requires_grad
        assert sae.metadata["seed"] == seed
    assert not torch.allclose(together[0].W_dec, together[1].W_dec, atol=0.1)


def test_sizes_and_budgets_together_equal_each_alone():
    """SAEs of other d_sae, k, lr and number of tokens in one pass; the shorter one sees the
    beginning of the stream.
    """
    data = torch.randn(1600, D, generator=torch.Generator().manual_seed(0))
    settings = [
        (F, K, 3e-3, 1600),
        (2 * F, K, 3e-3, 1600),
        (F, 1, 1e-3, 1600),
        (F, K, 3e-3, 640),
        (F, K, 3e-3, 650),
    ]
    together = train_saes(
        batches_of(data, 64),
        D,
        [s[0] for s in settings],
        [s[1] for s in settings],
        [4] * 5,
        [s[2] for s in settings],
        [s[3] for s in settings],
        64,
    )
    for sae, (d_sae, k, lr, tokens) in zip(together, settings, strict=True):
        (alone,) = train_saes(batches_of(data[:tokens], 64), D, d_sae, k, [4], lr, tokens, 64)
        assert sae.training_log.equals(alone.training_log)
        assert all(torch.equal(w, getattr(alone, name)) for name, w in sae.weights.items())
    with pytest.raises(ValueError, match="k has 2 entries for 3 SAEs"):
        train_saes([data], D, F, [K, K], [1, 2, 3], 1e-3, 64, 64)


def test_a_planted_dictionary_is_recovered():
    """Tokens are sums of 3 of 40 random directions; the SAE must find the directions, where a
    random one finds nothing.
    """
    g = torch.Generator().manual_seed(123)
    truth = torch.nn.functional.normalize(torch.randn(40, 24, generator=g), dim=-1)
    active = torch.rand(80_000, 40, generator=g).topk(3, dim=-1).indices
    data = (truth[active] * (1 + torch.rand(80_000, 3, 1, generator=g))).sum(1)
    (sae,) = train_saes(batches_of(data, 256), 24, 60, 3, [0], 5e-3, len(data), 256)

    def found(w_dec):
        return (truth @ w_dec.T).max(1).values.mean().item()

    assert found(TopKSAE(24, 60, 3, 0).W_dec) < 0.6
    assert found(sae.W_dec) > 0.97
    assert sae.training_log.fvu.iloc[-1] < 0.1 < 0.3 < sae.training_log.fvu.iloc[0]


def dense_training(data, d_sae, k, seed, lr, batch):
    """The default recipe in plain dense PyTorch, as one would write it without kernels: (W_dec,
    losses).
    """
    sae = TopKSAE(data.shape[1], d_sae, k, seed)
    n_steps = len(data) // batch
    losses = []
    w = {name: t.requires_grad_() for name, t in sae.weights.items()}
    optimiser = torch.optim.Adam(w.values(), lr=lr)
    since_fired = torch.zeros(d_sae)
    most_dead = 0
    w["b_dec"].data = data[:batch].mean(0)
    for i, x in enumerate(data.split(batch)):
        optimiser.param_groups[0]["lr"] = lr * min(
            1, (i + 1) / (0.05 * n_steps), (n_steps - i) / (0.2 * n_steps)
        )
        p = torch.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])

        def latents(p, k):
            values, indices = p.topk(k)
            return torch.zeros_like(p).scatter(1, indices, values)

        z = latents(p, k)
        dead = since_fired >= n_steps // 10
        x_hat = z @ w["W_dec"] + w["b_dec"]
        loss = (x_hat - x).pow(2).mean()
        if dead.any():
            explained = latents(p * dead, min(data.shape[1] // 2, int(dead.sum()))) @ w["W_dec"]
            loss = loss + (explained - (x - x_hat).detach()).pow(2).mean() / 32
        optimiser.zero_grad()
        loss.backward()
        w["W_dec"].grad -= (w["W_dec"].grad * w["W_dec"].detach()).sum(1, keepdim=True) * w[
            "W_dec"
        ].detach()
        optimiser.step()
        w["W_dec"].data = torch.nn.functional.normalize(w["W_dec"].data, dim=1)
        since_fired = torch.where((z > 0).any(0), 0, since_fired + 1)
        losses.append(loss.item())
        most_dead = max(most_dead, int(dead.sum()))
    return w["W_dec"].detach(), losses, most_dead


def test_500_steps_track_the_dense_implementation():
    """Both see the same 500 batches; they part by float noise alone, which grows wherever it
    changes a choice of latents.
    """
    g = torch.Generator().manual_seed(8)
    truth = torch.nn.functional.normalize(torch.randn(96, 32, generator=g), dim=-1)
    active = torch.rand(64_000, 96, generator=g).topk(4, dim=-1).indices
    data = (truth[active] * (1 + torch.rand(64_000, 4, 1, generator=g))).sum(
        1
    ) + 0.02 * torch.randn(64_000, 32, generator=g)
    w_dec, losses, most_dead = dense_training(data, 384, 4, 3, 1e-2, 128)
    training = Training(TopKSAE(32, 384, 4, 3), TopK(4), 1e-2, RECIPES["default"], 500)
    ratios = []
    for i, x in enumerate(data.split(128)):
        ratios.append(
            training.evaluate(i, x)[0].item() / losses[i] if i else 1
        )  # step 0 sets b_dec first
        training.step(i, x)
    ours = training.finish()
    dense = TopKSAE(32, 384, 4, 3)
    start = TopKSAE(32, 384, 4, 3)
    dense.W_dec = w_dec
    assert np.abs(np.array(ratios) - 1).max() < 1e-4
    assert losses[-1] < 0.5 * losses[0]
    assert most_dead > 20
    assert shared_feature_ratio(ours, dense) >= 0.99
    assert shared_feature_ratio(ours, start) < 0.8


@dataclass(frozen=True)
class Scaled(Bounded):
    """f = gain ReLU(z), with a penalty on sum f that rises over the run; in use the gain is in the
    encoder.
    """

    weight: float

    def new(self, d_model, d_sae, seed, device):
        sae: Any = super().new(d_model, d_sae, seed, device)
        sae.gain = torch.full((d_sae,), 2.0)
        return sae

    def parameters(self, sae: Any):
        return sae.weights | {"gain": sae.gain}

    def latents(self, sae: Any, x, at=EVERYWHERE):
        return super().latents(sae, x, at) * at.each(sae.gain)

    def penalty(self, sae, x, error, f, moment, at):
        return moment.share * self.weight * f.sum(-1).mean()

    def finish(self, sae: Any, x):
        sae.W_enc = sae.W_enc * sae.gain
        sae.b_enc = sae.b_enc * sae.gain
        return sae


def test_a_variant_of_ones_own_is_trained_like_topk():
    """Another loss, a parameter more, and another function in use, beside a TopK SAE."""
    data = torch.randn(10_000, D, generator=torch.Generator().manual_seed(0))
    batches = batches_of(data, 50)
    saes: list[Any] = train_saes(
        batches, D, F, [K, Scaled(0.0), Scaled(0.1)], [1, 1, 1], 2e-2, len(data), 50
    )
    plain, dense, sparse = saes
    (alone,) = train_saes(batches, D, F, K, [1], 2e-2, len(data), 50)
    assert torch.equal(plain.W_enc, alone.W_enc)
    assert dense.training_log.fvu.iloc[-1] < 0.1 * dense.training_log.fvu.iloc[0]
    assert sparse.training_log.l0.iloc[-1] < 0.8 * dense.training_log.l0.iloc[-1]
    assert not torch.equal(sparse.gain, torch.full((F,), 2.0))
    z = torch.relu((data - sparse.b_dec) @ sparse.W_enc + sparse.b_enc)
    torch.testing.assert_close(sparse.encode(data), z)
    last = torch.cat(batches[-4:])
    assert (sparse.firing - (sparse.encode(last) > 0).float().mean(0)).abs().max() < 0.1


def test_a_variants_own_parameters_are_in_the_state():
    def training():
        variant = Scaled(0.1)
        return Training(variant.new(D, F, 1, "cpu"), variant, LR, RECIPES["default"], STEPS)

    first = training()
    for i in range(3):
        first.step(i, X)
    tensors, numbers = first.state()
    second = training()
    second.restore({name: w.clone() for name, w in tensors.items()}, numbers)
    for i in range(3, 6):
        first.step(i, X)
        second.step(i, X)
    assert torch.equal(first.finish().W_enc, second.finish().W_enc)
    assert "gain.exp_avg" in tensors


def test_firing_is_measured_over_the_last_tenth():
    """With a learning rate of nearly nothing the weights stand still, so the log and frequencies
    can be computed afterwards.
    """
    data = torch.randn(20, 50, D, generator=torch.Generator().manual_seed(4))
    (sae,) = train_saes(list(data), D, F, K, [7], 1e-12, 1000, 50, "authors")
    last = sae.encode(data[18:].flatten(0, 1))
    torch.testing.assert_close(sae.firing, (last > 0).float().mean(0), atol=1e-6, rtol=0)
    x = data[19].double().numpy()
    row = sae.training_log.iloc[-1]
    error = ((x - sae.reconstruct(data[19]).double().numpy()) ** 2).sum() / (
        (x - x.mean(0)) ** 2
    ).sum()
    assert row.step == 19
    assert abs(row.fvu / error - 1) < 1e-4
    assert abs(row.l0 - (last[50:] > 0).sum().item() / 50) < 1e-6


def test_a_loss_that_is_not_finite_stops_the_training():
    data = torch.ones(4, 10, D)
    data[2, 3, 4] = 1e30
    with pytest.raises(FloatingPointError, match=r"seed 9.*step 2"):
        train_saes(list(data), D, F, K, [9], 1e-3, 40, 10)


def test_weights_that_are_not_finite_at_the_end_are_not_returned():
    with pytest.raises(
        FloatingPointError, match="seed 3: weights are not finite after the last step"
    ):
        train_saes([torch.randn(10, D)], D, F, K, [3], 1e38, 10, 10)


def test_no_batches():
    with pytest.raises(ValueError, match="no batch"):
        train_saes([], D, F, K, [1], 1e-3, 100, 10)


# --- activations ----------------------------------------------------------------------------------


class Numbered(Any):
    """Stands in for a language model: the activation of a token is its id, so that every one can be
    told apart.
    """

    d_model = 2
    device = torch.device("cpu")
    bos_id = 0

    def activations(self, ids):
        return ids[..., None].float().expand(*ids.shape, 2)


R, T = 30, 8
ROWS = np.concatenate(
    [np.zeros((R, 1), np.int32), np.arange(1, R * (T - 1) + 1, dtype=np.int32).reshape(R, T - 1)], 1
)
ROWS[4, 5] = 0  # a document that starts in the middle of a row


def open_stream(n_tokens, include_bos=False, seed=0, batch_tokens=16, buffer_tokens=64, rows=ROWS):
    return ActivationStream(
        Numbered(),
        rows,
        n_tokens=n_tokens,
        batch_tokens=batch_tokens,
        buffer_tokens=buffer_tokens,
        lm_batch_rows=4,
        include_bos=include_bos,
        seed=seed,
    )


def stream(*args, **kwargs):
    return list(open_stream(*args, **kwargs))


@pytest.mark.parametrize("include_bos", [False, True])
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("buffer_tokens", [16, 50, 64, 1000])
def test_every_activation_once_per_epoch(include_bos, epochs, buffer_tokens):
    expected = Counter(ROWS.flatten().tolist() if include_bos else ROWS[ROWS != 0].tolist())
    n = sum(expected.values())
    batches = stream(n * epochs, include_bos, buffer_tokens=buffer_tokens)
    got = Counter(torch.cat(batches)[:, 0].int().tolist())
    assert got == Counter({token: count * epochs for token, count in expected.items()})


def test_every_epoch_has_an_order_of_its_own():
    """Each batch here is one window, of one group of two rows: the same groups in another order,
    and another order within them.
    """
    batches = [
        tuple(batch[:, 0].int().tolist())
        for batch in stream(2 * ROWS.size, include_bos=True, buffer_tokens=16)
    ]
    first, second = batches[: R // 2], batches[R // 2 :]
    groups = [[tuple(sorted(batch)) for batch in epoch] for epoch in (first, second)]
    assert sorted(groups[0]) == sorted(groups[1])
    assert groups[0] != groups[1]
    assert not set(first) & set(second)


@pytest.mark.parametrize("n_tokens", [1, 15, 16, 17, 100, 209, 210, 777])
def test_n_tokens_exactly_in_full_batches(n_tokens):
    sizes = [len(b) for b in stream(n_tokens)]
    assert sum(sizes) == n_tokens
    assert set(sizes[:-1]) <= {16}
    assert 0 < sizes[-1] <= 16


def test_the_stream_depends_on_the_seed_alone():
    a, b, c = (torch.cat(stream(300, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_batches_mix_rows():
    """In row order a batch of 16 would hold 3 rows; from a buffer of 64 it draws on many more."""
    batch = stream(200)[0][:, 0].int()
    assert len({(int(token) - 1) // (T - 1) for token in batch}) >= 6


def test_one_window_is_read_ahead_and_no_more():
    """The language model is at most one window of 8 rows ahead of what has been given out, and
    stops where it is not needed any more.
    """
    read = []

    class Counting(Numbered):
        def activations(self, ids):
            read.append(len(ids))
            return super().activations(ids)

    stream = ActivationStream(
        Counting(),
        ROWS,
        n_tokens=150,
        batch_tokens=16,
        buffer_tokens=64,
        lm_batch_rows=4,
        include_bos=True,
        seed=0,
    )
    for i, _ in enumerate(stream):
        assert sum(read) <= 8 * (i * 16 // 64 + 2)
    assert sum(read) == 24  # 150 activations are three windows of 64


def test_an_error_of_the_model_comes_out_of_the_stream():
    class Broken(Numbered):
        def activations(self, ids):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        next(
            iter(
                ActivationStream(
                    Broken(),
                    ROWS,
                    n_tokens=9,
                    batch_tokens=2,
                    buffer_tokens=64,
                    lm_batch_rows=4,
                    include_bos=True,
                    seed=0,
                )
            )
        )


class Kept(Numbered):
    """Counts forward passes, and says the same of a row whatever stands beside it only to a few
    digits, as models do.
    """

    d_model, passes = 2, 0

    def activations(self, ids):
        type(self).passes += 1
        return super().activations(ids) + ids.double().sum().sin().float() / 1000


@pytest.mark.parametrize("include_bos", [False, True])
def test_activations_from_disk_are_those_computed_again(tmp_path, include_bos):
    def run(cache):
        Kept.passes = 0
        stream = ActivationStream(
            Kept(),
            ROWS,
            n_tokens=700,
            batch_tokens=16,
            buffer_tokens=64,
            lm_batch_rows=4,
            include_bos=include_bos,
            seed=0,
            cache=cache,
        )
        return torch.cat(list(stream)), Kept.passes

    again, passes = run(None)
    cache = ActivationCache(tmp_path / "kept")
    kept, first_passes = run(cache)
    assert (
        torch.equal(again, kept) and first_passes == 8 < passes
    )  # 30 rows in groups of 4, once instead of three times
    assert (
        torch.equal(run(cache)[0], again) and run(cache)[1] == 0
    )  # another training: no forward pass at all
    files = sorted((tmp_path / "kept").iterdir())
    for i, damage in enumerate(
        (lambda b: b[:-3], lambda b: b"", lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:])
    ):
        files[i].write_bytes(damage(files[i].read_bytes()))
    files[4].unlink()
    assert torch.equal(run(cache)[0], again)
    assert run(cache)[1] == 0
    assert sorted((tmp_path / "kept").iterdir()) == files


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_activations_are_kept_in_the_models_own_precision(tmp_path, dtype):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(dtype).float()
    cache = ActivationCache(tmp_path)
    cache.write(7, x)
    kept = cache.read(7)
    assert kept is not None
    assert torch.equal(kept, x)
    assert cache.read(8) is None
    assert load_file(tmp_path / "group_000007.safetensors")["x"].dtype == dtype


def test_rows_keep_their_order():
    batches = list(rows_in_batches(ROWS, 7))
    assert np.array_equal(torch.cat(batches).numpy(), ROWS)
    assert [len(b) for b in batches] == [
        7,
        7,
        7,
        7,
        2,
    ]


def test_no_rows():
    with pytest.raises(ValueError, match="no token rows"):
        open_stream(1, rows=ROWS[:0])


def test_rows_of_bos_alone():
    with pytest.raises(ValueError, match="nothing but BOS"):
        stream(10, rows=np.zeros((5, 8), np.int32))


@pytest.mark.parametrize("buffer_tokens", [8, 64, 100])
def test_a_stream_goes_on_from_every_state_it_gives(buffer_tokens):
    whole = stream(777, buffer_tokens=buffer_tokens)
    first = open_stream(777, buffer_tokens=buffer_tokens)
    states = {}
    for i, _ in enumerate(first):
        if (state := first.state()) is not None:
            states[i + 1] = {
                key: value.clone() if torch.is_tensor(value) else value
                for key, value in state.items()
            }
    assert len(states) > 5
    for done, state in states.items():
        resumed = open_stream(777, buffer_tokens=buffer_tokens)
        resumed.resume(state)
        rest = list(resumed)
        assert len(rest) == len(whole) - done
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[done:], strict=True))


# --- massive activations --------------------------------------------------------------------------

LARGE = {5: 1000.0, 77: 300.0, 78: 2.9, 150: 40.0}  # times the norm of the others


class Massive(Numbered):
    """Activations [id, 1] scaled to norm 1, but for some tokens that are larger."""

    d_model = 2

    def activations(self, ids):
        x = torch.nn.functional.normalize(torch.stack([ids.double(), ids * 0.0 + 1], -1), dim=-1)
        scale = torch.ones(ids.shape, dtype=torch.float64)
        for token, size in LARGE.items():
            scale[ids == token] = size
        return (x * scale[..., None]).float()


def massive_stream(n_tokens=600, cache=None, include_bos=False, max_norm=3.0, buffer_tokens=64):
    return ActivationStream(
        Massive(),
        ROWS,
        n_tokens=n_tokens,
        batch_tokens=16,
        buffer_tokens=buffer_tokens,
        lm_batch_rows=4,
        include_bos=include_bos,
        seed=0,
        cache=cache,
        max_norm=max_norm,
    )


def test_massive_activations_are_left_out_and_listed():
    stream = massive_stream()
    given = torch.cat(list(stream))
    assert len(given) == 600
    assert given.norm(dim=-1).max() < 3.0
    assert given.norm(dim=-1).max() > 2.8
    assert stream.limit == pytest.approx(3.0)
    found = stream.massive()
    assert found.token.tolist() == [5, 77, 150]
    assert found.norm.tolist() == pytest.approx([1000.0, 300.0, 40.0])
    assert [
        ROWS[row, position] for row, position in zip(found.row, found.position, strict=True)
    ] == [
        5,
        77,
        150,
    ]


def test_without_max_norm_nothing_is_left_out():
    stream = massive_stream(max_norm=None)
    assert torch.cat(list(stream)).norm(dim=-1).max() == pytest.approx(1000.0)
    assert stream.massive().empty
    assert set(stream.state()) == {"window", "given", "left"}


@pytest.mark.parametrize("include_bos", [False, True])
def test_kept_activations_leave_out_the_same_tokens(tmp_path, include_bos):
    again = massive_stream(include_bos=include_bos)
    expected = torch.cat(list(again))
    cache = ActivationCache(tmp_path)
    # the files are those of any max_norm
    list(massive_stream(cache=cache, include_bos=include_bos, max_norm=None))
    kept = massive_stream(cache=cache, include_bos=include_bos)
    assert torch.equal(torch.cat(list(kept)), expected)
    assert kept.massive().equals(again.massive())
    assert kept.limit == again.limit


@pytest.mark.parametrize("buffer_tokens", [8, 64, 100])
def test_a_resumed_stream_leaves_out_the_same_tokens(buffer_tokens):
    whole = massive_stream(buffer_tokens=buffer_tokens)
    batches, states = [], {}
    for batch in whole:
        batches.append(batch.clone())
        if (state := whole.state()) is not None:
            states[len(batches)] = {
                key: value.clone() if torch.is_tensor(value) else value
                for key, value in state.items()
            }
    assert len(states) > 5
    for done, state in states.items():
        resumed = massive_stream(buffer_tokens=buffer_tokens)
        resumed.resume(state)
        rest = list(resumed)
        assert all(torch.equal(a, b) for a, b in zip(rest, batches[done:], strict=True))
        assert resumed.massive().equals(whole.massive())
        assert resumed.limit == whole.limit


def test_activations_that_are_not_numbers_are_not_taken_for_massive_ones():
    class Broken(Massive):
        def activations(self, ids):
            return super().activations(ids) * float("nan")

    stream = massive_stream()
    stream.lm = Broken()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.cat(list(stream)).isnan().all()
