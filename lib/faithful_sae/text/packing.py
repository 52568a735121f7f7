"""Documents -> packed rows of token ids.

Documents are joined by BOS and cut into rows of `sequence_length` that each start with BOS, so
every forward pass begins as the model's own generation does. Attention crosses documents within a
row, as in the authors' code. No padding.

BOS says that what precedes it has ended. After a sampled document that was only cut off at the
limit of its length, the model would be right to be surprised by it, and text behind it would be no
text of the model's. So such a document begins a row, and nothing follows it there.
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


@dataclass(frozen=True)
class Cut:
    """Ids of a document that did not end, but was cut off at a limit."""

    ids: Ids


def pack(
    token_documents: Iterable[Ids | Cut], bos_id: int, sequence_length: int, max_tokens: int
) -> np.ndarray:
    """Join documents by BOS and cut them into rows that start with BOS.

    A document that was cut off fills whole rows of its own. What does not fill one, of those longer
    or shorter than rows, is joined to the others.

    Args:
        token_documents: ids of each document, without BOS; no more are read than are needed.
        bos_id: the id of BOS.
        sequence_length: tokens in a row, BOS included.
        max_tokens: the rows hold at most so many.

    Returns:
        int32 [R, sequence_length], R * sequence_length <= max_tokens; the tail that fills no row is
        dropped.
    """
    width = sequence_length - 1
    wanted = max_tokens // sequence_length
    blocks = [np.empty((0, width), np.int32)]
    done = 0
    pieces: list[np.ndarray] = []  # that fill no row yet
    between = False  # whether a document was joined before
    for document in token_documents if wanted else ():
        ids = np.asarray(document.ids if isinstance(document, Cut) else document, np.int32)
        if isinstance(document, Cut):
            own, ids = _whole_rows(ids, width)
            blocks.append(own)
            done += len(own)
        if len(ids):
            pieces += [np.array([bos_id], np.int32)] if between else []
            pieces.append(ids)
            between = True
            if sum(map(len, pieces)) >= width:
                joined_rows, rest = _whole_rows(np.concatenate(pieces), width)
                blocks.append(joined_rows)
                done += len(joined_rows)
                pieces = [rest]
        if done >= wanted:
            break
    body = np.concatenate(blocks)[:wanted]
    return np.concatenate([np.full((len(body), 1), bos_id, np.int32), body], axis=1)


def _whole_rows(ids, width):
    """([n, width], the ids that fill no row)."""
    n = len(ids) // width
    return ids[: n * width].reshape(n, width), ids[n * width :]


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


def without_end(
    token_documents: Iterable[Ids], ends: Collection[int | None]
) -> Iterator[Ids | Cut]:
    """Drop the token with which a sampled document ended, one of `ends`: `pack` separates documents
    by itself. One without it was cut off. Empty documents are dropped.
    """
    for ids in token_documents:
        ended = ids[-1] in ends
        ids = ids[:-1] if ended else ids
        if len(ids):
            yield ids if ended else Cut(ids)


def joined(documents: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Documents (int32 ids) as two int32 arrays for a safetensors file, `ids` and `lengths`."""
    return {
        "ids": np.concatenate(documents),
        "lengths": np.array([len(ids) for ids in documents], np.int32),
    }


def separate(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The documents that were `joined`."""
    return np.split(arrays["ids"], np.cumsum(arrays["lengths"])[:-1])
