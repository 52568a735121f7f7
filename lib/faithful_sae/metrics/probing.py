"""Linear probes (paper 3.6): what a logistic regression reads from the activations, the latents and
the reconstruction.

Each text becomes one vector by averaging over its real tokens (padding never counts); probes are
scikit-learn's.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from tqdm import tqdm

from faithful_sae.sae.sae import TopKSAE
from faithful_sae.text.packing import text_tokens

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel


def pooled_representations(
    saes: Mapping[Any, TopKSAE],
    lm: "LanguageModel",
    texts: Sequence[str],
    max_tokens: int,
    include_bos: bool,
    batch_rows: int = 64,
    description: str = "pooling",
) -> dict:
    """Mean over the tokens of each text of x, and of z and x_hat of every SAE. One pass of the
    language model serves all.

    Args:
        saes: by name, on the model's device.
        texts: N of them.
        max_tokens: that a text is cut to (BOS, put first, counts).
        include_bos: whether the BOS position is averaged in.
        batch_rows: texts per forward pass.
        description: of the progress bar.

    Returns:
        {"baseline": float32 [N, D], (name, "sae"): [N, F], (name, "reconstruction"): [N, D]}.
        Memory: these arrays.

    Raises:
        ValueError: no texts.
    """
    if not len(texts):
        raise ValueError("no texts to pool")
    ids = [[lm.bos_id, *i][:max_tokens] for i in text_tokens(texts, lm.tokenizer)]
    out: dict[Any, np.ndarray] = {"baseline": np.zeros((len(ids), lm.d_model), np.float32)}
    for name, sae in saes.items():
        out[name, "sae"] = np.zeros((len(ids), sae.d_sae), np.float32)
        out[name, "reconstruction"] = np.zeros((len(ids), lm.d_model), np.float32)
    # texts of like length share a batch: little padding
    by_length = np.argsort([len(i) for i in ids], kind="stable")
    for start in tqdm(range(0, len(ids), batch_rows), desc=description, unit="batch"):
        rows = by_length[start : start + batch_rows]
        x, weights = _batch([ids[r] for r in rows], lm, include_bos)
        pooled: dict[Any, Tensor] = {"baseline": x}
        for name, sae in saes.items():
            z = sae.encode(x)
            pooled[name, "sae"] = z
            # with a normalisation, x_hat is more than what the latents decode to
            plain = sae.normalisation == "none"
            pooled[name, "reconstruction"] = sae.decode(z) if plain else sae.reconstruct(x)
        for key, value in pooled.items():
            out[key][rows] = torch.einsum("bt,btd->bd", weights, value).cpu().numpy()
    return out


def _batch(ids, lm, include_bos):
    """Right-padded activations [B, T, D] and the weight of each position in the mean [B, T]."""
    lengths = torch.tensor([len(i) for i in ids])
    padded = torch.full((len(ids), int(lengths.max())), lm.bos_id)
    for row, i in zip(padded, ids, strict=True):
        row[: len(i)] = torch.tensor(i)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    x = lm.activations(padded, mask.long().to(lm.device))
    counted = mask.clone()
    if not include_bos:
        # a text without any token has nothing but BOS to be represented by
        counted[lengths > 1, 0] = False
    return x, (counted / counted.sum(1, keepdim=True)).to(x.device)


def probe(
    train: np.ndarray,
    train_labels: ArrayLike,
    test: np.ndarray,
    test_labels: ArrayLike,
    inverse_regularisation: float = 1.0,
    max_iter: int = 1000,
) -> dict[str, float | bool]:
    """Fit scikit-learn's logistic regression and score it.

    Args:
        train: float [N, D], with labels [N]; so is test.
        inverse_regularisation: scikit-learn's C.
        max_iter: of its solver.

    Returns:
        {"accuracy", "f1" (macro average over labels)}, fractions 0-1, and "converged".
    """
    classifier = LogisticRegression(C=inverse_regularisation, max_iter=max_iter).fit(
        train, train_labels
    )
    predicted = classifier.predict(test)
    return {
        "accuracy": accuracy_score(test_labels, predicted),
        "f1": f1_score(test_labels, predicted, average="macro"),
        "converged": bool((classifier.n_iter_ < max_iter).all()),
    }


def probe_all(
    train: dict, train_labels: ArrayLike, test: dict, test_labels: ArrayLike, **options: Any
) -> list[dict]:
    """Probe every representation that pooled_representations returned for train and test.

    Args:
        options: of `probe`.

    Returns:
        records with corpus and seed (None for the baseline), representation, accuracy, f1,
        converged.
    """
    records = []
    for key in train:
        (corpus, seed), representation = ((None, None), key) if key == "baseline" else key
        records.append(
            {
                "corpus": corpus,
                "seed": seed,
                "representation": representation,
                **probe(train[key], train_labels, test[key], test_labels, **options),
            }
        )
    return records
