"""11: one SAE for several layers that are alike, beside one SAE for each."""

import copy
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.keys import settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Count, Ints, Model, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, Stage
from faithful_sae.stages.budget import (
    budget,
    group_bytes,
    kept_bytes,
    reading_bytes,
    saving_bytes,
    scoring_bytes,
    tokens_read,
)
from faithful_sae.stages.s02_train_sae import TRAINED, check_corpora, check_seeds


class LayerGroups(Section):
    """One SAE for each group of neighbouring layers whose residual streams are alike, and one for
    each layer, trained alike on as many tokens. There are as few groups as `within` allows.
    """

    corpus: str = key("of sae.train_on: whose text they are trained on")
    layers: Ints | None = key("blocks whose input is looked at, rising; null: all", None)
    within: float = key(
        "AMAD at most: the largest angle between two layers of a group, as a share of half a turn, "
        "mean over groups",
        0.2,
        gt=0,
        lt=1,
    )
    seeds: Ints | None = key("those of sae.seeds that are trained; null: all", None)
    tokens: Count = key("activations each SAE is trained on", unit="tokens")
    rows: Count = key("held-out rows for distances, explained variance and CE", 64)

    def check(self, run: Run, need: Need) -> None:
        s = run.sae
        check_seeds(run, need, "layer_groups.seeds", self.seeds)
        check_corpora(run, need, "layer_groups.corpus", (self.corpus,))
        known = ", ".join(s.train_on)
        why = f"= {self.corpus!r} is not in sae.train_on ({known})"
        need(self.corpus in s.train_on, "layer_groups.corpus", why)
        layers = self.layers
        why = f"= {list(layers or ())} must name blocks, rising"
        rising = layers is None or (
            len(layers) > 0 and list(layers) == sorted(set(layers)) and layers[0] >= 0
        )
        need(rising, "layer_groups.layers", why)
        why = f"= {run.hook}: layers are grouped by their residual streams: it must be residual"
        need(run.hook == "residual", "hook", why)
        why = f"= {self.tokens} must be at least sae.batch_tokens = {s.batch_tokens}"
        need(self.tokens >= s.batch_tokens, "layer_groups.tokens", why)
        why = (
            f"= {s.variant.name}: layers are compared at one L0, which one SAE has at several "
            f"layers only where each token has k latents: write {' or '.join(OF_ANY_SCALE)}"
        )
        need(s.variant.name in OF_ANY_SCALE, "sae.variant", why)

    def check_model(self, run: Run, model: Model, need: Need) -> None:
        if self.layers:
            model.has_block(need, "layer_groups.layers", max(self.layers))


# what the SAEs depend on beside the layer and what is drawn
STUDIED = (*TRAINED, "-sae.seeds", "-sae.tokens")
KINDS = ("own", "group")
# variants with k latents of each token, which are as much larger as the token is
OF_ANY_SCALE = ("topk", "tilted")
# training rows on which a layer's spread is measured
SCALED_ROWS = 64


