"""10: SAEs of several variants at one L0, on the model's own text and on another."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from faithful_sae.files import (
    atomic_path,
    file_hash,
    is_current,
    read_csv,
    seal,
    write_csv,
)
from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.keys import Fingerprint, settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import (
    Count,
    Hook,
    Ints,
    Names,
    Need,
    Positive,
    Run,
    Section,
    key,
    plain,
)
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, Stage
from faithful_sae.sae.settings import SETTINGS, batch_problem
from faithful_sae.stages.budget import (
    budget,
    context_bytes,
    group_bytes,
    kept_bytes,
    random_tokens_bytes,
    reading_bytes,
    saving_bytes,
    scoring_bytes,
    tokens_read,
)
from faithful_sae.stages.s02_train_sae import (
    TRAINED,
    AnyVariant,
    check_corpora,
    check_seeds,
)


class Architectures(Section):
    """SAEs of several variants, of the size, training and L0 that `sae` says, on two corpora.

    A variant without a `k` has a penalty instead, `l1`. It is looked for, on each corpus with the
    first seed, until as many latents are active as `sae.k` says.
    """

    corpora: Names = key("two of sae.train_on that are compared, the model's own text first")
    variants: dict[str, AnyVariant] = key(
        "what is compared, by names for tables, each as sae.variant", min_length=1
    )
    seeds: Ints | None = key("those of sae.seeds that are trained; null: all", None)
    tokens: Count = key("activations each SAE is trained on", unit="tokens")
    l0: Ints = key(
        "other active latents per token, at which the first seed is trained on the first corpus, "
        "for curves; what the search for penalties tries stands in them as well",
        (),
    )
    searches: Count = key("trainings in which a penalty is looked for, at most", 6)
    within: Positive = key("how far L0 may be from sae.k when the search ends, as a share", 0.05)
    rows: Count = key("held-out rows of each corpus for explained variance and CE", 64)
    hook: Hook | None = key(
        "another place of the block, where SAEs of sae.variant are trained on the first corpus, to "
        "compare what seeds share; null: none",
        None,
        later=True,
    )
    planted: Count = key(
        "tokens of each world with known features that variants are trained on, too",
        120_000,
        unit="tokens",
    )

    def check(self, run: Run, need: Need) -> None:
        s = run.sae
        check_seeds(run, need, "architectures.seeds", self.seeds)
        if check_corpora(run, need, "architectures.corpora", self.corpora):
            need(len(self.corpora) == 2, "architectures.corpora", "must name two corpora")
            known = ", ".join(s.train_on)
            for name in self.corpora:
                why = f"names {name!r}, which is not in sae.train_on ({known})"
                need(name in s.train_on, "architectures.corpora", why)
        why = f"= {self.tokens} must be at least sae.batch_tokens = {s.batch_tokens}"
        need(self.tokens >= s.batch_tokens, "architectures.tokens", why)
        why = f"must lie between 1 and sae.d_sae = {s.d_sae}, differ, and not be sae.k = {s.k}"
        there = all(1 <= l0 <= s.d_sae and l0 != s.k for l0 in self.l0)
        need(there and len({*self.l0}) == len(self.l0), "architectures.l0", why)
        for name, variant in self.variants.items():
            at = s.changed(variant=variant)
            for k in (s.k, *self.l0):
                problem = at.settings(k).problem(s.d_sae)
                need(not problem, f"architectures.variants.{name}", problem)
            problem = at.settings(planted_k(variant)).problem(PLANTED_LATENTS)
            why = f"on worlds with known features: {problem}"
            need(not problem, f"architectures.variants.{name}", why)
            why = "= 0 penalises nothing: no L0 can be looked for from there"
            need(getattr(variant, "l1", 1), f"architectures.variants.{name}.l1", why)
            sizes = (s.d_sae, s.batch_tokens, run.sequence_length)
            problem = batch_problem(at.settings(s.k), *sizes)
            need(not problem, "sae.batch_tokens", problem)
            seeds = len(self.seeds or s.seeds)
            group = group_of(variant)
            why = f"= {group} must divide the number of seeds, {seeds}: each is in a group"
            need(seeds % group == 0, f"architectures.variants.{name}.group", why)
        why = f"= {self.hook} is what `hook` says: name another place, or null"
        need(self.hook != run.hook, "architectures.hook", why)
        there = self.hook is None or s.variant in self.variants.values()
        why = f"compares SAEs of {s.variant.name} (sae.variant): name it in architectures.variants"
        need(there, "architectures.hook", why)
        alone = all(map(in_context, self.variants.values()))
        why = "are all trained on whole rows: name one, topk or another, that is not, beside them"
        need(not alone, "architectures.variants", why)
        why = f"= {self.planted} must be at least {PLANTED_LATENTS}, the latents trained on them"
        need(self.planted >= PLANTED_LATENTS, "architectures.planted", why)


# of SAEs on worlds with known features, and how many of these are active on average
PLANTED_LATENTS = 48
PLANTED_L0 = 4
# variants with as many active latents in every token
PER_TOKEN = ("topk", "switch", "archetypal", "tilted", "mutual", "pca")
# what the SAEs depend on beside the corpus and what is varied
VARIED = (*TRAINED, "-sae.variant", "-sae.seeds", "-sae.tokens")


class ArchitectureStudy(Stage):
    sections = {"architectures": Architectures}
    optional = ("architectures",)
    study = True
    rows = (
        "variant_saes",
        "variant_sfr",
        "variant_measures",
        "variant_fidelity",
        "variant_fidelity_rows",
        "variant_firing",
        "variant_hook",
        "variant_planted",
    )
    # for the model's own text, which 01 writes
    reads = ("dataset",)
    parameters = (
        *MODEL,
        *ROWS_OF_TEXT,
        *TRAINED,
        "-sae.variant",
        "sfr",
        "ffr",
        "geometry",
        "fidelity.batch_rows",
    )
    hours = "train"
    lower = "sae.buffer_tokens or architectures.seeds"

    def corpora(self, run: Run) -> tuple[str, ...]:
        return run.architectures.corpora if run.architectures else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "variant_saes.csv"
        for name in run.architectures.corpora:
            for whole_rows in streams_of(run):
                yield Artefact(folder(run, name, whole_rows), settings(run, VARIED), rows)
        if hook := run.architectures.hook:
            at = run.changed(hook=hook)
            yield Artefact(elsewhere(run), settings(at, VARIED), rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_bytes

        s = run.sae
        kinds = _trained_together(run)
        n = len(kinds)
        one = sae_bytes(shape.d_model, s.d_sae)
        sizes = (shape.d_model, [s.d_sae] * n, kinds)
        training = training_bytes(*sizes, s.batch_tokens, s.buffer_tokens)
        training += context_bytes(run, shape, [*run.architectures.variants.values()])
        saes = len(self.corpora(run)) * n * one
        measuring = max(scoring_bytes(run, shape), random_tokens_bytes(run, shape))
        work = max(group_bytes(run, shape) + training, measuring)
        models = 2 if run.architectures.hook else 1
        return Memory(
            models * weights(shape) + saes + work,
            reading_bytes(run) + saving_bytes(run, 3 * n * one),
        )

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_disk

        a = run.architectures
        one = sae_bytes(shape.d_model, run.sae.d_sae)
        looked = a.searches * len(penalised(run)) * one
        kinds = _trained_together(run)
        beside = training_disk(shape.d_model, [run.sae.d_sae] * len(kinds), kinds)
        kept = len(a.corpora) * (len(kinds) * one + looked + kept_bytes(run, shape))
        if a.hook:
            kept += len(seeds_of(run)) * one + kept_bytes(run, shape)
        return kept + beside

    def tokens(self, run: Run) -> int:
        a = run.architectures
        searched = a.searches * bool(penalised(run))
        streams = len(a.corpora) * (len(streams_of(run)) + searched) + bool(a.hook)
        measured = len(a.corpora) * (a.rows * run.sequence_length + run.sfr.tokens)
        return streams * tokens_read(run, a.tokens) + measured + run.ffr.tokens

    def seconds(self, run: Run, rates: Rates) -> float:
        """Reading, and a step of every SAE for each batch, as if every search took all it may."""
        a = run.architectures
        n_tokens = budget(run, a.tokens)
        steps = math.ceil(n_tokens / run.sae.batch_tokens)
        seeds = len(seeds_of(run))
        total = self.tokens(run) * rates.read_token()
        for name, variant in a.variants.items():
            step = rates.sae_step(run.sae.d_sae, run.sae.k, n_tokens, variant)
            looked = a.searches if name in penalised(run) else 0
            total += (len(a.corpora) * (seeds + looked) + len(a.l0)) * steps * step
        if a.hook:
            total += seeds * steps * rates.sae_step(run.sae.d_sae, run.sae.k, n_tokens)
        return total


def penalised(run: Run) -> list[str]:
    """Names of the variants whose penalty is looked for."""
    variants = run.architectures.variants
    return [name for name, variant in variants.items() if hasattr(variant, "l1")]


def seeds_of(run: Run) -> tuple[int, ...]:
    """Those that are trained; the first one also for penalties and curves."""
    return run.architectures.seeds or run.sae.seeds


def own_variant(run: Run) -> str:
    """What the study calls the variant of `sae`, which it has where it looks at another place."""
    return next(n for n, v in run.architectures.variants.items() if v == run.sae.variant)


def group_of(variant: AnyVariant) -> int:
    """How many seeds of a variant are coupled in training."""
    return getattr(variant, "group", 1)


def planted_k(variant: AnyVariant) -> int:
    """Active latents on worlds with known features: as many as there are features, and twice as
    many where every token has the same number, since some have more features than the mean.
    """
    return PLANTED_L0 * (2 if variant.name in PER_TOKEN else 1)


def in_context(variant: AnyVariant) -> bool:
    """Whether a variant is trained on whole rows."""
    return bool(SETTINGS[variant.name].in_context)


def keeps_variance(run: Run, name: str) -> bool:
    """Whether SAEs of a variant, by its name for tables, are trained to explain variance."""
    section = run.architectures.variants[name]
    return run.sae.changed(variant=section).settings(run.sae.k).keeps_variance


def streams_of(run: Run) -> list[bool]:
    """What variants are trained on, of each corpus: activations (False), whole rows (True)."""
    return sorted({in_context(variant) for variant in run.architectures.variants.values()})


def folder(run: Run, corpus: str, in_context: bool = False) -> Path:
    """The artefact with the compared SAEs of a corpus, those trained on whole rows apart."""
    place = "in_context" if in_context else "saes"
    return run.artifacts / "architectures" / corpus / place


def elsewhere(run: Run) -> Path:
    """The artefact with the SAEs of the other place of the block."""
    return run.artifacts / "architectures" / run.architectures.corpora[0] / "elsewhere"


def _trained_together(run):
    """The variants of the SAEs that are trained together, at most."""
    from faithful_sae.sae.variants import VARIANTS

    a = run.architectures
    kinds = [VARIANTS[variant.name] for variant in a.variants.values()]
    return kinds * (len(seeds_of(run)) + len(a.l0))


def train_variants(run: Run, lm: Any) -> tuple[dict[tuple, Any], pd.DataFrame]:
    """Find the penalties and train the SAEs of all variants on both corpora, those of a corpus from
    one stream of activations, or reuse them; writes rows `variant_saes`.

    Returns:
        (saes, summary): {(variant, corpus, point, seed): SAE}, and one row per SAE. A point is what
            `point_at` says of an L0, or a search for a penalty, on the first corpus.
    """
    from faithful_sae.stages.corpus import corpus

    a = run.architectures
    k = run.sae.k
    seeds = seeds_of(run)
    saes = {}
    parts = []
    for i, name in enumerate(a.corpora):
        text = corpus(run, name, lm)
        found, searched, looked = _penalties(run, name, lm, text)
        wanted = [_entry(run, v, k, seed, found.get(v)) for v in a.variants for seed in seeds]
        if i == 0:
            # a penalty has its curve from the search; one seed alone is not coupled with any
            others = [v for v in a.variants if v not in found and group_of(a.variants[v]) == 1]
            wanted += [_entry(run, v, l0, seeds[0]) for v in others for l0 in a.l0]
            saes |= searched
        parts += looked
        for whole_rows in streams_of(run):
            together = [entry for entry in wanted if bool(entry["k"].in_context) == whole_rows]
            place = folder(run, name, whole_rows)
            made, table = _trained(run, name, lm, text, place, together)
            saes |= made
            parts.append(table)
    summary = pd.concat(parts, ignore_index=True)
    write_rows(run, "variant_saes", summary)
    return saes, summary


def point_at(l0: int) -> str:
    """What SAEs with so many active latents are called."""
    return f"L0 {l0}"


def _entry(run, variant, k, seed, l1=None, point=None):
    """One SAE as train_stream takes it."""
    from faithful_sae.stages.training import variant_of

    section = run.architectures.variants[variant]
    if l1 is not None:
        section = section.changed(l1=l1)
    point = point or point_at(k)
    return {
        "name": f"{variant}/{point}/seed{seed}".replace(" ", ""),
        "d_sae": run.sae.d_sae,
        "k": variant_of(run.sae.changed(variant=section), k),
        "seed": seed,
        "about": {"variant": plain(section) | {"called": variant}, "point": point},
    }


def _trained(run, name, lm, text, place, entries):
    """Train (or reuse) SAEs of one corpus: they, and a row for each."""
    from faithful_sae.sae.sae import load_sae
    from faithful_sae.stages.training import last_point, passes_note, token_budget, train_stream

    asked = run.architectures.tokens
    n_tokens, available = token_budget(run, text, lm, asked)
    wanted = [entry | {"tokens": n_tokens} for entry in entries]
    shown = [{k: v for k, v in entry.items() if k != "k"} for entry in wanted]
    parameters = settings(run, VARIED) | {"corpus": name, "saes": shown}
    note = passes_note(run, name, asked, n_tokens, available)
    train_stream(run, name, lm, text, place, parameters, wanted, "name", note)
    curves = pd.read_csv(place / "training.csv")
    saes = {}
    rows = []
    for entry in wanted:
        made = entry["about"]["variant"]
        which = made["called"], name, entry["about"]["point"], entry["seed"]
        saes[which] = load_sae(place / entry["name"]).to(lm.device)
        row = _columns(which) | {"l1": made.get("l1"), "tokens": n_tokens}
        row |= last_point(curves.loc[curves.name == entry["name"]])
        weights = file_hash(place / entry["name"] / "sae_weights.safetensors")
        rows.append(row | {"weights": weights})
    return saes, pd.DataFrame(rows).astype({"l1": float})


def _penalties(run, name, lm, text):
    """({variant: the penalty at which its L0 was nearest to sae.k}, the SAEs that were trained for
    it, tables of them).
    """
    from faithful_sae.sae.penalty import excess, next_penalty

    def off(l0):
        return abs(excess(l0, run.sae.k))

    a = run.architectures
    seed = seeds_of(run)[0]
    tried: dict[str, dict[float, float]] = {variant: {} for variant in penalised(run)}
    saes = {}
    tables = []
    for i in range(1, a.searches + 1):
        trying = {}
        for variant, found in tried.items():
            if not any(off(l0) <= math.log(1 + a.within) for l0 in found.values()):
                begin = a.variants[variant].l1
                trying[variant] = next_penalty(found, run.sae.k) if found else begin
        if not trying:
            break
        entries = [_entry(run, v, run.sae.k, seed, l1, f"search {i}") for v, l1 in trying.items()]
        place = folder(run, name).with_name(f"search{i}")
        made, table = _trained(run, name, lm, text, place, entries)
        saes |= made
        tables.append(table)
        for row in table.to_dict("records"):
            tried[row["variant"]][row["l1"]] = row["l0"]
    best = {v: min(found, key=lambda l1: off(found[l1])) for v, found in tried.items()}
    return best, saes, tables


def train_elsewhere(run: Run) -> pd.DataFrame:
    """Train (or reuse) SAEs of `sae` at the other place of the block, on the first corpus; writes
    and returns the rows `variant_hook`: every pair of seeds, as rows `variant_sfr`, and of the two
    the smaller share of the variance that is explained at the end of the training. None without
    such a place.
    """
    from faithful_sae.metrics.sfr import match_seeds
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.model import open_model

    rows = []
    if hook := run.architectures.hook:
        at = run.changed(hook=hook)
        lm = open_model(at)
        name = run.architectures.corpora[0]
        wanted = [_entry(at, own_variant(run), run.sae.k, seed) for seed in seeds_of(run)]
        text = corpus(at, name, lm)
        saes, summary = _trained(at, name, lm, text, elsewhere(run), wanted)
        left = summary.set_index("seed").fvu
        found = match_seeds({which[-1]: sae for which, sae in saes.items()})
        rows = [
            {"hook": hook, "corpus": name, "seed_a": a, "seed_b": b}
            | _shared(run, *matched)
            | {"explained": 1 - max(left[a], left[b])}
            for (a, b), matched in found.items()
        ]
    columns = ["hook", "corpus", "seed_a", "seed_b", "sfr", "sfr_encoder_decoder"]
    table = pd.DataFrame(rows, columns=[*columns, "mean_cosine", "explained"])
    write_rows(run, "variant_hook", table)
    return table


def measure_variants(run: Run, saes: dict[tuple, Any], lm: Any) -> dict[str, pd.DataFrame]:
    """Measure the SAEs of train_variants; writes and returns the rows

    variant_sfr            every pair of seeds: as rows `sfr` of 03, and whether the variant couples
                           them in training: then what they share was asked of them
    variant_measures       every SAE: its L0 on held-out text of its corpus, what it leaves
                           unexplained of the median token and of all but one in a hundred, as a
                           share of the mean squared distance of tokens from their mean; FFR, dead
                           latents, duplicates, as shares and percent as in 04 and 13
    variant_fidelity       every SAE on both corpora: as rows `fidelity` of 05, without BOS
    variant_fidelity_rows  the same, summed over each token row
    variant_firing         how many latents fire on which share of the training's last tokens
    """
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.metrics.geometry import geometry
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.s03_sfr import heldout_activations
    from faithful_sae.stages.s05_fidelity import as_rows

    a = run.architectures
    fidelity = []
    by_row = []
    on_tokens = {}
    for name in a.corpora:
        rows = corpus(run, name, lm).heldout[: a.rows]
        title = f"fidelity on {name}"
        batch_rows = run.fidelity.batch_rows
        measured, sums = fidelity_of_all(
            saes, lm, rows, batch_rows, (False,), title, run.sae.max_norm
        )
        where = {
            mode: _columns(mode[0], "trained_on") | {"evaluated_on": name} for mode in measured
        }
        made = as_rows(measured, sums, where)
        fidelity += made[0]
        by_row += made[1]
        x = heldout_activations(run, name, lm, run.sfr.tokens)
        own = {which: sae for which, sae in saes.items() if which[1] == name}
        on_tokens |= {which: _on_tokens(sae, x) for which, sae in own.items()}
    fake = _fake(run, saes, lm)
    measures = []
    for which, sae in saes.items():
        record, _ = geometry(sae.W_dec.cpu(), run.geometry.duplicate, run.geometry.seed)
        dead = (sae.firing <= run.sfr.dead_below).double().mean().item()
        measures.append(
            _columns(which)
            | on_tokens[which]
            | {"ffr": fake[which], "dead": dead, "duplicates": record.duplicates}
        )
    tables = {
        "variant_sfr": _pairs(run, saes),
        "variant_measures": pd.DataFrame(measures),
        "variant_fidelity": pd.DataFrame(fidelity),
        "variant_fidelity_rows": pd.concat(by_row, ignore_index=True),
        "variant_firing": _spectra(run, saes),
    }
    for name, table in tables.items():
        write_rows(run, name, table)
    return tables


def planted_ladder(run: Run) -> pd.DataFrame:
    """Every variant, with its settings of the study, on worlds whose features are known, unless
    that was done before; writes and returns the rows `variant_planted`, as metrics.planted.ladder.
    Not those whose loss needs a language model: no world has one.
    """
    from faithful_sae.metrics.planted import ladder
    from faithful_sae.stages.training import variant_of

    a = run.architectures
    seeds = seeds_of(run)
    sections = {name: variant for name, variant in a.variants.items() if not in_context(variant)}
    parameters = {
        "variants": {
            name: plain(section) | {"k": planted_k(section)} for name, section in sections.items()
        },
        "seeds": seeds,
        "d_sae": PLANTED_LATENTS,
        "tokens": a.planted,
        "recipe": run.sae.recipe,
    }
    made = Fingerprint(parameters, {}, ("metrics/planted", "sae/train"))
    place = run.artifacts / "architectures" / "planted"
    if not is_current(place, made.key):
        variants = {
            name: variant_of(run.sae.changed(variant=section), planted_k(section))
            for name, section in sections.items()
        }
        with atomic_path(place) as tmp:
            tmp.mkdir(parents=True)
            size = (PLANTED_LATENTS, a.planted, run.sae.recipe)
            write_csv(tmp / "ladder.csv", ladder(variants, seeds, *size))
            seal(tmp, made.key, made.record())
    table = read_csv(place / "ladder.csv", ("variant", "rung"))
    write_rows(run, "variant_planted", table)
    return table


def _columns(which, corpus="corpus"):
    names = ("variant", corpus, "point", "seed")
    return dict(zip(names, which, strict=True))


def _on_tokens(sae, x):
    """Of tokens x [N, D], as the SAE is in use: active latents per token, and quantiles of
    |x - x_hat|^2 / s^2.
    """
    import torch

    from faithful_sae.metrics.sfr import TOKENS_AT_ONCE
    from faithful_sae.sae.variants.base import spread

    active = 0
    errors = []
    for part in x.split(TOKENS_AT_ONCE):
        values, indices = sae.encode_topk(part)
        active += int((values > 0).sum())
        errors.append((sae.decode_topk(values, indices) - part).square().sum(-1))
    unexplained = torch.cat(errors) / spread(x).square()
    median, tail = unexplained.quantile(unexplained.new_tensor([0.5, 0.99])).tolist()
    return {"l0": active / len(x), "error_median": median, "error_p99": tail}


def _fake(run, saes, lm):
    """{SAE: FFR in percent}, on random tokens of all ids."""
    from faithful_sae.metrics.ffr import fake_ratio, firing_frequency

    f = run.ffr
    options = (list(saes.values()), lm, f.tokens, run.sequence_length, f.seed, (f.activation,))
    found = firing_frequency(*options)
    return {
        which: fake_ratio(frequency, f.frequency)
        for which, (frequency,) in zip(saes, found, strict=True)
    }


def _at_one_l0(run, saes):
    """{(variant, corpus): {seed: SAE}} of those that are compared."""
    groups = {}
    for (variant, name, point, seed), sae in saes.items():
        if point == point_at(run.sae.k):
            groups.setdefault((variant, name), {})[seed] = sae
    return groups


def _pairs(run, saes):
    from faithful_sae.metrics.sfr import match_seeds

    rows = []
    for (variant, name), group in _at_one_l0(run, saes).items():
        # of the SAEs that each is coupled with
        coupled = group_of(run.architectures.variants[variant])
        number = {seed: i // coupled for i, seed in enumerate(seeds_of(run))}
        for (a, b), (decoder, encoder) in match_seeds(group).items():
            rows.append(
                {
                    "variant": variant,
                    "corpus": name,
                    "seed_a": a,
                    "seed_b": b,
                    "coupled": number[a] == number[b],
                    **_shared(run, decoder, encoder),
                }
            )
    columns = ["variant", "corpus", "seed_a", "seed_b", "coupled"]
    columns += ["sfr", "sfr_encoder_decoder", "mean_cosine"]
    return pd.DataFrame(rows, columns=columns)


def _shared(run, decoder, encoder):
    """What two SAEs share, of their matchings."""
    from faithful_sae.metrics.sfr import shared

    threshold = run.sfr.threshold
    return {
        "sfr": shared(decoder, None, threshold).mean(),
        "sfr_encoder_decoder": shared(decoder, encoder, threshold).mean(),
        "mean_cosine": decoder.cosine.mean(),
    }


def _spectra(run, saes):
    """A histogram per variant and corpus, mean over seeds; latents that never fired apart."""
    import numpy as np

    edges = np.linspace(-5, 0, 26)
    parts = []
    for (variant, name), group in _at_one_l0(run, saes).items():
        firing = np.concatenate([sae.firing.cpu().numpy() for sae in group.values()])
        never = float((firing == 0).mean())
        some = np.log10(firing[firing > 0]).clip(edges[0], edges[-1])
        share = np.histogram(some, edges)[0] / len(firing)
        which = {"variant": variant, "corpus": name, "never": never}
        parts.append(pd.DataFrame({**which, "low": edges[:-1], "high": edges[1:], "share": share}))
    return pd.concat(parts, ignore_index=True)


STAGE = ArchitectureStudy()
