"""Finding the penalty at which an SAE has a wanted L0, so that variants are compared at one (ours).

L0 falls with an L1 penalty about as a power of it: the next penalty is read off a line through two
points of (log penalty, log L0), those on either side of the wanted L0 once there are such.
"""

import itertools
import math
from collections.abc import Mapping

# a penalty moves by at most this factor where nothing bounds it on the other side
STEP = 8.0
# L0 of an SAE that never fires, for its logarithm
NONE = 1e-3


def excess(found: float, l0: float) -> float:
    """How far an L0 is above the wanted one, on a logarithmic scale; below 0 where it is less."""
    return math.log(max(found, NONE) / l0)


def next_penalty(tried: Mapping[float, float], l0: float) -> float:
    """The penalty to try next.

    Args:
        tried: {penalty: the L0 it gave}, at least one; penalties above 0.
        l0: the wanted one, above 0.

    Returns:
        a penalty above 0.

    Raises:
        ValueError: nothing was tried, or a penalty or `l0` is not above 0.
    """
    if not tried or min(*tried, l0) <= 0:
        raise ValueError("at least one penalty must have been tried, and all be above 0, as L0")
    points = sorted((math.log(p), excess(found, l0)) for p, found in tried.items())
    if len(points) == 1:
        ((at, above),) = points
        return math.exp(at + _limited(above))
    # too many latents fire at the smaller penalty, too few at the larger one
    pairs = itertools.pairwise(points)
    around = [pair for pair in pairs if pair[0][1] > 0 >= pair[1][1]]
    if around:
        (low, more), (high, fewer) = around[0]
        # an SAE that never fires says nothing of where it ceases to; and not too near an end, where
        # a curve that is bent draws the line again and again
        silent = fewer <= excess(0.0, l0)
        share = 0.5 if silent else min(max(more / (more - fewer), 0.2), 0.8)
        return math.exp(low + share * (high - low))
    # all too many, or all too few: on from the outermost, along the line through the nearest two
    (near, above), (far, other) = (points[-1], points[-2]) if points[-1][1] > 0 else points[:2]
    slope = (above - other) / (near - far)
    return math.exp(near + _limited(-above / slope if slope < 0 else above))


def _limited(step: float) -> float:
    return min(max(step, -math.log(STEP)), math.log(STEP))
