"""Linear probes (paper 3.6): what a logistic regression reads from the activations, the latents and
the reconstruction.

Each text becomes one vector by averaging over its real tokens (padding never counts); probes are
scikit-learn's.
"""

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from tqdm import tqdm


def pooled_representations(
    saes, lm, texts, max_tokens, include_bos, batch_rows=64, description="pooling"
):
    """Mean over the tokens of each text of x, and of z and x_hat of every SAE. One pass of the
    language model serves all.

    Args:
        saes: {name: TopKSAE}. texts: N strings, cut to max_tokens tokens (BOS, put first, counts).
        include_bos: whether the BOS position is averaged in.

    Returns:
        {"baseline": float32 [N, D], (name, "sae"): [N, F], (name, "reconstruction"): [N, D]}.
        Memory: these arrays.

    Raises:
        ValueError: no texts.
    """
    if not len(texts):
        raise ValueError("no texts to pool")
    ids = [
        [lm.bos_id, *i][:max_tokens]
        for i in lm.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
    ]
    out = {"baseline": np.zeros((len(ids), lm.d_model), np.float32)}
    for name, sae in saes.items():
        out[name, "sae"] = np.zeros((len(ids), sae.d_sae), np.float32)
        out[name, "reconstruction"] = np.zeros((len(ids), lm.d_model), np.float32)
    by_length = np.argsort(
        [len(i) for i in ids], kind="stable"
    )  # texts of like length share a batch: little padding
    for start in tqdm(range(0, len(ids), batch_rows), desc=description, unit="batch"):
        rows = by_length[start : start + batch_rows]
        x, weights = _batch([ids[r] for r in rows], lm, include_bos)
        pooled = {"baseline": x}
        for name, sae in saes.items():
            z = sae.encode(x)
            whole = (
                sae.normalisation == "none"
            )  # or else x_hat is more than what the latents decode to
            pooled[name, "sae"], pooled[name, "reconstruction"] = (
                z,
                sae.decode(z) if whole else sae.reconstruct(x),
            )
        for key, value in pooled.items():
            out[key][rows] = torch.einsum("bt,btd->bd", weights, value).cpu().numpy()
    return out


def _batch(ids, lm, include_bos):
    """Right-padded activations [B, T, D] and the weight of each position in the mean [B, T]."""
    lengths = torch.tensor([len(i) for i in ids])
    padded = torch.full((len(ids), int(lengths.max())), lm.bos_id)
    for row, i in zip(padded, ids):
        row[: len(i)] = torch.tensor(i)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    x = lm.activations(padded, mask.long().to(lm.device))
    counted = mask.clone()
    if not include_bos:
        counted[lengths > 1, 0] = (
            False  # a text without any token has nothing but BOS to be represented by
        )
    return x, (counted / counted.sum(1, keepdim=True)).to(x.device)


def probe(train, train_labels, test, test_labels, inverse_regularisation=1.0, max_iter=1000):
    """Fit scikit-learn's logistic regression on train [N, D] and score it on test.

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


def probe_all(train, train_labels, test, test_labels, **options):
    """Probe every representation that pooled_representations returned for train and test: list of
    records.

    Each has corpus and seed (None for the baseline), representation, accuracy, f1, converged.
    """
    records = []
    for key in train:
        (corpus, seed), representation = key if key != "baseline" else ((None, None), key)
        records.append(
            {
                "corpus": corpus,
                "seed": seed,
                "representation": representation,
                **probe(train[key], train_labels, test[key], test_labels, **options),
            }
        )
    return records
