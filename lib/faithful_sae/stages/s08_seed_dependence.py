"""08: the SAEs of one corpus, which differ in their seed, and all pairs of them compared (Paulo and
Belrose 2025).

Notebook 02 has trained those that are as `sae` says. Those with one thing changed are trained here.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.files import file_hash
from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.keys import settings
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import Ints, Model, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, Stage
from faithful_sae.stages.budget import (
    budget,
    context_bytes,
    group_bytes,
    kept_bytes,
    reading_bytes,
    saving_bytes,
    tokens_read,
)
from faithful_sae.stages.s02_train_sae import TRAINED

THRESHOLDS = np.linspace(0, 1, 51).round(2)


class SeedDependence(Section):
    """The SAEs of one corpus, one for each of sae.seeds, then with one thing changed at a time.

    After Paulo and Belrose (2025), who have nine seeds.
    """

    corpus: str = key("one of sae.train_on")
    sweep_seeds: int = key("the first so many of sae.seeds are trained at every swept value", 3)
    d_sae: Ints = key("latents, swept", ())
    k: Ints = key("active latents, swept", ())
    tokens: Ints = key("training tokens, swept", (), unit="tokens")
    layers: Ints = key("hooks, swept", ())

    def check(self, run: Run, need: Need) -> None:
        s = run.sae
        known = ", ".join(s.train_on)
        why = f"= {self.corpus!r} is not in sae.train_on ({known})"
        need(self.corpus in s.train_on, "seed_dependence.corpus", why)
        swept = self.d_sae or self.k or self.tokens or self.layers
        why = (
            f"= {self.corpus!r} is in sae.published: the swept SAEs are trained here, and would be "
            "compared with those of others; sweep nothing, or name another corpus"
        )
        need(not swept or self.corpus not in run.published, "seed_dependence.corpus", why)
        why = "compares the seeds of sae.seeds, which holds one: add another, or write null"
        if need(len(s.seeds) != 1, "seed_dependence", why):
            most = len(s.seeds)
            why = f"= {self.sweep_seeds} must lie between 2 and the number of sae.seeds, {most}"
            need(2 <= self.sweep_seeds <= most, "seed_dependence.sweep_seeds", why)
        self._check_values(
            need, "d_sae", s.k, math.inf, f"must be at least sae.k = {s.k}: k latents are active"
        )
        why = f"must lie between 1 and sae.d_sae = {s.d_sae}: at most every latent can be active"
        self._check_values(need, "k", 1, s.d_sae, why)
        for d_sae, k in [*((d_sae, s.k) for d_sae in self.d_sae), *((s.d_sae, k) for k in self.k)]:
            problem = s.settings(k).problem(d_sae)
            need(not problem, "seed_dependence", f"sweeps what sae.variant cannot be: {problem}")
        why = f"sweeps sae.k, which {s.variant.name} (sae.variant) does not have: leave it empty"
        need(not self.k or hasattr(s.settings(s.k), "k"), "seed_dependence.k", why)
        why = f"must be at least sae.batch_tokens = {s.batch_tokens}"
        self._check_values(need, "tokens", s.batch_tokens, math.inf, why)
        self._check_values(need, "layers", 0, math.inf, "must be 0 or more")

    def _check_values(self, need, name, low, high, why):
        values = getattr(self, name)
        at = f"seed_dependence.{name}"
        need(len(set(values)) == len(values), at, "names a value twice")
        for value in values:
            need(low <= value <= high, at, f"holds {value}, which {why}")

    def check_model(self, run: Run, model: Model, need: Need) -> None:
        if self.layers:
            model.has_block(need, "seed_dependence.layers", max(self.layers))


# what the SAEs of a layer that are trained here depend on beside which these are
STUDIED = (*TRAINED, "-sae.seeds", "-sae.d_sae", "-sae.k", "-sae.tokens")


# rows of notebook 12


class SeedStudy(Stage):
    sections = {"seed_dependence": SeedDependence}
    optional = ("seed_dependence",)
    rows = (
        "seed_saes",
        "seed_pairs",
        "seed_latents",
        "seed_sharing",
        "seed_who",
        "seed_modes",
        "seed_curve",
        "seed_fits",
        "seed_extrapolated",
        "seed_estimates",
        "seed_threshold",
    )
    reads = ("saes",)
    parameters = (
        *MODEL,
        *ROWS_OF_TEXT,
        # it has one corpus, whose published SAEs are 02's
        *TRAINED,
        "sfr.threshold",
    )
    hours = "train"
    lower = "sae.buffer_tokens or seed_dependence.sweep_seeds"

    def corpora(self, run: Run) -> tuple[str, ...]:
        return (run.seed_dependence.corpus,) if run.seed_dependence else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "seed_saes.csv"
        for layer in study(run):
            folder = run.artifacts / "seed_saes" / f"layer{layer}"
            yield Artefact(folder, settings(run.changed(layer=layer), STUDIED), rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.matching import matching_bytes
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_bytes
        from faithful_sae.sae.variants import VARIANTS

        s = run.sae
        kind = VARIANTS[s.variant.name]
        d = run.seed_dependence
        sizes = _sizes(run)
        training = max(
            (
                training_bytes(
                    shape.d_model,
                    d_saes,
                    [kind] * len(d_saes),
                    s.batch_tokens,
                    s.buffer_tokens,
                )
                for d_saes in sizes
            ),
            default=0,
        )
        saes = [sum(sae_bytes(shape.d_model, d_sae) for d_sae in d_saes) for d_saes in sizes]
        loaded = len(s.seeds) * sae_bytes(shape.d_model, s.d_sae)
        matching = matching_bytes(shape.d_model, max(s.d_sae, *d.d_sae, 0), len(s.seeds))
        models = min(len(sizes), 2)  # one is loaded before the last is let go
        training += context_bytes(run, shape, [run.sae.variant])
        device = models * weights(shape) + group_bytes(run, shape) + training
        saved = saving_bytes(run, 3 * max(saes, default=0))
        host = reading_bytes(run) + saved + loaded + sum(saes) + matching
        return Memory(device if sizes else 0, host, weights=bool(sizes))

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_disk
        from faithful_sae.sae.variants import VARIANTS

        sizes = _sizes(run)
        kind = VARIANTS[run.sae.variant.name]
        done = [sum(sae_bytes(shape.d_model, d_sae) for d_sae in d_saes) for d_saes in sizes]
        training = max(
            (training_disk(shape.d_model, d_saes, [kind] * len(d_saes)) for d_saes in sizes),
            default=0,
        )
        kept = len(sizes) * kept_bytes(run, shape)
        return sum(done) + kept + training - max(done, default=0)

    def tokens(self, run: Run) -> int:
        budgets = [max(entry["tokens"] for entry in wanted) for wanted in study(run).values()]
        return sum(tokens_read(run, most) for most in budgets)

    def seconds(self, run: Run, rates: Rates) -> float:
        """As 02, layer by layer; the time to a layer is the share of the blocks before it."""
        total = 0.0
        for layer, wanted in study(run).items():
            most = max(entry["tokens"] for entry in wanted)
            share = (layer + 1) / (run.layer + 1)
            total += tokens_read(run, most) * rates.read_token() * share
            for entry in wanted:
                steps = math.ceil(entry["tokens"] / run.sae.batch_tokens)
                total += steps * rates.sae_step(entry["d_sae"], entry["k"], entry["tokens"])
        return total


def study(run: Run) -> dict[int, list[dict[str, Any]]]:
    """{layer: SAEs as swept_saes has them}, if the corpus has corpus_tokens; the run's own layer
    first, and none where nothing is trained.
    """
    layers = dict.fromkeys((run.layer, *run.seed_dependence.layers))
    found = {layer: swept_saes(run, layer, budget(run, longest(run, layer))) for layer in layers}
    return {layer: wanted for layer, wanted in found.items() if wanted}


def _sizes(run):
    """Per layer, d_sae of each SAE that is trained."""
    return [[entry["d_sae"] for entry in wanted] for wanted in study(run).values()]


def longest(run: Run, layer: int) -> int:
    """Tokens of the SAE of a layer that is trained longest, if the corpus allows it."""
    swept = run.seed_dependence.tokens if layer == run.layer else ()
    return max(run.sae.tokens, *swept, 0)


def swept_saes(run: Run, layer: int, cap: int) -> list[dict[str, Any]]:
    """The SAEs of one layer that are trained for the study, as train_stream takes them: some seeds
    of `sae`, at another layer or with one number changed.

    Args:
        cap: tokens that the corpus and sae.max_epochs allow. Budgets beyond it are cut to it, and
            are one SAE then, not several.
    """
    d = run.seed_dependence
    plain = {name: getattr(run.sae, name) for name in ("d_sae", "k", "tokens")}
    plain |= {"tokens": min(plain["tokens"], cap)}
    groups = [plain]
    if layer == run.layer:
        groups = [plain | {name: value} for name in plain for value in getattr(d, name)]
    found = {}
    for sizes in groups:
        sizes = sizes | {"tokens": min(sizes["tokens"], cap)}
        # which 02 has trained
        if layer == run.layer and sizes == plain:
            continue
        for seed in run.sae.seeds[: d.sweep_seeds]:
            name = "_".join(f"{key}{value}" for key, value in sizes.items()) + f"_seed{seed}"
            found[name] = {"name": name, **sizes, "seed": seed}
    return list(found.values())


def train_seeds(run: Run) -> tuple[dict[tuple, Any], pd.DataFrame]:
    """Load the SAEs that 02 has trained, and train (or reuse) the others of the study, those of a
    layer from one stream of activations; writes rows `seed_saes`.

    Returns:
        (saes, summary): {(layer, d_sae, k, tokens, seed): TopKSAE} and one row per SAE; those of 02
        come first.
    """
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.model import open_model
    from faithful_sae.stages.saes import load_saes
    from faithful_sae.stages.training import last_point, passes_note, token_budget, trained_stream

    d = run.seed_dependence
    plain = {"layer": run.layer, "d_sae": run.sae.d_sae, "k": run.sae.k}
    saes = {}
    records = []
    rows = read_rows(run, "saes")
    rows = rows.loc[rows.corpus == d.corpus].set_index("seed")
    for (_, seed), sae in load_saes(run, corpora=[d.corpus]).items():
        made = rows.loc[seed]
        # of a published SAE nobody says it
        tokens = run.sae.tokens if pd.isna(made.tokens) else int(made.tokens)
        sizes = plain | {"tokens": tokens, "seed": seed}
        saes[tuple(sizes.values())] = sae
        records.append(sizes | made[["fvu", "l0", "dead", "weights"]].to_dict())
    for layer in study(run):
        at = run.changed(layer=layer)
        lm = open_model(at)
        text = corpus(at, d.corpus, lm)
        most = longest(run, layer)
        cap, available = token_budget(run, text, lm, most)
        note = passes_note(run, d.corpus, most, cap, available)
        wanted = swept_saes(run, layer, cap)
        folder = run.artifacts / "seed_saes" / f"layer{layer}"
        parameters = settings(at, STUDIED)
        found = trained_stream(at, d.corpus, lm, text, folder, parameters, wanted, note)
        curves = pd.read_csv(folder / "training.csv")
        for entry in wanted:
            sizes = {"layer": layer} | {key: entry[key] for key in ("d_sae", "k", "tokens", "seed")}
            saes[tuple(sizes.values())] = found[entry["name"]]
            end = last_point(curves.loc[curves.name == entry["name"]])
            weights = {"weights": file_hash(folder / entry["name"] / "sae_weights.safetensors")}
            records.append(sizes | end | weights)
    summary = pd.DataFrame(records)
    write_rows(run, "seed_saes", summary)
    return saes, summary


def study_seeds(run: Run, saes: dict[tuple, Any]) -> dict[str, pd.DataFrame]:
    """Compare the SAEs of train_seeds; writes and returns the rows

    seed_pairs         every pair of seeds, and at every swept value (column `sweep`) those there
    seed_latents       every latent of the first seed, matched with the second
    seed_sharing       every latent of every seed, matched with all others
    seed_who           per seed, whether latents that fire often or seldom are shared by others
    seed_modes         the test of one mode on the matched cosines of every pair
    seed_curve         share of latents found in the base SAE alone, per base and number of seeds
    seed_fits          three laws of that curve
    seed_extrapolated  the curve's mean and the laws, with intervals over seeds
    seed_estimates     what all seeds say together, each with its error over seeds
    seed_threshold     share of shared latents at every threshold, mean over pairs of seeds
    """
    from faithful_sae.metrics import seed_dependence
    from faithful_sae.metrics.sfr import match_seeds

    # the first SAE is as `sae` says
    threshold = run.sfr.threshold
    plain = next(iter(saes))[:-1]
    base = {seed: sae for (*sizes, seed), sae in saes.items() if tuple(sizes) == plain}
    first, second, *_ = base
    matchings = match_seeds(base)
    tables, pairs = _compared(base, matchings, threshold, sweep="seeds", value=len(base))
    for sweep, value, group in _swept(saes, plain, run.seed_dependence.sweep_seeds):
        if all(base.get(seed) is sae for seed, sae in group.items()):
            # matched before: they are among those of every sweep
            found = {pair: matchings[pair] for pair in itertools.combinations(group, 2)}
        else:
            found = match_seeds(group)
        pairs += _compared(group, found, threshold, sweep=sweep, value=value)[1]

    firing = {seed: sae.firing.numpy() for seed, sae in base.items()}
    many, estimates = seed_dependence.many_seeds(matchings, firing, threshold)
    modes = []
    cuts = []
    for (a, b), table in tables.items():
        pair = {"seed_a": a, "seed_b": b}
        cosines = (table.decoder_cosine + table.encoder_cosine) / 2
        found = seed_dependence.modes_test(cosines)
        modes.append(pair | dict(zip(("modes", "p"), found, strict=True)))
        cut = seed_dependence.thresholds(table, *matchings[a, b], THRESHOLDS)
        cuts.append(cut.melt("threshold", var_name="definition", value_name="share").assign(**pair))
    rows = {
        "seed_pairs": pd.DataFrame(pairs),
        "seed_latents": tables[first, second],
        "seed_sharing": many["sharing"],
        "seed_who": many["who"],
        "seed_modes": pd.DataFrame(modes),
        "seed_curve": many["curve"],
        "seed_fits": many["fits"],
        "seed_extrapolated": many["extrapolated"],
        "seed_estimates": pd.DataFrame(
            {"number": name, "value": e.value, "seeds": e.seeds, "error": e.seed_error}
            for name, e in estimates.items()
        ),
        "seed_threshold": seed_dependence.means_over_seeds(
            pd.concat(cuts), ["definition", "threshold"], ["share"]
        ),
    }
    for name, table in rows.items():
        write_rows(run, name, table)
    return rows


def _swept(saes: dict[tuple, Any], plain: tuple, n_seeds: int) -> Iterator[tuple]:
    """(what is changed, its value, {seed: SAE}) for every sweep that has another value than the
    plain SAEs', theirs included.
    """
    for column, sweep in enumerate(("layer", "d_sae", "k", "tokens")):
        others = [i for i in range(len(plain)) if i != column]
        same = [name for name in saes if all(name[i] == plain[i] for i in others)]
        values = sorted({name[column] for name in same})
        for value in values if len(values) > 1 else ():
            group = [name for name in same if name[column] == value][:n_seeds]
            yield sweep, value, {name[-1]: saes[name] for name in group}


def _compared(
    group: dict[int, Any],
    matchings: dict[tuple, tuple[Any, Any]],
    threshold: float,
    **swept: Any,
) -> tuple[dict[tuple, pd.DataFrame], list[dict[str, Any]]]:
    """({pair: its latents}, a row of `seed_pairs` for each pair) of SAEs by seed."""
    from faithful_sae.metrics.seed_dependence import compare_latents, compare_pair

    tables = {}
    rows = []
    for pair, found in matchings.items():
        a, b = (group[seed] for seed in pair)
        tables[pair] = compare_latents(a, b, *found)
        alive = a.firing.gt(0).float().mean() + b.firing.gt(0).float().mean()
        which = {**swept, "seed_a": pair[0], "seed_b": pair[1], "d_sae": a.d_sae}
        measured = compare_pair(tables[pair], *found, threshold)
        rows.append({**which, **measured, "dead": 1 - alive.item() / 2})
    return tables, rows


STAGE = SeedStudy()
