"""12: what the features of some SAEs are worth: the evaluations of the survey (Shu et al. 2025,
section 4) that need neither a download nor another language model.

SAEs of two corpora, and the baselines beside them, are measured on text that is the same for all.
"""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from faithful_sae.files import atomic_path, write_json
from faithful_sae.lm.architectures import Shape, forward_bytes, weights
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import (
    Count,
    Ints,
    Names,
    Need,
    Positive,
    Run,
    Section,
    check_package,
    key,
    plain,
)
from faithful_sae.runs.stage import HOOK, MODEL, ROWS_OF_TEXT, Memory, Rates, SAEs, Stage
from faithful_sae.stages import evaluating
from faithful_sae.stages.budget import LOGIT, count_saes, reading_bytes, saes_bytes
from faithful_sae.stages.evaluating import Sizes
from faithful_sae.stages.judging import Judging, judges_beside, tell
from faithful_sae.stages.s02_train_sae import check_corpora, check_seeds
from faithful_sae.stages.s06_probing import STAGE as PROBES
from faithful_sae.stages.s06_probing import Task

# bytes of an active latent of a token in codes.Codes, while they are sorted
CODE = 24
# bytes per parameter of a model that is trained
TUNED = 16
# whose two labels are crossed with two packages
CROSSED = "parameter_or_return"
ONE_OR_TWO = "must name one corpus or two, each once"


class Tuning(Section):
    """How the language model is trained further, for SAEs to be measured on what it becomes."""

    text: str = key("corpus whose training rows it is trained on, and held-out rows measured on")
    steps: Count = key("of the optimiser, each on batch_rows rows", 100)
    lr: Positive = key("first learning rate, which falls linearly to 0", 1e-4)


class Evaluation(Sizes):
    """What the features of some SAEs are worth."""

    corpora: Names = key(
        "one or two of sae.train_on whose SAEs are compared, the model's own text first"
    )
    seeds: Ints | None = key("those of sae.seeds that are evaluated; null: all", None)
    text: str = key("corpus on which all are measured: none that they were trained on")
    forget: str = key("corpus that is to be forgotten, by clamping latents")
    retain: str = key("corpus that is to be kept meanwhile")
    tuned: Tuning | None = key(
        "train the language model further, and measure the SAEs on it; null: not", None, later=True
    )
    crossed: Names = key(
        "two installed packages: SCR crosses which of them a description is from with whether it "
        "is of a parameter or of a returned value; empty: no SCR",
        (),
        later=True,
    )
    cities: int = key(
        "pairs of cities for RAVEL, if the model knows four cities or more; 0: no RAVEL",
        0,
        later=True,
        ge=0,
    )
    judges: dict[str, Judging] = key("judges beside the two offline ones, by name", {}, later=True)

    def check(self, run: Run, need: Need) -> None:
        check_seeds(run, need, "evaluation.seeds", self.seeds)
        known = ", ".join(run.sae.train_on)
        need(0 < len({*self.corpora}) == len(self.corpora) < 3, "evaluation.corpora", ONE_OR_TWO)
        for name in self.corpora:
            why = f"names {name!r}, which is not in sae.train_on ({known})"
            need(name in run.sae.train_on, "evaluation.corpora", why)
        for at in ("text", "forget", "retain"):
            check_corpora(run, need, f"evaluation.{at}", (getattr(self, at),))
        if self.tuned:
            check_corpora(run, need, "evaluation.tuned.text", (self.tuned.text,))
        two = len({*self.crossed}) == len(self.crossed) in (0, 2)
        need(two, "evaluation.crossed", "must name two packages, or none")
        for package in self.crossed:
            check_package(need, "evaluation.crossed", package)
        for name, judge in self.judges.items():
            judge.check_at(run, need, f"evaluation.judges.{name}")
        used = {*self.corpora, run.sae.baselines}
        why = f"= {self.text!r}: SAEs that are measured on it were trained on it; take another"
        need(self.text not in used, "evaluation.text", why)
        own = run.corpora.get(self.corpora[0]) if self.corpora else None
        why = f"has {self.corpora[:1]} first, which is not the model's own text (faithful: self)"
        first = len(self.corpora) < 2 or not own or own.faithful == "self"
        need(first, "evaluation.corpora", why)
        why = "is evaluation.retain, too: what is forgotten cannot be kept"
        need(self.forget != self.retain, "evaluation.forget", why)
        length = run.sequence_length
        why = f"= {self.window} must be less than sequence_length = {length}, which counts BOS"
        need(self.window < length, "evaluation.window", why)
        rising = [0, *self.edges, length]
        why = f"= {list(self.edges)} must rise, between 0 and sequence_length = {length}"
        need(sorted({*rising}) == rising, "evaluation.edges", why)
        why = f"= {self.tokens} must be at least 16 rows of sequence_length = {length}"
        need(self.tokens >= 16 * length, "evaluation.tokens", why)
        need(self.budget > 1, "evaluation.budget", "= 1 must be at least 2: a constant is one")


