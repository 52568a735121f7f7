"""15: SAEs without their fake latents, beside SAEs without as many others (paper, section 8)."""

import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import Count, Floats, Ints, Names, Need, Run, Section, Seed, key
from faithful_sae.runs.stage import HOOK, MODEL, ROWS_OF_TEXT, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import reading_bytes, scoring_bytes
from faithful_sae.stages.s02_train_sae import check_corpora, check_seeds
from faithful_sae.stages.s05_fidelity import as_rows
from faithful_sae.stages.s06_probing import STAGE as PROBES
from faithful_sae.stages.s06_probing import reconstruction_probes, task_documentation, task_files

# the SAE of which no latent is removed, in columns `order` and `size`
WHOLE = "nothing"
# as many as are fake, in column `size`
FAKE = "fake"
# columns that tell SAEs apart, and say how many latents are gone
IDENTITY = ("corpus", "seed", "order", "draw", "size", "removed")
# of rows `pruning_probes`, behind these
PROBED = ("task", "accuracy", "f1", "auc", "converged", "correct")
# SAEs that share a pass while one is timed
TIMED = 4


class Pruning(Section):
    """Latents are removed from trained SAEs: as many as are fake, and some shares of all."""

    corpora: Names = key("of sae.train_on: whose SAEs are pruned, the model's own text first")
    seeds: Ints | None = key("those of sae.seeds that are pruned; null: all", None)
    text: str = key("corpus on which all are measured: none that they were trained on")
    shares: Floats = key("of all latents that are removed, rising", (0.02, 0.05, 0.1, 0.2, 0.4))
    draws: Count = key("how often as many are removed at random", 3)
    tokens: Count = key("of the training rows of each text, to count firing on", unit="tokens")
    rows: Count = key("held-out rows of each text, for EV, CE and description length", 64)
    tasks: Names = key("of probing.tasks: what probes on the reconstruction are to tell", ())
    seed: Seed = key("of what is drawn at random", 0)

    def check(self, run: Run, need: Need) -> None:
        s = run.sae
        known = ", ".join(s.train_on)
        check_seeds(run, need, "pruning.seeds", self.seeds)
        check_corpora(run, need, "pruning.text", (self.text,))
        why = "must name some of sae.train_on, each once"
        need(0 < len({*self.corpora}) == len(self.corpora), "pruning.corpora", why)
        for name in self.corpora:
            why = f"names {name!r}, which is not in sae.train_on ({known})"
            need(name in s.train_on, "pruning.corpora", why)
        own = run.corpora.get(self.corpora[0]) if self.corpora else None
        why = f"has {self.corpora[:1]} first, which is not the model's own text (faithful: self)"
        need(not own or own.faithful == "self", "pruning.corpora", why)
        why = f"= {self.text!r}: SAEs that are measured on it were trained on it; take another"
        need(self.text not in self.corpora, "pruning.text", why)
        rising = list(self.shares) == sorted({*self.shares}) and all(0 < x < 1 for x in self.shares)
        why = f"= {list(self.shares)} must rise, between 0 and 1"
        need(rising, "pruning.shares", why)
        most = round(max(self.shares, default=0) * s.d_sae)
        why = f"leave {s.d_sae - most} of {s.d_sae} latents, fewer than sae.k = {s.k}: remove fewer"
        need(s.d_sae - most >= s.k, "pruning.shares", why)
        why = f"= {self.tokens} must be at least a row, sequence_length = {run.sequence_length}"
        need(self.tokens >= run.sequence_length, "pruning.tokens", why)
        for name in self.tasks:
            why = f"names {name!r}, which is not in probing.tasks ({', '.join(run.tasks)})"
            need(name in run.tasks, "pruning.tasks", why)
        why = "= switch: experts have a block of latents each, of one size: prune another variant"
        need(s.variant.name != "switch", "sae.variant", why)


