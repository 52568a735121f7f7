"""Sparse probing: how well k columns of a representation tell a label, and all of them (Gurnee et
al. 2023, arXiv 2305.01610).

A question is one label against the rest, on equally many texts of both kinds, drawn with a seed; of
two labels there is but one question. A column is a latent, or, for comparison, a channel of x or a
principal component of x. Three forms:

    means   SAEBench's (Karvonen et al. 2025, arXiv 2503.09532): the k columns with the largest
            |mean with the label - mean without|; logistic regression with a fixed penalty. Columns
            keep their scale: a latent that is multiplied by a number may be chosen, or not
    l1      after sae-probes (Kantamneni et al. 2025, arXiv 2502.16681): columns are standardised;
            the k with the largest weights under the strongest L1 penalty that leaves k of them;
            logistic regression on these, whose penalty has the best AUC over folds. Scales do not
            matter, and a column that adds nothing to another is passed over. (sae-probes itself
            chooses by means of scaled latents, and L1 is the penalty of its regression.)
    all     every column, with a fixed penalty: what the probe of metrics/probing.py reads

Columns and penalties are chosen on training texts alone. (SAEBench's full probe keeps the epoch
that is best on the test texts.) Draws depend on labels and seed, so all SAEs have the same texts.

N texts, F columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.svm import l1_min_c

from faithful_sae.metrics.probing import probe

KS = (1, 2, 5)
FOLDS = 3
# C of scikit-learn, on standardised columns; of equally good ones the smallest is taken
PENALTIES = np.logspace(-4, 4, 5)
SEARCH: dict[str, Any] = {
    "Cs": PENALTIES,
    "l1_ratios": (0.0,),
    "scoring": "roc_auc",
    "use_legacy_attributes": False,
}
# the L1 penalty falls by this factor from the one that lets no column in, at most so often
FALL, STEPS = 1.5, 12


def balanced(groups: ArrayLike, seed: int) -> np.ndarray:
    """Places of texts, ascending, as many of each group as the smallest has, drawn without
    replacement.

    Args:
        groups: [N], the group of each text.
        seed: of the draw.
    """
    _, group, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(group == g))[: sizes.min()] for g in range(len(sizes))]
    return np.sort(np.concatenate(drawn))


def top_by_means(x: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """All columns, that with the largest difference of means first, int64 [F].

    Args:
        x: float [N, F].
        holds: bool [N], whether a text has the label.
    """
    difference = x[holds].mean(0, dtype=float) - x[~holds].mean(0, dtype=float)
    return np.argsort(-np.abs(difference), kind="stable")


def top_by_l1(x: np.ndarray, holds: np.ndarray, ks: Sequence[int], seed: int) -> dict:
    """The columns that an L1-penalised logistic regression takes up first.

    Args:
        x: float [N, F], standardised.
        holds: bool [N], whether a text has the label.
        ks: how many.
        seed: of the solver.

    Returns:
        {k: int64 [1 to k]}, the largest weights of the strongest penalty that leaves k of them;
        fewer where no penalty tried does.
    """
    found = {}
    # silent columns have no such penalty
    lowest = l1_min_c(x, holds, loss="log") if x.any() else 1.0
    for step in range(1, STEPS + 1):
        model = LogisticRegression(
            C=lowest * FALL**step, l1_ratio=1.0, solver="liblinear", random_state=seed
        )
        weights = np.abs(model.fit(x, holds).coef_[0])
        left = np.count_nonzero(weights)
        order = np.argsort(-weights, kind="stable")[: max(1, left)]
        for k in ks:
            if k not in found and (left >= k or step == STEPS):
                found[k] = order[:k]
        if len(found) == len(ks):
            break
    return found


def principal_components(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in the principal components of the training texts, the largest first.

    Args:
        train, test: float [N, D].

    Returns:
        ([N, n], [N', n]), n = min(N, D).
    """
    pca = PCA(svd_solver="full").fit(train)
    return pca.transform(train), pca.transform(test)


