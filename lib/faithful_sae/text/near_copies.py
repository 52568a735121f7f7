"""Texts that say the same in almost the same words: libraries copy their documentation.

The one rule: a text is a near-copy of others if at least the share `COPIED` of its sequences of
`SHINGLE` words stand in them (shingles; Broder 1997). Of given data it is measured, of text made
here near-copies are left out.
"""

from collections import Counter
from collections.abc import Iterable

# words in the sequences by which near-copies are recognised
SHINGLE = 5
COPIED = 0.5

Shingle = tuple[str, ...]


def shingles(text: str) -> set[Shingle]:
    """Its sequences of SHINGLE words, which are separated by white space; of a shorter text, that
    text as one.
    """
    words = text.split()
    return {tuple(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE, 0) + 1)}


def is_copied(standing: int, of: int) -> bool:
    """Whether a text of `of` different sequences, `standing` of which stand elsewhere, is a
    near-copy.
    """
    return standing >= COPIED * of


def near_copies(train: Iterable[str], test: Iterable[str]) -> float:
    """The share of test texts that are near-copies of the training texts, fraction 0-1, whatever
    the case of their letters.

    Raises:
        ZeroDivisionError: no test texts.
    """
    tested = [shingles(text.casefold()) for text in test]
    wanted = set().union(*tested)
    there = {shingle for text in train for shingle in shingles(text.casefold()) & wanted}
    return sum(is_copied(len(own & there), len(own)) for own in tested) / len(tested)


class Distinct:
    """Texts none of which is a near-copy of the others, however they are divided later; the case
    of letters does not matter.
    """

    def __init__(self) -> None:
        # the texts that have a sequence, by their numbers
        self._owners: dict[Shingle, list[int]] = {}
        # of each text: how many sequences it has, and how many of them stand in others
        self._sizes: list[int] = []
        self._standing: list[int] = []

    def take(self, text: str) -> bool:
        """Take a text, unless it were a near-copy of those taken, or one of them became one of the
        others.
        """
        own = shingles(text.casefold())
        found = [self._owners[shingle] for shingle in own if shingle in self._owners]
        # what one text alone had is in two now
        more = Counter(owners[0] for owners in found if len(owners) == 1)
        if is_copied(len(found), len(own)) or any(
            is_copied(self._standing[other] + new, self._sizes[other])
            for other, new in more.items()
        ):
            return False
        for other, new in more.items():
            self._standing[other] += new
        for shingle in own:
            self._owners.setdefault(shingle, []).append(len(self._sizes))
        self._sizes.append(len(own))
        self._standing.append(len(found))
        return True
