"""All evaluations of some SAEs on given text, as rows: what notebook 12 does for a run, and `python
-m faithful_sae evaluate` for any SAE.

SAEs come as {(corpus, seed): SAE}; the two are the first columns of every table.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from faithful_sae.runs.schema import Count, Ints, Section, Seed, key
from faithful_sae.runs.stage import SAEs
from faithful_sae.stages.judging import Beside
from faithful_sae.stages.s09_explore_features import middles

# tokens that describe a latent, where they are tested by input and output
DESCRIBING = 5
# of the text they are tested in
CONTEXT = 32
# in so many turns rows go to the sides that explain and test: the more, the more alike the two are,
# but where the side changes, rows are lost
TURNS = (16, 8, 4)
# SAEs that are known beforehand (sae/reference.py): what a measure gives for them is its floor or
# its ceiling
KNOWN = (PCA, IDENTITY) = ("PCA", "identity")


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


def known_saes(
    lm: Any, rows: np.ndarray, components: int, sizes: Sizes
) -> dict[tuple[str, int], Any]:
    """The SAEs of KNOWN, which stand beside those that were trained: some principal components of
    the activations of some rows, or as many as these have, and the SAE that reconstructs
    everything.
    """
    import torch

    from faithful_sae.sae.activations import rows_in_batches
    from faithful_sae.sae.reference import identity_sae, pca_sae

    parts = rows_in_batches(rows, sizes.batch_rows)
    x = torch.cat([lm.activations(ids)[ids != lm.bos_id].float() for ids in parts])
    pca = pca_sae(x, min(components, lm.d_model, len(x) - 1))
    return {(PCA, 0): pca, (IDENTITY, 0): identity_sae(lm.d_model, lm.device)}


def explainable(saes: SAEs) -> SAEs:
    """Without the identity, of whose latents one of each two opposites fires at every token: there
    is no text where they are silent.
    """
    return {name: sae for name, sae in saes.items() if name[0] != IDENTITY}


def structure(
    lm: Any, saes: SAEs, heldout: np.ndarray, sizes: Sizes, max_norm: float | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What weights and held-out rows say: (a row per SAE, a row per SAE and latent).

    Args:
        max_norm: as structural.
    """
    from faithful_sae.metrics.structural import structural

    records, latents = structural(saes, lm, heldout, batch_rows=sizes.batch_rows, max_norm=max_norm)
    table = pd.DataFrame(which(name) | vars(record) for name, record in records.items())
    of_latents = [latents[name].assign(**which(name)) for name in saes]
    return table, _named_first(pd.concat(of_latents, ignore_index=True))


