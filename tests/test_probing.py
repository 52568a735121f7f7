"""Pooled representations against one text at a time, and probes against scikit-learn itself."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from conftest import ARCHITECTURES, BOS
from faithful_sae import TopKSAE, load_model
from faithful_sae.metrics.probing import pool_latents, pooled_representations, probe, probe_all

TEXTS = [
    "w5 w6 w7 w8",
    "w9",
    "w10 w11 w12 w13 w14 w15 w16 w17 w18 w19 w20 w21 w22",
    "",
    "w30 w31",
    "w5 w6 w7 w8 w9 w10",
] * 2
MAX_TOKENS = 8


@pytest.fixture(params=ARCHITECTURES)
def any_lm(request, model_folders):
    return load_model(model_folders[request.param], 2, "cpu", "float32")


def alone(lm, sae, text, include_bos):
    """The three vectors of one text and its mean negative log likelihood: a forward pass of its
    own, no padding anywhere, a mean taken token by token.
    """
    ids = [BOS] + [int(word[1:]) for word in text.split()]
    ids = ids[:MAX_TOKENS]
    with torch.no_grad():
        read = lm.model(torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    x = read.hidden_states[lm.layer][0]
    log_p = read.logits[0].double().log_softmax(-1)
    surprise = [-log_p[t, token].item() for t, token in enumerate(ids[1:])]
    if not include_bos and len(ids) > 1:
        x = x[1:]
    z = torch.stack([sae.encode(token) for token in x])
    return (
        x.double().mean(0),
        z.double().mean(0),
        torch.stack([sae.decode(token) for token in z]).double().mean(0),
        sum(surprise) / max(len(surprise), 1),
    )


@pytest.mark.parametrize("include_bos", [True, False])
def test_pooling_equals_one_text_at_a_time(any_lm, include_bos):
    saes = {seed: TopKSAE(any_lm.d_model, 24, 3, seed) for seed in (1, 2)}
    got = pooled_representations(saes, any_lm, TEXTS, MAX_TOKENS, include_bos, batch_rows=5)
    assert set(got) == {
        "baseline",
        "likelihood",
        *((seed, part) for seed in saes for part in ("sae", "reconstruction")),
    }
    for seed, sae in saes.items():
        for row, text in enumerate(TEXTS):
            x, z, x_hat, nll = alone(any_lm, sae, text, include_bos)
            assert got["likelihood"][row] == pytest.approx(nll, abs=2e-5, rel=2e-5), text
            np.testing.assert_allclose(got["baseline"][row], x, atol=2e-5, rtol=2e-5, err_msg=text)
            np.testing.assert_allclose(got[seed, "sae"][row], z, atol=2e-5, rtol=2e-5, err_msg=text)
            np.testing.assert_allclose(
                got[seed, "reconstruction"][row], x_hat, atol=2e-5, rtol=2e-5, err_msg=text
            )


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_pooling_an_sae_equals_its_tokens_one_by_one(normalisation, threshold):
    generator = torch.Generator().manual_seed(0)
    sae = TopKSAE(6, 20, 3, 0)
    sae.normalisation = normalisation
    sae.b_dec = torch.randn(6, generator=generator)
    if threshold is not None:
        sae.k, sae.threshold = None, torch.full((20,), threshold)
    x = 3 * torch.randn(9, 6, generator=generator) + 1
    texts = [(0, 4), (4, 5), (5, 9)]
    weights = torch.zeros(9, 3)
    for text, (start, stop) in enumerate(texts):
        weights[start:stop, text] = 1 / (stop - start)
    z, x_hat = pool_latents(sae, x, weights)
    for text, (start, stop) in enumerate(texts):
        tokens = [x[t : t + 1] for t in range(start, stop)]
        latents = torch.cat([sae.encode(token) for token in tokens]).mean(0)
        reconstructions = torch.cat([sae.reconstruct(token) for token in tokens]).mean(0)
        torch.testing.assert_close(z[text], latents)
        torch.testing.assert_close(x_hat[text], reconstructions)


def test_bos_changes_every_text_but_the_empty_one(lm):
    sae = {"a": TopKSAE(lm.d_model, 24, 3, 0)}
    with_bos, without = (
        pooled_representations(sae, lm, TEXTS, MAX_TOKENS, mode)["baseline"]
        for mode in (True, False)
    )
    for text, a, b in zip(TEXTS, with_bos, without, strict=True):
        assert (np.abs(a - b).max() > 1e-2) == bool(text)


def test_padding_does_not_matter(lm):
    sae = {"a": TopKSAE(lm.d_model, 24, 3, 0)}
    few, many = (
        pooled_representations(sae, lm, TEXTS, MAX_TOKENS, False, batch_rows=n) for n in (1, 64)
    )
    for key in few:
        np.testing.assert_allclose(few[key], many[key], atol=2e-5, rtol=2e-5)


def test_texts_are_cut(lm):
    """Words beyond max_tokens (BOS counts) cannot matter; the last one within it does."""

    def pooled(text):
        return pooled_representations({}, lm, [text], 4, True)["baseline"][0]

    assert np.array_equal(pooled("w5 w6 w7 w8"), pooled("w5 w6 w7 w40 w41"))
    assert not np.allclose(pooled("w5 w6 w7"), pooled("w5 w6 w9"))


def test_no_texts(lm):
    with pytest.raises(ValueError, match="no texts"):
        pooled_representations({}, lm, [], 4, True)


def data(rng, classes):
    labels = rng.integers(0, classes, 160)
    x = rng.normal(size=(160, 6)) + labels[:, None] * np.array([0.8, 0, 0, 0.3, 0, 0])
    return (x[:100], labels[:100]), (x[100:], labels[100:])


@pytest.mark.parametrize("classes", [2, 4])
def test_probe_is_scikit_learn(classes):
    train, test = data(np.random.default_rng(0), classes)
    model = LogisticRegression(C=0.3, max_iter=500).fit(*train)
    predicted = model.predict(test[0])
    got = probe(*train, *test, inverse_regularisation=0.3, max_iter=500)
    assert [one == "1" for one in got.pop("correct")] == (predicted == test[1]).tolist()
    scores = model.predict_proba(test[0])
    auc = roc_auc_score(test[1], scores if classes > 2 else scores[:, 1], multi_class="ovr")
    assert got.pop("auc") == pytest.approx(auc)
    got = {name: value for name, value in got.items() if not name.endswith("_error")}
    assert got == {
        "accuracy": accuracy_score(test[1], predicted),
        "f1": f1_score(test[1], predicted, average="macro"),
        "converged": True,
    }
    assert got["accuracy"] == np.mean(predicted == test[1]) > 1 / classes
    by_class = [
        (
            2
            * np.sum((predicted == c) & (test[1] == c))
            / (np.sum(predicted == c) + np.sum(test[1] == c))
        )
        for c in range(classes)
    ]
    assert got["f1"] == pytest.approx(np.mean(by_class))


def test_auc_by_hand():
    """With one feature, the probe orders texts as the feature does."""
    x = np.array([0.0, 1, 2, 3])[:, None]
    test, labels = np.array([0.0, 1, 2, 1, 2])[:, None], ["a", "b", "a", "b", "b"]
    got = probe(x, ["a", "a", "b", "b"], test, labels)
    # pairs (a, b): (0, 1) (0, 1) (0, 2) are in order, (2, 1) (2, 1) are not, (2, 2) is half
    assert got["auc"] == pytest.approx(3.5 / 6)


@pytest.mark.parametrize("classes", [2, 3])
def test_auc_is_the_rank_sum(classes):
    """Mann and Whitney: (sum of the ranks of a class - n (n + 1) / 2) / (n times the others)."""
    (x, y), (u, v) = data(np.random.default_rng(3), classes)
    scores = LogisticRegression().fit(x, y).predict_proba(u)
    areas = []
    for label in range(classes):
        own = v == label
        n = own.sum()
        ranks = rankdata(scores[:, label])[own].sum()
        areas.append((ranks - n * (n + 1) / 2) / (n * (len(v) - n)))
    assert probe(x, y, u, v)["auc"] == pytest.approx(np.mean(areas))


def test_auc_leaves_out_labels_that_no_test_text_has_and_needs_two():
    (x, y), (u, v) = data(np.random.default_rng(3), 3)
    scores = LogisticRegression().fit(x, y).predict_proba(u)
    two = v != 2
    areas = [roc_auc_score(v[two] == label, scores[two, label]) for label in (0, 1)]
    assert probe(x, y, u[two], v[two])["auc"] == pytest.approx(np.mean(areas))
    assert np.isnan(probe(x, y, u[v == 1], v[v == 1])["auc"])


def test_error_of_the_auc_is_delongs_by_hand():
    """DeLong et al. (1988), with 1 / n in place of 1 / (n - 1)."""
    x = np.array([0.0, 1, 2, 3])[:, None]
    test, labels = np.array([0.0, 1, 2, 1, 2])[:, None], ["a", "b", "a", "b", "b"]
    got = probe(x, ["a", "a", "b", "b"], test, labels)
    # share of the other kind on the right side of each: a at 0, 2 and b at 1, 2, 1
    of_a, of_b = np.array([1, 0.5 / 3]), np.array([0.5, 0.75, 0.5])
    assert got["auc_error"] == pytest.approx(np.sqrt(of_a.var() / 2 + of_b.var() / 3))


@pytest.mark.parametrize("classes", [2, 4])
def test_errors_of_f1_and_auc_are_the_bootstraps(classes):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, classes, 1300)
    x = rng.normal(size=(1300, 6)) + labels[:, None] * np.array([0.8, 0, 0, 0.3, 0, 0])
    train, test, (y, truth) = x[:300], x[300:], np.split(labels, [300])
    got = probe(train, y, test, truth)
    model = LogisticRegression().fit(train, y)
    scores, predicted = model.predict_proba(test), model.predict(test)
    f1, auc = [], []
    for _ in range(400):
        drawn = rng.integers(0, len(test), len(test))
        f1.append(f1_score(truth[drawn], predicted[drawn], average="macro"))
        areas = [roc_auc_score(truth[drawn] == c, scores[drawn, c]) for c in range(classes)]
        auc.append(np.mean(areas))
    # the spread of 400 draws is known to 3.5 %
    assert got["f1_error"] == pytest.approx(np.std(f1), rel=0.12)
    assert got["auc_error"] == pytest.approx(np.std(auc), rel=0.12)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_an_unfinished_fit_says_so():
    train, test = data(np.random.default_rng(0), 2)
    assert not probe(*train, *test, max_iter=1)["converged"]


def test_probe_all_names_what_it_probed():
    (x, y), (u, v) = data(np.random.default_rng(1), 2)
    train = {
        "baseline": x,
        "likelihood": x[:, :1],
        (("pile", 42), "sae"): x[:, :2],
        (("pile", 42), "reconstruction"): x[:, 1:],
    }
    test = {
        "baseline": u,
        "likelihood": u[:, :1],
        (("pile", 42), "sae"): u[:, :2],
        (("pile", 42), "reconstruction"): u[:, 1:],
    }
    records = probe_all(train, y, test, v, max_iter=300)
    assert [(r["corpus"], r["seed"], r["representation"]) for r in records] == [
        (None, None, "baseline"),
        (None, None, "likelihood"),
        ("pile", 42, "sae"),
        ("pile", 42, "reconstruction"),
    ]
    parts = (slice(None), slice(1), slice(2), slice(1, None))
    for record, columns in zip(records, parts, strict=True):
        assert record["accuracy"] == LogisticRegression(max_iter=300).fit(x[:, columns], y).score(
            u[:, columns], v
        )
