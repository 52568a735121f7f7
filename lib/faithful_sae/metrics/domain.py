"""How much real text of a domain another text is worth (ours): where the curve of a measure over
shares of the real text reaches the level that SAEs of the other text have.

    worth = the least share s with curve(s) >= level, curve linear in log s between measured shares
"""

import math
from collections.abc import Sequence


def worth(shares: Sequence[float], curve: Sequence[float], level: float) -> float:
    """The share of real text at which as much is reached.

    Args:
        shares: of the real text, rising, above 0.
        curve: the measure at each, more is better.
        level: the measure of the other text.

    Returns:
        a share; 0 where the least share reaches the level already, inf where none does.

    Raises:
        ValueError: no shares, or another number of measures.
    """
    if not len(shares) or len(shares) != len(curve):
        raise ValueError(f"{len(shares)} shares and {len(curve)} measures: need one for each")
    if curve[0] >= level:
        return 0.0
    for i in range(1, len(shares)):
        if curve[i] >= level:
            part = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
            low, high = math.log(shares[i - 1]), math.log(shares[i])
            return math.exp(low + part * (high - low))
    return math.inf
