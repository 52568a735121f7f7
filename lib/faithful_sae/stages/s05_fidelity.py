"""05: fidelity of every SAE on every evaluation corpus."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Count, Ints, Names, Need, Run, Section, key
from faithful_sae.runs.stage import HOOK, MODEL, ROWS_OF_TEXT, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import count_saes, reading_bytes, saes_bytes, scoring_bytes
from faithful_sae.stages.s02_train_sae import check_corpora, check_seeds

SHORT = 0.5  # seconds for which its passes are timed


class Fidelity(Section):
    """The fidelity matrices."""

    corpora: Names = key("corpora to evaluate on", paper="4.3, Figure 5")
    rows: Count = key("rows of each")
    rows_from: Literal["heldout", "train"] = key(
        "train: the authors took the first rows of the training split", "heldout"
    )
    batch_rows: Count = key("rows per forward pass, each with all its logits", 16)
    seeds: Ints | None = key("those of sae.seeds that are measured; null: all", None)
    ce_rows: Count = key("held-out rows of each corpus for the model's own cross-entropy", 256)

    def check(self, run: Run, need: Need) -> None:
        check_corpora(run, need, "fidelity.corpora", self.corpora)
        check_seeds(run, need, "fidelity.seeds", self.seeds)


class FidelityMatrix(Stage):
    sections = {"fidelity": Fidelity}
    paper = True
    rows = ("fidelity", "fidelity_rows", "corpus_ce")
    reads = ("saes",)
    parameters = (*MODEL, *ROWS_OF_TEXT, *HOOK)
    lower = "fidelity.batch_rows"

    def corpora(self, run: Run) -> tuple[str, ...]:
        if not run.fidelity:
            return ()
        return tuple(dict.fromkeys((*run.sae.train_on, *run.fidelity.corpora)))

    def memory(self, run: Run, shape: Shape) -> Memory:
        saes = saes_bytes(run, shape, run.fidelity.seeds)
        return Memory(weights(shape) + saes + scoring_bytes(run, shape), reading_bytes(run))

    def tokens(self, run: Run) -> int:
        f = run.fidelity
        rows = len(f.corpora) * f.rows + len(self.corpora(run)) * f.ce_rows
        return rows * run.sequence_length

    def seconds(self, run: Run, rates: Rates) -> float:
        """Of each corpus: batches with one SAE, and a pass more for each other SAE, with BOS and
        without. Batches that have massive positions beside BOS, and a pass more for these, are few.
        """
        f = run.fidelity
        more, one = self.passes(run, rates)
        batches = len(f.corpora) * math.ceil(f.rows / f.batch_rows)
        return batches * 2 * (one + (count_saes(run, f.seeds) - 1) * more)

    def passes(self, run: Run, rates: Rates) -> tuple[float, float]:
        """Seconds of a batch of rows once more through the model with a reconstruction in place,
        and with the first SAE.
        """
        return rates.once("fidelity", lambda: self._passes(run, rates))

    def _passes(self, run, rates):
        from faithful_sae.metrics.fidelity import fidelity_of_all

        rows = run.fidelity.batch_rows
        ids = rates.ids(rows).numpy()
        saes = {seed: rates.sae(seed) for seed in range(2)}

        def time(some):
            return rates.time_of(lambda: fidelity_of_all(some, rates.lm, ids, rows, (True,)), SHORT)

        one = time({0: saes[0]})
        two = time(saes)
        return max(two - one, one / 10), one


def fidelity_matrix(run: Run, saes: SAEs, lm: Any) -> pd.DataFrame:
    """Fidelity of the SAEs of fidelity.seeds on fidelity.corpora, with and without BOS, and (with
    sae.max_norm) on moderate positions alone; writes rows `fidelity`, which it returns, and
    `fidelity_rows`, the sums of each token row.

    Rows measured on are held-out ones, or (rows_from: train, as the authors did) the first of those
    trained on.
    """
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.stages.corpus import corpus

    f = run.fidelity
    seeds = f.seeds or run.sae.seeds
    chosen = {key: sae for key, sae in saes.items() if key[1] in seeds}
    records = []
    by_row = []
    for name in f.corpora:
        tokens = corpus(run, name, lm)
        there = tokens.heldout if f.rows_from == "heldout" else tokens.train
        rows = there[: f.rows]
        if len(rows) < f.rows:
            print(
                f"note: {name}: {len(rows)} {f.rows_from} rows, fewer than the {f.rows} asked for: "
                "all are used"
            )
        title = f"fidelity on {name}"
        measured, sums = fidelity_of_all(
            chosen, lm, rows, f.batch_rows, description=title, max_norm=run.sae.max_norm
        )
        where = {
            (which, include_bos): {
                "trained_on": which[0],
                "evaluated_on": name,
                "seed": which[1],
                "include_bos": include_bos,
            }
            for which, include_bos in measured
        }
        made = as_rows(measured, sums, where)
        records += made[0]
        by_row += made[1]
    table = pd.DataFrame(records)
    write_rows(run, "fidelity", table)
    write_rows(run, "fidelity_rows", pd.concat(by_row, ignore_index=True))
    return table


def as_rows(
    measured: Mapping[Any, Any], sums: Mapping[Any, pd.DataFrame], where: Mapping[Any, dict]
) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """What fidelity_of_all found, as rows: (a record of each SAE, the sums of its token rows).

    Args:
        where: {name of an SAE and mode: the columns that stand before what was found}.
    """
    records = []
    by_row = []
    for which, record in measured.items():
        records.append(where[which] | vars(record))
        of_rows = sums[which]
        by_row.append(pd.DataFrame({**where[which], "row": range(len(of_rows)), **of_rows}))
    return records, by_row


def corpus_cross_entropy(run: Run, lm: Any) -> pd.DataFrame:
    """How well the model predicts each corpus: its own cross-entropy in nats per token on held-out
    rows, predictions made from BOS left out; writes rows `corpus_ce`.

    `ce` is on rows as they are packed; `ce_as_sampled`, of the model's own text, on documents as it
    wrote them, each after what it was sampled after. `error`s are the bootstrap's, over rows.
    """
    from faithful_sae.metrics.fidelity import cross_entropy_of_rows
    from faithful_sae.metrics.uncertainty import bootstrap_error
    from faithful_sae.stages.corpus import corpus, read_shards, start_of

    f = run.fidelity

    def measure(rows, given=0):
        sums, counts = cross_entropy_of_rows(lm, rows, f.batch_rows, False, given)
        return {"ce": sums.sum() / counts.sum(), "error": bootstrap_error(sums, counts)}

    records = []
    for name in STAGE.corpora(run):
        rows = corpus(run, name, lm).heldout[: f.ce_rows]
        record = {"corpus": name, "rows": len(rows), **measure(rows)}
        if run.corpora[name].faithful == "self":
            documents = itertools.islice(read_shards(run), f.ce_rows)
            start = start_of(run, lm)
            sampled = measure([np.array([*start, *ids]) for ids in documents], len(start))
            record |= {f"{key}_as_sampled": value for key, value in sampled.items()}
        records.append(record)
    table = pd.DataFrame(records)
    write_rows(run, "corpus_ce", table)
    return table


STAGE = FidelityMatrix()