def probes(
    lm: Any, saes: SAEs, tasks: Mapping[str, Sequence], probing: Any, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What few latents tell of labels: (a row per task, representation, form and k; a row per task
    of more than two labels, SAE and number of ablated latents).

    Args:
        tasks: {name: ((texts, labels) to train on, to test on)}.
        probing: a section `probing`, which says how long texts are, and how probes are trained.
    """
    from faithful_sae.metrics.ablated_probes import Texts, tpp
    from faithful_sae.metrics.sparse_probing import mean_over_labels, sparse_probe_all

    options = _options(probing)
    sparse, ablated = [], []
    for task, parts in tasks.items():
        train, test = _pooled(lm, saes, task, parts, probing)
        labels = [np.asarray(given) for _, given in parts]
        # as representations, channels of x and its components are always there
        learned = [at for at in train if isinstance(at, str) or at[0][0] not in KNOWN]
        of_train, of_test = ({at: part[at] for at in learned} for part in (train, test))
        found = sparse_probe_all(of_train, labels[0], of_test, labels[1], seed=seed, **options)
        sparse.append(mean_over_labels(found).assign(task=task))
        names = np.unique(labels[0])
        # one of two labels is the other one denied
        if len(names) < 3:
            continue
        for name, sae in saes.items():
            if sae.normalisation != "none":
                continue
            to_train, to_test = (
                Texts(part["baseline"], part[name, "sae"], given[:, None] == names)
                for part, given in zip((train, test), labels, strict=True)
            )
            ablated += [
                {"task": task, **which(name), **vars(record)}
                for record in tpp(sae, to_train, to_test, seed=seed, **options)
            ]
    columns = ["task", *which(("", 0)), "n", "score", "intended", "unintended", "accuracy"]
    columns += ["latents", "converged"]
    return pd.concat(sparse, ignore_index=True), pd.DataFrame(ablated, columns=columns)


def crossed_probes(
    lm: Any, saes: SAEs, texts: Mapping[str, Sequence], probing: Any, seed: int
) -> pd.DataFrame:
    """Whether a probe that two properties confused is freed of one of them (SCR): a row per SAE and
    number of ablated latents. The properties of a text are which of two packages it is from, and
    its label. Packages copy from each other, so near-copies of a text before are left out.

    Args:
        texts: {package: ((texts, labels) to train on, to test on)}; none of fewer than two.
        probing: as of `probes`.
    """
    from faithful_sae.metrics.ablated_probes import SCR, Texts, scr
    from faithful_sae.text.near_copies import Distinct

    columns = [*which(("", 0)), *(field.name for field in dataclasses.fields(SCR))]
    if len(texts) < 2:
        return pd.DataFrame(columns=columns)
    last = max(label for _, labels in next(iter(texts.values())) for label in labels)
    parts, distinct = [], Distinct()
    for of_packages in zip(*texts.values(), strict=True):
        crossed = [
            (text, (bool(package), label == last))
            for package, (said, labels) in enumerate(of_packages)
            for text, label in zip(said, labels, strict=True)
            if distinct.take(text)
        ]
        parts.append(tuple(zip(*crossed, strict=True)))
    pooled = _pooled(lm, saes, "crossed", parts, probing)
    found = []
    for name, sae in saes.items():
        if sae.normalisation != "none":
            continue
        train, test = (
            Texts(part["baseline"], part[name, "sae"], np.array(has))
            for part, (_, has) in zip(pooled, parts, strict=True)
        )
        records = scr(sae, train, test, seed=seed, **_options(probing))
        found += [which(name) | vars(record) for record in records]
    return pd.DataFrame(found, columns=columns)


def _options(probing):
    return {"inverse_regularisation": probing.inverse_regularisation, "max_iter": probing.max_iter}


def _pooled(lm, saes, task, parts, probing):
    """Of the texts to train on, and of those to test on."""
    from faithful_sae.metrics.probing import pooled_representations

    p = probing
    return [
        pooled_representations(
            saes, lm, texts, p.max_tokens, p.include_bos, p.batch_rows, f"{task}: {part}"
        )
        for part, (texts, _) in zip(("train", "test"), parts, strict=True)
    ]


def ravel(lm: Any, saes: SAEs, n_pairs: int, sizes: Sizes) -> pd.DataFrame:
    """Whether latents of a city hold its country and its continent apart (RAVEL): a row per SAE;
    none where no pairs are asked for, or the model knows too few cities.
    """
    from faithful_sae.metrics.ravel import ravel
    from faithful_sae.metrics.ravel_prompts import CITIES, TEMPLATES, TooFewError, entity_pairs

    columns = [*which(("", 0)), "entities", "disentanglement", "cause", "isolation"]
    if not n_pairs:
        return pd.DataFrame(columns=columns)
    try:
        pairs, readouts, known = entity_pairs(
            lm, CITIES, TEMPLATES, n_pairs, sizes.seed, sizes.batch_rows
        )
    except TooFewError as error:
        print(f"note: no RAVEL: {error}")
        return pd.DataFrame(columns=columns)
    found = []
    for name, sae in tqdm(saes.items(), desc="RAVEL", unit="SAE"):
        record = vars(ravel(sae, pairs, readouts, seed=sizes.seed))
        found.append(which(name) | {"entities": len(known)} | record)
    return pd.DataFrame(found).reindex(columns=columns)


def fine_tuned(
    lm: Any,
    saes: SAEs,
    rows: np.ndarray,
    heldout: np.ndarray,
    tuning: Any,
    sizes: Sizes,
    max_norm: float | None = None,
) -> pd.DataFrame:
    """L0, explained variance and CE difference on the language model and on a copy of it that was
    trained further on some rows, both on held-out rows: a row per SAE and model.

    Args:
        tuning: its steps and lr.
        max_norm: as by_position.
    """
    from faithful_sae.metrics.generalisation import fine_tuned

    further = fine_tuned(lm, rows, tuning.steps, tuning.lr, sizes.batch_rows, sizes.seed)
    whole = sizes.changed(edges=())
    tables = [
        positions(one, saes, heldout, whole, max_norm).assign(model=model)
        for model, one in (("as it was", lm), ("trained further", further))
    ]
    return _named_first(pd.concat(tables, ignore_index=True))


def explained(lm: Any, saes: SAEs, rows: np.ndarray, sizes: Sizes) -> tuple[dict[Any, Any], Any]:
    """(where the latents of each SAE fire in the rows, the rows in windows): what `interpretation`
    and `descriptions` are made of, in one pass of the language model.
    """
    from faithful_sae.features.codes import sparse_codes
    from faithful_sae.features.index import FeatureError
    from faithful_sae.features.windows import cut

    # before the pass, since it refuses rows that are too few
    pieces = cut(rows, lm.bos_id, sizes.window, 2)
    for turns in TURNS:
        # where documents are long and rows few, none may be left on a side
        with contextlib.suppress(FeatureError):
            mixed = cut(rows, lm.bos_id, sizes.window, turns)
            if 2 * len(mixed.ids) >= len(pieces.ids):
                pieces = mixed
                break
    return sparse_codes(saes, lm, rows, sizes.batch_rows), pieces


def interpretation(
    lm: Any, codes: Mapping, pieces: Any, sizes: Sizes, beside: Sequence[Beside] = ()
) -> pd.DataFrame:
    """Detection and fuzzing of every latent by both offline judges, and of some latents by others:
    a row per SAE, judge and latent.
    """
    from faithful_sae.features.interpretation import interpret_all
    from faithful_sae.features.judges import NgramJudge, TokensJudge
    from faithful_sae.features.vocabulary import display_strings

    vocabulary = display_strings(lm.tokenizer)
    offline = {"tokens": TokensJudge(vocabulary), "ngram": NgramJudge(vocabulary)}
    s = sizes
    same: dict[str, Any] = {"budget": s.budget, "least": s.least, "seed": s.seed}
    tables = []
    for sae, found in codes.items():
        for name, judge in offline.items():
            table = interpret_all(judge, found, pieces, vocabulary, n=s.windows, **same)
            tables.append(table.assign(kind=table.judge, judge=name, **which(sae)))
        scored = tables[-1].loc[tables[-1].scored].sort_values(["density", "latent"])
        for name, judge, latents, windows in beside:
            some = spread(scored.latent.tolist(), latents)
            if some:
                # they say themselves what is more likely than not
                table = interpret_all(
                    judge, found, pieces, vocabulary, some, n=windows, threshold=0.5, **same
                )
                tables.append(table.assign(kind=table.judge, judge=name, **which(sae)))
    return _named_first(pd.concat(tables, ignore_index=True))


def descriptions(
    lm: Any, saes: SAEs, codes: Mapping, pieces: Any, heldout: np.ndarray, sizes: Sizes
) -> pd.DataFrame:
    """Whether the tokens of a latent say what goes in and what comes out, of some latents of each
    SAE: those in the middle of equal parts by how often they fire.
    """
    from faithful_sae.features.descriptions import Described, score_descriptions
    from faithful_sae.features.judges import TokensJudge
    from faithful_sae.features.vocabulary import display_strings
    from faithful_sae.features.windows import windows_of

    judge = TokensJudge(display_strings(lm.tokenizer))
    tables = []
    for name, found in tqdm(codes.items(), desc="descriptions", unit="SAE"):
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
        scored = score_descriptions(
            saes[name],
            lm,
            heldout,
            said,
            maxima,
            chosen,
            length=min(CONTEXT, heldout.shape[1]),
            batch_rows=sizes.batch_rows,
            seed=sizes.seed,
        )
        tables.append(scored.assign(**which(name)))
    if not tables:
        return pd.DataFrame(columns=[*which(("", 0)), *Described.__dataclass_fields__])
    return _named_first(pd.concat(tables, ignore_index=True))


def spread(ordered: Sequence[int], n: int) -> list[int]:
    """The middle one of each of n equal parts; all, where there are no more."""
    return [ordered[i] for i in middles(len(ordered), n)]


def absorption(lm: Any, saes: SAEs, rows: np.ndarray, sizes: Sizes) -> pd.DataFrame:
    """Absorption of classes of tokens: a row per SAE and class; `passes`: the language model itself
    has the class.
    """
    from faithful_sae.features.vocabulary import display_strings
    from faithful_sae.metrics.absorption import absorption_of_all
    from faithful_sae.metrics.token_classes import class_samples, token_classes

    classes = token_classes(display_strings(lm.tokenizer))
    samples = class_samples(lm, rows, classes, sizes.class_tokens, sizes.batch_rows, sizes.seed)
    tables = [
        absorption_of_all(sae, samples, sizes.seed)[1].assign(**which(name))
        for name, sae in tqdm(saes.items(), desc="absorption", unit="SAE")
    ]
    table = _named_first(pd.concat(tables, ignore_index=True))
    return table.assign(latents=table.latents.map(len))


def unlearning(
    lm: Any, saes: SAEs, forget: np.ndarray, retain: np.ndarray, sizes: Sizes
) -> pd.DataFrame:
    """What clamping latents makes the language model forget: a row per SAE; none where documents
    are so long that rows have nothing to measure by.
    """
    from faithful_sae.metrics.unlearning import NothingToPredictError, Unlearning, unlearning

    columns = [*which(("", 0)), *(field.name for field in dataclasses.fields(Unlearning))]
    found = []
    try:
        for name, sae in tqdm(saes.items(), desc="unlearning", unit="SAE"):
            record = vars(unlearning(sae, lm, forget, retain, batch_rows=sizes.batch_rows)[0])
            found.append(which(name) | record | {"latents": len(record["latents"])})
    except NothingToPredictError as error:
        print(f"note: no unlearning: {error}")
    return pd.DataFrame(found, columns=columns)


def positions(
    lm: Any, saes: SAEs, heldout: np.ndarray, sizes: Sizes, max_norm: float | None = None
) -> pd.DataFrame:
    """L0, explained variance and CE difference by position in the row: a row per SAE and part.

    Args:
        max_norm: as by_position.
    """
    from faithful_sae.metrics.generalisation import by_position

    edges = (0, *sizes.edges, heldout.shape[1])
    table = by_position(saes, lm, heldout, edges, batch_rows=sizes.batch_rows, max_norm=max_norm)
    names = pd.DataFrame(map(which, table.pop("sae")))
    return _named_first(pd.concat([table, names], axis=1))


def _named_first(table: pd.DataFrame) -> pd.DataFrame:
    names = [*which(("", 0))]
    return table.reindex(columns=[*names, *(column for column in table if column not in names)])


def envelopes(
    tables: Mapping[str, pd.DataFrame],
    name: tuple[str, int],
    sae: Any,
    config: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """{name of a file: result of one SAE in SAEBench's form}, of the tables above that there are.
    The numbers are means over latents, classes or tasks, for which there are rows as details.

    Args:
        tables: by name, as the functions above return them; `sparse_probes` and `ablated_probes`.
        config: model, layer and text, and how much of it.
    """
    from faithful_sae.metrics.saebench import envelope, named

    corpus, seed = name
    own = {
        key: table.loc[(table.corpus == corpus) & (table.seed == seed)].drop(columns=[*which(name)])
        for key, table in tables.items()
        # not what is of pairs of SAEs
        if "seed" in table
    }
    if "absorption" in own:
        own["absorption"] = own["absorption"].loc[own["absorption"].passes]
    cfg = {"d_in": sae.d_model, "d_sae": sae.d_sae, "k": sae.k, **sae.metadata}
    found = {}

    def add(kind: str, metrics: Mapping, details: Any = (), name: str | None = None) -> None:
        found[name or kind] = envelope(kind, metrics, cfg, config, details)

    if "structure" in own:
        fields = own["structure"].to_dict("records")[0]
        details = own["structure_latents"].rename(columns=DETAILS).to_dict("records")
        add("core", named("core", fields), details)
    for kind, table, by in (
        ("descriptions", "descriptions", None),
        ("absorption_token_classes", "absorption", None),
        ("unlearning_ce", "unlearning", None),
        ("generalisation", "positions", ["start", "stop"]),
        ("sparse_probing_documentation", "sparse_probes", ["form", "k"]),
        ("tpp_closed_form", "ablated_probes", ["n"]),
        ("scr_crossed", "crossed_probes", ["n"]),
        ("ravel_cities", "ravel", None),
    ):
        if not len(own.get(table, ())):
            continue
        rows = own[table]
        parts = [("all", rows)] if by is None else rows.groupby(by, sort=False)
        metrics = {
            "faithful_sae" if by is None else "_".join(map(str, _tuple(at))): _means(part)
            for at, part in parts
        }
        add(kind, metrics, rows.to_dict("records"))
    if "interpretation" in own:
        for judge, part in own["interpretation"].groupby("judge", sort=False):
            kind = part.kind.iloc[0]
            at = f"autointerp_{JUDGES.get(kind, kind)}"
            records = part.to_dict("records")
            # a run may name several of one kind
            add(at, {"faithful_sae": _means(part)}, records, f"autointerp_{judge}")
    return found


# columns of structure_latents -> SAEBench's names of them
DETAILS = {
    "latent": "index",
    "density": "feature_density",
    "encoder_decoder_cosine": "encoder_decoder_cosine_sim",
    "decoder_nearest": "max_decoder_cosine_sim",
    "encoder_nearest": "max_encoder_cosine_sim",
}


# kinds of judges -> what ids call them
JUDGES = {"local": "llm", "endpoint": "llm"}


def _tuple(value):
    return value if isinstance(value, tuple) else (value,)


def _means(rows):
    """Of all columns of numbers."""
    numbers = rows.select_dtypes(["number", "bool"]).drop(columns="latent", errors="ignore")
    return {column: float(value) for column, value in numbers.mean().items()}
