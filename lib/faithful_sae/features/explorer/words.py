"""The words of contexts, and the features whose contexts have them: so a page finds features by a
typed text without a model.

A word is a run of letters and digits or any other sign, in small letters, of the text that a
context's tokens make. A feature fires on it with the largest activation of the tokens that are a
part of it.

Words are in order, in chunks of about CHUNK bytes, so that a page reads those of one word alone.
"""

import bisect
import functools
import re
from array import array
from collections import defaultdict
from typing import Any

from faithful_sae.features.explorer.data import shorten
from faithful_sae.features.index import FeatureIndex

# the same in find.js
WORD = re.compile(r"\w+|[^\w\s]")
# latents times about this many bytes are a word's share of a chunk
LATENT = 8
CHUNK = 40_000


class Words:
    """The words of an index.

    Attributes:
        starts: the first word of each chunk, ordered as JavaScript orders strings.
    """

    def __init__(self, index: FeatureIndex):
        found: Any = defaultdict(lambda: (array("i"), array("f")))
        for latent, contexts in index.contexts():
            strongest: dict[str, float] = {}
            for context in contexts:
                for word, value in words_of(context["tokens"], context["activations"]):
                    strongest[word] = max(value, strongest.get(word, 0.0))
            for word, value in strongest.items():
                latents, values = found[word]
                latents.append(latent)
                values.append(value)
        self._found = dict(found)
        self._words = sorted(found, key=_in_javascript)
        self._begin = [0]
        size = 0
        for place, word in enumerate(self._words):
            share = len(word) + LATENT * len(found[word][0])
            if size and size + share > CHUNK:
                self._begin.append(place)
                size = 0
            size += share
        self.starts = [self._words[place] for place in self._begin if self._words]

    def chunk(self, number: int) -> list[list]:
        """[[word, [latent, activation, latent, activation, ...], [latent, ...]], ...]: the
        features that fire on the word, the strongest first, and those in whose contexts it is and
        that do not.

        Raises:
            IndexError: no such chunk.
        """
        if not 0 <= number < len(self.starts):
            raise IndexError(f"no chunk {number}: the words are in {len(self.starts)}")
        end = [*self._begin, len(self._words)][number + 1]
        return [self._entry(word) for word in self._words[self._begin[number] : end]]

    def _entry(self, word):
        pairs = sorted(zip(*self._found[word], strict=True), key=lambda pair: -pair[1])
        fires = [entry for latent, value in pairs if value > 0 for entry in (latent, value)]
        return [word, shorten(fires), [latent for latent, value in pairs if not value > 0]]


def words_of(tokens: list[str], activations: list[float]) -> list[tuple[str, float]]:
    """(word, the largest activation of its tokens) of a context, in order."""
    ends = []
    length = 0
    for token in tokens:
        length += len(token)
        ends.append(length)
    found = []
    for match in WORD.finditer("".join(tokens)):
        first = bisect.bisect_right(ends, match.start())
        last = bisect.bisect_left(ends, match.end())
        found.append((match[0].lower(), max(activations[first : last + 1])))
    return found


@functools.lru_cache(maxsize=2)
def words(index: FeatureIndex) -> Words:
    """The words of an index, made when they are first asked for."""
    return Words(index)


def _in_javascript(word):
    return word.encode("utf-16-be", "surrogatepass")
