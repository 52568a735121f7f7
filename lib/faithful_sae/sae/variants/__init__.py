"""The variants of SAE that can be trained, a file each.

To add one, declare its settings in `sae/settings.py`, and write `variants/<name>.py`: its equations
and their source on top, and a class of its settings and Variant (see base.py). It must say which
SAE it starts from (`new`), what is minimised (`loss`) and what a step takes (`bytes`). Bounded says
all three by way of latents and a penalty, and is fast once few latents are active. It may say what
it trains (`parameters`), what the data decide before the first step (`begin`), where parameters
must stay (`constrain`), and what the trained SAE is in use (`finish`). One that differs from TopK
in its distance alone is an OwnDistance (topk.py), and what the language model makes of x_hat is in
the Moment of a step where its settings say `in_context`. Gradients are autograd's unless
`loss_and_gradients` has faster ones. Then name it in VARIANTS.
"""

from faithful_sae.sae.variants.archetypal import Archetypal
from faithful_sae.sae.variants.base import Variant
from faithful_sae.sae.variants.batch_topk import BatchTopK
from faithful_sae.sae.variants.causal import Causal
from faithful_sae.sae.variants.end_to_end import EndToEnd
from faithful_sae.sae.variants.feature_choice import FeatureChoice
from faithful_sae.sae.variants.gated import Gated
from faithful_sae.sae.variants.jumprelu import JumpReLU
from faithful_sae.sae.variants.matryoshka import Matryoshka
from faithful_sae.sae.variants.mutual import Mutual
from faithful_sae.sae.variants.mutual_choice import MutualChoice
from faithful_sae.sae.variants.prolu import ProLU
from faithful_sae.sae.variants.relu import ReLU
from faithful_sae.sae.variants.switch import Switch
from faithful_sae.sae.variants.tilted import Tilted
from faithful_sae.sae.variants.topk import TopK
from faithful_sae.sae.variants.untrained import PCA, FrozenDecoder, RandomDictionary

VARIANTS: dict[str, type[Variant]] = {
    "topk": TopK,
    "relu": ReLU,
    "batch_topk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "prolu": ProLU,
    "switch": Switch,
    "mutual_choice": MutualChoice,
    "feature_choice": FeatureChoice,
    "archetypal": Archetypal,
    "tilted": Tilted,
    "mutual": Mutual,
    "end_to_end": EndToEnd,
    "causal": Causal,
    "frozen_decoder": FrozenDecoder,
    "random_dictionary": RandomDictionary,
    "pca": PCA,
}
