"""Some features to look at: those that are easiest to name, and others drawn at random.

A latent is called after the token at which most of its contexts are strongest. How well the name
fits is the share of the contexts of all levels of activation that are strongest there: contexts of
the highest level alone make almost any latent look clear (Bricken et al. 2023). A name says what a
latent responds to, word for word; a meaning that has many words stays without one.
"""

import numpy as np
import pandas as pd

from faithful_sae.features.index import FeatureIndex, ordinary
from faithful_sae.features.vocabulary import folded

EXAMPLES = 20
# contexts without which a share says nothing
ENOUGH = 8


def names(index: FeatureIndex) -> pd.DataFrame:
    """latent, name, share and contexts of each latent that has a sampled context.

    Of tokens that are the strongest in as many contexts, the name is the first by its letters.
    Blanks around a token and capitals do not count.
    """
    strongest = index.strongest_tokens()
    sample = strongest.loc[strongest.kind == "sample", ["latent", "token"]]
    word = folded(sample.token)
    named = sample.assign(name=word.where(word != "", sample.token))
    counts = named.groupby(["latent", "name"], as_index=False).agg(times=("token", "size"))
    first = counts.sort_values(["latent", "times", "name"], ascending=[True, False, True])
    first = first.drop_duplicates("latent").reset_index(drop=True)
    contexts = counts.groupby("latent").times.sum()
    first["contexts"] = first.latent.map(contexts)
    first["share"] = first.times / first.contexts
    return first[["latent", "name", "share", "contexts"]]


def examples(index: FeatureIndex, n: int = EXAMPLES) -> pd.DataFrame:
    """Rows of `index.latents` with name, share and contexts, in two groups of up to n.

    "named": those whose name fits best, of equal ones those that fire most. Each name has one, and
    fake and dense latents, and those with fewer than ENOUGH contexts, are left out. "random": of
    all that fire, each as likely, the same ones at every call.
    """
    called = index.latents.merge(names(index), on="latent", how="left")
    alive = called.loc[~called.dead]
    clear = ordinary(called)
    clear = clear.loc[clear.contexts >= ENOUGH]
    ranked = clear.sort_values(["share", "frequency", "latent"], ascending=[False, False, True])
    named = ranked.drop_duplicates("name").head(n)
    drawn = np.random.default_rng(0).permutation(len(alive))[:n]
    random = alive.iloc[np.sort(drawn)]
    return pd.concat([named.assign(group="named"), random.assign(group="random")]).reset_index(
        drop=True
    )
