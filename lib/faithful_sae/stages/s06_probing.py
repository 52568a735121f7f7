"""06: probes of every task on every SAE."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from faithful_sae.lm.architectures import Shape, forward_bytes, weights
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import (
    Count,
    Ints,
    Model,
    Need,
    Positive,
    Run,
    Section,
    Seed,
    Source,
    TextKey,
    check_file,
    check_name,
    key,
)
from faithful_sae.runs.stage import HOOK, MODEL, Memory, Rates, SAEs, Stage
from faithful_sae.stages.budget import count_saes, saes_bytes
from faithful_sae.stages.s02_train_sae import check_seeds
from faithful_sae.text.documentation import TASKS
from faithful_sae.text.near_copies import near_copies

ROLES = ("sst2", "cola", "yelp", "agnews")
# bytes per logit: in the model's own dtype, in float32, and log p
LOGIT = 10
SHORT = 0.5  # seconds for which its passes are timed


class Task(Source):
    """Labelled text: `train` and `test` files, a Hub dataset, or made from documentation."""

    places = ("train", "hub", "documentation")
    roles = ROLES
    kinds = TASKS

    train: str | None = key("file to train probes on", None)
    test: str | None = key("file to measure accuracy on", None)
    train_split: str | None = key("split of the Hub dataset to train on", None)
    test_split: str | None = key("split of the Hub dataset to measure on", None)
    label_key: str | None = key("field that holds the label", None)

    @property
    def record_keys(self) -> list[TextKey]:
        return [*super().record_keys, self.label_key or "label"]

    def check_at(self, run: Run, need: Need, at: str) -> bool:
        if not super().check_at(run, need, at):
            return False
        if self.train:
            why = "is missing: the file to measure accuracy on"
            if need(self.test, f"{at}.test", why):
                check_file(run, need, f"{at}.test", str(self.test))
        if self.hub:
            both = self.train_split and self.test_split
            need(both, f"{at}.train_split", "and test_split must be given for a Hub dataset")
        if self.train or self.hub:
            why = "is missing: the field that holds the label"
            need(self.label_key, f"{at}.label_key", why)
        return True


class Probing(Section):
    """Linear probes."""

    seeds: Ints | None = key("those of sae.seeds whose SAEs are probed; null: all", None)
    tasks: dict[str, Task] = key("labelled text, by name", min_length=1)
    max_train: Count = key("training texts at most", paper="4.4")
    max_test: Count = key("test texts at most")
    max_tokens: Count = key("texts are cut here, BOS included", unit="tokens")
    batch_rows: Count = key("texts at once, each with all its logits")
    include_bos: bool = key("whether the mean over tokens includes BOS", False)
    inverse_regularisation: Positive = key("scikit-learn's C", 1.0)
    max_iter: Count = key("of the logistic regression's solver", 1000)
    seed: Seed = key("which texts are taken", 0)

    def check(self, run: Run, need: Need) -> None:
        check_seeds(run, need, "probing.seeds", self.seeds)
        for name, task in self.tasks.items():
            check_name(need, "probing.tasks", name)
            task.check_at(run, need, f"probing.tasks.{name}")

    def check_model(self, run: Run, model: Model, need: Need) -> None:
        model.fits(need, "probing.max_tokens", self.max_tokens)


class LinearProbes(Stage):
    sections = {"probing": Probing}
    paper = True
    rows = ("probing", "probing_texts")
    reads = ("saes",)
    parameters = (*MODEL, *HOOK)
    lower = "probing.batch_rows"
    lower_ram = "probing.max_train and max_test"

    def files(self, run: Run) -> Iterable[Path]:
        return task_files(run, run.tasks)

    def documentation(self, run: Run) -> Iterable[tuple]:
        return task_documentation(run, run.tasks)

    def memory(self, run: Run, shape: Shape) -> Memory:
        p = run.probing
        n = count_saes(run, p.seeds)
        d_sae = run.sae.d_sae
        batch = p.batch_rows * p.max_tokens
        logits = batch * shape.vocab_size * LOGIT
        # of the one SAE that is encoded; logits are gone by then
        latents = 4 * batch * (3 * d_sae + p.batch_rows)
        a_text = 4 * (n * (d_sae + shape.d_model) + shape.d_model)
        gathered = forward_bytes(shape, batch) + p.batch_rows * a_text
        device = weights(shape) + saes_bytes(run, shape, p.seeds) + gathered + max(logits, latents)
        return Memory(device, (p.max_train + p.max_test) * a_text)

    def tokens(self, run: Run) -> int:
        p = run.probing
        return len(p.tasks) * (p.max_train + p.max_test) * p.max_tokens

    def seconds(self, run: Run, rates: Rates) -> float:
        """Of texts as long as they may be."""
        reading, one = rates.once("probing", lambda: self._passes(run, rates))
        return self.tokens(run) * (reading + count_saes(run, run.probing.seeds) * one)

    def _passes(self, run: Run, rates: Rates) -> tuple[float, float]:
        """Seconds of a token through the whole model, and through one SAE."""
        import torch

        from faithful_sae.metrics.probing import pool_latents

        p = run.probing
        ids = rates.ids(p.batch_rows)[:, : p.max_tokens]
        sae = rates.sae()
        x = rates.lm.logits(ids)[1].flatten(0, 1)
        texts = torch.eye(len(ids), device=x.device).repeat_interleave(ids.shape[1], 0)
        means = texts / ids.shape[1]
        reading = rates.time_of(lambda: rates.lm.logits(ids)[0].log_softmax(-1), SHORT)
        one = rates.time_of(lambda: pool_latents(sae, x, means), SHORT)
        return reading / len(x), one / len(x)


def task_files(run: Run, names: Iterable[str]) -> list[Path]:
    """The local files of some tasks."""
    tasks = [run.tasks[name] for name in names]
    return [run.resolve(path) for task in tasks for path in (task.train, task.test) if path]


def task_documentation(run: Run, names: Iterable[str]) -> Iterator[tuple]:
    """What some tasks take from installed packages, as Stage.documentation."""
    p = run.probing
    for task in (run.tasks[name] for name in names):
        if task.documentation:
            yield task.documentation, task.packages, p.max_train + p.max_test


def reconstruction_probes(
    run: Run, saes: Mapping[Any, Any], lm: Any, task: str, most: int | None = None
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(name of an SAE, what a probe of its mean reconstruction of a text scores), for each SAE.

    Args:
        task: of probing.tasks.
        most: training texts, and as many to test on, at most; None: all of the task.
    """
    from faithful_sae.metrics.probing import pooled_representations, probe
    from faithful_sae.stages.text import labelled

    p = run.probing
    options = {"inverse_regularisation": p.inverse_regularisation, "max_iter": p.max_iter}
    parts = [(texts[:most], labels[:most]) for texts, labels in labelled(run, task)]
    labels = [given for _, given in parts]
    train, test = (
        pooled_representations(saes, lm, texts, p.max_tokens, p.include_bos, p.batch_rows, task)
        for texts, _ in parts
    )
    for name in saes:
        at = (name, "reconstruction")
        yield name, probe(train[at], labels[0], test[at], labels[1], **options)


