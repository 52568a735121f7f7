"""09: indexes of the features of a run, and the few of them that tables and figures show."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.files import digest, file_hash
from faithful_sae.lm.architectures import Shape, forward_bytes, weights
from faithful_sae.runs.keys import Fingerprint, settings
from faithful_sae.runs.rows import lacking, read_rows, write_rows
from faithful_sae.runs.schema import Count, Floats, Ints, Names, Need, Run, Section, Seed, key
from faithful_sae.runs.stage import HOOK, MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import LOGIT, reading_bytes, saes_bytes, train_tokens
from faithful_sae.text.documents import document_numbers

SHORT = 0.5  # seconds for which ablations are timed
# "not fake" where no other seed says whether they are shared
GROUPS = ("shared", "orphan", "not fake", "fake")


class Features(Section):
    """What the latents of some corpora's SAEs respond to and do."""

    corpora: Names = key(
        "of sae.train_on: their SAEs, each on its own text; tables and figures show features of "
        "the first, the explorer has all"
    )
    seeds: Ints = key(
        "of sae.seeds; the next one here, or, where there is one alone, the next in sae.seeds, is "
        "the other seed of shared and orphan; without any, neither is known"
    )
    tokens: Count = key("of the training rows, BOS included", unit="tokens")
    batch_rows: Count = key("rows per forward pass", 16)
    top: Count = key("contexts with the largest activations, per latent", 16)
    strata: Count = key("levels of activation, each half as strong as the one above", 4)
    samples: Count = key("contexts per level", 4)
    left: Count = key("tokens shown before the strongest one of a context", 24)
    right: Count = key("and after it", 8)
    listed: Count = key("tokens that VocabProj and MutInfo list", 10)
    pruned: Count = key("contexts per latent that PruningMaxAct shortens", 1)
    per_group: Count = key("latents shown, from each of shared, orphan and fake", 5)
    doses: Floats = key("steering, in units of a latent's largest", (0.5, 1.0, 2.0, 4.0, 8.0))
    steered_rows: Count = key("held-out rows on which the next token is compared", 16)
    seed: Seed = key("of the sample of contexts, and of steered text", 0)

    def check(self, run: Run, need: Need) -> None:
        once = self.corpora and len(set(self.corpora)) == len(self.corpora)
        need(once, "features.corpora", "must hold at least one corpus, and none twice")
        for corpus in dict.fromkeys(self.corpora):
            known = ", ".join(run.sae.train_on)
            why = f"holds {corpus!r}, which is not in sae.train_on ({known})"
            need(corpus in run.sae.train_on, "features.corpora", why)
        once = self.seeds and len(set(self.seeds)) == len(self.seeds)
        need(once, "features.seeds", "must hold at least one seed, and none twice")
        for seed in dict.fromkeys(self.seeds):
            seeds = ", ".join(map(str, run.sae.seeds))
            why = f"holds {seed}, which is not in sae.seeds ({seeds})"
            need(seed in run.sae.seeds, "features.seeds", why)
        length = run.sequence_length
        why = f"= {self.tokens} must be at least sequence_length = {length}: one row"
        need(self.tokens >= length, "features.tokens", why)
        why = (
            "must hold at least one dose, each above 0, in units of a latent's largest activation "
            "(0 is added)"
        )
        need(self.doses and min(self.doses) > 0, "features.doses", why)


