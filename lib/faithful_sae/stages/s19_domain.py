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
    """SAEs on small shares of a domain's real text, on the model's own text, and on both together,
    trained on as many activations. How often little text is gone over is chosen on a part of it.
    """

    corpus: str = key("real text of the domain, also where all are evaluated")
    own: str = key("the model's own text")
    text: str = key("other real text, on which they are evaluated as well")
    shares: Floats = key("of the corpus's training rows, rising", (0.01, 0.05, 0.25, 1.0))
    seeds: Ints | None = key("those of sae.seeds that are trained; null: all", None)
    tokens: Count = key("activations each SAE is trained on, at most", unit="tokens")
    budgets: Floats = key(
        "shares of `tokens`: an SAE is trained on each, and the one that is best on text kept aside "
        "is taken",
        (0.125, 0.5, 1.0),
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
    model's own.
    """

    share: float
    with_own: bool

    @property
    def name(self) -> str:
        """Of its folder, and in the rows."""
        real = f"real{self.share:g}" if self.share else ""
        return "-".join(filter(None, [real, OWN if self.with_own else ""]))


class DomainStudy(Stage):
    sections = {"domain": Domain}
    optional = ("domain",)
    study = True
    rows = ("domain_saes", "domain_fidelity", "domain_fidelity_rows", "domain_sfr")
    # for the model's own text, which 01 writes
    reads = ("dataset",)
    parameters = (*MODEL, *ROWS_OF_TEXT, *TRAINED, "sfr.threshold", "fidelity.batch_rows")
    hours = "train"
    lower = "sae.buffer_tokens or domain.seeds"

    def corpora(self, run: Run) -> tuple[str, ...]:
        d = run.domain
        return tuple(dict.fromkeys((d.corpus, d.own, d.text))) if d else ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        rows = run.artifacts / "rows" / "domain_saes.csv"
        for arm in arms(run):
            yield Artefact(folder(run, arm), settings(run, STUDIED), rows)

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_bytes
        from faithful_sae.sae.variants import VARIANTS

        s = run.sae
        n = len(seeds_of(run)) * len(run.domain.budgets)
        one = sae_bytes(shape.d_model, s.d_sae)
        sizes = (shape.d_model, [s.d_sae] * n, [VARIANTS[s.variant.name]] * n)
        training = training_bytes(*sizes, s.batch_tokens, s.buffer_tokens)
        work = max(group_bytes(run, shape) + training, scoring_bytes(run, shape))
        saes = len(arms(run)) * n * one
        # the text of an arm is put together from both
        reading = 3 * reading_bytes(run)
        return Memory(weights(shape) + saes + work, reading + saving_bytes(run, 3 * n * one))

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.sae.train import training_disk
        from faithful_sae.sae.variants import VARIANTS

        n = len(seeds_of(run)) * len(run.domain.budgets)
        done = n * sae_bytes(shape.d_model, run.sae.d_sae)
        kinds = [VARIANTS[run.sae.variant.name]] * n
        training = training_disk(shape.d_model, [run.sae.d_sae] * n, kinds)
        return (len(arms(run)) - 1) * done + training

    def tokens(self, run: Run) -> int:
        d = run.domain
        return len(arms(run)) * d.tokens + 2 * d.rows * run.sequence_length

    def seconds(self, run: Run, rates: Rates) -> float:
        """Reading, and a step of every SAE for each batch; evaluating them takes about as long as a
        third of that.
        """
        d, s = run.domain, run.sae
        n_tokens = sum(d.budgets) * d.tokens
        steps = len(arms(run)) * len(seeds_of(run)) * n_tokens / s.batch_tokens
        step = rates.sae_step(s.d_sae, s.k, d.tokens)
        return 1.3 * (self.tokens(run) * rates.read_token() + steps * step)


def arms(run: Run) -> list[Arm]:
    """Real text alone in every share, the model's own alone, and both: not with all real text."""
    shares = run.domain.shares
    both = [Arm(share, True) for share in shares if share < 1]
    return [*(Arm(share, False) for share in shares), Arm(0.0, True), *both]


def seeds_of(run: Run) -> tuple[int, ...]:
    """Those that are trained."""
    return run.domain.seeds or run.sae.seeds


def folder(run: Run, arm: Arm) -> Path:
    """The artefact with the SAEs of an arm."""
    return run.artifacts / "domain" / arm.name


def arm_rows(run: Run, lm: Any, arm: Arm) -> Any:
    """The text of an arm as TokenRows: its `heldout` rows are kept aside to choose by. They are of
    the real text where there is some of it, for which the SAEs are meant.
    """
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.text.packing import TokenRows

    d = run.domain
    real, own = corpus(run, d.corpus, lm), corpus(run, d.own, lm)
    target = real if arm.share else own
    n_rows = max(math.ceil((arm.share or 1) * len(target.train)), 2)
    aside = max(round(KEPT_ASIDE * n_rows), 1)
    parts = [target.train[: n_rows - aside]]
    if arm.share and arm.with_own:
        parts.append(own.train)
    used = digest([real.key if arm.share else None, own.key if arm.with_own else None, n_rows])
    train = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return TokenRows(arm.name, train, target.train[n_rows - aside : n_rows], used)


def train_arms(run: Run, lm: Any) -> tuple[dict[tuple[str, int], Any], pd.DataFrame]:
    """Train (or reuse) the SAEs of every arm, each seed on every budget, and take of each seed the
    one that explains most of the text kept aside.

    Returns:
        ({(arm, seed): SAE}, rows `domain_saes`, which it writes): a row per arm and seed, with the
        share of real text, whether the model's own is there too, distinct tokens and passes of what
        was taken, its FVU on the text kept aside, and that of the largest budget.
    """
    from faithful_sae.sae.published import measure
    from faithful_sae.stages.training import trained_stream
    from faithful_sae.text.packing import is_content

    d, s = run.domain, run.sae
    # what is kept on disk is a whole corpus's
    run = run.changed(sae=s.changed(cache_activations=False))
    chosen: dict[tuple[str, int], Any] = {}
    records = []
    for arm in arms(run):
        text = arm_rows(run, lm, arm)
        available = text.train.size
        if not s.include_bos:
            available = int(is_content(text.train, lm.bos_id).sum())
        wanted = [
            {
                "name": f"tokens{round(share * d.tokens)}_seed{seed}",
                "d_sae": s.d_sae,
                "k": s.k,
                "tokens": round(share * d.tokens),
                "seed": seed,
            }
            for share in d.budgets
            for seed in seeds_of(run)
        ]
        place = (folder(run, arm), settings(run, STUDIED))
        found = trained_stream(run, arm.name, lm, text, *place, wanted)
        saes = [sae.to(lm.device) for sae in found.values()]
        options = (s.include_bos, s.lm_batch_rows, s.batch_tokens, s.max_norm)
        fvu = [m["fvu"] for m in measure(saes, lm, text.heldout, text.heldout.size, *options)]
        for seed in seeds_of(run):
            mine = [i for i, entry in enumerate(wanted) if entry["seed"] == seed]
            best = min(mine, key=lambda i: fvu[i])
            chosen[arm.name, seed] = saes[best]
            records.append(
                {
                    **{"arm": arm.name, "share": arm.share, "with_own": arm.with_own, "seed": seed},
                    **{"distinct_tokens": available, "passes": wanted[best]["tokens"] / available},
                    **{"fvu_aside": fvu[best], "fvu_aside_largest": fvu[mine[-1]]},
                }
            )
    table = pd.DataFrame(records)
    write_rows(run, "domain_saes", table)
    return chosen, table


def measure_arms(
    run: Run, lm: Any, saes: Mapping[tuple[str, int], Any], table: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Measure the SAEs of train_arms on held-out text of the domain and on other text; writes and
    returns the rows domain_fidelity and domain_fidelity_rows, as `fidelity` of 05 without BOS, and
    domain_sfr, every pair of seeds of an arm; and `domain_saes`, which are given.
    """
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.metrics.sfr import shared
    from faithful_sae.matching import match_pairs
    from faithful_sae.stages.corpus import corpus
    from faithful_sae.stages.s05_fidelity import as_rows

    d = run.domain
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
    for arm in dict.fromkeys(arm for arm, _ in saes):
        rows = {seed: sae.W_dec for (of, seed), sae in saes.items() if of == arm}
        for (a, b), matching in match_pairs(rows).items():
            sfr = shared(matching, None, run.sfr.threshold).mean()
            pairs.append({"arm": arm, "seed_a": a, "seed_b": b, "sfr": sfr})
    tables = {
        "domain_fidelity": pd.DataFrame(records),
        "domain_fidelity_rows": pd.concat(by_row, ignore_index=True),
        "domain_sfr": pd.DataFrame(pairs, columns=["arm", "seed_a", "seed_b", "sfr"]),
    }
    for name, rows in tables.items():
        write_rows(run, name, rows)
    return {"domain_saes": table, **tables}


STAGE = DomainStudy()
