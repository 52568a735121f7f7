"""Which documents are most like a text, by BM25 (Robertson and Zaragoza 2009; idf is Lucene's,
which is never negative).

    score(d) = sum over the words q of idf(q) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / avgdl))
    idf(q)   = ln(1 + (n - n_q + 1/2) / (n_q + 1/2))

The words q are those of the text, each once, however often it has it; tf is how often q stands in
d, |d| the words of d, avgdl their mean over documents, n the documents and n_q those with q in
them. A word is a run of letters, digits and underscores, whatever its case.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

K1, B = 1.2, 0.75
WORD = re.compile(r"\w+")


class BM25:
    """Scores of documents against a text.

    Args:
        documents: all of them, gone through once.
        text: what they should be like.

    Attributes:
        n: how many documents there are.
    """

    def __init__(self, documents: Iterable[str], text: str) -> None:
        wanted = {*_words(text)}
        containing: Counter[str] = Counter()
        self.n = words = 0
        for document in documents:
            found = [*_words(document)]
            self.n += 1
            words += len(found)
            containing.update(wanted.intersection(found))
        self.mean_words = words / max(self.n, 1)
        self.idf = {
            word: math.log(1 + (self.n - there + 0.5) / (there + 0.5))
            for word, there in containing.items()
        }

    def score(self, document: str) -> float:
        """Of one of the documents; 0 where it shares no word with the text."""
        found = [*_words(document)]
        times = Counter(word for word in found if word in self.idf)
        long = K1 * (1 - B + B * len(found) / self.mean_words) if found else 1
        # in one order, so that sums are the same to the last bit
        return math.fsum(
            self.idf[word] * tf * (K1 + 1) / (tf + long) for word, tf in sorted(times.items())
        )


def most_like(
    documents: Callable[[], Iterable[str]], text: str, share: float
) -> Callable[[str], bool]:
    """Whether a document is among the share of all that is most like a text. Of those that share no
    word with it none is; documents of one score are all among them, or none.

    Args:
        documents: gives them from the first; asked twice.
        share: 0 to 1, of the documents; to the nearest number of them, at least one.
    """
    bm25 = BM25(documents(), text)
    scores = sorted(map(bm25.score, documents()), reverse=True)
    least = scores[max(round(share * len(scores)) - 1, 0)] if scores else math.inf
    return lambda document: bm25.score(document) >= max(least, math.ulp(0.0))


def _words(text: str) -> Iterator[str]:
    return (match[0] for match in WORD.finditer(text.casefold()))
