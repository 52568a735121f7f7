"""Probes of every task on every SAE of a run."""

import pandas as pd

from faithful_sae.metrics.probing import pooled_representations, probe_all
from faithful_sae.runs.rows import write_rows
from faithful_sae.stages.corpus import labelled


def probe_tasks(run, saes, lm):
    """Probe every task; writes rows `probing`: task, corpus, seed, representation, accuracy, F1,
    majority-class accuracy.
    """
    p = run.probing
    records = []
    for name in p.tasks:
        (train_texts, train_labels), (test_texts, test_labels), _ = labelled(run, name)
        pooled = [
            pooled_representations(
                saes, lm, texts, p.max_tokens, p.include_bos, p.batch_rows, f"{name}: {part}"
            )
            for part, texts in (("train", train_texts), ("test", test_texts))
        ]
        majority = pd.Series(test_labels).eq(pd.Series(train_labels).mode()[0]).mean()
        records += [
            {
                "task": name,
                "train": len(train_texts),
                "test": len(test_texts),
                "majority": majority,
                **record,
            }
            for record in probe_all(
                pooled[0],
                train_labels,
                pooled[1],
                test_labels,
                inverse_regularisation=p.inverse_regularisation,
                max_iter=p.max_iter,
            )
        ]
    rows = pd.DataFrame(records)
    write_rows(run, "probing", rows)
    return rows
