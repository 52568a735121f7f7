"""Classes of tokens that small language models tell apart, some within others (ours): what
absorption is measured on where a model cannot spell, and first letters say nothing.

    number > digit        punctuation > bracket, full stop        identifier > package, keyword
    alphabetic > capitalised > upper case        identifier > snake case

A class is a property of the token alone, whatever stands around it.

R rows, T positions, V tokens of the vocabulary, D model.
"""

import keyword
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from faithful_sae.sae.activations import rows_in_batches

if TYPE_CHECKING:
    from faithful_sae.lm.model import LanguageModel

PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib", "np", "plt", "pd")
# of which a class needs so many: fewer leave too few to be measured (absorption.LEAST)
FEWEST = 100


def token_classes(
    vocabulary: Sequence[str], packages: Sequence[str] = PACKAGES
) -> dict[str, np.ndarray]:
    """Which tokens are in which class, bool [V] by name. Classes without a token are left out, and
    so are those of the same tokens as one before: where all numbers are digits, they count once.

    Args:
        vocabulary: text of each token, blanks included (`features.vocabulary.display_strings`).
        packages: import names.
    """
    texts = [piece.strip() for piece in vocabulary]
    tests = {
        "number": str.isdecimal,
        "digit": lambda t: len(t) == 1 and t.isdecimal(),
        "punctuation": lambda t: t and not any(c.isalnum() or c.isspace() or c == "_" for c in t),
        "bracket": lambda t: t and {*t} <= {*"()[]{}"},
        "full stop": lambda t: t == ".",
        "alphabetic": str.isalpha,
        "capitalised": lambda t: t.isalpha() and t[0].isupper(),
        "upper case": lambda t: t.isalpha() and t.isupper() and len(t) > 1,
        "identifier": str.isidentifier,
        "snake case": lambda t: t.isidentifier() and "_" in t.strip("_"),
        "keyword": keyword.iskeyword,
        "package": {*packages}.__contains__,
    }
    classes = {name: np.array([bool(test(t)) for t in texts]) for name, test in tests.items()}
    blank = np.array([not t for t in texts])
    begins = np.array([piece.startswith(" ") for piece in vocabulary])
    empty = np.array([not piece for piece in vocabulary])
    classes |= {"white space": blank & ~empty, "begins a word": begins & ~blank}
    kept = {}
    for name, which in classes.items():
        if which.any():
            kept.setdefault(which.tobytes(), name)
    return {name: classes[name] for name in kept.values()}


def class_samples(
    lm: "LanguageModel",
    tokens: np.ndarray,
    classes: Mapping[str, np.ndarray],
    n_tokens: int = 4000,
    batch_rows: int = 32,
    seed: int = 0,
) -> dict[str, tuple[Tensor, np.ndarray]]:
    """Activations of tokens in each class and of as many others; one pass of the language model
    serves all classes and SAEs.

    Args:
        tokens: int [R, T]; positions of BOS are left out.
        classes: of `token_classes`.
        n_tokens: of each class, and of the others, at most.
        batch_rows: rows per forward pass.
        seed: of the draw.

    Returns:
        {name: (x float32 [N, D] on the CPU, holds bool [N])}, without classes of which, or beside
        which, there are fewer than 100 tokens. Memory: at most 2 n_tokens activations per class,
        twice.

    Raises:
        ValueError: ids that the classes say nothing of.
    """
    flat = np.asarray(tokens).ravel()
    known = min((len(which) for which in classes.values()), default=0)
    if flat.size and not 0 <= flat.min() <= flat.max() < known:
        raise ValueError(
            f"token ids {flat.min()} to {flat.max()}, and the classes are of 0 to {known - 1}: "
            "take the vocabulary of the same model"
        )
    rng = np.random.default_rng(seed)
    chosen = {}
    for name, which in classes.items():
        inside = which[flat]
        kinds = [np.flatnonzero((inside == kind) & (flat != lm.bos_id)) for kind in (True, False)]
        n = min(n_tokens, *map(len, kinds))
        if n >= FEWEST:
            chosen[name] = np.sort(np.concatenate([rng.choice(k, n, False) for k in kinds]))
    union = np.unique(np.concatenate([*chosen.values(), np.empty(0, int)]))
    x = _activations_at(lm, tokens, union, batch_rows)
    return {
        name: (x[np.searchsorted(union, where)], classes[name][flat[where]])
        for name, where in chosen.items()
    }


def _activations_at(lm, tokens, positions, batch_rows):
    """float32 [N, D] on the CPU, of some positions of the rows laid end to end, sorted."""
    rows, columns = np.divmod(positions, tokens.shape[1])
    needed, row = np.unique(rows, return_inverse=True)
    found = [torch.empty(0, lm.d_model)]
    start = 0
    for ids in rows_in_batches(tokens[needed], batch_rows):
        x = lm.activations(ids)
        here = (row >= start) & (row < start + len(ids))
        found.append(x[row[here] - start, columns[here]].cpu())
        start += len(ids)
    return torch.cat(found)
