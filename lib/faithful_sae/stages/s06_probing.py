"""06: probes of every task on every SAE."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from faithful_sae.lm.architectures import Shape, forward_bytes, weights
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import (
    Count,
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
from faithful_sae.runs.stage import MODEL, Memory, SAEs, Stage
from faithful_sae.stages.budget import count_saes, saes_bytes
from faithful_sae.text.documentation import TASKS

ROLES = ("sst2", "cola", "yelp", "agnews")


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

    tasks: dict[str, Task] = key("labelled text, by name", min_length=1)
    max_train: Count = key("training texts at most", paper="4.4")
    max_test: Count = key("test texts at most")
    max_tokens: Count = key("texts are cut here, BOS included", unit="tokens")
    batch_rows: Count = key("texts at once, each with the latents of all SAEs")
    include_bos: bool = key("whether the mean over tokens includes BOS", False)
    inverse_regularisation: Positive = key("scikit-learn's C", 1.0)
    max_iter: Count = key("of the logistic regression's solver", 1000)
    seed: Seed = key("which texts are taken", 0)

    def check(self, run: Run, need: Need) -> None:
        for name, task in self.tasks.items():
            check_name(need, "probing.tasks", name)
            task.check_at(run, need, f"probing.tasks.{name}")

    def check_model(self, run: Run, model: Model, need: Need) -> None:
        model.fits(need, "probing.max_tokens", self.max_tokens)


class LinearProbes(Stage):
    sections = {"probing": Probing}
    paper = True
    rows = ("probing",)
    reads = ("saes",)
    parameters = (*MODEL, "layer")
    lower = "probing.batch_rows"
    lower_ram = "probing.max_train and max_test"

    def files(self, run: Run) -> Iterable[Path]:
        paths = [path for task in run.tasks.values() for path in (task.train, task.test)]
        return [run.resolve(path) for path in paths if path]

    def documentation(self, run: Run) -> Iterable[tuple]:
        p = run.probing
        for task in run.tasks.values():
            if task.documentation:
                yield task.documentation, task.packages, p.max_train + p.max_test

    def memory(self, run: Run, shape: Shape) -> Memory:
        p = run.probing
        n = count_saes(run)
        d_sae = run.sae.d_sae
        batch = p.batch_rows * p.max_tokens
        # of all SAEs at once, and one being encoded
        latents = 4 * batch * (n * (d_sae + shape.d_model) + 3 * d_sae)
        texts = (p.max_train + p.max_test) * 4 * (n * (d_sae + shape.d_model) + shape.d_model)
        saes = saes_bytes(run, shape)
        return Memory(weights(shape) + saes + forward_bytes(shape, batch) + latents, texts)

    def tokens(self, run: Run) -> int:
        p = run.probing
        return len(p.tasks) * (p.max_train + p.max_test) * p.max_tokens

    def seconds(self, run: Run, rates: Any) -> float:
        """Of texts as long as they may be."""
        per_token = rates.read_token() + count_saes(run) * rates.encode_token(dense=True)
        return self.tokens(run) * per_token


def probe_tasks(run: Run, saes: SAEs, lm: Any) -> pd.DataFrame:
    """Probe every task; writes rows `probing`: task, corpus, seed, representation, accuracy, F1,
    majority-class accuracy.
    """
    from faithful_sae.metrics.probing import pooled_representations, probe_all
    from faithful_sae.stages.text import labelled

    p = run.probing
    records = []
    for name in p.tasks:
        (train_texts, train_labels), (test_texts, test_labels) = labelled(run, name)
        train, test = (
            pooled_representations(
                saes, lm, texts, p.max_tokens, p.include_bos, p.batch_rows, f"{name}: {part}"
            )
            for part, texts in (("train", train_texts), ("test", test_texts))
        )
        majority = pd.Series(test_labels).eq(pd.Series(train_labels).mode()[0]).mean()
        which = {"task": name, "train": len(train_texts), "test": len(test_texts)}
        probed = probe_all(
            train,
            train_labels,
            test,
            test_labels,
            inverse_regularisation=p.inverse_regularisation,
            max_iter=p.max_iter,
        )
        records += [{**which, "majority": majority, **record} for record in probed]
    rows = pd.DataFrame(records)
    write_rows(run, "probing", rows)
    return rows


STAGE = LinearProbes()
