"""Which document each token of packed rows is of."""

import numpy as np

from faithful_sae.text.packing import is_content


def document_numbers(rows: np.ndarray, bos_id: int) -> np.ndarray:
    """The document that each token of packed rows [R, T] is of, int32 [R, T], 1 for the first: each
    BOS behind the first token of a row begins another.
    """
    begins = ~is_content(np.asarray(rows), bos_id)
    begins[:, 0] = False
    return 1 + begins.cumsum(dtype=np.int32).reshape(begins.shape)
