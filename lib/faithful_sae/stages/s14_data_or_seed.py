"""14: whether a feature is found depends on the text, and on the seed: how much on each?"""

from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Ints, Names, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, Memory, SAEs, Stage
from faithful_sae.stages.budget import saes_bytes
from faithful_sae.stages.s02_train_sae import check_corpora, check_seeds

# tokens that a latent promotes are listed
PROMOTED = 5


class DataOrSeed(Section):
    """SAEs of several corpora and seeds, matched with each other."""

    corpora: Names | None = key("of sae.train_on, at least two; null: all", None)
    seeds: Ints | None = key("those of sae.seeds that are compared, at least two; null: all", None)
    stable: float = key(
        "a latent is one of a corpus if so large a share of its other seeds finds it, at cosine "
        "sfr.threshold",
        0.5,
        gt=0,
        le=1,
    )
    listed: int = key("latents of each kind that are listed", 10, ge=1)

    def check(self, run: Run, need: Need) -> None:
        check_seeds(run, need, "data_or_seed.seeds", self.seeds)
        at = "data_or_seed.corpora"
        names = corpora_of(run) if run.sae else ()
        if check_corpora(run, need, at, names):
            known = ", ".join(run.sae.train_on)
            why = f"= {list(names)} must be of sae.train_on ({known})"
            need({*names} <= {*run.sae.train_on}, at, why)
        need(len(names) > 1, at, f"= {list(names)}: texts are compared: name at least two")
        some = self.seeds is None or len(self.seeds) > 1
        need(some, "data_or_seed.seeds", f"= {list(self.seeds or ())}: seeds are compared, too")


class DataOrSeedStudy(Stage):
    sections = {"data_or_seed": DataOrSeed}
    optional = ("data_or_seed",)
    study = True
    answers = True
    rows = ("source_pairs", "source_components", "source_kinds", "source_latents", "source_listed")
    reads = ("saes", "sfr")
    parameters = (*MODEL, "sfr.threshold")
    lower = "sae.d_sae or data_or_seed.corpora"

    def wanted(self, run: Run) -> bool:
        return super().wanted(run) and len(run.sae.seeds) > 1

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.matching import matching_bytes

        n = len(corpora_of(run)) * len(seeds_of(run))
        matching = matching_bytes(shape.d_model, run.sae.d_sae, n)
        # cosines and permutations of all pairs, in both directions
        kept = 3 * 8 * run.sae.d_sae * n**2 // 2
        return Memory(weights(shape), saes_bytes(run, shape) + matching + kept)


def corpora_of(run: Run) -> tuple[str, ...]:
    """The corpora whose SAEs are compared."""
    named = run.data_or_seed.corpora if run.data_or_seed else None
    return run.sae.train_on if named is None else named


def seeds_of(run: Run) -> tuple[int, ...]:
    """The seeds that are compared."""
    named = run.data_or_seed.seeds
    return run.sae.seeds if named is None else named


def own_text(run: Run) -> list[bool]:
    """Whether each of the compared corpora is text of a language model."""
    return [run.corpora[name].faithful is not None for name in corpora_of(run)]


