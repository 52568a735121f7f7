"""All evaluations of some SAEs on given text, as rows: what notebook 12 does for a run, and `python
-m faithful_sae evaluate` for any SAE.

SAEs come as {(corpus, seed): SAE}; the two are the first columns of every table.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.runs.schema import Count, Ints, Section, Seed, key
from faithful_sae.runs.stage import SAEs

# tokens that describe a latent, where they are tested by input and output
DESCRIBING = 5


class Sizes(Section):
    """How much of everything SAEs are evaluated on."""

    rows: Count = key("held-out rows, for structure, positions and descriptions", 64)
    tokens: Count = key("of other rows, on which latents are explained", 300_000, unit="tokens")
    batch_rows: Count = key("rows per forward pass, each with all its logits", 16)
    window: Count = key("of text that shows a latent, or tests it", 32, unit="tokens")
    windows: Count = key("of each kind that explain a latent, and that test it", 50)
    least: Count = key("windows in which a latent must fire, on both sides, to be scored", 20)
    budget: Count = key("numbers that an explanation is made of, at most", 10)
    described: Count = key("latents of each SAE whose tokens are tested by input and output", 64)
    class_tokens: Count = key("of each class of tokens that absorption is measured on", 1000)
    edges: Ints = key("positions at which rows are cut to be measured by position", (32,))
    seed: Seed = key("of windows, marks, parts and draws", 0)


def which(name: tuple[str, int]) -> dict[str, Any]:
    """The columns that say which SAE."""
    return dict(zip(("corpus", "seed"), name, strict=True))


def explained(lm: Any, saes: SAEs, rows: np.ndarray, sizes: Sizes) -> tuple[dict[Any, Any], Any]:
    """(where the latents of each SAE fire in the rows, the rows in windows): what `interpretation`
    and `descriptions` are made of, in one pass of the language model.
    """
    from faithful_sae.features.codes import sparse_codes
    from faithful_sae.features.windows import cut

    return sparse_codes(saes, lm, rows, sizes.batch_rows), cut(rows, lm.bos_id, sizes.window)


def interpretation(lm: Any, codes: Mapping, pieces: Any, sizes: Sizes) -> pd.DataFrame:
    """Detection and fuzzing of every latent by both offline judges: a row per SAE, judge and
    latent.
    """
    from faithful_sae.features.interpretation import interpret_all
    from faithful_sae.features.judges import NgramJudge, TokensJudge
    from faithful_sae.features.vocabulary import display_strings

    vocabulary = display_strings(lm.tokenizer)
    judges = (TokensJudge(vocabulary), NgramJudge(vocabulary))
    s = sizes
    tables = [
        interpret_all(
            judge,
            found,
            pieces,
            vocabulary,
            budget=s.budget,
            n=s.windows,
            least=s.least,
            seed=s.seed,
        ).assign(**which(name))
        for (name, found), judge in itertools.product(codes.items(), judges)
    ]
    return _named_first(pd.concat(tables, ignore_index=True))


def descriptions(
    lm: Any, saes: SAEs, codes: Mapping, pieces: Any, heldout: np.ndarray, sizes: Sizes
) -> pd.DataFrame:
    """Whether the tokens of a latent say what goes in and what comes out, of some latents of each
    SAE: those in the middle of equal parts by how often they fire.
    """
    from faithful_sae.features.descriptions import score_descriptions
    from faithful_sae.features.judges import TokensJudge
    from faithful_sae.features.vocabulary import display_strings
    from faithful_sae.features.windows import windows_of

    judge = TokensJudge(display_strings(lm.tokenizer))
    tables = []
    for name, found in codes.items():
        said, maxima = {}, np.zeros(found.d_sae)
        for latent in range(found.d_sae):
            maxima[latent] = found.of(latent)[1].max(initial=0)
            windows = windows_of(found, pieces, latent, sizes.windows, sizes.least, sizes.seed)
            if windows is not None:
                tokens = [*judge.explain(windows.explanation, DESCRIBING).weights]
                said |= {latent: tokens} if tokens else {}
        chosen = spread(sorted(said, key=lambda f: (found.density[f], f)), sizes.described)
        if not chosen:
            continue
        scored = score_descriptions(saes[name], lm, heldout, said, maxima, chosen, seed=sizes.seed)
        tables.append(scored.assign(**which(name)))
    return _named_first(pd.concat(tables, ignore_index=True))


def spread(ordered: Sequence[int], n: int) -> list[int]:
    """The middle one of each of n equal parts; all, where there are no more."""
    places = np.unique(((np.arange(n) + 0.5) * len(ordered) / n).astype(int))
    return [ordered[i] for i in places] if len(ordered) > n else [*ordered]


def absorption(lm: Any, saes: SAEs, rows: np.ndarray, sizes: Sizes) -> pd.DataFrame:
    """Absorption of classes of tokens: a row per SAE and class; `passes`: the language model itself
    has the class.
    """
    from faithful_sae.features.vocabulary import display_strings
    from faithful_sae.metrics.absorption import absorption_of_all
    from faithful_sae.metrics.token_classes import class_samples, token_classes

    classes = token_classes(display_strings(lm.tokenizer))
    samples = class_samples(lm, rows, classes, sizes.class_tokens, seed=sizes.seed)
    tables = [
        absorption_of_all(sae, samples, sizes.seed)[1].assign(**which(name))
        for name, sae in saes.items()
    ]
    table = _named_first(pd.concat(tables, ignore_index=True))
    return table.assign(latents=table.latents.map(len))


def unlearning(
    lm: Any, saes: SAEs, forget: np.ndarray, retain: np.ndarray, sizes: Sizes
) -> pd.DataFrame:
    """What clamping latents makes the language model forget: a row per SAE."""
    from faithful_sae.metrics.unlearning import unlearning

    found = (
        which(name) | vars(unlearning(sae, lm, forget, retain, batch_rows=sizes.batch_rows)[0])
        for name, sae in saes.items()
    )
    return pd.DataFrame(record | {"latents": len(record["latents"])} for record in found)


def positions(lm: Any, saes: SAEs, heldout: np.ndarray, sizes: Sizes) -> pd.DataFrame:
    """L0, explained variance and CE difference by position in the row: a row per SAE and part."""
    from faithful_sae.metrics.generalisation import by_position

    edges = (0, *sizes.edges, heldout.shape[1])
    table = by_position(saes, lm, heldout, edges, batch_rows=sizes.batch_rows)
    names = pd.DataFrame(map(which, table.pop("sae")))
    return _named_first(pd.concat([table, names], axis=1))


def _named_first(table):
    names = [*which(("", 0))]
    return table[[*names, *(column for column in table if column not in names)]]
