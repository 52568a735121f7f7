"""16: what SAEs of several corpora share over their training, and what SAEs share that have
initialisation, order, text or nothing in common.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.files import digest
from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.keys import settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Count, Ints, Names, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, Stage
from faithful_sae.stages.budget import (
    budget,
    group_bytes,
    kept_bytes,
    reading_bytes,
    saving_bytes,
    tokens_read,
    train_tokens,
)
from faithful_sae.stages.s02_train_sae import TRAINED, check_corpora, check_seeds
from faithful_sae.text.packing import TokenRows


class Learning(Section):
    """SAEs of some corpora that are done with fewer tokens than sae.tokens; and, on the first of
    the corpora, SAEs that share their initialisation, the order of their tokens, the sample of text
    that these are from, two of the three, or nothing.
    """

    corpora: Names = key(
        "two or more of sae.train_on that are compared over training, the model's own text first"
    )
    text: str = key("corpus on whose held-out rows all are measured: none of `corpora`")
    seeds: Ints | None = key("those of sae.seeds that are trained; null: all", None)
    tokens: Ints = key(
        "activations that SAEs are trained on, rising and below sae.tokens, each with a schedule "
        "of its own; those with sae.tokens are 02's",
        unit="tokens",
    )
    rows: Count = key("held-out rows of each corpus for FVU", 64)
    replicates: Count = key(
        "the first so many of the seeds each draw two initialisations, two orders and two samples",
        4,
    )
    sample: Count = key("of the first corpus, BOS included, in whole rows", unit="tokens")
    passes: Ints = key("over its sample that an SAE is trained for, rising")

    def check(self, run: Run, need: Need) -> None:
        s = run.sae
        check_seeds(run, need, "learning.seeds", self.seeds)
        several = len(self.seeds or s.seeds) > 1
        need(several, "learning", "compares seeds, and there is one: add another, or write null")
        if check_corpora(run, need, "learning.corpora", self.corpora):
            why = "must name two corpora or more: one alone is learnt neither faster nor slower"
            need(len(self.corpora) > 1, "learning.corpora", why)
        known = ", ".join(s.train_on)
        for name in self.corpora:
            why = f"names {name!r}, which is not in sae.train_on ({known})"
            need(name in s.train_on, "learning.corpora", why)
            why = f"names {name!r}, which is in sae.published: its SAEs have no training to follow"
            need(name not in run.published, "learning.corpora", why)
        check_corpora(run, need, "learning.text", (self.text,))
        why = f"= {self.text!r}: SAEs that are measured on it are trained on it; take another"
        need(self.text not in self.corpora, "learning.text", why)
        low, high = s.batch_tokens, s.tokens
        why = f"= {list(self.tokens)} must rise, from sae.batch_tokens = {low} on and below "
        need(_rising(self.tokens, low, high - 1), "learning.tokens", f"{why}sae.tokens = {high}")
        most = len(self.seeds or s.seeds)
        why = f"= {self.replicates} must lie between 1 and the number of seeds, {most}"
        need(self.replicates <= most, "learning.replicates", why)
        why = f"= {list(self.passes)} must be two numbers or more, and rise from 1 on to at most "
        why += f"sae.max_epochs = {s.max_epochs}"
        several = len(self.passes) > 1 and _rising(self.passes, 1, s.max_epochs)
        need(several, "learning.passes", why)
        low, high = max(run.sequence_length, 2 * s.batch_tokens), train_tokens(run) // 2
        why = f"= {self.sample} must hold a row and two batches, {low} tokens, and at most half of "
        why += f"what a corpus has to train on, {high}"
        need(low <= self.sample <= high, "learning.sample", why)
        why = f"= {s.variant.name}, which is trained on whole rows: their tokens cannot be put in "
        why += "another order; write null under learning"
        need(not s.settings(s.k).in_context, "sae.variant", why)


def _rising(values, low, high):
    """Whether there are values, each above the one before, within limits."""
    return (
        bool(values) and [*values] == sorted({*values}) and low <= values[0] <= values[-1] <= high
    )


# what the SAEs depend on beside the corpus and which they are
STUDIED = (*TRAINED, "-sae.seeds", "-sae.tokens")
# what two SAEs may share
FACTORS = ("initialisation", "order", "sample")


class LearningStudy(Stage):
    sections = {"learning": Learning}
    optional = ("learning",)
    study = True
    answers = True
    rows = ("learning_saes", "learning_pairs", "learning_shared")
    reads = ("saes",)
    parameters = (*MODEL, *ROWS_OF_TEXT, *TRAINED, "sfr.threshold")
    hours = "train"
    lower = "learning.sample or sae.buffer_tokens"

    def corpora(self, run: Run) -> tuple[str, ...]:
        return (*run.learning.corpora, run.learning.text) if run.learning else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        for name in run.learning.corpora:
            rows = run.artifacts / "rows" / "learning_saes.csv"
            yield Artefact(folder(run, name), settings(run, STUDIED), rows)
        for seed, order, sample in itertools.product(replicates(run), range(2), range(2)):
            at = ordered(run, Draw.of(seed).orders[order])
            rows = run.artifacts / "rows" / "learning_shared.csv"
            yield Artefact(shared_folder(run, seed, order, sample), settings(at, STUDIED), rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.matching import matching_bytes
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_bytes

        s, g = run.sae, run.learning
        one = sae_bytes(shape.d_model, s.d_sae)
        n = len(seeds_of(run))
        at_once = max(n * len(g.tokens), 2 * len(g.passes))
        training = sae_training_bytes(run, shape, at_once)
        read = 2 * g.sample * 4 * shape.d_model
        saes = len(g.corpora) * n * (len(g.tokens) + 1) * one
        device = weights(shape) + group_bytes(run, shape) + training + read + saes
        matching = matching_bytes(shape.d_model, s.d_sae, max(n, 8))
        saved = saving_bytes(run, 3 * at_once * one)
        return Memory(device, reading_bytes(run) + saved + matching)

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_disk

        g = run.learning
        one = sae_bytes(shape.d_model, run.sae.d_sae)
        n = len(seeds_of(run)) * len(g.tokens)
        beside = sae_training_disk(run, shape, n)
        pairs = g.replicates * 8 * len(g.passes) * one
        return len(g.corpora) * (n * one + kept_bytes(run, shape)) + pairs + beside

    def tokens(self, run: Run) -> int:
        g = run.learning
        measured = 2 * len(g.corpora) * g.rows * run.sequence_length
        return len(g.corpora) * tokens_read(run, g.tokens[-1]) + 2 * g.sample + measured

    def seconds(self, run: Run, rates: Rates) -> float:
        """Reading, and a step of every SAE for each batch."""
        s, g = run.sae, run.learning
        budgets = [budget(run, tokens) for tokens in g.tokens] * len(g.corpora) * len(seeds_of(run))
        budgets += [passes * g.sample for passes in g.passes] * 8 * g.replicates
        total = self.tokens(run) * rates.read_token()
        for n_tokens in budgets:
            steps = math.ceil(n_tokens / s.batch_tokens)
            total += steps * rates.sae_step(s.d_sae, s.k, n_tokens)
        return total


def seeds_of(run: Run) -> tuple[int, ...]:
    """Those that are trained on every corpus."""
    return run.learning.seeds or run.sae.seeds


def replicates(run: Run) -> tuple[int, ...]:
    """Those that draw SAEs to be compared by what they share."""
    return seeds_of(run)[: run.learning.replicates]


def folder(run: Run, corpus: str) -> Path:
    """The artefact with the SAEs of a corpus that are done with fewer tokens."""
    return run.artifacts / "learning" / "tokens" / corpus


def shared_folder(run: Run, seed: int, order: int, sample: int) -> Path:
    """The artefact with the SAEs of a replicate that share order and sample."""
    return run.artifacts / "learning" / "shared" / f"seed{seed}_order{order}_sample{sample}"


@dataclass(frozen=True)
class Draw:
    """What a replicate draws from its seed, so that nothing but corpus and language model is the
    same in all replicates.

    Attributes:
        initialisations: two seeds of weights.
        orders: two seeds of everything that is shuffled on the way from rows to batches.
        split: seed of the two samples.
    """

    initialisations: tuple[int, int]
    orders: tuple[int, int]
    split: int

    @staticmethod
    def of(seed: int) -> "Draw":
        """That of one seed."""
        a, b, c, d, split = map(int, np.random.SeedSequence(seed).generate_state(5))
        return Draw((a, b), (c, d), split)


def ordered(run: Run, order: int) -> Run:
    """The run with activations in another order, which are not kept on disk: those that are there
    are in the run's own.
    """
    return run.changed(sae=run.sae.changed(data_seed=order, cache_activations=False))


def train_budgets(run: Run, lm: Any) -> dict[tuple[str, int, int], Any]:
    """Load the SAEs that 02 has trained, and train (or reuse) those with fewer tokens, those of a
    corpus from one stream of activations, which is the beginning of 02's.

    Returns:
        {(corpus, tokens, seed): SAE}; by tokens, those of 02 last.
    """
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.saes import load_saes
    from faithful_sae.stages.training import passes_note, token_budget, trained_stream

    g = run.learning
    saes: dict[tuple[str, int, int], Any] = {}
    for name in g.corpora:
        text = corpus(run, name, lm)
        # of a small corpus 02 may have taken fewer than sae.tokens
        most, available = token_budget(run, text, lm, run.sae.tokens)
        wanted = [
            _entry(run, f"tokens{tokens}_seed{seed}", seed, tokens)
            for tokens in g.tokens
            for seed in seeds_of(run)
            if tokens < most
        ]
        if wanted:
            longest = wanted[-1]["tokens"]
            note = passes_note(run, name, longest, longest, available)
            about = (folder(run, name), settings(run, STUDIED))
            found = trained_stream(run, name, lm, text, *about, wanted, note)
            for entry in wanted:
                saes[name, entry["tokens"], entry["seed"]] = found[entry["name"]].to(lm.device)
        for (_, seed), sae in load_saes(run, lm, [name], seeds_of(run)).items():
            saes[name, most, seed] = sae
    return saes


def _entry(run, name, seed, tokens):
    """One SAE as train_stream takes it."""
    s = run.sae
    return {"name": name, "d_sae": s.d_sae, "k": s.k, "tokens": tokens, "seed": seed}


def measure_budgets(
    run: Run, lm: Any, saes: Mapping[tuple[str, int, int], Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the SAEs of train_budgets; writes and returns the rows

    learning_saes   every SAE: its FVU on held-out text of its own corpus (fvu_own) and on that of
                    learning.text (fvu_text), and the mean cosine of its decoder rows with what they
                    were before training (start)
    learning_pairs  every pair of seeds with as many tokens of a corpus: metrics.learning.Agreement
    """
    from faithful_sae.metrics.learning import cosines_by_number
    from faithful_sae.stages.corpus import corpus

    g = run.learning
    fvu: dict[str, dict[tuple, float]] = {"text": _fvu(run, lm, corpus(run, g.text, lm), saes)}
    fvu["own"] = {}
    for name in g.corpora:
        own = {which: sae for which, sae in saes.items() if which[0] == name}
        fvu["own"] |= _fvu(run, lm, corpus(run, name, lm), own)
    start = {seed: untrained(run, lm, seed).W_dec for seed in seeds_of(run)}
    table = pd.DataFrame(
        {
            **dict(zip(("corpus", "tokens", "seed"), which, strict=True)),
            **{f"fvu_{text}": found[which] for text, found in fvu.items()},
            "start": cosines_by_number(sae.W_dec, start[which[2]]).mean(),
        }
        for which, sae in saes.items()
    )
    pairs = []
    for name, tokens in dict.fromkeys(which[:2] for which in saes):
        group = {seed: saes[name, tokens, seed] for seed in seeds_of(run)}
        for (a, b), record in _compared(run, group):
            which = {"corpus": name, "tokens": tokens, "seed_a": a, "seed_b": b}
            pairs.append(which | record)
    write_rows(run, "learning_saes", table)
    write_rows(run, "learning_pairs", pd.DataFrame(pairs))
    return table, pd.DataFrame(pairs)