def sparse_probe(
    train: np.ndarray,
    train_labels: ArrayLike,
    test: np.ndarray,
    test_labels: ArrayLike,
    ks: Sequence[int] = KS,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Probe one representation, in every form, with every k, for every label.

    Args:
        train: float [N, F], with labels [N]; so is test.
        ks: columns of a sparse probe.
        seed: of draws, folds and the L1 solver.
        options: of `probe`: inverse_regularisation (of the forms means and all), max_iter.

    Returns:
        a record per label, form and k: label, form, k, columns (those chosen, ascending, separated
        by spaces; "" for all), train and test (texts, half of them with the label), and what
        `probe` returns. Its `correct` has a digit per test text drawn, in their order: the places
        are balanced(test_labels == label, seed).

    Raises:
        ValueError: fewer than two labels; too few texts of a label, or of the rest; k outside 1 to
            F.
    """
    y, truth = np.asarray(train_labels), np.asarray(test_labels)
    labels = np.unique(y)
    _check(y, truth, labels, train.shape[1], ks)
    records = []
    # of two labels, the second against the first
    for label in (labels[-1:] if len(labels) == 2 else labels).tolist():
        own, scored = (balanced(part == label, seed) for part in (y, truth))
        holds, holds_test = y[own] == label, truth[scored] == label
        x, u = train[own], test[scored]
        scaler = StandardScaler().fit(x)
        standard = np.asarray(scaler.transform(x)), np.asarray(scaler.transform(u))
        by_means, by_l1 = top_by_means(x, holds), top_by_l1(standard[0], holds, ks, seed)
        ways = [("means", k, by_means[:k]) for k in ks]
        ways += [("l1", k, by_l1[k]) for k in ks]
        ways.append(("all", train.shape[1], by_means))
        for form, k, chosen in ways:
            columns = np.sort(chosen)
            a, b = standard if form == "l1" else (x, u)
            penalty = {}
            if form == "l1":
                penalty["inverse_regularisation"] = _penalty(a[:, columns], holds, seed)
            found = probe(a[:, columns], holds, b[:, columns], holds_test, **(options | penalty))
            records.append(
                {
                    "label": label,
                    "form": form,
                    "k": k,
                    "columns": "" if form == "all" else " ".join(map(str, columns)),
                    "train": len(own),
                    "test": len(scored),
                    **found,
                }
            )
    return records


def _check(y, truth, labels, n_columns, ks):
    if len(labels) < 2:
        raise ValueError(f"training texts have {len(labels)} label: a probe needs at least two")
    for name, part, least in (("training", y, FOLDS), ("test", truth, 1)):
        for label in labels:
            own = int((part == label).sum())
            for count, kind in ((own, ""), (len(part) - own, "not ")):
                if count < least:
                    raise ValueError(
                        f"{count} {name} texts are {kind}{label!s}: give at least {least}, or "
                        "leave the label out"
                    )
    if bad := [k for k in ks if not 1 <= k <= n_columns]:
        raise ValueError(f"k = {bad[0]} must be 1 to the number of columns, {n_columns}")


def _penalty(x, holds, seed):
    """The C with the best mean AUC over folds."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return float(LogisticRegressionCV(cv=folds, max_iter=1000, **SEARCH).fit(x, holds).C_)


def sparse_probe_all(
    train: Mapping, train_labels: ArrayLike, test: Mapping, test_labels: ArrayLike, **options: Any
) -> list[dict[str, Any]]:
    """Sparse probes of what pooled_representations returned for train and test: the latents of
    every SAE, and for comparison the channels of x (`baseline`) and its `components`.

    Args:
        options: of `sparse_probe`.

    Returns:
        records with corpus and seed (None where there is no SAE), representation, and what
        `sparse_probe` returns.
    """
    baseline = train["baseline"], test["baseline"]
    parts = {
        (None, None, "baseline"): baseline,
        (None, None, "components"): principal_components(*baseline),
    }
    for key in train:
        if isinstance(key, tuple) and key[1] == "sae":
            parts[*key[0], "sae"] = train[key], test[key]
    return [
        {"corpus": corpus, "seed": seed, "representation": representation, **record}
        for (corpus, seed, representation), (a, b) in parts.items()
        for record in sparse_probe(a, train_labels, b, test_labels, **options)
    ]


def mean_over_labels(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Means of accuracy, f1 and auc over labels: SAEBench's number is the accuracy of form means.

    Args:
        records: of sparse_probe or sparse_probe_all.

    Returns:
        a row per corpus, seed and representation (where given), form and k; labels: how many.
    """
    table = pd.DataFrame(records)
    names = ("corpus", "seed", "representation", "form", "k")
    groups = table.groupby([n for n in names if n in table], sort=False, dropna=False)
    return groups.agg(
        labels=("label", "size"),
        accuracy=("accuracy", "mean"),
        f1=("f1", "mean"),
        auc=("auc", "mean"),
    ).reset_index()
