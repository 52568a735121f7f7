"""Training SAEs from one stream of activations, for notebooks 02 and 08."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from faithful_sae.files import (
    atomic_path,
    file_hash,
    is_current,
    read_json,
    remove_others,
    require_space,
    seal,
    write_json,
)
from faithful_sae.files.checkpoint import Checkpoint
from faithful_sae.lm.model import LanguageModel
from faithful_sae.runs.keys import Fingerprint, settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import BASELINES, Run, plain
from faithful_sae.sae.activation_cache import ActivationCache, activations_disk
from faithful_sae.sae.activations import ActivationStream, rows_in_batches
from faithful_sae.sae.formats.hooks import hook_name
from faithful_sae.sae.in_context import RowStream
from faithful_sae.sae.sae import TopKSAE, load_sae
from faithful_sae.sae.train import train_saes, training_disk
from faithful_sae.sae.variants import VARIANTS, FrozenDecoder, RandomDictionary, Variant
from faithful_sae.stages.corpus import corpus, rows_key
from faithful_sae.stages.model import model_key
from faithful_sae.stages.s02_train_sae import (
    ACTIVATIONS,
    SAE,
    sae_artefact,
    sae_folder,
    sae_settings,
    text_of,
)
from faithful_sae.text.packing import TokenRows, is_content

# on which norms are shown
NORM_ROWS = 64
# how many massive activations a training left out, and above which norm
MASSIVE = "massive.json"
# of them are listed
LISTED = 1000
UNTRAINED = dict(zip(BASELINES, (RandomDictionary, FrozenDecoder), strict=True))


def variant_of(s: SAE, k: int) -> Variant:
    """The variant that the section `sae` names, with so many active latents if it has a k."""
    return VARIANTS[s.variant.name](**vars(s.settings(k)))


def corpus_saes(run: Run, name: str, lm: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the SAEs of one corpus, or read them where they are published, unless they are there
    already.

    Returns:
        (curves, summary): training curves, and one row per SAE.
    """
    # which puts them where those of a training would be
    from faithful_sae.stages.published import published_corpus

    return (published_corpus if name in run.published else train_corpus)(run, name, lm)


