"""Indexes of the features of a run, and the few of them that tables and figures show."""

from functools import partial

import numpy as np
import pandas as pd

from faithful_sae.features.build import build_index
from faithful_sae.features.collect import Kept
from faithful_sae.features.explain import token_agreement, vocab_projection
from faithful_sae.features.steering import dose_response
from faithful_sae.features.vocabulary import visible
from faithful_sae.files import digest, file_hash
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.provenance import provenance
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import plain
from faithful_sae.sae.activations import as_ids
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import model_key

GROUPS = ("shared", "orphan", "fake")


def index_features(run, saes, lm) -> dict:
    """{seed: FeatureIndex} of the SAEs of features.corpus, made or reused; writes rows `features`,
    one per seed and latent.

    Firing on random tokens is 04's, the matching of seeds 03's. The rows add to the index
    `agreement`, how many of the tokens of MutInfo are among those of VocabProj.
    """
    f = run.features
    tokens = corpus(run, run.features.corpus, lm)
    rows = tokens.train[: f.tokens // run.sequence_length]
    if len(rows) * run.sequence_length <= f.tokens - run.sequence_length:
        print(
            f"note: {f.corpus}: {len(rows) * run.sequence_length:,} tokens, fewer than the "
            f"{f.tokens:,} asked for: all are used"
        )
    firing, matching = read_rows(run, "firing", "04_ffr"), read_rows(run, "matching", "03_sfr")
    indexes = {}
    tables = []
    for seed in f.seeds:
        other = run.sae.seeds[(run.sae.seeds.index(seed) + 1) % len(run.sae.seeds)]
        random = firing[(firing.corpus == f.corpus) & (firing.seed == seed)].frequency.to_numpy()
        twin, cosine = twins(matching[matching.corpus == f.corpus], seed, other)
        weights = file_hash(
            run.artifacts / "saes" / f.corpus / f"seed{seed}"
        )  # and its configuration
        kept = {
            name: getattr(f, name) for name in ("top", "samples", "strata", "left", "right", "seed")
        }
        shown = {name: getattr(f, name) for name in ("listed", "pruned", "batch_rows")}
        key = digest(
            [
                tokens.key,
                len(rows),
                model_key(run),
                weights,
                run.layer,
                run.threads,
                run.device,
                run.sae.include_bos,
                kept,
                shown,
                other,
                run.label,
                random.tolist(),
                twin.tolist(),
                cosine.tolist(),
                plain(run.ffr),
                run.sfr.threshold,
                code_hash("features/build", "lm/model", "sae/sae"),
            ]
        )
        indexes[seed] = build_index(
            run.artifacts / "features" / f.corpus / f"seed{seed}",
            lm,
            saes[f.corpus, seed],
            rows,
            Kept(**kept),
            about={
                "label": run.label,
                "run": run.name,
                "profile": run.profile,
                "corpus": f.corpus,
                "seed": seed,
                "other_seed": other,
            },
            random_frequency=random,
            ffr_frequency=run.ffr.frequency,
            twin=twin,
            twin_cosine=cosine,
            sfr_threshold=run.sfr.threshold,
            include_bos=run.sae.include_bos,
            key=key,
            **shown,
            record=partial(
                provenance,
                parameters=run.settings("features"),
                inputs={"tokens": tokens.key, "model": model_key(run), "sae": weights},
                device=lm.device,
            ),
        )
        agreement = token_agreement(indexes[seed].explanations(), f.listed)
        tables.append(
            indexes[seed]
            .latents.drop(columns="histogram")
            .assign(seed=seed, agreement=lambda t: t.latent.map(agreement))
        )
    write_rows(run, "features", pd.concat(tables, ignore_index=True))
    return indexes


def twins(matching, seed, other):
    """(latent of `other` matched with each latent of `seed`, cosine of their decoder rows) from
    03's rows of one corpus.
    """
    part = matching[(matching.seed_a == seed) & (matching.seed_b == other)].sort_values("latent")
    if len(part):
        return part.match.to_numpy(), part.decoder_cosine.to_numpy()
    part = matching[(matching.seed_a == other) & (matching.seed_b == seed)].sort_values("match")
    return part.latent.to_numpy(), part.decoder_cosine.to_numpy()


def chosen(latents, n) -> pd.DataFrame:
    """Up to n latents of each of GROUPS, with a column `group`, by a rule that does not look at
    what they mean.

    The latents of a group that are alive are put in order of how often they fire and cut into n
    parts of one size; the middle one of each part is taken. fake: those, shared or not; shared and
    orphan: the others.
    """
    fake = latents.fake.astype(bool)
    shared = latents.shared.astype(bool)
    parts = []
    for group, of_group in zip(GROUPS, (shared & ~fake, ~shared & ~fake, fake)):
        part = latents[of_group & ~latents.dead].sort_values(["frequency", "latent"])
        middles = np.unique(((np.arange(n) + 0.5) * len(part) / n).astype(int)) if len(part) else []
        parts.append(part.iloc[middles].assign(group=group))
    return pd.concat(parts, ignore_index=True)


def describe(index, latents) -> pd.DataFrame:
    """One row per chosen latent, for a table: how often it fires, its twin, and what each method
    says.
    """
    rows = []
    for latent in latents.itertuples():
        page = index.page(latent.latent)
        said = {
            method: [visible(text) for text, _ in entries]
            for method, entries in page["explanations"].items()
        }
        rows.append(
            {
                "group": latent.group,
                "latent": latent.latent,
                "fires on, %": 100 * latent.frequency,
                "on random, %": 100 * latent.random_frequency,
                "twin": latent.twin,
                "cosine": latent.twin_cosine,
                "strongest context": _marked(page["contexts"][0]),
                "PruningMaxAct": " ".join(said.get("PruningMaxAct", [])[:1]),
                "MutInfo": " ".join(said.get("MutInfo", [])[:5]),
                "VocabProj": " ".join(said.get("VocabProj", [])[:5]),
            }
        )
    return pd.DataFrame(rows)


def _marked(context, left=10, right=3):
    """The text around the peak, which stands in brackets."""
    tokens, p = context["tokens"], context["position"]
    before, after = "".join(tokens[max(p - left, 0) : p]), "".join(tokens[p + 1 : p + 1 + right])
    return visible(f"{before}[{tokens[p]}]{after}")


def steer_features(run, sae, lm, latents) -> pd.DataFrame:
    """Dose and response of chosen latents on held-out text; writes rows `dose_response`.

    A dose of 1 adds the latent's largest activation. `probability` is that of the tokens VocabProj
    lists.
    """
    f = run.features
    rows = corpus(run, run.features.corpus, lm).heldout[: run.features.steered_rows]
    parts = []
    for latent in latents.itertuples():
        tokens = (
            vocab_projection(lm, sae.W_dec[latent.latent : latent.latent + 1])
            .topk(min(f.listed, lm.vocab_size))
            .indices[0]
        )
        doses = [0.0, *f.doses]
        table = dose_response(
            lm, sae, latent.latent, rows, [dose * latent.max for dose in doses], tokens
        )
        parts.append(table.assign(dose=doses, latent=latent.latent, group=latent.group))
    table = pd.concat(parts, ignore_index=True)
    write_rows(run, "dose_response", table)
    return table


def example_text(run, lm, words=24) -> str:
    """The beginning of the held-out text, for the cell that waits for one's own."""
    row = corpus(run, run.features.corpus, lm).heldout[0]
    ids = as_ids(row)
    return lm.tokenizer.decode(ids[ids != lm.bos_id][:words])


def histogram_rows(index, latents) -> pd.DataFrame:
    """Histograms of chosen latents, one row per latent and bin: group, latent, low, high,
    tokens.
    """
    edges = index.meta["histogram_edges"]
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "group": latent.group,
                    "latent": latent.latent,
                    "low": edges[:-1],
                    "high": edges[1:],
                    "tokens": latent.histogram,
                }
            )
            for latent in latents.itertuples()
        ],
        ignore_index=True,
    )


def agreement_rows(run, index) -> pd.DataFrame:
    """One row per latent that has MutInfo tokens: group, latent, agreement, and by_chance, with
    VocabProj of a latent drawn at random.
    """
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
    latents = index.latents.iloc[rows.latent]
    fake = latents.fake.to_numpy(bool)
    shared = latents.shared.to_numpy(bool)
    return rows.assign(group=np.where(fake, "fake", np.where(shared, "shared", "orphan")))


def twins_agree(indexes, run) -> bool:
    """Whether what the indexes say of twins is one matching, seen from both sides where both seeds
    are indexed, with 03's SFR.
    """
    sfr = read_rows(run, "sfr", "03_sfr").query("corpus == @run.features.corpus")
    for seed, index in indexes.items():
        other = indexes.get(index.meta["other_seed"])
        mine = index.latents
        pair = sfr[sfr[["seed_a", "seed_b"]].isin([seed, index.meta["other_seed"]]).all(axis=1)]
        if abs(pair.sfr.item() - mine.shared.mean()) > 1e-12:
            return False
        if (
            other is not None
            and other.meta["other_seed"] == seed
            and not (other.latents.twin.to_numpy()[mine.twin] == mine.latent).all()
        ):
            return False
    return True