def _fvu(run, lm, text, saes):
    """{name: FVU of an SAE on the first held-out rows of a text}."""
    from faithful_sae.sae.published import measure

    s = run.sae
    rows = text.heldout[: run.learning.rows]
    options = (s.include_bos, s.lm_batch_rows, s.batch_tokens, s.max_norm)
    found = measure([*saes.values()], lm, rows, rows.size, *options)
    return {name: record["fvu"] for name, record in zip(saes, found, strict=True)}


def _compared(run, saes):
    """((a, b), what two SAEs by some names share) for every pair."""
    from faithful_sae.matching import match_pairs
    from faithful_sae.metrics.learning import agreement

    rows = {name: sae.W_dec for name, sae in saes.items()}
    for (a, b), found in match_pairs(rows).items():
        yield (a, b), vars(agreement(rows[a], rows[b], found, run.sfr.threshold))


def untrained(run: Run, lm: Any, seed: int) -> Any:
    """The SAE that a training of the run with some seed starts from, before its variant has seen
    any activation.
    """
    from faithful_sae.sae.recipe import RECIPES
    from faithful_sae.sae.train import Training
    from faithful_sae.stages.training import variant_of

    s = run.sae
    variant = variant_of(s, s.k)
    begun = variant.new(lm.d_model, s.d_sae, seed, lm.device)
    # which begins some recipes in another way
    return Training(begun, variant, s.lr, RECIPES[s.recipe], 1).sae