class PruningStudy(Stage):
    sections = {"pruning": Pruning}
    optional = ("pruning",)
    study = True
    answers = True
    rows = ("pruning", "pruning_bits", "pruning_rows", "pruning_own", "pruning_probes")
    reads = ("saes", "firing")
    parameters = (
        *MODEL,
        *ROWS_OF_TEXT,
        *HOOK,
        "ffr",
        "probing",
        "fidelity.batch_rows",
        "sae.max_norm",
    )
    lower = "fidelity.batch_rows or pruning.shares"
    lower_ram = "probing.max_train and max_test"

    def corpora(self, run: Run) -> tuple[str, ...]:
        p = run.pruning
        return (*p.corpora, p.text) if p else ()

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes

        p = run.pruning
        one = sae_bytes(shape.d_model, run.sae.d_sae)
        trained = len(p.corpora) * len(p.seeds or run.sae.seeds)
        tokens = p.rows * run.sequence_length
        described = 4 * tokens * (2 * run.sae.d_sae + 4 * shape.d_model)
        probed = PROBES.memory(run, shape) if p.tasks else Memory(0, 0)
        device = max(scoring_bytes(run, shape), described)
        texts = (run.probing.max_train + run.probing.max_test) * bool(p.tasks)
        pooled = 4 * texts * (1 + _orders(run)) * (run.sae.d_sae + shape.d_model)
        saes = (trained + _removals(run)) * one
        return Memory(
            max(weights(shape) + saes + device, probed.device), reading_bytes(run) + pooled
        )

    def files(self, run: Run) -> Iterable[Path]:
        return task_files(run, run.pruning.tasks)

    def documentation(self, run: Run) -> Iterable[tuple]:
        return task_documentation(run, run.pruning.tasks)

    def tokens(self, run: Run) -> int:
        """Without texts of probes, which are read once more for each SAE."""
        p = run.pruning
        return len(self.corpora(run)) * (p.tokens + p.rows * run.sequence_length)

    def seconds(self, run: Run, rates: Rates) -> float:
        """Of the passes through the rest of the model, which take most, and of texts as long as
        they may be.
        """
        p = run.pruning
        trained = len(p.corpora) * len(p.seeds or run.sae.seeds)
        batches = math.ceil(p.rows / run.fidelity.batch_rows)
        spliced = (
            batches
            * (2 + _removals(run) + _orders(run))
            * rates.once("pruning", lambda: _pass(run, rates))
        )
        texts = (run.probing.max_train + run.probing.max_test) * run.probing.max_tokens
        per_token = rates.read_token() + (1 + _orders(run)) * rates.encode_token()
        return trained * (spliced + len(p.tasks) * texts * per_token)


def _pass(run, rates):
    """Seconds of a batch of rows with the reconstruction of one SAE of several in place."""
    from faithful_sae.metrics.fidelity import fidelity_of_all

    rows = run.fidelity.batch_rows
    ids = rates.ids(rows).numpy()
    saes = {seed: rates.sae(seed) for seed in range(TIMED)}
    work = functools.partial(fidelity_of_all, saes, rates.lm, ids, rows, (False,))
    return rates.time_of(work, 0.5) / TIMED


def _orders(run):
    """In how many orders latents are removed, draws among them."""
    from faithful_sae.metrics.pruning import ORDERS

    return len(ORDERS) - 1 + run.pruning.draws


def _removals(run):
    """How many pruned SAEs are made of a trained one."""
    return _orders(run) * (1 + len(run.pruning.shares))


def prune(run: Run, lm: Any, saes: SAEs) -> dict[str, pd.DataFrame]:
    """Remove latents of the SAEs of pruning.corpora in every order of metrics.pruning, as many as
    are fake and each share, and measure what is left. SAEs are told apart by corpus and seed, order
    and draw, and `size`: how many latents are gone, in words. Writes and returns the rows

    pruning         on held-out rows of pruning.text, without BOS: EV, CE and all else of `fidelity`
                    (05)
    pruning_bits    on the same rows, what latents take at each step (metrics.description_length)

    and of SAEs that are whole, or of which as many latents are gone as are fake,

    pruning_rows    the sums of each row of pruning.text, as `fidelity_rows` (05)
    pruning_own     as `pruning`, on held-out rows of the corpus that the SAE was trained on
    pruning_probes  what a probe on the mean reconstruction of a text scores (06), for each of
                    pruning.tasks, where the seed is one of probing.seeds

    Args:
        saes: all of the run's, or at least those of pruning.corpora.
    """
    from faithful_sae.metrics.pruning import pruned, rankings, sizes

    p = run.pruning
    seeds = p.seeds or run.sae.seeds
    chosen = {(corpus, seed): saes[corpus, seed] for corpus in p.corpora for seed in seeds}
    text, own = (_counted(run, lm, chosen, name) for name in (p.text, p.corpora[0]))
    firing = read_rows(run, "firing").set_index(["corpus", "seed"]).sort_index()
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in STAGE.rows}
    for name, sae in chosen.items():
        on_random = firing.loc[name].sort_values("latent").frequency.to_numpy()
        orders = rankings(on_random, own[name], text[name], p.draws, p.seed)
        fake = int((on_random > run.ffr.frequency).sum())
        made = {(WHOLE, 0, WHOLE): sae}
        for (order, draw), latents in orders.items():
            for size, count in sizes(sae, fake, p.shares).items():
                made[order, draw, size] = pruned(sae, latents[:count])
        for at, found in _measured(run, lm, name, made).items():
            records[at] += found
    tables = {at: pd.DataFrame(found) for at, found in records.items()}
    # where nothing is probed there are columns, too
    tables["pruning_probes"] = tables["pruning_probes"].reindex(columns=[*IDENTITY, *PROBED])
    for at, table in tables.items():
        write_rows(run, at, table)
    return tables


