"""Linear probes (paper 3.6): what a logistic regression reads from the activations, the latents and
the reconstruction.

Each text becomes one vector by averaging over its real tokens (padding never counts); probes are
scikit-learn's. Weights w_t of the tokens of a text add up to 1:

    baseline        sum_t w_t x_t
    sae             z = sum_t w_t z_t
    reconstruction  sum_t w_t x_hat_t, which is z W_dec + b_dec where nothing is normalised
    likelihood      -1/n sum_t log p(token t | tokens before it), the n tokens behind BOS

The last is no activation but what the language model says itself: one number, in nats.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from torch import Tensor
from tqdm import tqdm

from faithful_sae.kernels.latent_sums import by_latent, latent_sums
from faithful_sae.kernels.topk_encode import encode
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.text.packing import text_tokens

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

# representations that need no SAE
WITHOUT_SAE = ("baseline", "likelihood")


def pooled_representations(
    saes: Mapping[Any, TopKSAE],
    lm: "LanguageModel",
    texts: Sequence[str],
    max_tokens: int,
    include_bos: bool,
    batch_rows: int = 64,
    description: str = "pooling",
) -> dict:
    """Mean over the tokens of each text of x, and of z and x_hat of every SAE, and the mean
    negative log likelihood. One pass of the language model serves all.

    Args:
        saes: by name, on the model's device.
        texts: N of them.
        max_tokens: that a text is cut to (BOS, put first, counts).
        include_bos: whether the BOS position is averaged in.
        batch_rows: texts per forward pass.
        description: of the progress bar.

    Returns:
        {"baseline": float32 [N, D], "likelihood": [N, 1], (name, "sae"): [N, F],
        (name, "reconstruction"): [N, D]}. Memory: these arrays.

    Raises:
        ValueError: no texts.
    """
    if not len(texts):
        raise ValueError("no texts to pool")
    ids = [[lm.bos_id, *i][:max_tokens] for i in text_tokens(texts, lm.tokenizer)]
    out: dict[Any, np.ndarray] = {
        "baseline": np.zeros((len(ids), lm.d_model), np.float32),
        "likelihood": np.zeros((len(ids), 1), np.float32),
    }
    for name, sae in saes.items():
        out[name, "sae"] = np.zeros((len(ids), sae.d_sae), np.float32)
        out[name, "reconstruction"] = np.zeros((len(ids), lm.d_model), np.float32)
    # texts of like length share a batch: little padding
    by_length = np.argsort([len(i) for i in ids], kind="stable")
    for start in tqdm(range(0, len(ids), batch_rows), desc=description, unit="batch"):
        rows = by_length[start : start + batch_rows]
        x, weights, nll = _read([ids[r] for r in rows], lm, include_bos)
        pooled: dict[Any, Tensor] = {"baseline": weights.T @ x, "likelihood": nll[:, None]}
        for name, sae in saes.items():
            pooled[name, "sae"], pooled[name, "reconstruction"] = pool_latents(sae, x, weights)
        for key, value in pooled.items():
            out[key][rows] = value.cpu().numpy()
    return out


def _read(ids, lm, include_bos):
    """Of N texts: the activations x [P, D] of their positions that count, one after the other, the
    weight of each position in each text's mean [P, N], and the mean negative log likelihood [N].
    """
    lengths = torch.tensor([len(i) for i in ids])
    padded = torch.full((len(ids), int(lengths.max())), lm.bos_id)
    for row, i in zip(padded, ids, strict=True):
        row[: len(i)] = torch.tensor(i)
    real = torch.arange(padded.shape[1]) < lengths[:, None]
    # padding stands behind a text, where none of its tokens looks
    logits, x = lm.logits(padded)
    nll = _mean_nll(logits, padded, real)
    del logits
    counted = real.clone()
    if not include_bos:
        # a text without any token has nothing but BOS to be represented by
        counted[lengths > 1, 0] = False
    text, _ = places = counted.nonzero(as_tuple=True)
    weights = torch.zeros(len(text), len(ids))
    weights[torch.arange(len(text)), text] = 1 / counted.sum(1)[text].float()
    return x[tuple(place.to(x.device) for place in places)], weights.to(x.device), nll


def _mean_nll(logits, ids, real):
    """[N], in nats per token behind BOS; 0 for a text without any. logits [N, T, V]; ids, real
    [N, T].
    """
    targets, there = ids[:, 1:].to(logits.device), real[:, 1:].to(logits.device)
    log_p = F.log_softmax(logits, -1)[:, :-1].gather(-1, targets[..., None])[..., 0]
    return -(log_p * there).sum(1) / there.sum(1).clamp(min=1)


def pool_latents(sae: TopKSAE, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Means of the latents and of the reconstruction over the tokens of each text. Dense latents
    of single tokens are never made.

    Args:
        x: activations [P, D] of P tokens.
        weights: float32 [P, N], of each token in the mean of each of N texts; a column adds up to
            1.

    Returns:
        (z [N, F], x_hat [N, D]).
    """
    plain = sae.normalisation == "none"
    if sae.is_topk:
        assert sae.k is not None
        # chooses the same latents as encode_topk in half the time; values differ by rounding
        encoder = sae.W_enc.T.contiguous()
        values, indices = encode(x.contiguous(), encoder, sae.b_enc, sae.b_dec, sae.k)
    else:
        values, indices = sae.encode_topk(x)
    z = latent_sums(values, *by_latent(values, indices, sae.d_sae), weights).T
    # with a normalisation, x_hat is more than what the latents decode to
    return z, sae.decode(z) if plain else weights.T @ sae.reconstruct(x)


