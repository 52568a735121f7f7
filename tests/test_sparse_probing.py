"""Sparse probes: planted labels, labels that say nothing, and scikit-learn's dense probe."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from faithful_sae.metrics.probing import probe
from faithful_sae.metrics.sparse_probing import (
    FOLDS,
    PENALTIES,
    balanced,
    mean_over_labels,
    principal_components,
    sparse_probe,
    sparse_probe_all,
    top_by_l1,
    top_by_means,
)

F = 24


def latents(rng, n):
    """Sparse and not negative."""
    return np.maximum(rng.normal(size=(n, F)) - 1, 0).astype(np.float32)


def planted(rng, n, classes=2):
    """Texts whose label c is latent 5 + 3 c, active where a text has it and silent elsewhere."""
    labels = rng.permutation(np.arange(n) % classes)
    z = latents(rng, n)
    own = 5 + 3 * np.arange(classes)
    z[:, own] = 0.3 * (labels[:, None] == np.arange(classes))
    return z, labels


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_planted_label_needs_one_latent(rng, classes):
    records = sparse_probe(*planted(rng, 120, classes), *planted(rng, 60, classes), ks=(1,))
    sparse = [record for record in records if record["form"] != "all"]
    assert len(sparse) == 2 * (1 if classes == 2 else 3)
    for record in sparse:
        assert record["accuracy"] == record["auc"] == 1
    if classes == 3:
        assert [r["columns"] for r in sparse if r["form"] == "l1"] == ["5", "8", "11"]
        assert [r["columns"] for r in sparse if r["form"] == "means"] == ["5", "8", "11"]


@pytest.mark.parametrize("form", ["means", "l1", "all"])
def test_labels_that_say_nothing_are_guessed(rng, form):
    train, test = latents(rng, 300), latents(rng, 1000)
    labels, truth = np.arange(300) % 2, np.arange(1000) % 2
    records = sparse_probe(train, labels, test, truth, ks=(2,))
    (record,) = (record for record in records if record["form"] == form)
    low, high = binom.interval(0.999, 1000, 0.5)
    assert low <= 1000 * record["accuracy"] <= high


def test_all_columns_are_the_dense_probe(rng):
    (x, y), (u, v) = planted(rng, 90), planted(rng, 60)
    x, u = x + latents(rng, 90), u + latents(rng, 60)
    own, scored = balanced(y, 0), balanced(v, 0)
    dense = LogisticRegression(max_iter=1000).fit(x[own], y[own])
    right = dense.predict(u[scored]) == v[scored]
    records = sparse_probe(x, y, u, v, ks=(F,))
    for form in ("means", "all"):
        (record,) = (record for record in records if record["form"] == form)
        assert record["correct"] == "".join(map(str, right.astype(int)))
        assert record["accuracy"] == right.mean() < 1
        assert record["k"] == F


def test_k_columns_are_a_regression_on_them(rng):
    (x, y), (u, v) = planted(rng, 90, 3), planted(rng, 61, 3)
    x = x + latents(rng, 90)
    (record,) = (
        r
        for r in sparse_probe(x, y, u, v, ks=(2,), seed=4, inverse_regularisation=0.3)
        if r["label"] == 1 and r["form"] == "means"
    )
    own, scored = balanced(y == 1, 4), balanced(v == 1, 4)
    has = y[own] == 1
    difference = np.abs(x[own][has].mean(0) - x[own][~has].mean(0))
    columns = np.sort(np.argsort(difference)[-2:])
    assert record["columns"] == " ".join(map(str, columns))
    model = LogisticRegression(C=0.3, max_iter=1000).fit(x[own][:, columns], has)
    assert record["accuracy"] == model.score(u[scored][:, columns], v[scored] == 1)
    assert (record["train"], record["test"]) == (len(own), len(scored))


def test_a_text_drawn_is_of_a_kind_and_none_comes_twice():
    groups = np.array(["a"] * 9 + ["b"] * 4 + ["c"] * 6)
    drawn = balanced(groups, 1)
    assert len(set(drawn)) == len(drawn) == 12
    assert (drawn == np.sort(drawn)).all()
    assert {name: (groups[drawn] == name).sum() for name in "abc"} == dict.fromkeys("abc", 4)
    assert (balanced(groups, 1) == drawn).all()
    assert (balanced(groups, 2) != drawn).any()


def test_scales_matter_to_means_and_not_to_l1(rng):
    x = latents(rng, 200)
    holds = np.arange(200) % 2 == 0
    x[holds, 3] += 0.5
    x[holds, 9] += 0.7
    scales = np.ones(F)
    scales[3] = 10
    assert top_by_means(x, holds)[0] == 9
    assert top_by_means(x * scales, holds)[0] == 3
    test = latents(rng, 50)
    truth = np.arange(50) % 2 == 0
    first, second = (
        [
            record
            for record in sparse_probe(x * scale, holds, test * scale, truth, ks=(2,))
            if record["form"] == "l1"
        ]
        for scale in (np.ones(F), scales)
    )
    for a, b in zip(first, second, strict=True):
        assert a["columns"] == b["columns"]
        assert a["correct"] == b["correct"]


def test_l1_passes_over_a_column_that_adds_nothing_to_another(rng):
    """Means take both."""
    x = 0.3 * rng.normal(size=(200, F))
    holds = np.arange(200) % 2 == 0
    x[holds, 3] += 0.5
    x[:, 4] = x[:, 3] + 0.05 * rng.normal(size=200)
    x[holds, 9] += 0.3
    assert set(top_by_means(x, holds)[:2]) == {3, 4}
    chosen = top_by_l1(StandardScaler().fit_transform(x), holds, (1, 2), 0)
    assert chosen[1].tolist() in ([3], [4])
    assert set(chosen[2].tolist()) in ({3, 9}, {4, 9})


def test_l1_takes_what_there_is():
    x = np.zeros((20, 3))
    x[::2, 1] = 1
    chosen = top_by_l1(x, np.arange(20) % 2 == 0, (1, 3), 0)
    assert chosen[1].tolist() == chosen[3].tolist() == [1]


def test_what_is_tested_on_chooses_nothing(rng):
    """Other texts of the same labels: the same columns, and texts are scored one by one."""
    (x, y), (u, v) = planted(rng, 80), planted(rng, 40)
    x = x + latents(rng, 80)
    other = np.concatenate([u[:20], 9 * latents(rng, 20)])
    records = [sparse_probe(x, y, texts, v, ks=(2,)) for texts in (u, other)]
    for a, b in zip(*records, strict=True):
        assert a["columns"] == b["columns"]
        assert a["correct"][:20] == b["correct"][:20]


def test_the_penalty_has_the_best_auc_over_folds(rng):
    x = rng.normal(size=(90, 30))
    holds = rng.permutation(np.arange(90) % 2 == 0)
    x[holds, 0] += 1
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    standard = StandardScaler().fit_transform(x)
    areas = []
    for penalty in PENALTIES:
        area = 0
        for fit, score in folds.split(standard, holds):
            model = LogisticRegression(C=penalty).fit(standard[fit], holds[fit])
            area += roc_auc_score(holds[score], model.decision_function(standard[score]))
        areas.append(area)
    best = PENALTIES[np.argmax(areas)]
    assert len(set(areas)) > 1
    u = rng.normal(size=(40, 30))
    truth = np.arange(40) % 2 == 0
    (record,) = (r for r in sparse_probe(x, holds, u, truth, ks=(30,)) if r["form"] == "l1")
    columns = [int(column) for column in record["columns"].split()]
    assert columns == list(range(30))
    expected = probe(
        standard, holds, StandardScaler().fit(x).transform(u), truth, inverse_regularisation=best
    )
    assert record["correct"] == expected["correct"]
    assert record["auc"] == expected["auc"]


def test_components_are_those_of_training_texts(rng):
    x, u = rng.normal(size=(30, 6)) * np.arange(1, 7), rng.normal(size=(9, 6))
    a, b = principal_components(x, u)
    assert (np.diff(a.var(0)) < 0).all()
    np.testing.assert_allclose(a.var(0, ddof=1), PCA().fit(x).explained_variance_)
    # a rotation about the training mean
    np.testing.assert_allclose(a.mean(0), 0, atol=1e-12)
    norms = np.linalg.norm(u - x.mean(0), axis=1)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), norms)


def test_silent_latents_are_no_better_than_chance(rng):
    silent = np.zeros((40, F))
    labels = np.arange(40) % 2
    for record in sparse_probe(silent, labels, silent, labels, ks=(2,)):
        assert record["accuracy"] == record["auc"] == 0.5


def test_all_names_what_it_probed(rng):
    (z, y), (w, v) = planted(rng, 60), planted(rng, 30)
    x, u = rng.normal(size=(60, 4)), rng.normal(size=(30, 4))
    key = (("pile", 42), "sae")
    train = {"baseline": x, "likelihood": x[:, :1], key: z, (("pile", 42), "reconstruction"): x}
    test = {"baseline": u, "likelihood": u[:, :1], key: w, (("pile", 42), "reconstruction"): u}
    records = sparse_probe_all(train, y, test, v, ks=(1,), seed=3)
    parts = {
        (None, None, "baseline"): (x, u),
        (None, None, "components"): principal_components(x, u),
        ("pile", 42, "sae"): (z, w),
    }
    expected = [
        {"corpus": corpus, "seed": seed, "representation": representation} | record
        for (corpus, seed, representation), (a, b) in parts.items()
        for record in sparse_probe(a, y, b, v, ks=(1,), seed=3)
    ]
    assert records == expected


def test_means_over_labels_by_hand():
    records = [
        {"corpus": corpus, "seed": 1, "representation": "sae", "form": form, "k": 1, "label": label}
        | {"accuracy": accuracy, "f1": accuracy, "auc": accuracy / 2}
        for corpus, form, label, accuracy in (
            (None, "l1", "a", 0.5),
            (None, "l1", "b", 0.75),
            (None, "means", "a", 0.25),
            ("pile", "l1", "a", 1.0),
        )
    ]
    means = mean_over_labels(records)
    assert means.form.tolist() == ["l1", "means", "l1"]
    assert means.labels.tolist() == [2, 1, 1]
    assert means.accuracy.tolist() == means.f1.tolist() == [0.625, 0.25, 1.0]
    assert means.auc.tolist() == [0.3125, 0.125, 0.5]


def test_bad_input_is_refused(rng):
    x, y = planted(rng, 30, 3)
    for labels, truth, ks, why in (
        (np.zeros(30), y, (1,), "have 1 label"),
        (np.r_[np.zeros(28), 1, 1], y, (1,), "2 training texts are not 0"),
        (np.r_[y[:28], 3, 3], y, (1,), "2 training texts are 3"),
        (y % 2, np.zeros(30), (1,), "0 test texts are not 0"),
        (y, y, (F + 1,), f"k = {F + 1} must be 1 to the number of columns"),
    ):
        with pytest.raises(ValueError, match=why):
            sparse_probe(x, labels, x, truth, ks)


def test_labels_may_be_words_in_a_table(rng):
    (x, y), (u, v) = planted(rng, 40), planted(rng, 30)
    words, truth = (pd.Series(part).map({0: "ham", 1: "spam"}) for part in (y, v))
    for record in sparse_probe(x, words, u, truth, ks=(1,)):
        assert record["label"] == "spam"
