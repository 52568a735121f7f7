"""Documents -> packed rows of token ids.

Documents are joined by BOS and cut into rows of `sequence_length` that each start with BOS, so
every forward pass begins as the model's own generation does. Attention crosses documents within a
row, as in the authors' code. No padding.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DOCUMENTS_AT_ONCE = 1000

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class TokenRows:
    """A corpus as packed rows, int32 [R, T], each starting with BOS; memory-mapped, so rows are
    read when used.
    """

    name: str
    train: np.ndarray
    heldout: np.ndarray
    # hash of the rows themselves
    key: str


def pack(
    token_documents: Iterable[Ids], bos_id: int, sequence_length: int, max_tokens: int
) -> np.ndarray:
    """Join documents by BOS and cut them into rows that start with BOS.

    Args:
        token_documents: ids of each document, without BOS; no more are read than are needed.
        bos_id: the id of BOS.
        sequence_length: tokens in a row, BOS included.
        max_tokens: the rows hold at most so many.

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


def is_content(ids: Any, bos_id: int) -> Any:
    """Which tokens of packed rows are text, not the BOS that begins a row or separates documents:
    bool, of the shape and kind (array or tensor) of `ids`.
    """
    return ids != bos_id


def rows_disk(corpus_tokens: int) -> int:
    """Bytes of a corpus as token rows: 4 a token, and as much for the parts it is made of, until it
    is made.
    """
    return 2 * 4 * corpus_tokens


def text_tokens(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """The ids of texts as what they are: nothing is put around them, and `<|endoftext|>` or the
    like, written in a text, is split like any other word.
    """
    return tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
    ).input_ids


def tokenize(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Yield the ids of each text, as text_tokens; an empty document is passed over."""
    texts = iter(texts)
    while batch := list(itertools.islice(texts, DOCUMENTS_AT_ONCE)):
        for ids in text_tokens(batch, tokenizer):
            if ids:
                yield ids


def without_end(token_documents: Iterable[Ids], ends: Collection[int | None]) -> Iterator[Ids]:
    """Drop the token with which a sampled document ended, one of `ends`: `pack` separates documents
    by itself. Empty documents are dropped.
    """
    for ids in token_documents:
        ids = ids[:-1] if ids[-1] in ends else ids
        if len(ids):
            yield ids


def joined(documents: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Documents (int32 ids) as two int32 arrays for a safetensors file, `ids` and `lengths`."""
    return {
        "ids": np.concatenate(documents),
        "lengths": np.array([len(ids) for ids in documents], np.int32),
    }


def separate(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The documents that were `joined`."""
    return np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
