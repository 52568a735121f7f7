"""TPP and SCR: the closed form against ablations that are carried out token by token, and worlds
where each property is one latent.
"""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from faithful_sae import TopKSAE
from faithful_sae.metrics.ablated_probes import Texts, fit_probe, scr, tpp
from faithful_sae.metrics.sparse_probing import balanced

D, F, K = 10, 30, 4
TOKENS = 7


def random_sae(kind="topk"):
    sae = TopKSAE(D, F, K, 3)
    generator = torch.Generator().manual_seed(1)
    sae.b_dec = torch.randn(D, generator=generator)
    sae.W_enc = sae.W_enc + 0.2 * torch.randn(D, F, generator=generator)
    # rows need not have unit norm
    sae.W_dec = sae.W_dec * (0.5 + torch.rand(F, 1, generator=generator))
    if kind == "threshold":
        sae.above(0.4)
    return sae


def world(n, seed, properties=3):
    """(tokens float32 [n, TOKENS, D], has bool [n, properties])."""
    rng = np.random.default_rng(seed)
    has = rng.random((n, properties)) < 0.4
    x = rng.normal(size=(n, TOKENS, D))
    directions = np.random.default_rng(99).normal(size=(properties, D))
    x += (has @ directions)[:, None] * rng.random((n, TOKENS, 1))
    return torch.tensor(x, dtype=torch.float32), has


def pooled(sae, tokens, has):
    return Texts(tokens.mean(1).numpy(), sae.encode(tokens).mean(1).numpy(), has)


def carried_out(sae, tokens, latents):
    """Means of x [n, D] with latents at 0: decoded, and the error added, token by token."""
    z = sae.encode(tokens).double()
    decoder = sae.W_dec.double()
    error = tokens.double() - (z @ decoder + sae.b_dec)
    z[..., latents] = 0
    return (z @ decoder + sae.b_dec + error).mean(1).numpy()


def regression(x, has):
    return LogisticRegression(max_iter=1000).fit(x.astype(float), has)


def accuracy(model, x, has):
    return ((x @ model.coef_[0] + model.intercept_[0] > 0) == has).mean()


@pytest.mark.parametrize("kind", ["topk", "threshold"])
def test_the_closed_form_is_what_an_ablation_does_to_a_logit(kind):
    sae = random_sae(kind)
    tokens, has = world(60, 0)
    texts = pooled(sae, tokens, has)
    probe = fit_probe(sae, texts.x, has[:, 0])
    model = regression(texts.x, has[:, 0])
    for latents in (np.array([], int), np.array([4]), np.arange(0, F, 2), np.arange(F)):
        x = carried_out(sae, tokens, latents)
        explicit = model.decision_function(x)
        np.testing.assert_allclose(probe.logits(texts, latents), explicit, atol=1e-5)


@pytest.mark.parametrize("kind", ["topk", "threshold"])
def test_tpp_is_that_of_ablations_carried_out(kind):
    sae = random_sae(kind)
    (tokens, has), (others, truth) = world(200, 0), world(160, 1)
    train, test = pooled(sae, tokens, has), pooled(sae, others, truth)
    models, orders, scored = [], [], []
    for i in range(3):
        own = balanced(has[:, i], 5)
        x, z, y = train.x[own], train.z[own], has[own, i]
        models.append(regression(x, y))
        rise = np.maximum(z[y].mean(0) - z[~y].mean(0), 0)
        effect = rise * (sae.W_dec.double().numpy() @ models[i].coef_[0])
        orders.append([f for f in np.argsort(-effect) if effect[f] > 0])
        scored.append(balanced(truth[:, i], 5))
    sizes = (0, 1, 3, 500)
    for n, got in zip(sizes, tpp(sae, train, test, sizes, seed=5), strict=True):
        lost = np.zeros((3, 3))
        for i in range(3):
            x = carried_out(sae, others, orders[i][:n])
            for j in range(3):
                places = scored[j]
                a, b = (accuracy(models[j], v[places], truth[places, j]) for v in (test.x, x))
                lost[i, j] = a - b
        intended = np.diag(lost).mean()
        unintended = lost[~np.eye(3, dtype=bool)].mean()
        assert got.n == n
        assert got.intended == pytest.approx(intended, abs=1e-12)
        assert got.unintended == pytest.approx(unintended, abs=1e-12)
        assert got.score == pytest.approx(intended - unintended, abs=1e-12)
        assert got.latents == pytest.approx(np.mean([len(order[:n]) for order in orders]))
        assert (got.intended != 0) == (n > 0)
        assert got.converged


