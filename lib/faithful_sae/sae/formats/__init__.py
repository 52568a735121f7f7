"""The formats SAEs are published in, a file each. Whatever is read ends up as the function of
sae.py, or is refused with a reason.
"""

from pathlib import Path

from faithful_sae.files import folder_of
from faithful_sae.sae.formats import (
    batch_topk,
    dictionary_learning,
    gemma_scope,
    saelens,
    sparsify,
)
from faithful_sae.sae.formats.source import Parts, SAEError

READERS = {
    format.WEIGHTS: format.read
    for format in (saelens, sparsify, dictionary_learning, batch_topk, gemma_scope)
}


def read_folder(folder: Path | str) -> Parts:
    """Read an SAE folder of any format; the name of its weights file says which.

    Args:
        folder: or a file in it.

    Raises:
        SAEError: it holds no SAE or several, files are missing or damaged, tensors disagree with
            the configuration, or the SAE computes something that cannot be represented.
    """
    folder = folder_of(folder)
    found = [name for name in READERS if (folder / name).is_file()]
    if not found:
        raise SAEError(f"{folder}: no SAE here: one of {', '.join(READERS)} is needed")
    if len(found) > 1:
        raise SAEError(
            f"{folder}: holds {' and '.join(found)}, of different formats: leave one of them"
        )
    return READERS[found[0]](folder)