def probe(
    train: np.ndarray,
    train_labels: ArrayLike,
    test: np.ndarray,
    test_labels: ArrayLike,
    inverse_regularisation: float = 1.0,
    max_iter: int = 1000,
) -> dict[str, Any]:
    """Fit scikit-learn's logistic regression and score it.

    Args:
        train: float [N, D], with labels [N]; so is test.
        inverse_regularisation: scikit-learn's C.
        max_iter: of its solver.

    Returns:
        {"accuracy", "f1" (macro average over labels), "auc"}, fractions 0-1, "f1_error" and
        "auc_error", the standard errors of the last two over test texts, "converged", and
        "correct", a text of one digit per test text, 1 where its label was found. auc is the area
        under the ROC curve, averaged over labels, each against the rest; NaN where the test texts
        have but one.
    """
    classifier = LogisticRegression(C=inverse_regularisation, max_iter=max_iter).fit(
        train, train_labels
    )
    predicted = classifier.predict(test)
    truth = np.asarray(test_labels)
    auc, influence = _auc(classifier, test, truth)
    return {
        "accuracy": accuracy_score(truth, predicted),
        "f1": f1_score(truth, predicted, average="macro"),
        "f1_error": _error(_f1_influence(predicted, truth)),
        "auc": auc,
        "auc_error": _error(influence),
        "converged": bool((classifier.n_iter_ < max_iter).all()),
        "correct": "".join("01"[one] for one in (predicted == truth).astype(int)),
    }


def _error(influence):
    """Standard error of a score from what each of N texts moves it by: sqrt(mean^2 / N), the delta
    method (for the AUC of two labels: DeLong et al. 1988).
    """
    return float(np.sqrt(np.mean(np.square(influence)) / len(influence)))


def _f1_influence(predicted, truth):
    """[N]: of a label, F1 = 2 |found and true| / (|found| + |true|) is a ratio of two means over
    texts.
    """
    labels = np.union1d(predicted, truth)[:, None]
    found, true = predicted == labels, truth == labels
    both = 2.0 * (found & true)
    either = found.astype(float) + true
    f1 = both.sum(1, keepdims=True) / either.sum(1, keepdims=True)
    return ((both - f1 * either) / either.mean(1, keepdims=True)).mean(0)


def _auc(classifier, test, truth):
    """(mean over labels of the area, what each text moves it by [N])."""
    areas, influences = [], []
    for name, score in zip(classifier.classes_, classifier.predict_proba(test).T, strict=True):
        true = truth == name
        # against the rest, where there is both
        if not 0 < true.sum() < len(true):
            continue
        area = roc_auc_score(true, score)
        # the share of the other kind that a text is on the right side of, ties by half: its rank
        # among all, less that among its own kind
        outranked = rankdata(score)
        outranked[true] -= rankdata(score[true])
        outranked[~true] -= rankdata(score[~true])
        right = np.where(true, outranked / (~true).sum(), 1 - outranked / true.sum())
        areas.append(area)
        influences.append((right - area) / np.where(true, true.mean(), 1 - true.mean()))
    if not areas:
        return np.nan, np.full(len(truth), np.nan)
    return float(np.mean(areas)), np.mean(influences, axis=0)


def probe_all(
    train: dict, train_labels: ArrayLike, test: dict, test_labels: ArrayLike, **options: Any
) -> list[dict]:
    """Probe every representation that pooled_representations returned for train and test.

    Args:
        options: of `probe`.

    Returns:
        records with corpus and seed (None where there is no SAE), representation, and what `probe`
        returns.
    """
    records = []
    for key in train:
        (corpus, seed), representation = ((None, None), key) if key in WITHOUT_SAE else key
        records.append(
            {
                "corpus": corpus,
                "seed": seed,
                "representation": representation,
                **probe(train[key], train_labels, test[key], test_labels, **options),
            }
        )
    return records
