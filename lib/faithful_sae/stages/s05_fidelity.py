"""05: fidelity of every SAE on every evaluation corpus."""

import math
from typing import Any, Literal

import pandas as pd

from faithful_sae.lm.architectures import Shape, forward_bytes, weights
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import Count, Names, Need, Run, Section, key
from faithful_sae.runs.stage import MODEL, ROWS_OF_TEXT, Memory, SAEs, Stage
from faithful_sae.stages.budget import LOGIT, count_saes, reading_bytes, saes_bytes
from faithful_sae.stages.s02_train_sae import check_corpora

SHORT = 0.5  # seconds for which its passes are timed


class Fidelity(Section):
    """The fidelity matrices."""

    corpora: Names = key("corpora to evaluate on", paper="4.3, Figure 5")
    rows: Count = key("rows of each")
    rows_from: Literal["heldout", "train"] = key(
        "train: the authors took the first rows of the training split", "heldout"
    )
    batch_rows: Count = key("rows per forward pass, each with all its logits", 16)

    def check(self, run: Run, need: Need) -> None:
        check_corpora(run, need, "fidelity.corpora", self.corpora)


class FidelityMatrix(Stage):
    sections = {"fidelity": Fidelity}
    paper = True
    rows = ("fidelity",)
    reads = ("saes",)
    parameters = (*MODEL, *ROWS_OF_TEXT, "layer")
    lower = "fidelity.batch_rows"

    def corpora(self, run: Run) -> tuple[str, ...]:
        return run.fidelity.corpora if run.fidelity else ()

    def memory(self, run: Run, shape: Shape) -> Memory:
        batch = run.fidelity.batch_rows * run.sequence_length
        logits = batch * shape.vocab_size * LOGIT
        # logits are not there yet while the blocks run, and latents are gone when KL is computed
        device = weights(shape) + saes_bytes(run, shape) + forward_bytes(shape, batch) + logits
        return Memory(device, reading_bytes(run))

    def tokens(self, run: Run) -> int:
        return len(run.fidelity.corpora) * run.fidelity.rows * run.sequence_length

    def seconds(self, run: Run, rates: Any) -> float:
        """Of each corpus: batches with one SAE, and a pass more for each other SAE, with BOS and
        without.
        """
        f = run.fidelity
        more, one = rates.once("fidelity", lambda: self._passes(run, rates))
        batches = len(f.corpora) * math.ceil(f.rows / f.batch_rows)
        return batches * 2 * (one + (count_saes(run) - 1) * more)

    def _passes(self, run: Run, rates: Any) -> tuple[float, float]:
        """Seconds of a batch of rows once more through the model with a reconstruction in place,
        and with the first SAE.
        """
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
    """Fidelity of every SAE on fidelity.corpora, with and without BOS; writes rows `fidelity`.

    Rows measured on are held-out ones, or (rows_from: train, as the authors did) the first of those
    trained on.
    """
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.stages.corpus import corpus

    f = run.fidelity
    records = []
    for name in f.corpora:
        tokens = corpus(run, name, lm)
        there = tokens.heldout if f.rows_from == "heldout" else tokens.train
        rows = there[: f.rows]
        if len(rows) < f.rows:
            print(
                f"note: {name}: {len(rows)} {f.rows_from} rows, fewer than the {f.rows} asked for: "
                "all are used"
            )
        measured = fidelity_of_all(saes, lm, rows, f.batch_rows, description=f"fidelity on {name}")
        for ((trained_on, seed), include_bos), record in measured.items():
            where = {"trained_on": trained_on, "evaluated_on": name, "seed": seed}
            records.append({**where, "include_bos": include_bos, **vars(record)})
    table = pd.DataFrame(records)
    write_rows(run, "fidelity", table)
    return table


STAGE = FidelityMatrix()
