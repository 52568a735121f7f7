"""What training the SAEs of a run takes, for the declarations of stages that train. Apart from
budget.py, which stages that only measure import too: they do not depend on how SAEs are trained.
"""

from faithful_sae.lm.architectures import Shape
from faithful_sae.runs.schema import Run
from faithful_sae.sae.train import training_bytes, training_disk
from faithful_sae.sae.variants import VARIANTS


def sae_training_bytes(run: Run, shape: Shape, n: int) -> int:
    """Memory of training n of the run's SAEs from one stream, the language model left out."""
    s = run.sae
    kinds = [VARIANTS[s.variant.name]] * n
    return training_bytes(shape.d_model, [s.d_sae] * n, kinds, s.batch_tokens, s.buffer_tokens)


def sae_training_disk(run: Run, shape: Shape, n: int) -> int:
    """Disk of the same while they are trained, the n SAEs that come of it among it."""
    kinds = [VARIANTS[run.sae.variant.name]] * n
    return training_disk(shape.d_model, [run.sae.d_sae] * n, kinds)