def compare_sources(run: Run, saes: SAEs) -> dict[str, pd.DataFrame]:
    """Match every two SAEs; writes and returns

    source_pairs, a row per pair: corpus_a, seed_a, corpus_b, seed_b, sfr, mean_cosine;
    source_components, a row per corpus, seed left out (-1: none) and component: its variance,
        mean over the corpus's SAEs;
    source_kinds, the same with the share of latents that are of a kind;
    source_latents, a row per latent: in how large a share of the other seeds of each corpus it is
        found, its mean cosine in its own, and its kind.

    Numbers without a seed are those of a run that never had it, as a base or as a partner.
    """
    from faithful_sae.metrics import data_or_seed as metric

    corpora, seeds = corpora_of(run), seeds_of(run)
    threshold, stable = run.sfr.threshold, run.data_or_seed.stable
    matchings, cosines = metric.match_all(saes)
    pairs = [
        {
            **{"corpus_a": a[0], "seed_a": a[1], "corpus_b": b[0], "seed_b": b[1]},
            "sfr": (matching.cosine >= threshold).mean(),
            "mean_cosine": matching.cosine.mean(),
        }
        for (a, b), matching in matchings.items()
    ]
    own = own_text(run)
    components, kinds, latents = [], [], []
    for place, corpus in enumerate(corpora):
        other_kind = [i for i, of_model in enumerate(own) if of_model != own[place]]
        for left_out in (-1, *seeds):
            kept = [seed for seed in seeds if seed != left_out]
            found: list[dict[str, float]] = []
            shares: list[dict[str, float]] = []
            for seed in kept:
                # of the one seed that is left, there is no other
                if len(kept) < 2:
                    continue
                z = metric.cosines_of(cosines, (corpus, seed), corpora, kept)
                if len(kept) > 2:
                    found.append(metric.variance_components(z))
                of = metric.origins(z, place, other_kind, threshold, stable)
                shares.append({kind: float((of == kind).mean()) for kind in metric.KINDS})
                if left_out == -1:
                    latents.append(_latents(z, corpora, place, of, corpus, seed, threshold))
            which = {"corpus": corpus, "left_out": left_out}
            components += _means(which, "component", "variance", metric.COMPONENTS, found)
            kinds += _means(which, "kind", "share", metric.KINDS, shares)
    tables = {
        "source_pairs": pd.DataFrame(pairs),
        "source_components": pd.DataFrame(components),
        "source_kinds": pd.DataFrame(kinds),
        "source_latents": pd.concat(latents, ignore_index=True),
    }
    for name, table in tables.items():
        write_rows(run, name, table)
    return tables


def _means(
    which: dict[str, Any], name: str, value: str, wanted: Any, found: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """A row for each of some numbers, mean over SAEs; NaN of none."""
    return [
        {**which, name: one, value: np.mean([each[one] for each in found]) if found else np.nan}
        for one in wanted
    ]


def _latents(z, corpora, place, kinds, corpus, seed, threshold):
    shares = (z >= threshold).mean(2)
    table = pd.DataFrame({"corpus": corpus, "seed": seed, "latent": range(len(z))})
    table = table.assign(kind=kinds, cosine=z[:, place].mean(1))
    return table.assign(**{f"in_{name}": shares[:, i] for i, name in enumerate(corpora)})


def list_latents(run: Run, saes: SAEs, lm: Any, latents: pd.DataFrame) -> pd.DataFrame:
    """Of the first seed's SAEs the data_or_seed.listed latents that their own text's other seeds
    find most exactly, of each kind: found everywhere, on text of a language model alone, on other
    text alone. Latents found everywhere are those of the first corpus.

    Args:
        latents: rows `source_latents`.

    Returns:
        rows `source_listed`, which it writes: kind, corpus, seed, latent, cosine; in_own, the share
        of the own corpus's other seeds that find it, in_others, the mean of that over all other
        corpora; promotes, the tokens that its direction makes likelier (VocabProj).
    """
    from faithful_sae.features.explain import vocab_projection
    from faithful_sae.features.vocabulary import display_strings, visible
    from faithful_sae.metrics.data_or_seed import EVERYWHERE, OWN_KIND

    corpora = corpora_of(run)
    of_model = dict(zip(corpora, own_text(run), strict=True))
    mine = latents[latents.seed == seeds_of(run)[0]]
    everywhere = mine[(mine.kind == EVERYWHERE) & (mine.corpus == corpora[0])]
    alone = pd.DataFrame(mine[mine.kind == OWN_KIND])
    model_text = alone.corpus.map(of_model).astype(bool)
    chosen = [everywhere, alone[model_text], alone[~model_text]]
    table = pd.concat(
        [part.nlargest(run.data_or_seed.listed, "cosine") for part in chosen], ignore_index=True
    )
    own = [row[f"in_{row.corpus}"] for _, row in table.iterrows()]
    total = table[[f"in_{name}" for name in corpora]].sum(axis=1)
    table = table.assign(in_own=own, in_others=(total - own) / (len(corpora) - 1))
    strings = display_strings(lm.tokenizer)
    promotes = []
    for corpus, seed, latent in table[["corpus", "seed", "latent"]].itertuples(index=False):
        logits = vocab_projection(lm, saes[corpus, seed].W_dec[latent : latent + 1])[0]
        best = logits.topk(PROMOTED).indices.tolist()
        promotes.append(" ".join(visible(strings[i]) for i in best))
    columns = ["kind", "corpus", "seed", "latent", "cosine", "in_own", "in_others"]
    table = table[columns].assign(promotes=promotes)
    write_rows(run, "source_listed", table)
    return table


STAGE = DataOrSeedStudy()
