"""19: SAEs of a domain of which there is little real text, against the model's own text."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from faithful_sae.files import digest
from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.keys import settings
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Count, Floats, Ints, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, Stage
from faithful_sae.stages.budget import (
    group_bytes,
    reading_bytes,
    saving_bytes,
    scoring_bytes,
)
from faithful_sae.stages.s02_train_sae import TRAINED, check_corpora, check_seeds


class Domain(Section):
    """SAEs on small shares of a domain's real text, on the model's own text, and on half of each,
    trained on as many activations. How often little text is gone over is chosen on a part of it;
    sae.max_epochs does not limit it. Each seed has a part of the text for itself.
    """

    corpus: str = key("real text of the domain, also where all are evaluated")
    own: str = key("the model's own text")
    text: str = key("other real text, on which they are evaluated as well")
    shares: Floats = key("of the corpus's training rows, rising", (0.01, 0.05, 0.25, 1.0))
    seeds: Ints | None = key("those of sae.seeds that are trained; null: all", None)
    tokens: Count = key("activations each SAE is trained on, at most", unit="tokens")
    budgets: Floats = key(
        "shares of `tokens`: an SAE is trained on each; the one that is best on text kept aside "
        "is taken",
        (0.25, 1.0),
    )
    rows: Count = key("held-out rows of each text that they are evaluated on", 64)

    def check(self, run: Run, need: Need) -> None:
        check_seeds(run, need, "domain.seeds", self.seeds)
        for name in ("corpus", "own", "text"):
            check_corpora(run, need, f"domain.{name}", (getattr(self, name),))
        known = run.corpora.get(self.own)
        why = f"= {self.own!r} must be a corpus with faithful: self"
        need(known is None or known.faithful == "self", "domain.own", why)
        why = f"= {self.corpus!r} is text of a language model: name real text"
        real = run.corpora.get(self.corpus)
        need(real is None or real.faithful is None, "domain.corpus", why)
        for name in ("shares", "budgets"):
            values = list(getattr(self, name))
            right = (
                bool(values) and values == sorted({*values}) and 0 < values[0] <= values[-1] <= 1
            )
            need(right, f"domain.{name}", f"= {values} must be above 0, at most 1, and rising")
        least = math.floor(self.tokens * min(self.budgets, default=1))
        why = f"= {least} of domain.tokens, must be at least sae.batch_tokens"
        need(least >= run.sae.batch_tokens, "domain.budgets", why)


# what the SAEs depend on beside their text and which they are
STUDIED = (*TRAINED, "-sae.seeds", "-sae.tokens", "-sae.max_epochs", "-sae.cache_activations")
# of the rows that there are, kept aside to choose by
KEPT_ASIDE = 0.1
OWN = "own"


class Arm(NamedTuple):
    """What SAEs are trained on: a share of the real text (0: none of it), with or without the
    model's own; and whether they are the run's, trained on sae.tokens.
    """

    share: float
    with_own: bool
    of_run: bool = False

    @property
    def name(self) -> str:
        """Of its folders, and in the rows."""
        real = f"real{self.share:g}" if self.share else ""
        own = OWN if self.with_own else ""
        return "-".join(filter(None, [real, own, "run" if self.of_run else ""]))


class DomainStudy(Stage):
    sections = {"domain": Domain}
    optional = ("domain",)
    study = True
    answers = True
    rows = (
        "domain_saes",
        "domain_latents",
        "domain_fidelity",
        "domain_fidelity_rows",
        "domain_sfr",
    )
    # for the model's own text, which 01 writes, and the run's SAEs
    reads = ("dataset", "saes")
    parameters = (*MODEL, *ROWS_OF_TEXT, *TRAINED, "sfr.threshold", "ffr", "fidelity.batch_rows")
    hours = "train"
    lower = "sae.buffer_tokens or domain.seeds"

    def corpora(self, run: Run) -> tuple[str, ...]:
        d = run.domain
        return tuple(dict.fromkeys((d.corpus, d.own, d.text))) if d else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "domain_saes.csv"
        for arm in arms(run):
            for seed in seeds_of(run):
                yield Artefact(folder(run, arm, seed), settings(_of_seed(run, seed), STUDIED), rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_bytes

        s = run.sae
        n = len(run.domain.budgets)
        one = sae_bytes(shape.d_model, s.d_sae)
        training = sae_training_bytes(run, shape, n)
        work = max(group_bytes(run, shape) + training, scoring_bytes(run, shape))
        saes = (len(arms(run)) + len(references(run))) * len(seeds_of(run)) * one
        # the text of an arm is put together from both
        reading = 3 * reading_bytes(run)
        return Memory(weights(shape) + saes + work, reading + saving_bytes(run, 3 * n * one))

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.training_budget import sae_training_disk

        n = len(run.domain.budgets)
        done = n * sae_bytes(shape.d_model, run.sae.d_sae)
        training = sae_training_disk(run, shape, n)
        return (len(arms(run)) * len(seeds_of(run)) - 1) * done + training

    def tokens(self, run: Run) -> int:
        d = run.domain
        trainings = len(arms(run)) * len(seeds_of(run))
        measured = (2 + trainings) * d.rows * run.sequence_length + run.ffr.tokens
        return trainings * d.tokens + measured

    def seconds(self, run: Run, rates: Rates) -> float:
        """Reading, and a step of every SAE for each batch; evaluating them takes about as long as a
        third of the steps.
        """
        d, s = run.domain, run.sae
        n_tokens = sum(d.budgets) * d.tokens
        steps = len(arms(run)) * len(seeds_of(run)) * n_tokens / s.batch_tokens
        step = rates.sae_step(s.d_sae, s.k, d.tokens)
        return self.tokens(run) * rates.read_token() + 1.3 * steps * step


def arms(run: Run) -> list[Arm]:
    """Real text alone in every share, the model's own alone, and both: not with all real text."""
    shares = run.domain.shares
    both = [Arm(share, True) for share in shares if share < 1]
    return [*(Arm(share, False) for share in shares), Arm(0.0, True), *both]