def measure_shared(run: Run, lm: Any) -> pd.DataFrame:
    """Train (or reuse) the eight SAEs of every replicate, one for each of two initialisations, two
    orders and two samples, and compare all pairs of the eight; writes and returns the rows
    `learning_shared`: metrics.learning.Agreement after so many passes, and before any, and which of
    FACTORS the two share.

    The samples of a replicate are disjoint, both as long, and gone over a whole number of times, so
    that SAEs of other orders have had the same tokens. They are cut from the same rows of the first
    corpus in all replicates, each time anew.
    """
    from faithful_sae.sae.remembered import remembered
    from faithful_sae.stages.corpus import corpus

    g = run.learning
    text = corpus(run, g.corpora[0], lm)
    drawn = np.random.default_rng(run.sae.data_seed).permutation(len(text.train))
    rows = g.sample // run.sequence_length
    if 2 * rows > len(text.train):
        rows = len(text.train) // 2
        print(f"note: {text.name}: samples of {rows} rows, half of its training rows, not more")
    pool = np.sort(drawn[: 2 * rows])
    read = remembered(lm, text.train[pool], run.sae.lm_batch_rows)
    table = []
    for seed in replicates(run):
        mixed = np.random.default_rng(Draw.of(seed).split).permutation(pool)
        by_passes = _replicate(run, read, text, seed, (mixed[:rows], mixed[rows:]))
        for passes, saes in by_passes.items():
            for (a, b), record in _compared(run, saes):
                alike = dict(zip(FACTORS, map(bool, np.equal(a, b)), strict=True))
                table.append({"seed": seed, "passes": passes, **alike, **record})
    found = pd.DataFrame(table)
    write_rows(run, "learning_shared", found)
    return found