def train_all(run: Run, lm: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train, read (sae.published) or reuse the SAEs of every corpus in sae.train_on, and the
    baselines; writes rows `training` and `saes`, and returns both.

    A row of `training` without a step is what a published SAE does on the run's own text.
    """
    made = [corpus_saes(run, name, lm) for name in run.sae.train_on]
    if run.baselines:
        made.append(baseline_saes(run, lm))
    curves = pd.concat([part for part, _ in made], ignore_index=True)
    curves = curves.loc[:, ["step", "loss", "fvu", "l0", "dead", "seed", "corpus"]]
    curves = curves.astype({"step": "Int64"})
    summary = pd.concat([part for _, part in made], ignore_index=True)
    read = ["tokens", "distinct_tokens", "passes"]
    counts = ["tokens", "distinct_tokens"]
    if run.sae.max_norm is not None:
        read += ["massive", "norm_limit"]
        counts.append("massive")
    columns = ["corpus", "seed", *read, "fvu", "l0", "dead", "weights", "source"]
    summary = summary.reindex(columns=columns)
    summary = summary.astype(dict.fromkeys(counts, "Int64"))
    curves["tokens"] = curves.step * run.sae.batch_tokens
    write_rows(run, "training", curves)
    write_rows(run, "saes", summary)
    return curves, summary


def train_corpus(run: Run, name: str, lm: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train the SAEs of one corpus, one per seed, from one stream of activations, unless they are
    there already.

    Returns:
        (curves, summary): training curves (one row per seed and logged step) and one row per SAE.
    """
    s = run.sae
    rows = corpus(run, name, lm)
    n_tokens, available = token_budget(run, rows, lm, s.tokens)
    folder = sae_artefact(run, name)
    wanted = [
        {"name": f"seed{seed}", "d_sae": s.d_sae, "k": s.k, "tokens": n_tokens, "seed": seed}
        for seed in s.seeds
    ]
    note = passes_note(run, name, s.tokens, n_tokens, available)
    train_stream(run, name, lm, rows, folder, sae_settings(run, name), wanted, note=note)
    curves = pd.read_csv(folder / "training.csv").assign(corpus=name)
    return curves, _summary(run, name, curves, n_tokens, available)


def baseline_saes(run: Run, lm: LanguageModel) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Make both untrained baselines (sae.baselines), each once per seed, from one stream of
    activations, unless they are there already.

    How often a latent of a random dictionary fires is counted, as of SAEs in training, over the
    last tenth of the stream.

    Returns:
        (curves, summary) as train_corpus. A random dictionary was trained on no tokens; its curves
            say what it does on those that the others are trained on.
    """
    s = run.sae
    rows = corpus(run, s.baselines, lm)
    n_tokens, available = token_budget(run, rows, lm, s.tokens)
    seen = {
        kind: (0, 0) if variant is RandomDictionary else (n_tokens, available)
        for kind, variant in UNTRAINED.items()
    }
    wanted = [
        {
            "name": f"{kind}/seed{seed}",
            "d_sae": s.d_sae,
            "k": variant(s.k),
            "tokens": n_tokens,
            "seed": seed,
            "corpus": kind,
            "about": {"baseline": kind, "training_tokens": seen[kind][0]},
        }
        for kind, variant in UNTRAINED.items()
        for seed in s.seeds
    ]
    first, *_ = run.baselines
    folder = sae_artefact(run, first)
    parameters = sae_settings(run, first)
    train_stream(run, s.baselines, lm, rows, folder, parameters, wanted, "corpus")
    curves = pd.read_csv(folder / "training.csv")
    parts = [
        _summary(run, kind, curves.loc[curves.corpus == kind], *read) for kind, read in seen.items()
    ]
    return curves, pd.concat(parts, ignore_index=True)


def _summary(run, name, curves, n_tokens, available):
    """A row per seed of the SAEs called `name`."""
    passes = n_tokens / available if available else 0.0
    read = {"tokens": n_tokens, "distinct_tokens": available, "passes": passes}
    seeds = run.sae.seeds
    rows = [
        {"corpus": name, "seed": seed, **read, **last_point(curves.loc[curves.seed == seed])}
        for seed in seeds
    ]
    folder = sae_folder(run, name, seeds[0]).parent
    table = pd.DataFrame(rows).assign(weights=weights_hashes(folder, seeds), source=pd.NA)
    if run.sae.max_norm is not None:
        left_out = read_json(sae_artefact(run, name) / MASSIVE)
        table = table.assign(massive=left_out["tokens"], norm_limit=left_out["norm_limit"])
    return table


def activation_norms(run: Run, name: str, lm: LanguageModel) -> pd.DataFrame:
    """How large the activations of a corpus are, on its first NORM_ROWS training rows, in units of
    the median norm of those that are not at BOS.

    Returns:
        `kind` says what a row is. position: `median` and `largest` norm at the position `place` in
        the rows of tokens, 0 being BOS. bin: `tokens`, those at BOS left out, with norms from
        `place` up to that + `width`. `max_norm`: sae.max_norm, NaN if there is none.
    """
    rows = corpus(run, name, lm).train[:NORM_ROWS]
    batches = rows_in_batches(rows, run.sae.lm_batch_rows)
    norms = torch.cat([lm.activations(ids).norm(dim=-1).cpu() for ids in batches]).double().numpy()
    content = is_content(rows, lm.bos_id)
    norms = norms / (np.median(norms[content]) or 1.0)
    places = pd.DataFrame(
        {
            "kind": "position",
            "place": np.arange(norms.shape[1], dtype=float),
            "median": np.median(norms, 0),
            "largest": norms.max(0),
        }
    )
    found = norms[content]
    # ten a decade, from the least to the largest; a norm of 0 stands with the least above it
    low, high = found[found > 0].min(initial=1.0), found.max(initial=1.0)
    edges = 10 ** (np.arange(np.floor(10 * np.log10(low)), 10 * np.log10(high) + 2) / 10)
    counts, _ = np.histogram(found.clip(edges[0]), edges)
    bins = pd.DataFrame(
        {"kind": "bin", "place": edges[:-1], "width": np.diff(edges), "tokens": counts}
    )
    limit = float("nan") if run.sae.max_norm is None else run.sae.max_norm
    return pd.concat([places, bins], ignore_index=True).assign(max_norm=limit)


def massive_activations(run: Run, name: str) -> pd.DataFrame:
    """The massive activations that SAEs called `name` were trained without (sae.max_norm), the
    LISTED largest of them: row and position in the corpus's training rows, token (its id), norm.
    Empty where none were left out, or the SAEs are published ones.
    """
    file = sae_artefact(run, name) / "massive.csv"
    if not file.exists():
        return pd.DataFrame(columns=["row", "position", "token", "norm"])
    return pd.read_csv(file)


def hook_metadata(run: Run) -> dict[str, str]:
    """What the metadata of an SAE say of its hook beside the layer, which alone stands for the
    residual stream.
    """
    return {} if run.hook == "residual" else {"hook_name": hook_name(run.hook, run.layer)}


def weights_hashes(folder: Path, seeds: tuple[int, ...]) -> list[str]:
    """Hashes of the weights of the SAEs of a corpus."""
    return [file_hash(folder / f"seed{seed}" / "sae_weights.safetensors") for seed in seeds]


def token_budget(run: Run, rows: TokenRows, lm: LanguageModel, tokens: int) -> tuple[int, int]:
    """(how many of the `tokens` asked for sae.max_epochs allows, how many different ones there
    are).
    """
    content = is_content(rows.train, lm.bos_id)
    available = content.size if run.sae.include_bos else int(content.sum())
    return min(tokens, available * run.sae.max_epochs), available


def passes_note(run: Run, name: str, tokens: int, n_tokens: int, available: int) -> str:
    """What is said where the tokens of a corpus repeat: `tokens` were asked for, and the others are
    as token_budget has them.
    """
    if available >= tokens:
        return ""
    note = (
        f"note: {name}: {available:,} training tokens for a budget of {tokens:,}: "
        f"{n_tokens / available:.1f} passes over them"
    )
    if n_tokens < tokens:
        note += f", {n_tokens:,} tokens in all, since sae.max_epochs = {run.sae.max_epochs}"
    return note


def train_stream(
    run: Run,
    name: str,
    lm: LanguageModel,
    rows: TokenRows,
    folder: Path,
    parameters: dict[str, Any],
    wanted: list[dict[str, Any]],
    label: str = "seed",
    note: str = "",
) -> None:
    """Train SAEs from one stream into one artefact, unless it is there already: of activations, or
    of whole rows where their variants are trained in context, all of them.

    Args:
        run: whose section `sae` is followed.
        name: of the corpus.
        lm: the run's language model.
        rows: of the corpus.
        folder: the artefact.
        parameters: that it depends on.
        wanted: per SAE a dict with `name` (of its subfolder), d_sae, k (of the run's variant, or a
            Variant itself), tokens, seed; and `about`, what else its metadata say.
        label: which of these tells the training curves in the folder's training.csv apart.
        note: what is said before they are trained.
    """
    made = _fingerprint(run, parameters, rows.key)
    checkpoint = Checkpoint(folder.with_name(f"{folder.name}-{made.key}.partial"), made.key)
    if is_current(folder, made.key):
        checkpoint.remove()
        return
    if note:
        print(note)
    s = run.sae
    start = time.time()
    d_saes, ks, seeds, budgets = (
        [entry[column] for entry in wanted] for column in ("d_sae", "k", "seed", "tokens")
    )
    variants = [k if isinstance(k, Variant) else variant_of(s, k) for k in ks]
    space = training_disk(lm.d_model, d_saes, [type(variant) for variant in variants])
    require_space(folder, space, f"training the SAEs of {name}")
    remove_others(checkpoint.path)  # of trainings that were given up for one with other parameters
    if variants[0].in_context:
        stream = row_stream(run, rows, lm, max(budgets))
    else:
        stream = activation_stream(run, name, rows, lm, max(budgets))
    at = "" if run.hook == "residual" else f", {run.hook} output"
    saes = train_saes(
        stream,
        lm.d_model,
        d_saes,
        variants,
        seeds,
        s.lr,
        budgets,
        s.batch_tokens,
        s.recipe,
        lm.device,
        f"{run.name}: {len(wanted)} SAEs on {name}, layer {run.layer}{at}",
        checkpoint,
    )
    about = {"model": run.model_name, "layer": run.layer, "corpus": name, "recipe": s.recipe}
    about |= hook_metadata(run)
    about |= {"sequence_length": run.sequence_length}
    with atomic_path(folder) as tmp:
        tmp.mkdir(parents=True)
        curves = []
        for entry, sae in zip(wanted, saes, strict=True):
            sae.metadata |= about | {"training_tokens": entry["tokens"], "seed": entry["seed"]}
            if stream.limit is not None:
                sae.metadata |= {"norm_limit": stream.limit}
            # of TopK SAEs, the rest says it all
            if not isinstance(entry["k"], Variant) and s.variant.name != "topk":
                sae.metadata |= {"variant": plain(s.variant)}
            sae.metadata |= entry.get("about", {})
            sae.save(tmp / entry["name"])
            curves.append(sae.training_log.assign(**{label: entry[label]}))
        pd.concat(curves).to_csv(tmp / "training.csv", index=False, lineterminator="\n")
        if s.max_norm is not None:
            left_out = stream.massive()
            write_json(tmp / MASSIVE, {"tokens": len(left_out), "norm_limit": stream.limit})
            listed = left_out.head(LISTED)
            listed.to_csv(tmp / "massive.csv", index=False, lineterminator="\n")
        seconds = time.time() - start
        seal(tmp, made.key, made.record(lm.revision, seconds=seconds, device=lm.device))
    checkpoint.remove()


def trained_stream(
    run: Run,
    name: str,
    lm: LanguageModel,
    rows: TokenRows,
    folder: Path,
    parameters: dict[str, Any],
    wanted: list[dict[str, Any]],
    note: str = "",
) -> dict[str, TopKSAE]:
    """The SAEs of train_stream, by their names.

    Args:
        parameters: that they depend on beside the corpus and which they are.
    """
    parameters = parameters | {"corpus": name, "saes": wanted}
    train_stream(run, name, lm, rows, folder, parameters, wanted, "name", note)
    return {entry["name"]: load_sae(folder / entry["name"]) for entry in wanted}


def _fingerprint(run: Run, parameters: dict[str, Any], tokens: str) -> Fingerprint:
    """What SAEs trained from one stream depend on."""
    inputs = {"tokens": tokens, "model": model_key(run)}
    return Fingerprint(parameters, inputs, ("sae/train", "sae/activations", "lm/model"))


def corpus_is_trained(run: Run, name: str) -> bool:
    """Whether the SAEs of a corpus, and the baselines that are made on it, are there, for its token
    rows as they are now.
    """
    if not (run.artifacts / "corpora" / name).exists():
        return False
    key = rows_key(run, name)
    return all(
        is_current(sae_artefact(run, called), _fingerprint(run, sae_settings(run, called), key).key)
        for called in run.sae_names
        if text_of(run, called) == name
    )


def activation_stream(
    run: Run, name: str, rows: TokenRows, lm: LanguageModel, n_tokens: int
) -> ActivationStream:
    """The activations of a corpus in the order in which SAEs are trained on them, kept on disk if
    the run says so.
    """
    s = run.sae
    return ActivationStream(
        lm,
        rows.train,
        n_tokens=n_tokens,
        batch_tokens=s.batch_tokens,
        buffer_tokens=s.buffer_tokens,
        lm_batch_rows=s.lm_batch_rows,
        include_bos=s.include_bos,
        seed=s.data_seed,
        cache=activation_cache(run, name, rows, lm) if s.cache_activations else None,
        max_norm=s.max_norm,
    )


def row_stream(run: Run, rows: TokenRows, lm: LanguageModel, n_tokens: int) -> RowStream:
    """The rows of a corpus in the order in which SAEs are trained on them in context."""
    s = run.sae
    return RowStream(
        lm,
        rows.train,
        n_tokens=n_tokens,
        batch_tokens=s.batch_tokens,
        include_bos=s.include_bos,
        seed=s.data_seed,
        max_norm=s.max_norm,
    )


def activation_cache(run: Run, name: str, rows: TokenRows, lm: LanguageModel) -> ActivationCache:
    """Where the activations of a corpus at the run's layer are kept; those of other parameters are
    removed.

    Raises:
        DiskFullError: they would not fit, all of them.
    """
    missing = activations_disk(rows.train.size, lm.d_model, lm.model.dtype.itemsize)
    inputs = {"tokens": rows.key, "model": model_key(run)}
    made = Fingerprint(settings(run, ACTIVATIONS), inputs, ("sae/activations", "lm/model"))
    folder = run.artifacts / "activations" / f"{name}-layer{run.layer}-{made.key}"
    remove_others(folder, "")
    # another notebook may be adding to them
    missing -= sum(file.stat().st_size for file in folder.glob("group_*.safetensors"))
    what = f"keeping the activations of {name} (sae.cache_activations)"
    require_space(folder, missing, what)
    return ActivationCache(folder)


def last_point(curve: pd.DataFrame) -> dict[str, Any]:
    """Mean fvu, l0 over the last tenth of a training curve, and the dead latents at its end."""
    tail = curve.iloc[-max(len(curve) // 10, 1) :]
    return {"fvu": tail.fvu.mean(), "l0": tail.l0.mean(), "dead": int(curve.dead.iloc[-1])}