class Evaluations(Stage):
    sections = {"evaluation": Evaluation}
    optional = ("evaluation",)
    study = True
    answers = True
    rows = (
        "structure",
        "structure_latents",
        "sparse_probes",
        "ablated_probes",
        "interpretation",
        "latent_groups",
        "latent_pairs",
        "descriptions",
        "absorption",
        "unlearning",
        "positions",
        "fine_tuned",
        "crossed_probes",
        "ravel",
    )
    reads = ("saes", "firing")
    parameters = (
        *MODEL,
        *ROWS_OF_TEXT,
        *HOOK,
        "probing",
        "sfr.threshold",
        "ffr",
        "sae.max_norm",
    )
    lower = "evaluation.batch_rows"
    lower_ram = "evaluation.tokens"

    def corpora(self, run: Run) -> tuple[str, ...]:
        e = run.evaluation
        if not e:
            return ()
        tuned = (e.tuned.text,) if e.tuned else ()
        return tuple(dict.fromkeys((e.text, e.forget, e.retain, *tuned)))

    def memory(self, run: Run, shape: Shape) -> Memory:
        """Without models that judge, whose sizes nobody knows before they are read."""
        from faithful_sae.matching import matching_bytes

        e = run.evaluation
        tokens = e.batch_rows * run.sequence_length
        # logits are not there yet while the blocks run, and latents are gone by then
        logits = tokens * shape.vocab_size * LOGIT
        passes = forward_bytes(shape, tokens) + max(logits, 3 * 4 * tokens * run.sae.d_sae)
        probed = PROBES.memory(run, shape)
        # a copy in float32, its gradient and AdamW's two moments
        tuned = TUNED * shape.parameters if e.tuned else 0
        device = weights(shape) + saes_bytes(run, shape) + passes + tuned
        n = len(evaluated(run)) + len(evaluating.KNOWN)
        codes = CODE * n * e.tokens * run.sae.k
        matching = matching_bytes(shape.d_model, run.sae.d_sae, len(run.sae.seeds))
        host = max(codes, n * probed.host // count_saes(run, run.probing.seeds), matching)
        return Memory(max(device, probed.device), reading_bytes(run) + host)

    def files(self, run: Run) -> Iterable[Path]:
        yield from PROBES.files(run)
        for judge in run.evaluation.judges.values():
            yield from judge.files(run)

    def documentation(self, run: Run) -> Iterable[tuple]:
        yield from PROBES.documentation(run)
        for package in run.evaluation.crossed:
            yield CROSSED, (package,), run.probing.max_train + run.probing.max_test

    def tokens(self, run: Run) -> int:
        e = run.evaluation
        return e.tokens + e.rows * run.sequence_length

    def seconds(self, run: Run, rates: Rates) -> float:
        """Of the tokens that explain latents. Judges take longer, and nobody knows beforehand how
        many latents fire often enough.
        """
        n = len(evaluated(run)) + len(evaluating.KNOWN)
        return run.evaluation.tokens * (rates.read_token() + n * rates.encode_token())


def evaluated(run: Run) -> list[tuple[str, int]]:
    """(corpus, seed) of the SAEs that are evaluated. Of baselines, which are the floor and take as
    long as all others, there are two of each.
    """
    e = run.evaluation
    seeds = e.seeds or run.sae.seeds
    named = itertools.product(e.corpora, seeds)
    return [*named, *itertools.product(run.baselines, seeds[:2])]


def compared(run: Run, lm: Any, saes: SAEs) -> SAEs:
    """The SAEs of `evaluated`, and beside them those that are known beforehand, with as many
    principal components of evaluation.text as an SAE has active latents.

    Args:
        saes: all of the run's.
    """
    rows, heldout = token_rows(run, lm)
    known = evaluating.known_saes(lm, rows[: len(heldout)], run.sae.k, run.evaluation)
    return {name: saes[name] for name in evaluated(run)} | known


def token_rows(run: Run, lm: Any) -> tuple[np.ndarray, np.ndarray]:
    """(rows on which latents are explained, held-out rows) of evaluation.text."""
    from faithful_sae.stages.corpus import corpus

    e = run.evaluation
    text = corpus(run, e.text, lm)
    rows, heldout = text.train[: e.tokens // run.sequence_length], text.heldout[: e.rows]
    there = len(rows) * run.sequence_length
    if there <= e.tokens - run.sequence_length:
        print(
            f"note: {e.text}: {there:,} tokens, fewer than the {e.tokens:,} asked for: all are used"
        )
    return rows, heldout


def measure(
    run: Run,
    lm: Any,
    saes: SAEs,
    name: Literal["positions", "absorption", "unlearning", "fine_tuned", "ravel"],
) -> pd.DataFrame:
    """One of the evaluations of the SAEs of `compared`, whose rows are written and returned."""
    from faithful_sae.stages.corpus import corpus

    e = run.evaluation
    rows, heldout = token_rows(run, lm)
    if name == "unlearning":
        forget, retain = (corpus(run, at, lm).heldout[: e.rows] for at in (e.forget, e.retain))
        table = evaluating.unlearning(lm, saes, forget, retain, e)
    elif name == "absorption":
        table = evaluating.absorption(lm, saes, rows, e)
    elif name == "ravel":
        table = evaluating.ravel(lm, saes, e.cities, e)
    elif name == "fine_tuned":
        table = pd.DataFrame(columns=["corpus", "seed", "model"])
        if e.tuned:
            text = corpus(run, e.tuned.text, lm)
            further, heldout = text.train, text.heldout[: e.rows]
            table = evaluating.fine_tuned(lm, saes, further, heldout, e.tuned, e, run.sae.max_norm)
    else:
        table = evaluating.positions(lm, saes, heldout, e, run.sae.max_norm)
    write_rows(run, name, table)
    return table


def measure_structure(run: Run, lm: Any, saes: SAEs) -> dict[str, pd.DataFrame]:
    """SAEBench's core; writes and returns the rows `structure` and `structure_latents`."""
    _, heldout = token_rows(run, lm)
    tables = evaluating.structure(lm, saes, heldout, run.evaluation, run.sae.max_norm)
    names = ("structure", "structure_latents")
    found: dict[str, pd.DataFrame] = dict(zip(names, tables, strict=True))
    for name, table in found.items():
        write_rows(run, name, table)
    return found


def probe_sparsely(run: Run, lm: Any, saes: SAEs) -> dict[str, pd.DataFrame]:
    """Sparse probes and targeted perturbation on the tasks of 06, and crossed ones; writes and
    returns the rows `sparse_probes`, `ablated_probes` and `crossed_probes`.
    """
    from faithful_sae.stages.text import labelled, labelled_texts

    e = run.evaluation
    tasks = {name: labelled(run, name) for name in run.tasks}
    sparse, ablated = evaluating.probes(lm, saes, tasks, run.probing, e.seed)
    crossed = {
        package: labelled_texts(run, Task(documentation=CROSSED, packages=(package,)))
        for package in e.crossed
    }
    found = {
        "sparse_probes": sparse,
        "ablated_probes": ablated,
        "crossed_probes": evaluating.crossed_probes(lm, saes, crossed, run.probing, e.seed),
    }
    for name, table in found.items():
        write_rows(run, name, table)
    return found


def interpret(run: Run, lm: Any, saes: SAEs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Explain the latents of the SAEs of `compared` and test the explanations; writes and returns
    the rows `interpretation` and `descriptions`.
    """
    e = run.evaluation
    saes = evaluating.explainable(saes)
    rows, heldout = token_rows(run, lm)
    # before the pass, since a judge may not be there
    beside = judges_beside(run, lm, len(saes))
    codes, pieces = evaluating.explained(lm, saes, rows, e)
    scored = evaluating.interpretation(lm, codes, pieces, e, beside)
    tell(beside)
    described = evaluating.descriptions(lm, saes, codes, pieces, heldout, e)
    write_rows(run, "interpretation", scored)
    write_rows(run, "descriptions", described)
    return scored, described


def group_latents(run: Run, saes: SAEs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which latents are shared and which are fake, and how well those of two seeds are matched.

    Writes and returns the rows `latent_groups`, one per latent of evaluation.corpora: in which of
    all other seeds it is found (found_in: the same partner by decoder and by encoder, both cosines
    at sfr.threshold or above; Paulo and Belrose 2025), and whether it is fake (04); and
    `latent_pairs`, of every two seeds evaluated the latents that are matched by their decoder rows.
    """
    from faithful_sae.metrics.seed_dependence import hit_masks
    from faithful_sae.metrics.sfr import match_seeds

    e = run.evaluation
    firing = read_rows(run, "firing")
    firing = firing.loc[firing.corpus.isin(e.corpora), ["corpus", "seed", "latent", "frequency"]]
    shared, pairs = [], []
    for name in e.corpora:
        of_corpus = {seed: sae for (at, seed), sae in saes.items() if at == name}
        # of one seed there is no other
        if len(of_corpus) < 2:
            continue
        matchings = match_seeds(of_corpus)
        for seed, hits in hit_masks(matchings, run.sfr.threshold).items():
            others = np.array([other for other in of_corpus if other != seed]).astype(str)
            found = [" ".join(others[latent]) for latent in hits.T]
            where = {"corpus": name, "seed": seed, "latent": range(len(found))}
            shared.append(pd.DataFrame({**where, "found_in": found}))
        for (a, b), (decoder, _) in matchings.items():
            if {a, b} <= {*(e.seeds or run.sae.seeds)}:
                latents = {"latent": range(len(decoder.permutation)), "match": decoder.permutation}
                which = {"corpus": name, "seed_a": a, "seed_b": b}
                pairs.append(pd.DataFrame({**which, **latents, "alignment": decoder.cosine}))
    groups = firing.assign(fake=firing.pop("frequency") > run.ffr.frequency)
    columns = ["corpus", "seed_a", "seed_b", "latent", "match", "alignment"]
    table = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(columns=columns)
    if shared:
        groups = groups.merge(pd.concat(shared), on=["corpus", "seed", "latent"], how="left")
    else:
        groups = groups.assign(found_in=np.nan)
    write_rows(run, "latent_groups", groups)
    write_rows(run, "latent_pairs", table)
    return groups, table


def write_results(run: Run, saes: SAEs, rows: Mapping[str, pd.DataFrame]) -> Path:
    """Write what was measured of each SAE of `compared` in SAEBench's form, a file per evaluation,
    into a folder of the run, which is returned.
    """
    e = run.evaluation
    config = {"model": run.model_name, "layer": run.layer, "hook": run.hook, "text": e.text}
    config |= plain(e)
    folder = run.artifacts / "saebench"
    with atomic_path(folder) as temporary:
        for name, sae in saes.items():
            found = evaluating.envelopes(rows, name, sae, config)
            for kind, record in found.items():
                write_json(temporary / f"{name[0]}_seed{name[1]}" / f"{kind}.json", record)
    return folder


STAGE = Evaluations()
