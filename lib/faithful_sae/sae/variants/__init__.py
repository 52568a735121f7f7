"""The variants of SAE that can be trained, a file each.

To add one, write `variants/<name>.py`: its equations and their source on top, and a frozen
dataclass of its settings that extends Variant (see base.py). It must say which SAE it starts from
(`new`) and what a step takes (`bytes`). It may say what is active in training (`encode_active`),
what the loss is (`loss`), and what the trained SAE is in use (`finish`). Gradients are autograd's
unless `loss_and_gradients` has faster ones. Then name it in VARIANTS.
"""

from faithful_sae.sae.variants.base import Variant
from faithful_sae.sae.variants.topk import TopK
from faithful_sae.sae.variants.untrained import FrozenDecoder, RandomDictionary

VARIANTS: dict[str, type[Variant]] = {
    "topk": TopK,
    "frozen_decoder": FrozenDecoder,
    "random_dictionary": RandomDictionary,
}