class ExploreFeatures(Stage):
    sections = {"features": Features}
    optional = ("features",)
    rows = ("features", "dose_response")
    reads = ("saes", "sfr", "matching", "firing")
    parameters = (*MODEL, *ROWS_OF_TEXT, *HOOK, "sfr.threshold", "ffr")
    lower = "features.batch_rows"

    def corpora(self, run: Run) -> tuple[str, ...]:
        return run.features.corpora if run.features else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        made_with = settings(run, INDEXED)
        rows = run.artifacts / "rows" / "features.csv"
        for folder in index_folders(run).values():
            yield Artefact(folder, made_with, rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.features.ablation import rows_at_once
        from faithful_sae.features.build import index_bytes
        from faithful_sae.features.relations import relation_bytes

        length = run.sequence_length
        batch = run.features.batch_rows * length
        d_sae = run.sae.d_sae
        reading = forward_bytes(shape, batch) + 3 * 4 * batch * d_sae
        # of ablations; steering goes row by row
        scored = rows_at_once(length, shape.vocab_size) * length
        scoring = forward_bytes(shape, scored) + scored * shape.vocab_size * LOGIT
        device = weights(shape) + saes_bytes(run, shape) + max(reading, scoring)
        # the state, and as it is saved; correlations come when it is saved no more
        state = index_bytes(run.features, d_sae, shape.vocab_size)
        related = relation_bytes(d_sae, _correlated(run) * (run.sae.k or d_sae))
        return Memory(device, reading_bytes(run) + state + max(state, related))

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.features.build import index_bytes

        # tokens beside activations, before they are compressed; a checkpoint and the next one
        state = index_bytes(run.features, run.sae.d_sae, shape.vocab_size)
        return len(index_folders(run)) * 2 * state

    def tokens(self, run: Run) -> int:
        ablated = _ablated_rows(run) * run.sequence_length
        return len(index_folders(run)) * (_indexed(run) + _correlated(run) + ablated)

    def seconds(self, run: Run, rates: Rates) -> float:
        """Of each index its tokens, those once more on which correlations rest, and ablations;
        PruningMaxAct and steering are some more, which depend on what the latents are.
        """
        read = (_indexed(run) + _correlated(run)) * (rates.read_token() + rates.encode_token())
        row = rates.once("ablation", lambda: self._row(run, rates))
        return len(index_folders(run)) * (read + _ablated_rows(run) * row)

    def _row(self, run: Run, rates: Rates) -> float:
        """Seconds of a row on which a latent is ablated, whose end may be anywhere."""
        from faithful_sae.features.ablation import loss_changes, rows_at_once

        length = run.sequence_length
        rows = rates.ids(2 * rows_at_once(length, rates.lm.vocab_size)).numpy()
        latents = np.arange(len(rows)) % run.sae.d_sae
        ends = np.linspace(2, length, len(rows)).astype(int)
        sae = rates.sae()

        def step():
            loss_changes(rates.lm, sae, rows, latents, ends)

        return rates.time_of(step, SHORT) / len(rows)


def _indexed(run):
    """Tokens of an index."""
    return min(run.features.tokens, train_tokens(run))


def _correlated(run):
    """Those of them on which correlations rest."""
    from faithful_sae.features.build import correlated_tokens

    return min(_indexed(run), correlated_tokens(run.sae.k or run.sae.d_sae))


def _ablated_rows(run):
    """Rows on which a latent of an index is ablated."""
    from faithful_sae.features.build import ABLATED

    return min(ABLATED * run.sae.d_sae, _indexed(run) // run.sequence_length)


# what an index of features depends on beside its inputs
INDEXED = (
    *(*HOOK, "threads", "device", "sae.include_bos", "sfr.threshold", "ffr", "features"),
    *("-features.corpora", "-features.seeds"),
    *("-features.per_group", "-features.doses", "-features.steered_rows"),
)


def index_folders(run: Run) -> dict[tuple[str, int], Path]:
    """{(corpus, seed): folder} of the indexes of a run, whether they are there or not."""
    return {
        (corpus, seed): run.artifacts / "features" / corpus / f"seed{seed}"
        for corpus in run.features.corpora
        for seed in run.features.seeds
    }


def index_features(run: Run, saes: SAEs, lm: Any) -> dict[tuple[str, int], Any]:
    """{(corpus, seed): FeatureIndex} of the SAEs of features.corpora, made or reused; writes rows
    `features`, one per corpus, seed and latent.

    Firing on random tokens is 04's, the matching of seeds 03's; of one seed nothing is matched. The
    rows add to the index `agreement`, how many of the tokens of MutInfo are among those of
    VocabProj.
    """
    from faithful_sae.features.explain import token_agreement

    indexes = {}
    for corpus in run.features.corpora:
        indexes |= _index_corpus(run, saes, lm, corpus)
    tables = []
    for (corpus, seed), index in indexes.items():
        agreement = token_agreement(index.explanations(), run.features.listed)
        table = index.latents.drop(columns="histogram").assign(corpus=corpus, seed=seed)
        tables.append(table.assign(agreement=table.latent.map(agreement)))
    write_rows(run, "features", pd.concat(tables, ignore_index=True))
    return indexes


def _index_corpus(run, saes, lm, name):
    """{(corpus, seed): FeatureIndex} of the SAEs of one corpus."""
    from faithful_sae.features.build import build_index
    from faithful_sae.features.collect import Kept
    from faithful_sae.features.explorer.data import set_key
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.model import model_key

    f = run.features
    tokens = corpus(run, name, lm)
    rows = tokens.train[: f.tokens // run.sequence_length]
    there = len(rows) * run.sequence_length
    if there <= f.tokens - run.sequence_length:
        print(
            f"note: {name}: {there:,} tokens, fewer than the {f.tokens:,} asked for: all are used"
        )
    # of a generated corpus, documents that were cut off stand in rows of their own
    generated = run.corpora[name].faithful is not None
    documents = None if generated else document_numbers(rows, lm.bos_id)
    firing = read_rows(run, "firing").query("corpus == @name")
    matched = pd.DataFrame()
    if len(run.sae.seeds) > 1:
        matched = read_rows(run, "matching").query("corpus == @name")
    kept = {field: getattr(f, field) for field in Kept.__dataclass_fields__}
    elsewhere = [other for other in run.sae.train_on if other != name]
    indexes = {}
    for seed in f.seeds:
        other = other_seed(run, seed)
        random = firing[firing.seed == seed].frequency.to_numpy()
        twin, cosine = (None, None) if other is None else twins(matched, seed, other)
        about = {"corpus": name, "seed": seed, "other_seed": other}
        about |= {"label": run.label, "run": run.name, "profile": run.profile}
        inputs = {
            "tokens": tokens.key,
            "rows": len(rows),
            "model": model_key(run),
            # and its configuration
            "sae": file_hash(run.artifacts / "saes" / name / f"seed{seed}"),
            "elsewhere": {
                at: file_hash(run.artifacts / "saes" / at / f"seed{seed}") for at in elsewhere
            },
            "others": digest([a if a is None else a.tolist() for a in (random, twin, cosine)]),
            "about": digest(about),
        }
        code = ("features/build", "lm/model", "sae/sae")
        made = Fingerprint(settings(run, INDEXED), inputs, code)
        indexes[name, seed] = build_index(
            index_folders(run)[name, seed],
            lm,
            saes[name, seed],
            rows,
            Kept(**kept),
            about=about,
            random_frequency=random,
            ffr_frequency=run.ffr.frequency,
            twin=twin,
            twin_cosine=cosine,
            sfr_threshold=run.sfr.threshold,
            include_bos=run.sae.include_bos,
            listed=f.listed,
            pruned=f.pruned,
            others={set_key(about | {"corpus": at}): saes[at, seed] for at in elsewhere},
            documents=documents,
            batch_rows=f.batch_rows,
            key=made.key,
            record=partial(made.record, device=lm.device),
        )
    return indexes


def judged(run: Run, corpus: str, seed: int) -> pd.DataFrame | None:
    """What judges say of the latents of an SAE, the rows of notebook 12; None where it has not been
    run with the parameters as they are, or on other SAEs.
    """
    if lacking(run, "interpretation"):
        return None
    table = read_rows(run, "interpretation")
    own = table.loc[(table.corpus == corpus) & (table.seed == seed)]
    return own if len(own) else None


def judged_indexes(run: Run) -> list[Any]:
    """FeatureIndex of each of index_folders, with what `judged` has of their latents.

    Raises:
        FeatureError: one that is not there, or damaged.
    """
    from faithful_sae.features.index import FeatureIndex

    return [
        FeatureIndex(folder, judged(run, corpus, seed))
        for (corpus, seed), folder in index_folders(run).items()
    ]


def other_seed(run: Run, seed: int) -> int | None:
    """The seed that has a latent's twin: the next of features.seeds, so that each of two is the
    other's; where there is one alone, the next of sae.seeds; None where that is the seed itself.
    """
    seeds = run.features.seeds if len(run.features.seeds) > 1 else run.sae.seeds
    other = seeds[(seeds.index(seed) + 1) % len(seeds)]
    return None if other == seed else other


def twins(matching: pd.DataFrame, seed: int, other: int) -> tuple[np.ndarray, np.ndarray]:
    """(latent of `other` matched with each latent of `seed`, cosine of their decoder rows) from
    03's rows of one corpus.
    """
    part = matching.loc[(matching.seed_a == seed) & (matching.seed_b == other)]
    if len(part):
        part = part.sort_values("latent")
        return part.match.to_numpy(), part.decoder_cosine.to_numpy()
    part = matching.loc[(matching.seed_a == other) & (matching.seed_b == seed)].sort_values("match")
    return part.latent.to_numpy(), part.decoder_cosine.to_numpy()


def chosen(latents: pd.DataFrame, n: int) -> pd.DataFrame:
    """Up to n latents of each of GROUPS, with a column `group`, by a rule that does not look at
    what they mean.

    The latents of a group that are alive are put in order of how often they fire and cut into n
    parts of one size; the middle one of each part is taken.

    Raises:
        FeatureError: none is alive.
    """
    from faithful_sae.features.index import FeatureError

    alive = latents.assign(group=groups_of(latents)).loc[~latents.dead]
    if alive.empty:
        raise FeatureError(
            f"none of the {len(latents)} latents fires on this text, so there is none to look at: "
            "is the SAE one of this model and layer? `features: null` leaves this notebook out"
        )
    ranked = alive.sort_values(["frequency", "latent"])
    parts = []
    for group in GROUPS:
        part = ranked.loc[ranked.group == group]
        if len(part):
            parts.append(part.iloc[middles(len(part), n)])
    return pd.concat(parts, ignore_index=True)


def middles(length: int, n: int) -> np.ndarray:
    """Places of the middle one of each of n equal parts; all, where there are no more."""
    n = min(n, length)
    return ((np.arange(n) + 0.5) * length / max(n, 1)).astype(int)


def groups_of(latents: pd.DataFrame) -> pd.Series:
    """Of GROUPS, that of each latent. fake: those, shared or not; the others: shared, orphan."""
    known = latents.shared.map({True: "shared", False: "orphan"}).fillna("not fake")
    return known.where(~latents.fake.astype(bool), "fake")


def describe(index: Any, latents: pd.DataFrame) -> pd.DataFrame:
    """One row per chosen latent, for a table: how often it fires, its twin, and what each method
    says.
    """
    from faithful_sae.features.vocabulary import visible

    rows = []
    for latent in latents.to_dict("records"):
        page = index.page(latent["latent"])
        said = {
            method: [visible(text) for text, _ in entries]
            for method, entries in page["explanations"].items()
        }
        rows.append(
            {
                "group": latent["group"],
                "latent": latent["latent"],
                "fires on, %": 100 * latent["frequency"],
                "on random, %": 100 * latent["random_frequency"],
                "twin": page["twin"],
                "cosine": latent["twin_cosine"],
                "strongest context": _marked(page["contexts"][0]),
                "PruningMaxAct": " ".join(said.get("PruningMaxAct", [])[:1]),
                "MutInfo": " ".join(said.get("MutInfo", [])[:5]),
                "VocabProj": " ".join(said.get("VocabProj", [])[:5]),
            }
        )
    return pd.DataFrame(rows)


def example_features(index: Any) -> pd.DataFrame:
    """For a table: the features of examples.py, those with a name and those at random."""
    from faithful_sae.features.examples import examples
    from faithful_sae.features.vocabulary import visible

    found = examples(index)
    said = describe(index, found)
    name = found.name.map(visible, na_action="ignore")
    return said[["group", "latent"]].assign(
        **{"name": name, "fits, %": 100 * found.share},
        **said[["fires on, %", "cosine", "strongest context", "VocabProj"]],
    )


def mut_info_note(index: Any) -> str:
    """For the caption of what shows MutInfo: what is lost where its counts are not exact, and
    nothing where they are.
    """
    lost = index.meta["mut_info_lost"]
    if not lost:
        return ""
    return (
        "MutInfo is of counts that are not exact, as those of every token and latent do not fit in "
        f"memory: a count may be too low, by at most {100 * lost:.2g} % of a latent's firings, so "
        "that tokens may be missing from a list and stand in another order than the formula gives."
    )


def _marked(context, left=10, right=3):
    """The text around the peak, which stands in brackets."""
    from faithful_sae.features.vocabulary import visible

    tokens = context["tokens"]
    p = context["position"]
    before = "".join(tokens[max(p - left, 0) : p])
    after = "".join(tokens[p + 1 : p + 1 + right])
    return visible(f"{before}[{tokens[p]}]{after}")


def steer_features(run: Run, sae: Any, lm: Any, latents: pd.DataFrame) -> pd.DataFrame:
    """Dose and response of chosen latents of the first corpus, on its held-out text; writes rows
    `dose_response`.

    A dose of 1 adds the latent's largest activation. `probability` is that of the tokens VocabProj
    lists.
    """
    from faithful_sae.features.explain import vocab_projection
    from faithful_sae.features.steering import dose_response
    from faithful_sae.stages.corpus import corpus

    f = run.features
    rows = corpus(run, f.corpora[0], lm).heldout[: f.steered_rows]
    parts = []
    doses = [0.0, *f.doses]
    for latent in latents.to_dict("records"):
        i = latent["latent"]
        projection = vocab_projection(lm, sae.W_dec[i : i + 1])
        tokens = projection.topk(min(f.listed, lm.vocab_size)).indices[0]
        amounts = [dose * latent["max"] for dose in doses]
        table = dose_response(lm, sae, i, rows, amounts, tokens)
        parts.append(table.assign(dose=doses, latent=i, group=latent["group"]))
    table = pd.concat(parts, ignore_index=True)
    write_rows(run, "dose_response", table)
    return table


def example_text(run: Run, lm: Any, words: int = 24) -> str:
    """The beginning of the first corpus's held-out text, for the cell that waits for one's own; at
    most half of the model's context.
    """
    from faithful_sae.sae.activations import as_ids
    from faithful_sae.stages.corpus import corpus

    row = corpus(run, run.features.corpora[0], lm).heldout[0]
    ids = as_ids(row)
    return lm.tokenizer.decode(ids[ids != lm.bos_id][: min(words, lm.context // 2 - 1)])


def histogram_rows(index: Any, latents: pd.DataFrame) -> pd.DataFrame:
    """Histograms of chosen latents, one row per latent and bin: group, latent, low, high,
    tokens.
    """
    edges = index.meta["histogram_edges"]
    bins = {"low": edges[:-1], "high": edges[1:]}
    parts = [
        pd.DataFrame(
            {"group": row["group"], "latent": row["latent"], **bins, "tokens": row["histogram"]}
        )
        for row in latents.to_dict("records")
    ]
    return pd.concat(parts, ignore_index=True)


def agreement_rows(run: Run, index: Any) -> pd.DataFrame:
    """One row per latent that has MutInfo tokens: group, latent, agreement, and by_chance, with
    VocabProj of a latent drawn at random.
    """
    from faithful_sae.features.explain import token_agreement

    said = index.explanations()
    n = run.features.listed
    order = np.random.default_rng(run.features.seed).permutation(index.meta["d_sae"])
    projected = said.method == "VocabProj"
    shuffled = said.assign(latent=np.where(projected, order[said.latent], said.latent))
    rows = (
        pd.DataFrame(
            {"agreement": token_agreement(said, n), "by_chance": token_agreement(shuffled, n)}
        )
        .rename_axis("latent")
        .reset_index()
    )
    return rows.assign(group=groups_of(index.latents.iloc[rows.latent]).to_numpy())


def twins_agree(indexes: dict[tuple[str, int], Any], run: Run) -> bool:
    """Whether what the indexes say of twins is one matching, seen from both sides where both seeds
    are indexed, with 03's SFR; of one seed, whether there are none.
    """
    if len(run.sae.seeds) == 1:
        return all(index.latents.shared.isna().all() for index in indexes.values())
    sfr = read_rows(run, "sfr")
    for (corpus, seed), index in indexes.items():
        number = index.meta["other_seed"]
        other = indexes.get((corpus, number))
        mine = index.latents
        seeds = sfr[["seed_a", "seed_b"]].isin([seed, number]).all(axis=1)
        pair = sfr[seeds & (sfr.corpus == corpus)]
        if abs(pair.sfr.item() - mine.shared.mean()) > 1e-12:
            return False
        if (
            other is not None
            and other.meta["other_seed"] == seed
            and not (other.latents.twin.to_numpy()[mine.twin] == mine.latent).all()
        ):
            return False
    return True


STAGE = ExploreFeatures()
