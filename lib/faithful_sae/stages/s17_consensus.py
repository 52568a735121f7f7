"""17: SAEs of the features that several seeds agree on, beside single ones with as many latents."""

import itertools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.keys import settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Count, Ints, Names, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import (
    budget,
    group_bytes,
    kept_bytes,
    random_tokens_bytes,
    reading_bytes,
    saving_bytes,
    scoring_bytes,
    tokens_read,
)
from faithful_sae.stages.s02_train_sae import TRAINED, check_corpora, check_seeds
from faithful_sae.stages.s12_evaluation import CODE


class Consensus(Section):
    """SAEs of the features that several seeds agree on, averaged, without further training. Their
    latents are explained on `evaluation.text` with the sizes of that section.
    """

    corpora: Names = key("two of sae.train_on that are compared, the model's own text first")
    share: float = key(
        "of the seeds that find a feature of the consensus, at least; and two of them",
        0.5,
        gt=0,
        le=1,
    )
    seeds: Ints | None = key(
        "those of sae.seeds whose single SAEs stand beside the consensus; null: all", None
    )
    group: int = key("of these that mutual feature regularisation couples", 2, ge=2)
    rows: Count = key("held-out rows of each corpus for explained variance and CE", 64)
    tokens: Count = key(
        "of training rows of evaluation.text, on which latents are explained",
        100_000,
        unit="tokens",
    )

    def check(self, run: Run, need: Need) -> None:
        s = run.sae
        if check_corpora(run, need, "consensus.corpora", self.corpora):
            need(len(self.corpora) == 2, "consensus.corpora", "must name two corpora")
            trained = [name for name in s.train_on if name not in run.published]
            for name in self.corpora:
                why = f"names {name!r}, of which sae.train_on trains no SAEs ({', '.join(trained)})"
                need(name in trained, "consensus.corpora", why)
            own = run.corpora.get(self.corpora[0])
            why = f"has {self.corpora[0]} first, whose text is not the model's own (faithful: self)"
            need(not own or own.faithful == "self", "consensus.corpora", why)
        check_seeds(run, need, "consensus.seeds", self.seeds)
        beside = len(self.seeds or s.seeds)
        why = f"= {self.group} must divide the number of consensus.seeds, {beside}"
        need(beside in (1, beside // self.group * self.group), "consensus.group", why)
        why = f"= {s.variant.name}: latents are averaged as TopK's are: it must be topk"
        need(s.variant.name == "topk", "sae.variant", why)
        if run.evaluation:
            text = run.evaluation.text
            why = f"= {text!r} is one of consensus.corpora, and must be text of neither"
            need(text not in self.corpora, "evaluation.text", why)


class Which(NamedTuple):
    """An SAE that is measured.

    Attributes:
        corpus: it was trained on.
        kind: one of KINDS.
        least: seeds that find its features, or those of the consensus that it has the size of; None
            where that does not matter.
        seed: None of a consensus.
        without: of a consensus, the seed that is left out; None where none is.
    """

    corpus: str
    kind: str
    least: int | None = None
    seed: int | None = None
    without: int | None = None


# what stands beside the consensus: a single SAE trained with as many latents; one cut down to as
# many, those that fire most often or any; one as it is; and one coupled with other seeds
KINDS = ("consensus", "trained", "frequent", "random", "whole", "mutual")
# whose latents are explained
EXPLAINED = ("consensus", "trained")
# {(corpus, seed left out or None): the features of the other seeds, int [G, S]}
Features = dict[tuple[str, int | None], np.ndarray]


class ConsensusStudy(Stage):
    sections = {"consensus": Consensus}
    optional = ("consensus",)
    study = True
    answers = True
    rows = (
        "consensus_found",
        "consensus_saes",
        "consensus_fidelity",
        "consensus_fidelity_rows",
        "consensus_pairs",
    )
    reads = ("saes",)
    parameters = (
        *MODEL,
        *ROWS_OF_TEXT,
        *TRAINED,
        "sfr.threshold",
        "ffr",
        "fidelity.batch_rows",
        "evaluation",
        "-evaluation.judges",
    )
    hours = "train"
    lower = "sae.buffer_tokens or ffr.tokens"
    lower_ram = "consensus.tokens"

    def wanted(self, run: Run) -> bool:
        """One seed has nothing to agree with; latents are explained as `evaluation` says."""
        return super().wanted(run) and len(run.sae.seeds) > 1 and run.evaluation is not None

    def corpora(self, run: Run) -> tuple[str, ...]:
        return (*run.consensus.corpora, run.evaluation.text) if self.wanted(run) else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "consensus_saes.csv"
        for name in run.consensus.corpora:
            yield Artefact(folder(run, name), settings(run, TRAINED), rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_bytes

        s = run.sae
        kinds = _trained_together(run)
        n = len(kinds)
        one = sae_bytes(shape.d_model, s.d_sae)
        training = training_bytes(
            shape.d_model, [s.d_sae] * n, kinds, s.batch_tokens, s.buffer_tokens
        )
        # of no consensus there are more latents than of two SAEs
        saes = _measured(run) * 2 * one
        measuring = max(scoring_bytes(run, shape), random_tokens_bytes(run, shape))
        work = max(group_bytes(run, shape) + training, saes + measuring)
        codes = CODE * (len(s.seeds) + 1) * run.consensus.tokens * s.k
        # directions in float64, twice, while they are put together
        grouping = 4 * 8 * len(s.seeds) * s.d_sae * shape.d_model + 8 * s.d_sae**2
        host = max(reading_bytes(run) + saving_bytes(run, 3 * n * one), codes, grouping)
        return Memory(weights(shape) + work, host)

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_disk

        kinds = _trained_together(run)
        one = sae_bytes(shape.d_model, run.sae.d_sae)
        beside = training_disk(shape.d_model, [run.sae.d_sae] * len(kinds), kinds)
        return 2 * (len(kinds) * one + kept_bytes(run, shape)) + beside

    def tokens(self, run: Run) -> int:
        c = run.consensus
        measured = 2 * len(c.corpora) * c.rows * run.sequence_length
        explained = len(c.corpora) * len(EXPLAINED) * c.tokens
        trained = len(c.corpora) * tokens_read(run, run.sae.tokens)
        return trained + measured + explained + run.ffr.tokens

    def seconds(self, run: Run, rates: Rates) -> float:
        """Reading, a step of every SAE for each batch, a pass for each SAE that is measured, and
        its latents on random tokens.
        """
        s, c = run.sae, run.consensus
        n_tokens = budget(run, s.tokens)
        steps = math.ceil(n_tokens / s.batch_tokens) * len(c.corpora) * len(_trained_together(run))
        passes = _measured(run) * c.rows * run.sequence_length
        encoded = len(c.corpora) * (1 + len(s.seeds) + 5 * len(single_seeds(run))) * run.ffr.tokens
        reading = (self.tokens(run) + passes) * rates.read_token()
        return (
            reading
            + steps * rates.sae_step(s.d_sae, s.k, n_tokens)
            + encoded * (rates.encode_token())
        )


def single_seeds(run: Run) -> tuple[int, ...]:
    """Those whose single SAEs stand beside the consensus, coupled ones in their groups' order."""
    return run.consensus.seeds or run.sae.seeds


def _trained_together(run):
    """The variants of the SAEs that are trained on one corpus."""
    from faithful_sae.sae.variants import VARIANTS

    return [VARIANTS[name] for name in ("topk", "mutual") for _ in single_seeds(run)]


def _measured(run):
    """How many SAEs are, of both corpora: at each number of seeds a consensus of all seeds, one
    without each, and two cut down from each single seed; then three of each.
    """
    n, single = len(run.sae.seeds), len(single_seeds(run))
    return len(run.consensus.corpora) * ((n - 1) * (1 + n + 2 * single) + 3 * single)


def folder(run: Run, corpus: str) -> Path:
    """The artefact with the SAEs of a corpus that are trained to stand beside its consensus."""
    return run.artifacts / "consensus" / corpus


def least_seeds(run: Run) -> int:
    """How many of all seeds find a feature of the consensus."""
    return max(2, math.ceil(run.consensus.share * len(run.sae.seeds)))


def _least_of(run, least, n):
    """How many of n seeds are the share of them that `least` is of all."""
    return max(2, -(-least * n // len(run.sae.seeds)))


def _found_by(features, least):
    return features[(features >= 0).sum(1) >= least]


def find_features(run: Run, saes: SAEs) -> tuple[pd.DataFrame, Features]:
    """The features that seeds of each corpus have in common, all seeds and without each; writes
    rows `consensus_found`: how many of them at least so many seeds find.

    Args:
        saes: those of consensus.corpora.

    Returns:
        (rows, features).
    """
    from faithful_sae.metrics.consensus import common_features

    seeds = run.sae.seeds
    features: Features = {}
    rows = []
    for name, without in itertools.product(run.consensus.corpora, (None, *seeds)):
        kept = [seed for seed in seeds if seed != without]
        found = common_features([saes[name, seed] for seed in kept], run.sfr.threshold)
        features[name, without] = found
        for least in range(2, len(seeds) + 1):
            # of one seed alone there is nothing in common
            if len(kept) > 1:
                n = len(_found_by(found, _least_of(run, least, len(kept))))
                row = {"corpus": name, "least": least, "without": without, "features": n}
                rows.append(row)
    table = pd.DataFrame(rows).astype({"without": "Int64"})
    write_rows(run, "consensus_found", table)
    return table, features


def consensus_saes(run: Run, lm: Any, saes: SAEs, features: Features) -> dict[Which, Any]:
    """Make the consensus of each corpus at every number of seeds, and what stands beside it. SAEs
    with as many latents, and coupled ones, are trained on the same tokens, or reused.

    Raises:
        ValueError: no feature is found by as many seeds as the run says.
    """
    from faithful_sae.metrics.consensus import consensus_sae
    from faithful_sae.metrics.pruning import with_latents

    seeds = run.sae.seeds
    found: dict[Which, Any] = {}
    for name, least in itertools.product(run.consensus.corpora, range(2, len(seeds) + 1)):
        for without in (None, *seeds):
            kept = [saes[name, seed] for seed in seeds if seed != without]
            common = _found_by(features[name, without], _least_of(run, least, len(kept)))
            if len(common) and len(kept) > 1:
                which = Which(name, "consensus", least, without=without)
                found[which] = consensus_sae(kept, common)
        whole = found.get(Which(name, "consensus", least))
        if whole is None or whole.d_sae > run.sae.d_sae:
            continue
        for seed in single_seeds(run):
            sae = saes[name, seed]
            order = {
                "frequent": np.argsort(-sae.firing.cpu().numpy(), kind="stable"),
                "random": np.random.default_rng(seed).permutation(sae.d_sae),
            }
            for kind, latents in order.items():
                found[Which(name, kind, least, seed)] = with_latents(sae, latents[: whole.d_sae])
    least = least_seeds(run)
    for name in run.consensus.corpora:
        consensus = found.get(Which(name, "consensus", least))
        if consensus is None:
            raise ValueError(
                f"{name}: no feature is found by {least} of {len(seeds)} seeds: lower "
                f"consensus.share or sfr.threshold of {run.file}, or raise sae.tokens"
            )
        found |= _trained(run, lm, name, consensus.d_sae)
        found |= {Which(name, "whole", seed=seed): saes[name, seed] for seed in single_seeds(run)}
    return found


def _trained(run, lm, name, n_latents):
    """SAEs with so many latents, and coupled ones as large as the run's."""
    from faithful_sae.sae.sae import load_sae
    from faithful_sae.sae.variants.mutual import Mutual
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.training import passes_note, token_budget, train_stream

    s = run.sae
    text = corpus(run, name, lm)
    n_tokens, available = token_budget(run, text, lm, s.tokens)
    group = run.consensus.group
    kinds: dict[Which, tuple[int, Any, dict]] = {
        Which(name, "trained", least_seeds(run)): (n_latents, min(s.k, n_latents), {}),
        Which(name, "mutual"): (s.d_sae, Mutual(s.k, group=group), {"group": group}),
    }
    wanted = {
        which._replace(seed=seed): {
            "name": f"{which.kind}/seed{seed}",
            "d_sae": d_sae,
            "k": k,
            "tokens": n_tokens,
            "seed": seed,
            "about": {"kind": which.kind} | about,
        }
        for which, (d_sae, k, about) in kinds.items()
        for seed in single_seeds(run)
    }
    shown = [{k: v for k, v in entry.items() if k != "k"} for entry in wanted.values()]
    parameters = settings(run, TRAINED) | {"corpus": name, "saes": shown}
    note = passes_note(run, name, s.tokens, n_tokens, available)
    place = folder(run, name)
    entries = [*wanted.values()]
    train_stream(run, name, lm, text, place, parameters, entries, "name", note)
    return {which: load_sae(place / e["name"]).to(lm.device) for which, e in wanted.items()}


def compared(run: Run, saes: Mapping[Which, Any]) -> dict[Which, Any]:
    """Those with as many latents as the consensus that the run is about, and whole ones."""
    return {which: sae for which, sae in saes.items() if which.least in (None, least_seeds(run))}


def measure_saes(run: Run, lm: Any, saes: dict[Which, Any]) -> dict[str, pd.DataFrame]:
    """Measure the SAEs of consensus_saes; writes and returns the rows

    consensus_saes           every SAE: latents; of those that are `compared` L0 on held-out text of
                             their corpus, FFR in percent, fake latents; of kinds in EXPLAINED the
                             mean detection score of latents that are scored, and how many are
    consensus_fidelity       every SAE on its own corpus, those compared on evaluation.text too,
                             without BOS: as `fidelity` of 05
    consensus_fidelity_rows  the same, summed over each token row, where no seed is left out
    """
    c = run.consensus
    text = run.evaluation.text
    some = compared(run, saes)
    fidelity = []
    by_row = []
    for name in (*c.corpora, text):
        here = some if name == text else {w: sae for w, sae in saes.items() if w.corpus == name}
        records, sums = _fidelity(run, lm, here, name)
        fidelity += records
        by_row += sums
    measures = {which: {**which._asdict(), "latents": sae.d_sae} for which, sae in saes.items()}
    for found in (_activity(run, lm, some), _detection(run, lm, some)):
        for which, numbers in found.items():
            measures[which] |= numbers
    tables = {
        "consensus_saes": pd.DataFrame([*measures.values()]),
        "consensus_fidelity": pd.DataFrame(fidelity),
        "consensus_fidelity_rows": pd.concat(by_row, ignore_index=True),
    }
    whole = dict.fromkeys(("least", "seed", "without"), "Int64")
    for name, table in tables.items():
        tables[name] = table.astype(whole)
        write_rows(run, name, tables[name])
    return tables


def _fidelity(run, lm, saes, name):
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.s05_fidelity import as_rows

    rows = corpus(run, name, lm).heldout[: run.consensus.rows]
    options = (run.fidelity.batch_rows, (False,), f"fidelity on {name}", run.sae.max_norm)
    measured, sums = fidelity_of_all(saes, lm, rows, *options)
    where = {mode: mode[0]._asdict() | {"evaluated_on": name} for mode in measured}
    records, _ = as_rows(measured, sums, where)
    # of others nobody draws rows again
    whole = {mode: record for mode, record in measured.items() if mode[0].without is None}
    return records, as_rows(whole, sums, where)[1]


def _activity(run, lm, saes):
    """{SAE: its L0 on held-out text of its corpus, and what random tokens say}."""
    from faithful_sae.metrics.ffr import fake_ratio, firing_frequency
    from faithful_sae.stages.s03_sfr import heldout_activations

    f = run.ffr
    x = {name: heldout_activations(run, name, lm, run.sfr.tokens) for name in run.consensus.corpora}
    options = (f.tokens, run.sequence_length, f.seed, (f.activation,))
    found = firing_frequency([*saes.values()], lm, *options)
    numbers = {}
    for (which, sae), (frequency,) in zip(saes.items(), found, strict=True):
        values, _ = sae.encode_topk(x[which.corpus])
        numbers[which] = {
            "l0": (values > 0).sum(1).double().mean().item(),
            "ffr": fake_ratio(frequency, f.frequency),
            "fake": int((frequency > f.frequency).sum()),
        }
    return numbers


def _detection(run, lm, saes):
    """{SAE: how well its latents are explained by the offline judge of n-grams}, of EXPLAINED."""
    from faithful_sae.features.interpretation import interpret
    from faithful_sae.features.judges import NgramJudge
    from faithful_sae.features.vocabulary import display_strings
    from faithful_sae.features.windows import windows_of
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.evaluating import explained

    e = run.evaluation
    judge = NgramJudge(display_strings(lm.tokenizer))
    rows = corpus(run, e.text, lm).train[: run.consensus.tokens // run.sequence_length]
    found = {}
    # some at a time: where latents fire takes room
    for name, kind in itertools.product(run.consensus.corpora, EXPLAINED):
        some = {w: sae for w, sae in saes.items() if (w.corpus, w.kind) == (name, kind)}
        codes, pieces = explained(lm, some, rows, e)
        for which, sae in some.items():
            latents = range(sae.d_sae)
            windows = (
                windows_of(codes[which], pieces, f, e.windows, e.least, e.seed) for f in latents
            )
            scores = [
                interpret(judge, part, e.budget, e.seed).detection_random
                for part in windows
                if part is not None
            ]
            mean = float(np.mean(scores)) if scores else math.nan
            found[which] = {"detection": mean, "explained": len(scores)}
    return found


def pair_saes(run: Run, saes: SAEs, made: Mapping[Which, Any]) -> pd.DataFrame:
    """How many features dictionaries of one kind share that have no seed in common: the consensus
    of every few seeds with that of as many others, and single SAEs; writes rows `consensus_pairs`.

    Of coupled SAEs, those of different groups: what a group shares was asked of it.

    Args:
        saes: those of consensus.corpora.
        made: those of consensus_saes.
    """
    from faithful_sae.metrics.consensus import agreement

    group = {seed: i // run.consensus.group for i, seed in enumerate(single_seeds(run))}
    rows = []
    for name in run.consensus.corpora:
        whole = {seed: saes[name, seed] for seed in run.sae.seeds}
        kinds: dict[str, dict[tuple, Any]] = {kind: {} for kind in KINDS}
        for which, sae in compared(run, made).items():
            if which.corpus == name:
                kinds[which.kind][which.seed,] = sae
        # of these there are all seeds, and of the consensus more than the one of all
        kinds["whole"] = {(seed,): sae for seed, sae in whole.items()}
        kinds["consensus"] = _of_few(run, whole)
        for kind, dictionaries in kinds.items():
            for a, b in itertools.combinations(dictionaries, 2):
                coupled = kind == "mutual" and group[a[0]] == group[b[0]]
                if {*a} & {*b} or coupled:
                    continue
                sizes = [dictionaries[one].d_sae for one in (a, b)]
                sfr, alike = agreement(dictionaries[a], dictionaries[b], run.sfr.threshold)
                row = {"corpus": name, "kind": kind, "seeds_a": _said(a), "seeds_b": _said(b)}
                row |= {"sfr": sfr, "alike": alike, "size": sum(sizes) / 2}
                rows.append(row)
    columns = ["corpus", "kind", "seeds_a", "seeds_b", "sfr", "alike", "size"]
    table = pd.DataFrame(rows, columns=columns)
    write_rows(run, "consensus_pairs", table)
    return table


def _said(seeds):
    return " ".join(map(str, seeds))


def few(run: Run) -> int | None:
    """Of how many seeds each of two consensuses is that have no seed in common; one seed at least
    is in neither where that leaves two for each, so that one can be left out. None: too few seeds.
    """
    n = len(run.sae.seeds)
    return max(2, (n - 1) // 2) if n > 3 else None


def _of_few(run, saes):
    """{seeds: their consensus}, of every so many."""
    from faithful_sae.metrics.consensus import common_features, consensus_sae

    n = few(run)
    found = {}
    for seeds in itertools.combinations(saes, n) if n else ():
        chosen = [saes[seed] for seed in seeds]
        features = common_features(chosen, run.sfr.threshold)
        common = _found_by(features, _least_of(run, least_seeds(run), n))
        if len(common):
            found[seeds] = consensus_sae(chosen, common)
    return found


STAGE = ConsensusStudy()