def references(run: Run) -> dict[Arm, str]:
    """The run's SAEs of all real text and of the model's own, each with its corpus, where it trains
    them.
    """
    known = {Arm(1.0, False, True): run.domain.corpus, Arm(0.0, True, True): run.domain.own}
    trained = {*run.sae.train_on} - {*run.published}
    return {arm: name for arm, name in known.items() if name in trained}


def seeds_of(run: Run) -> tuple[int, ...]:
    """Those that are trained."""
    return run.domain.seeds or run.sae.seeds


def folder(run: Run, arm: Arm, seed: int) -> Path:
    """The artefact with the SAEs of an arm and seed."""
    return run.artifacts / "domain" / f"{arm.name}-seed{seed}"


def _of_seed(run, seed):
    """The run with an order of the activations of this seed's own: of a text that is not gone
    through, that is a choice of its rows.
    """
    s = run.sae
    order = s.data_seed + seeds_of(run).index(seed)
    # what is kept on disk is a whole corpus's
    return run.changed(sae=s.changed(data_seed=order, cache_activations=False))


class ArmText(NamedTuple):
    """The text of an arm and seed.

    Attributes:
        rows: `heldout` are those kept aside to choose by.
        scarce: int [R, T], those of the training rows of which there may be few: real text, if
            there is some.
        weight: share of the training rows that are from `scarce`.
    """

    rows: Any
    scarce: np.ndarray
    weight: float


def arm_text(run: Run, lm: Any, arm: Arm, seed: int) -> ArmText:
    """A share of the real text, each seed another part of it; the model's own; or both, half of the
    activations from each. What is kept aside is real text where there is some, for which the SAEs
    are meant.
    """
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.text.packing import TokenRows

    d = run.domain
    place = (seeds_of(run).index(seed), len(seeds_of(run)))
    real, own = corpus(run, d.corpus, lm), corpus(run, d.own, lm)
    target = real if arm.share else own
    n_rows = max(math.ceil((arm.share or 1) * len(target.train)), 2)
    mine = _part(target.train, n_rows, *place)
    aside = max(round(KEPT_ASIDE * n_rows), 1)
    scarce, kept = mine[:-aside], mine[-aside:]
    train, weight = scarce, 1.0
    if arm.share and arm.with_own:
        half = max(math.ceil(d.tokens / 2 / run.sequence_length), 1)
        shape = (half, run.sequence_length)
        train = np.concatenate([np.resize(scarce, shape), _part(own.train, half, *place)])
        weight = 0.5
    used = digest([real.key, own.key, *arm, *place, n_rows, len(train)])
    return ArmText(TokenRows(arm.name, train, kept, used), scarce, weight)


def _part(rows, n, place, of):
    """n rows that follow each other, one of `of` parts that lie as far from each other as they can;
    repeated where there are fewer.
    """
    if n > len(rows):
        return np.resize(rows, (n, rows.shape[1]))
    first = place * (len(rows) - n) // max(of - 1, 1)
    return rows[first : first + n]