@pytest.mark.parametrize("kind", ["topk", "threshold"])
def test_scr_is_that_of_ablations_carried_out(kind):
    sae = random_sae(kind)
    (tokens, has), (others, truth) = world(300, 0, 2), world(200, 1, 2)
    train, test = pooled(sae, tokens, has), pooled(sae, others, truth)
    own = balanced(2 * has[:, 0] + has[:, 1], 5)
    scored = balanced(2 * truth[:, 0] + truth[:, 1], 5)
    x, z, y = train.x[own], train.z[own], has[own]
    models = [regression(x, y[:, i]) for i in (0, 1)]
    same = y[:, 0] == y[:, 1]
    confused = regression(x[same], y[same, 0])
    decoder = sae.W_dec.double().numpy()
    v, u = truth[scored], test.x[scored]
    base = [accuracy(confused, u, v[:, i]) for i in (0, 1)]
    oracle = [accuracy(models[i], u, v[:, i]) for i in (0, 1)]
    assert min(np.subtract(oracle, base)) > 0.01
    for n, got in zip((1, 4, 500), scr(sae, train, test, (1, 4, 500), seed=5), strict=True):
        scores, ablated = [], []
        for i, unwanted in ((0, 1), (1, 0)):
            difference = z[y[:, unwanted]].mean(0) - z[~y[:, unwanted]].mean(0)
            effect = np.abs(difference * (decoder @ models[unwanted].coef_[0]))
            latents = np.argsort(-effect)[: min(n, (effect > 0).sum())]
            without = carried_out(sae, others[torch.tensor(scored)], latents)
            ablated.append(accuracy(confused, without, v[:, i]))
            scores.append((ablated[i] - base[i]) / (oracle[i] - base[i]))
        assert [got.first, got.second] == pytest.approx(scores)
        assert got.wanted == int(np.argmin(base))
        assert got.score == (got.first, got.second)[got.wanted]
        assert got.base == base[got.wanted] < base[1 - got.wanted]
        assert got.oracle == oracle[got.wanted]
        assert got.ablated == ablated[got.wanted]
        assert got.converged