def probe_tasks(run: Run, saes: SAEs, lm: Any) -> pd.DataFrame:
    """Probe every task.

    Writes and returns the rows `probing`: of each task its texts, the share of test texts that are
    near-copies of training texts (see text/near_copies.py), and the accuracy of guessing (`chance`:
    1 by the number of classes) and of always naming the most frequent training label (`majority`);
    of each corpus, seed and representation of it what the probe scored. Writes the rows
    `probing_texts`: which test texts each probe got right, one digit per text, in the order of
    `labelled`.

    Args:
        saes: of which those of probing.seeds are probed.
    """
    from faithful_sae.metrics.probing import pooled_representations, probe_all
    from faithful_sae.stages.text import labelled

    p = run.probing
    saes = {key: sae for key, sae in saes.items() if p.seeds is None or key[1] in p.seeds}
    records = []
    for name in p.tasks:
        (train_texts, train_labels), (test_texts, test_labels) = labelled(run, name)
        train, test = (
            pooled_representations(
                saes, lm, texts, p.max_tokens, p.include_bos, p.batch_rows, f"{name}: {part}"
            )
            for part, texts in (("train", train_texts), ("test", test_texts))
        )
        which = {
            "task": name,
            "train": len(train_texts),
            "test": len(test_texts),
            "near_copies": near_copies(train_texts, test_texts),
            "chance": 1 / len(set(train_labels)),
            "majority": pd.Series(test_labels).eq(pd.Series(train_labels).mode()[0]).mean(),
        }
        probed = probe_all(
            train,
            train_labels,
            test,
            test_labels,
            inverse_regularisation=p.inverse_regularisation,
            max_iter=p.max_iter,
        )
        records += [{**which, **record} for record in probed]
    rows = pd.DataFrame(records)
    one_text = ["task", "corpus", "seed", "representation", "correct"]
    write_rows(run, "probing_texts", rows.loc[:, one_text])
    rows = rows.drop(columns="correct")
    write_rows(run, "probing", rows)
    return rows


STAGE = LinearProbes()