def _counted(run, lm, saes, name):
    """{SAE: how often its latents fire on training rows of a corpus [F]}."""
    from faithful_sae.metrics.pruning import firing_on, moderate_batches
    from faithful_sae.stages.corpus import corpus

    rows = corpus(run, name, lm).train[: run.pruning.tokens // run.sequence_length]
    batch_rows = run.fidelity.batch_rows
    batches = moderate_batches(lm, rows, batch_rows, run.sae.max_norm)
    total = math.ceil(len(rows) / batch_rows)
    return firing_on(saes, tqdm(batches, f"firing on {name}", total, unit="batch"))


def _measured(run, lm, name, made):
    """{rows of `prune`: records} of one SAE, whole and pruned: {(order, draw, size): SAE}."""
    p = run.pruning
    d_sae = made[WHOLE, 0, WHOLE].d_sae
    which = {
        key: dict(zip(IDENTITY, (*name, *key, d_sae - sae.d_sae), strict=True))
        for key, sae in made.items()
    }
    judged = {key: sae for key, sae in made.items() if key[-1] in (WHOLE, FAKE)}
    fidelity, by_row = _fidelity(run, lm, made, which, p.text)
    of_judged = [table for key, table in zip(made, by_row, strict=True) if key in judged]
    of_own, _ = _fidelity(run, lm, judged, which, name[0])
    probed = p.tasks if name[1] in (run.probing.seeds or run.sae.seeds) else ()
    return {
        "pruning": fidelity,
        "pruning_bits": _bits(run, lm, made, which),
        "pruning_rows": [record for table in of_judged for record in table.to_dict("records")],
        "pruning_own": of_own,
        "pruning_probes": [
            which[key] | {"task": task} | scores
            for task in probed
            for key, scores in reconstruction_probes(run, judged, lm, task)
        ],
    }


def _fidelity(run, lm, made, which, text):
    """(records, token rows of each) of SAEs on held-out rows of a corpus."""
    from faithful_sae.metrics.fidelity import fidelity_of_all
    from faithful_sae.stages.corpus import corpus

    rows = corpus(run, text, lm).heldout[: run.pruning.rows]
    whole = which[WHOLE, 0, WHOLE]
    title = f"{whole['corpus']}, seed {whole['seed']}, on {text}"
    options = (run.fidelity.batch_rows, (False,), title, run.sae.max_norm)
    measured, sums = fidelity_of_all(made, lm, rows, *options)
    return as_rows(measured, sums, {mode: which[mode[0]] for mode in measured})


def _bits(run, lm, made, which):
    import torch

    from faithful_sae.metrics.description_length import descriptions
    from faithful_sae.metrics.pruning import moderate_batches
    from faithful_sae.stages.corpus import corpus

    rows = corpus(run, run.pruning.text, lm).heldout[: run.pruning.rows]
    x = torch.cat([*moderate_batches(lm, rows, run.fidelity.batch_rows, run.sae.max_norm)])
    return [
        which[name] | vars(found) | {"bits": found.bits}
        for name, sae in made.items()
        for found in descriptions(sae, x)
    ]


STAGE = PruningStudy()
