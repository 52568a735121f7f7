"""What the faithful dataset covers of its model's vocabulary and first-token distribution (paper
Table 1, Appendix C).
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_token_kl(model: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """KL(model || dataset) of the first token, and what it leaves out (paper Table 1).

    The dataset gives most tokens frequency 0, where this divergence is infinite; the paper does not
    say what it does there. Here both are restricted to the tokens the dataset has (the model
    renormalised on them), and the model's mass on the others is returned beside it.

    Args:
        model: float [V], the model's distribution after BOS.
        counts: int [V], first tokens in the dataset.

    Returns:
        (kl in nats, missing probability mass in [0, 1]).

    Raises:
        ValueError: no first token at all.
    """
    if not counts.sum():
        raise ValueError("an empty dataset has no first-token distribution")
    seen = counts > 0
    p = model[seen] / model[seen].sum()
    q = counts[seen] / counts.sum()
    kl = np.sum(p * np.log(p / q, where=p > 0, out=np.zeros_like(p)))
    return float(kl), float(1 - model[seen].sum() / model.sum())


def dataset_statistics(
    documents: Iterable[np.ndarray],
    first_distribution: ArrayLike,
    pretraining: np.ndarray | None = None,
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """One row of Table 1, and the first tokens behind Appendix C.

    Args:
        documents: ids without BOS, int.
        first_distribution: float64 [V], the model's of the first token.
        pretraining: int64 [V], how often each token stands in the text that the model was trained
            on; None where that is not known.

    Returns:
        (record, first_counts int64 [V], counts int64 [V] of all tokens); coverages in percent, KL
        in nats. `pretraining_coverage` is what the pretraining text covers, `relative_coverage` the
        share of its tokens that the documents cover (NaN where it is not known). `expected` values
        are those of perfect sampling.
    """
    model = np.asarray(first_distribution)
    vocabulary = len(model)
    all_counts = np.zeros(vocabulary, np.int64)
    first_counts = np.zeros(vocabulary, np.int64)
    n = 0
    for ids in documents:
        n += 1
        all_counts += np.bincount(ids, minlength=vocabulary)
        first_counts[ids[0]] += 1
    kl, missing = first_token_kl(model, first_counts)
    of_pretraining = relative = np.nan
    if pretraining is not None:
        of_pretraining = 100 * np.count_nonzero(pretraining) / vocabulary
        relative = 100 * float((all_counts[pretraining > 0] > 0).mean())
    record = {
        "documents": n,
        "tokens": int(all_counts.sum()),
        "vocab_size": vocabulary,
        "all_token_coverage": 100 * np.count_nonzero(all_counts) / vocabulary,
        "pretraining_coverage": of_pretraining,
        "relative_coverage": relative,
        "first_token_coverage": 100 * np.count_nonzero(first_counts) / vocabulary,
        "kl": kl,
        "missing_mass": missing,
        **perfect_sampling(model, n),
    }
    return record, first_counts, all_counts


def perfect_sampling(
    first_distribution: ArrayLike, n_documents: int, draws: int = 200, seed: int = 0
) -> dict[str, float]:
    """What Table 1 would say of first tokens drawn from the model's distribution itself.

    With few documents for a large vocabulary KL is not 0 then: over the tokens that are seen, it is
    about their number, less one, over twice the number of documents.

    Args:
        first_distribution: float64 [V], the model's of the first token.
        n_documents: first tokens drawn.
        draws: datasets that are simulated.
        seed: of these.

    Returns:
        mean and standard deviation over datasets: expected_kl, expected_kl_sd (nats),
        expected_first_token_coverage (percent), expected_missing_mass.
    """
    model = np.asarray(first_distribution, float)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        counts = rng.multinomial(n_documents, model / model.sum())
        found.append((*first_token_kl(model, counts), np.count_nonzero(counts)))
    kl, missing, seen = np.array(found).T
    return {
        "expected_kl": float(kl.mean()),
        "expected_kl_sd": float(kl.std(ddof=1)),
        "expected_first_token_coverage": 100 * float(seen.mean()) / len(model),
        "expected_missing_mass": float(missing.mean()),
    }


def first_token_fit(
    first_distribution: ArrayLike, first_counts: np.ndarray, eps: float
) -> tuple[float, int]:
    """Chi-square test that the first tokens are draws from the model's distribution.

    Tokens are put in order of probability, and the order is cut into cells of at least five
    expected draws. In a narrow dtype each batch rounds its probabilities anew; as far as each is
    off by no more than 8 eps, that does not count. Tokens of the tail share cells: how its weight
    is spread over them is not tested.

    Args:
        first_distribution: float64 [V], the model's of the first token.
        first_counts: int64 [V], of dataset_statistics.
        eps: of the model's dtype.

    Returns:
        (p, number of cells); of one cell p is 1.
    """
    model = np.asarray(first_distribution)
    n = int(first_counts.sum())
    order = np.argsort(-model, kind="stable")
    # the last cell holds the rest
    cut = np.minimum(np.cumsum(model[order] * n) // 10, max(n // 10 - 1, 0))
    cells = np.unique(cut, return_inverse=True)[1]
    observed, expected = (np.bincount(cells, x[order]) for x in (first_counts, model * n))
    if len(observed) < 2:
        return 1.0, 1
    statistic = np.sum((observed - expected) ** 2 / expected)
    p = scipy.stats.ncx2.sf(statistic, len(observed) - 1, n * (8 * eps) ** 2)
    return float(p), len(observed)


def first_token_table(
    first_distribution: ArrayLike,
    first_counts: np.ndarray,
    counts: np.ndarray,
    tokenizer: "PreTrainedTokenizerBase",
) -> pd.DataFrame:
    """The four panels of Appendix C as one table: token id, text, the model's probability, the
    dataset's frequency as first token, and how often it stands anywhere in the dataset.

    Args:
        first_distribution: float64 [V], the model's of the first token.
        first_counts: int64 [V], of dataset_statistics; so is counts.
    """
    return pd.DataFrame(
        {
            "token_id": np.arange(len(first_counts)),
            "token": [
                tokenizer.decode([i]) or tokenizer.convert_ids_to_tokens(i)
                for i in range(len(first_counts))
            ],
            "model": np.asarray(first_distribution),
            "dataset": first_counts / first_counts.sum(),
            "count": counts,
        }
    )
