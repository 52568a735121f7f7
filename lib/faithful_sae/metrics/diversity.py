"""How varied a text is: documents of token ids, or of words.

    distinct-n   different n-grams / all n-grams, those within documents (Li et al. 2016)
    near-copies  of the documents, in their order, the share of the second half that are near-copies
                 of the first half (text/near_copies.py)

Both depend on how much text there is: a longer one repeats itself more. So they compare texts of
one size.
"""

from collections.abc import Sequence

import numpy as np

from faithful_sae.text.near_copies import near_copies


def distinct_ngrams(documents: Sequence[np.ndarray], n: int) -> float:
    """Distinct-n of documents of token ids, fraction 0-1; NaN where none is as long as n.

    Args:
        documents: int [T] each.
        n: tokens of an n-gram, at least 1.
    """
    windows = [
        np.lib.stride_tricks.sliding_window_view(ids, n) for ids in documents if len(ids) >= n
    ]
    if not windows:
        return float("nan")
    ngrams = np.concatenate(windows)
    return len(np.unique(ngrams, axis=0)) / len(ngrams)


def repeated_documents(texts: Sequence[str]) -> float:
    """Share of the second half of some documents that are near-copies of the first half, fraction
    0-1; NaN of fewer than two.
    """
    half = len(texts) // 2
    if not half:
        return float("nan")
    return near_copies(texts[:half], texts[half:])