def _replicate(run, lm, text, seed, samples):
    """{passes: {(initialisation, order, sample): SAE}} of one seed, 0 or 1 for each of FACTORS."""
    from faithful_sae.stages.training import token_budget, trained_stream

    draw = Draw.of(seed)
    begun = [untrained(run, lm, number) for number in draw.initialisations]
    eight = itertools.product(range(2), repeat=len(FACTORS))
    found: dict[int, dict[tuple, Any]] = {0: {which: begun[which[0]] for which in eight}}
    for order, sample in itertools.product(range(2), range(2)):
        at = ordered(run, draw.orders[order])
        chosen = samples[sample]
        half = TokenRows(
            text.name, text.train[chosen], text.heldout, digest([text.key, chosen.tolist()])
        )
        _, available = token_budget(run, half, lm, 0)
        names = {
            (passes, i): _entry(
                run, f"passes{passes}_initialisation{i}", number, passes * available
            )
            for passes in run.learning.passes
            for i, number in enumerate(draw.initialisations)
        }
        place = shared_folder(run, seed, order, sample)
        about = (place, settings(at, STUDIED))
        saes = trained_stream(at, text.name, lm, half, *about, [*names.values()])
        for (passes, i), entry in names.items():
            saes_then = found.setdefault(passes, {})
            saes_then[i, order, sample] = saes[entry["name"]].to(lm.device)
    return found


STAGE = LearningStudy()