class LayerStudy(Stage):
    sections = {"layer_groups": LayerGroups}
    optional = ("layer_groups",)
    study = True
    rows = ("layer_distances", "layer_sfr", "layer_fidelity", "layer_fidelity_rows")
    # for the model's own text, which 01 writes
    reads = ("dataset",)
    parameters = (*MODEL, *ROWS_OF_TEXT, *TRAINED, "sfr.threshold", "fidelity.batch_rows")
    hours = "train"
    lower = "sae.buffer_tokens or layer_groups.seeds"

    def corpora(self, run: Run) -> tuple[str, ...]:
        return (run.layer_groups.corpus,) if run.layer_groups else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "layer_sfr.csv"
        # which groups there are is known when distances are
        made = settings(run, STUDIED)
        del made["layer"]
        for place in sorted(folder(run, "own", (0,)).parent.glob("*-*")):
            yield Artefact(place, made, rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_bytes

        s = run.sae
        n = len(seeds_of(run))
        one = sae_bytes(shape.d_model, s.d_sae)
        training = sae_training_bytes(run, shape, n)
        layers = len(layers_of(run, shape.layers))
        # of all layers of a batch: one by one, then in one array, and what is taken of it
        streams = 3 * layers * 4 * s.lm_batch_rows * run.sequence_length * shape.d_model
        work = max(group_bytes(run, shape) + streams + training, scoring_bytes(run, shape))
        saes = 2 * layers * n * one
        return Memory(
            weights(shape) + saes + work, reading_bytes(run) + saving_bytes(run, 3 * n * one)
        )

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_disk

        n = len(seeds_of(run))
        done = n * sae_bytes(shape.d_model, run.sae.d_sae)
        training = sae_training_disk(run, shape, n)
        # no more groups than half of the layers hold several
        most = math.ceil(1.5 * len(layers_of(run, shape.layers)))
        kept = len(layers_of(run, shape.layers)) * kept_bytes(run, shape)
        return (most - 1) * done + training + kept

    def tokens(self, run: Run) -> int:
        """Where all layers are looked at, as if there were none behind the run's own."""
        return sum(_read(run, layers_of(run, run.layer + 1)).values()) + _measured(run)

    def seconds(self, run: Run, rates: Rates) -> float:
        """Reading to each layer, and a step of every SAE for each batch; the time to a layer is the
        share of the blocks before it.
        """
        layers = layers_of(run, rates.lm.shape.layers)
        blocks = sum((layer + 1) * tokens for layer, tokens in _read(run, layers).items())
        blocks += _measured(run) * (layers[-1] + 1)
        n_tokens = budget(run, run.layer_groups.tokens)
        steps = math.ceil(n_tokens / run.sae.batch_tokens) * len(seeds_of(run))
        saes = math.ceil(1.5 * len(layers))
        step = rates.sae_step(run.sae.d_sae, run.sae.k, n_tokens)
        return blocks * rates.read_token() / (run.layer + 1) + saes * steps * step


def _read(run, layers):
    """{layer: tokens read up to it}: for its own SAEs, and as if every second one were the last of
    a group.
    """
    n_tokens = run.layer_groups.tokens
    grouped = dict.fromkeys(layers[1::2], budget(run, n_tokens))
    return {layer: tokens_read(run, n_tokens) + grouped.get(layer, 0) for layer in layers}


def _measured(run):
    """Tokens read to measure distances, spreads and fidelity."""
    return (2 * run.layer_groups.rows + SCALED_ROWS) * run.sequence_length


def layers_of(run: Run, n_layers: int) -> tuple[int, ...]:
    """The blocks whose input is looked at, of a model with so many."""
    return run.layer_groups.layers or tuple(range(n_layers))


def seeds_of(run: Run) -> tuple[int, ...]:
    """Those that are trained."""
    return run.layer_groups.seeds or run.sae.seeds


def folder(run: Run, kind: str, layers: tuple[int, ...]) -> Path:
    """The artefact with the SAEs of one layer, or of a group."""
    return run.artifacts / "layer_groups" / f"{kind}-{called(layers)}"


def called(layers: tuple[int, ...]) -> str:
    """A group in tables: its first and last layer."""
    return "-".join(str(layer) for layer in dict.fromkeys((layers[0], layers[-1])))


def group_layers(run: Run, lm: Any) -> tuple[pd.DataFrame, list[tuple[int, ...]]]:
    """How alike layers are on held-out text of the corpus, massive activations left out; writes
    rows `layer_distances`.

    Returns:
        (rows, groups): a row for every two layers, and the layers of each group.
    """
    from faithful_sae.metrics.layers import angular_distances, groups_of
    from faithful_sae.sae.layers import Streams
    from faithful_sae.stages.corpus import corpus

    g = run.layer_groups
    layers = layers_of(run, lm.shape.layers)
    rows = corpus(run, g.corpus, lm).heldout[: g.rows]
    batch = run.sae.lm_batch_rows
    distances = angular_distances(Streams(lm, rows, batch, layers, run.sae.max_norm))
    table = pd.DataFrame(
        [
            {"layer_a": a, "layer_b": b, "distance": distances[i, j]}
            for i, a in enumerate(layers)
            for j, b in enumerate(layers)
        ]
    )
    write_rows(run, "layer_distances", table)
    groups = groups_of(distances, g.within)
    return table, [tuple(layers[i] for i in group) for group in groups]


def train_layers(run: Run, lm: Any, groups: list[tuple[int, ...]]) -> dict[tuple, Any]:
    """Train (or reuse) one SAE per seed for every layer, and for every group of several.

    Returns:
        {(kind, layer, seed): SAE} as it is used at the layer. Of a layer alone both kinds are one.
    """
    from faithful_sae.sae.layers import LayerGroup, Streams, spreads
    from faithful_sae.stages.corpus import corpus

    text = corpus(run, run.layer_groups.corpus, lm)
    saes: dict[tuple, Any] = {}
    for group in groups:
        for layer in group:
            at = run.changed(layer=layer)
            found = _trained(at, dataclasses.replace(lm, layer=layer), text, "own", (layer,))
            saes |= {("own", layer, seed): sae for seed, sae in found.items()}
            if len(group) == 1:
                saes |= {("group", layer, seed): sae for seed, sae in found.items()}
        if len(group) > 1:
            rows = text.train[:SCALED_ROWS]
            scales = spreads(Streams(lm, rows, run.sae.lm_batch_rows, group, run.sae.max_norm))
            mixed = LayerGroup(lm, group, scales, run.sae.data_seed)
            # what is kept on disk is one layer's
            at = run.changed(layer=group[0], sae=run.sae.changed(cache_activations=False))
            about = {"layers": list(group), "scales": scales}
            found = _trained(at, mixed, text, "group", group, about)
            for layer, scale in zip(group, scales, strict=True):
                for seed, sae in found.items():
                    saes["group", layer, seed] = _in_units_of(sae, scale, layer)
    return saes


def _trained(run, lm, text, kind, layers, about=None):
    """{seed: SAE} of one stream."""
    from faithful_sae.stages.training import passes_note, token_budget, trained_stream

    g = run.layer_groups
    n_tokens, available = token_budget(run, text, lm, g.tokens)
    wanted = [
        {
            "name": f"seed{seed}",
            "d_sae": run.sae.d_sae,
            "k": run.sae.k,
            "seed": seed,
            "tokens": n_tokens,
            "about": about or {},
        }
        for seed in seeds_of(run)
    ]
    parameters = settings(run, STUDIED)
    if about:
        parameters["code"] = code_hash("sae/layers")
    note = passes_note(run, g.corpus, g.tokens, n_tokens, available)
    place = folder(run, kind, layers)
    found = trained_stream(run, g.corpus, lm, text, place, parameters, wanted, note)
    return {entry["seed"]: found[entry["name"]].to(lm.device) for entry in wanted}


def _in_units_of(sae, scale, layer):
    """The SAE that reconstructs x as the given one does x / scale: with latents as much larger."""
    found = copy.copy(sae)
    found.b_enc = sae.b_enc * scale
    found.b_dec = sae.b_dec * scale
    found.metadata = sae.metadata | {"layer": layer}
    return found


def measure_layers(
    run: Run, lm: Any, groups: list[tuple[int, ...]], saes: dict[tuple, Any]
) -> dict[str, pd.DataFrame]:
    """Measure the SAEs of train_layers; writes and returns the rows

    layer_sfr            every pair of seeds of a layer's SAEs, and of a group's
    layer_fidelity       every SAE at its layer, on held-out text, without BOS: as `fidelity` of 05
    layer_fidelity_rows  the same, summed over each token row
    """
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.metrics.sfr import match_seeds, shared
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.s05_fidelity import as_rows

    g = run.layer_groups
    rows = corpus(run, g.corpus, lm).heldout[: g.rows]
    pairs = []
    fidelity = []
    by_row = []
    for group in groups:
        for layer in group:
            # of a layer alone both kinds are one
            here = {
                (kind, seed): sae
                for (kind, at, seed), sae in saes.items()
                if at == layer and (kind == "own" or len(group) > 1)
            }
            at_layer = dataclasses.replace(lm, layer=layer)
            title = f"fidelity at layer {layer}"
            options = (run.fidelity.batch_rows, (False,), title, run.sae.max_norm)
            measured, sums = fidelity_of_all(here, at_layer, rows, *options)
            where = {
                mode: {"kind": mode[0][0], "layer": layer, "seed": mode[0][1]} for mode in measured
            }
            made = as_rows(measured, sums, where)
            fidelity += made[0]
            by_row += made[1]
            for kind in KINDS:
                own = {seed: sae for (k, seed), sae in here.items() if k == kind}
                for (a, b), (decoder, _) in match_seeds(own).items():
                    which = {"kind": kind, "layer": layer, "group": called(group)}
                    sfr = shared(decoder, None, run.sfr.threshold).mean()
                    pairs.append(which | {"seed_a": a, "seed_b": b, "sfr": sfr})
    columns = ["kind", "layer", "group", "seed_a", "seed_b", "sfr"]
    tables = {
        "layer_sfr": pd.DataFrame(pairs, columns=columns),
        "layer_fidelity": pd.DataFrame(fidelity),
        "layer_fidelity_rows": pd.concat(by_row, ignore_index=True),
    }
    alone = [group[0] for group in groups if len(group) == 1]
    for name, table in tables.items():
        same = table.loc[table.layer.isin(alone)].assign(kind="group")
        tables[name] = pd.concat([table, same], ignore_index=True)
        write_rows(run, name, tables[name])
    return tables


STAGE = LayerStudy()