def two_directions(n, seed, weakest):
    """A world of two properties, independent of each other, along one latent each, and an SAE that
    has these two latents and nothing else. A property makes its latent `weakest` to 2.
    """
    sae = TopKSAE(D, 2, 2, 0)
    sae.W_dec = torch.eye(2, D)
    rng = np.random.default_rng(seed)
    has = rng.permutation(np.array([[0, 0], [0, 1], [1, 0], [1, 1]] * (n // 4), dtype=bool))
    z = has * rng.uniform(weakest, 2, (n, 2))
    x = z @ sae.W_dec.double().numpy()
    x[:, 2:] = 0.01 * rng.normal(size=(n, D - 2))
    return sae, Texts(x, z, has)


def test_tpp_of_two_orthogonal_directions():
    sae, train = two_directions(400, 0, 0.2)
    _, test = two_directions(200, 1, 1)
    nothing, one, both = tpp(sae, train, test, (0, 1, 500), inverse_regularisation=1e4)
    assert nothing.score == nothing.intended == nothing.unintended == 0
    assert one.accuracy == 1
    # the own probe is at chance, the other as before
    assert one.score == one.intended == one.accuracy - 0.5
    assert one.unintended == 0
    assert one.latents == 1
    assert both.intended == both.accuracy - 0.5


def test_scr_of_two_orthogonal_directions():
    """Texts that have both properties may have little of each, so that one of them, alone and
    strong, is enough for a probe that cannot tell them apart.
    """
    sae, train = two_directions(400, 0, 0.2)
    _, test = two_directions(200, 1, 1)
    nothing, one, both = scr(sae, train, test, (0, 1, 500), inverse_regularisation=1e4)
    assert nothing.score == nothing.first == nothing.second == 0
    # wrong of the texts that have the unwanted one alone
    assert nothing.base == nothing.ablated == 0.75
    assert nothing.oracle == 1
    assert one.score == one.first == one.second == 1
    assert one.latents == 1
    # nothing is left, and the sign has changed
    assert both.latents == 2
    assert both.ablated == 0.5
    assert both.score == -1


@pytest.mark.parametrize("kind", ["topk", "threshold"])
def test_shuffled_properties_are_at_chance(kind):
    """An accuracy of n texts that are guessed has an error of 1 / 2 sqrt(n)."""
    sae = random_sae(kind)
    parts = []
    for seed, n in ((0, 500), (1, 1000)):
        tokens, has = world(n, seed)
        # each text gets the properties of another one
        parts.append(pooled(sae, tokens, np.random.default_rng(seed).permutation(has)))
    train, test = parts
    n_test = 2 * min(test.has.sum(0).min(), (~test.has).sum(0).min())
    error = 0.5 / np.sqrt(n_test)
    for found in tpp(sae, train, test, (1, 10, 500)):
        assert found.accuracy == pytest.approx(0.5, abs=4 * error)
        # an ablation changes answers that were guessed to others
        assert found.score == pytest.approx(0, abs=4 * error)
    two = [Texts(part.x, part.z, part.has[:, :2]) for part in parts]
    for found in scr(sae, *two, (1, 10)):
        assert found.oracle == pytest.approx(0.5, abs=4 * error)
        assert found.ablated == pytest.approx(found.base, abs=4 * error)


def test_where_there_is_nothing_to_gain_scr_is_0():
    """The first property is nowhere in x: its oracle is no better than the confused probe."""
    sae, train = two_directions(400, 0, 1)
    _, test = two_directions(200, 1, 1)
    for texts in (train, test):
        texts.x[:, 0] = 0
        texts.z[:, 0] = 0
    (found,) = scr(sae, train, test, (1,))
    assert found.second == 0
    assert found.wanted == 0


def test_draws_have_a_seed():
    sae = random_sae()
    (tokens, has), (others, truth) = world(200, 0), world(160, 1)
    train, test = pooled(sae, tokens, has), pooled(sae, others, truth)
    assert tpp(sae, train, test, seed=1) == tpp(sae, train, test, seed=1)
    assert tpp(sae, train, test, seed=1) != tpp(sae, train, test, seed=2)


def test_bad_input_is_refused():
    sae = random_sae()
    tokens, has = world(40, 0)
    texts = pooled(sae, tokens, has)
    cut = Texts(texts.x, texts.z[:, 1:], has)
    one = Texts(texts.x, texts.z, has[:, :1])
    none = Texts(texts.x, texts.z, has & [True, False, True])
    same = Texts(texts.x, texts.z, has[:, [0, 0]])
    for measure, train, test, why in (
        (tpp, cut, texts, "must have"),
        (scr, texts, cut, "must have"),
        (tpp, one, one, "have 1 of two or more"),
        (tpp, texts, one, "need the same"),
        (tpp, texts, none, "property 1, or none has"),
        (scr, texts, texts, "of 3 properties"),
        (scr, same, same, "2 kinds of text"),
    ):
        with pytest.raises(ValueError, match=why):
            measure(sae, train, test)
    sae.normalisation = "layer_norm"
    for measure in (tpp, scr):
        with pytest.raises(ValueError, match="normalises"):
            measure(sae, texts, texts)