def train_arms(run: Run, lm: Any) -> tuple[dict[tuple[str, int], Any], pd.DataFrame]:
    """Train (or reuse) the SAEs of every arm, each seed on every budget, and take of each seed the
    one that explains most of the text kept aside; and the run's.

    Returns:
        ({(arm, seed): SAE}, rows `domain_saes`, which it writes): a row per arm and seed, with the
        share of real text, whether the model's own is there too, distinct tokens and passes of what
        was taken (of the real text, where there is some), its FVU on the text kept aside, and that
        of the largest budget.
    """
    from faithful_sae.runs.rows import read_rows
    from faithful_sae.sae.published import measure
    from faithful_sae.stages.saes import load_saes
    from faithful_sae.stages.training import trained_stream
    from faithful_sae.text.packing import is_content

    d, s = run.domain, run.sae
    chosen: dict[tuple[str, int], Any] = {}
    records = []
    budgets = [round(share * d.tokens) for share in d.budgets]
    for arm in arms(run):
        which = {"arm": arm.name, "share": arm.share, "with_own": arm.with_own}
        for seed in seeds_of(run):
            text = arm_text(run, lm, arm, seed)
            available = text.scarce.size
            if not s.include_bos:
                available = int(is_content(text.scarce, lm.bos_id).sum())
            one = {"d_sae": s.d_sae, "k": s.k, "seed": seed}
            wanted = [{"name": f"tokens{tokens}", "tokens": tokens, **one} for tokens in budgets]
            at = _of_seed(run, seed)
            place = (folder(run, arm, seed), settings(at, STUDIED))
            found = trained_stream(at, arm.name, lm, text.rows, *place, wanted)
            saes = [sae.to(lm.device) for sae in found.values()]
            options = (s.include_bos, s.lm_batch_rows, s.batch_tokens, s.max_norm)
            aside = text.rows.heldout[: d.rows]
            fvu = [m["fvu"] for m in measure(saes, lm, aside, aside.size, *options)]
            best = min(range(len(fvu)), key=lambda i: fvu[i])
            chosen[arm.name, seed] = saes[best]
            passes = text.weight * budgets[best] / available
            trained = {"tokens": budgets[best], "distinct_tokens": available, "passes": passes}
            errors = {"fvu_aside": fvu[best], "fvu_aside_largest": fvu[-1]}
            records.append({**which, "seed": seed, **trained, **errors})
    for arm, name in references(run).items():
        of_run = load_saes(run, lm, (name,), seeds_of(run))
        chosen |= {(arm.name, seed): sae for (_, seed), sae in of_run.items()}
        about = read_rows(run, "saes").set_index(["corpus", "seed"]).loc[name]
        which = {"arm": arm.name, "share": arm.share, "with_own": arm.with_own}
        read = about.loc[list(seeds_of(run)), ["tokens", "distinct_tokens", "passes"]]
        records += read.reset_index().assign(**which).to_dict("records")
    table = pd.DataFrame(records)
    write_rows(run, "domain_saes", table)
    return chosen, table


def measure_arms(
    run: Run, lm: Any, saes: Mapping[tuple[str, int], Any], table: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Measure the SAEs of train_arms on held-out text of the domain and on other text; writes and
    returns the rows domain_fidelity and domain_fidelity_rows, as `fidelity` of 05 without BOS;
    domain_latents, of each SAE latents active per token and latents that never are, on held-out
    text of the domain, and FFR in percent; and domain_sfr, every pair of seeds of an arm, which
    were trained on different parts of a text; and `domain_saes`, which are given.
    """
    from faithful_sae.matching import match_pairs
    from faithful_sae.metrics.ffr import fake_ratio, firing_frequency
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.metrics.sfr import shared
    from faithful_sae.sae.published import measure
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.s05_fidelity import as_rows

    d, s, f = run.domain, run.sae, run.ffr
    records, by_row, pairs = [], [], []
    for name in dict.fromkeys((d.corpus, d.text)):
        rows = corpus(run, name, lm).heldout[: d.rows]
        options = (run.fidelity.batch_rows, (False,), f"fidelity on {name}", run.sae.max_norm)
        measured, sums = fidelity_of_all(saes, lm, rows, *options)
        where = {
            mode: {"arm": mode[0][0], "evaluated_on": name, "seed": mode[0][1]} for mode in measured
        }
        made = as_rows(measured, sums, where)
        records += made[0]
        by_row += made[1]
    rows = corpus(run, d.corpus, lm).heldout[: d.rows]
    options = (s.include_bos, s.lm_batch_rows, s.batch_tokens, s.max_norm)
    active = measure([*saes.values()], lm, rows, rows.size, *options)
    random = (f.tokens, run.sequence_length, f.seed, (f.activation,))
    firing = firing_frequency([*saes.values()], lm, *random)
    latents = [
        {
            **{"arm": arm, "seed": seed, "l0": found["l0"], "dead": found["dead"] / s.d_sae},
            "ffr": fake_ratio(frequency[0], f.frequency),
        }
        for (arm, seed), found, frequency in zip(saes, active, firing, strict=True)
    ]
    for arm in dict.fromkeys(arm for arm, _ in saes):
        rows = {seed: sae.W_dec for (of, seed), sae in saes.items() if of == arm}
        for (a, b), matching in match_pairs(rows).items():
            sfr = shared(matching, None, run.sfr.threshold).mean()
            pairs.append({"arm": arm, "seed_a": a, "seed_b": b, "sfr": sfr})
    tables = {
        "domain_latents": pd.DataFrame(latents),
        "domain_fidelity": pd.DataFrame(records),
        "domain_fidelity_rows": pd.concat(by_row, ignore_index=True),
        "domain_sfr": pd.DataFrame(pairs, columns=["arm", "seed_a", "seed_b", "sfr"]),
    }
    for name, rows in tables.items():
        write_rows(run, name, rows)
    return {"domain_saes": table, **tables}


STAGE = DomainStudy()
