"""Documents -> packed rows of token ids.

Documents are joined by BOS and cut into rows of `sequence_length` that each start with BOS, so
every forward pass begins as the model's own generation does. Attention crosses documents within a
row, as in the authors' code. No padding.
"""

import itertools

import numpy as np

DOCUMENTS_AT_ONCE = 1000


def pack(token_documents, bos_id, sequence_length, max_tokens):
    """Join documents (sequences of ids, without BOS) by BOS and cut them into rows that start with
    BOS.

    Returns:
        int32 [R, sequence_length], R * sequence_length <= max_tokens; the tail that fills no row is
        dropped.
    """
    pieces = []
    total = 0
    width = sequence_length - 1
    wanted = max_tokens // sequence_length * width
    for ids in token_documents:
        if pieces:
            pieces.append(np.array([bos_id], np.int32))
        pieces.append(np.asarray(ids, np.int32))
        total += len(ids) + (len(pieces) > 1)
        if total >= wanted:
            break
    stream = np.concatenate(pieces)[:wanted] if pieces else np.empty(0, np.int32)
    body = stream[: len(stream) // width * width].reshape(-1, width)
    return np.concatenate([np.full((len(body), 1), bos_id, np.int32), body], axis=1)


def tokenize(texts, tokenizer):
    """Yield the ids of each text, without special tokens; an empty document is passed over."""
    texts = iter(texts)
    while batch := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
        for ids in tokenizer(batch, add_special_tokens=False, verbose=False).input_ids:
            if ids:
                yield ids


def without_end(token_documents, ends):
    """Drop the token with which a sampled document ended: `pack` separates documents by itself.
    Empty documents are dropped.
    """
    for ids in token_documents:
        ids = ids[:-1] if ids[-1] in ends else ids
        if len(ids):
            yield ids
