"""What each stage of a run needs, from its declaration and the sizes of its language model: no
weights are read. Bytes are whole numbers.
"""

import math
from dataclasses import dataclass

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.registry import model_stages
from faithful_sae.runs.schema import Run
from faithful_sae.runs.stage import Stage
from faithful_sae.text.packing import rows_disk

# bytes of RAM of a notebook and its libraries; 0.6 to 0.8 GB measured on a CPU
PROCESS = 800_000_000
# bytes of GPU memory that CUDA takes for itself, and of RAM that its libraries take beside
CUDA = 600_000_000
CUDA_PROCESS = 2_000_000_000


@dataclass(frozen=True)
class Needs:
    """Of one stage, in bytes at its peak.

    Attributes:
        device_memory: of the fullest GPU, CUDA's own included; 0 for a run on a CPU, where it is
            part of `memory`.
        memory: of RAM.
        disk: of the artefacts it leaves, and of the checkpoints and parts beside them.
        tokens: those the language model reads or writes, each counted once per pass over it.
    """

    device_memory: int
    memory: int
    disk: int
    tokens: int


def needs(run: Run, shape: Shape, stage: Stage) -> Needs:
    """What one of `model_stages(run)` needs for one language model.

    `device: auto` counts as CPU, and `cuda` as a GPU: what is computed there is `device_memory`,
    and RAM holds the weights on their way and what the stage gathers.
    """
    peak = stage.memory(run, shape)
    disk = packed(run, stage) + stage.disk(run, shape)
    tokens = stage.tokens(run)
    if run.device != "cuda":
        return Needs(0, PROCESS + peak.device + peak.host, disk, tokens)
    staged = weights(shape) if peak.weights else 0  # weights are read into RAM, then moved
    # the last GPU has the hooked block or logits, and all else
    elsewhere = weights(shape) - math.ceil(weights(shape) / run.gpus)
    device = CUDA + peak.device - elsewhere if peak.device else 0
    return Needs(device, PROCESS + CUDA_PROCESS + staged + peak.host, disk, tokens)


def packed(run: Run, stage: Stage) -> int:
    """Disk for the token rows of a stage's corpora, and the parts of the one being made; a corpus
    that an earlier stage packs is not counted.
    """
    readers = [other for other in model_stages(run) if other.with_saes]
    if stage not in readers:  # which reads text as it is
        return 0
    earlier = {name for other in readers[: readers.index(stage)] for name in other.corpora(run)}
    new = set(stage.corpora(run)) - earlier
    return 4 * len(new) * run.corpus_tokens + (rows_disk(run.corpus_tokens) // 2 if new else 0)
