# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Probing
#
# If an SAE keeps what the model knows, a linear probe should read as much from its latents, or from
# its reconstruction, as from the activations themselves (paper, sections 3.6 and 5.6). Each text
# becomes one vector, the mean over its tokens of
#
# * the activation $x$ (baseline),
# * the latents $z$ (SAE),
# * the reconstruction $\hat x$.
#
# A logistic regression is fitted on the training texts and scored on the test texts: accuracy, F1
# averaged over labels, and the area under the ROC curve (AUC), which needs no threshold.
#
# **Claim to look at.** Probes on the faithful SAE's reconstruction do best in most cells, and
# always on CoLA (Table 6). A task can only tell SAEs apart if the activations themselves are read
# better than by guessing, and not without fault: so the baselines come first.
#
# **Exhibits.** Table 6 and Figure 6 are drawn in 07, over all language models.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("06_probing", params)

# %%
import numpy as np
import pandas as pd
import torch

from faithful_sae.metrics.probing import pooled_representations
from faithful_sae.runs.rows import read_rows
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s06_probing import probe_tasks
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.text import labelled
from faithful_sae.text.read import class_counts

# %%
lm = open_model(run)
saes = load_saes(run, lm, seeds=run.probing.seeds)
{name: task.documentation or task.train or task.hub for name, task in run.probing.tasks.items()}

# %% [markdown]
# ## The tasks
#
# Three training texts of each task with their labels. Try to tell the label from the text yourself:
# that is what the probe has to do.

# %%
parts = {name: labelled(run, name) for name in run.probing.tasks}
for name, ((texts, labels), _) in parts.items():
    print(f"{name}: {len(texts)} training texts, {class_counts(labels)}")
    for text, label in zip(texts[:3], labels[:3], strict=True):
        print(f"    {label}  {text[:110]!r}")

# %% [markdown]
# ## Probes
#
# One pass of the language model gives all representations of a text, those of every SAE included,
# and its likelihood. Four numbers say what a task asks:
#
# * `chance`: the accuracy of guessing, 1 by the number of labels;
# * `majority`: that of always naming the most frequent training label;
# * `likelihood`: that of a probe on one number, the mean negative log likelihood of the text's
#   tokens under the model. Where it does well, the label is a matter of how likely the text is;
# * `near_copies`: the share of test texts half of whose five-word sequences, or more, stand in the
#   training texts. A probe may know them by heart.

# %%
rows = probe_tasks(run, saes, lm)
trained = rows[~rows.corpus.isin(run.baselines)]
task = ["task", "train", "test", "near_copies", "chance", "majority"]
trained.pivot_table(index=task, columns="representation", values="accuracy", sort=False).round(3)

# %% [markdown]
# The same as AUC: 0.5 is chance, whatever the number of labels, and 1 is a perfect order of the
# texts. It does not ask where the border between two labels is put.

# %%
trained.pivot_table(index="task", columns="representation", values="auc", sort=False).round(3)

# %% [markdown]
# The accuracy on the reconstruction alone, by the corpus that the SAE was trained on, averaged over
# seeds. This is what the claim is about: is `faithful` the largest of its row?
#
# The last columns are the floor: a random dictionary, and SAEs with a frozen random decoder. Random
# directions may keep much of what a linear probe can read. Only what an SAE has above them is owed
# to a learnt dictionary.

# %%
chosen = rows[rows.representation == "reconstruction"]
chosen.pivot_table(index="task", columns="corpus", values="accuracy", sort=False).round(3)

# %% [markdown]
# Differences are to be held against the noise. Other test texts would give another accuracy: its
# standard error is the root of $p (1 - p) / n$ for $n$ texts. Other seeds give another SAE: beside
# it, the standard deviation over seeds, averaged over corpora. A difference of two SAEs on the same
# texts varies by less than two accuracies do, since probes share most of their mistakes. The rows
# `probing_texts` say which texts each probe got right, so that this can be worked out.

# %%
chosen = trained[trained.representation == "reconstruction"]
of_task = chosen.groupby("task", sort=False)
p = of_task.accuracy.mean()
over_texts = np.sqrt(p * (1 - p) / of_task.test.first())
over_seeds = chosen.groupby(["task", "corpus"], sort=False).accuracy.std()
over_seeds = over_seeds.groupby("task", sort=False).mean()
pd.DataFrame({"accuracy": p, "over texts": over_texts, "over seeds": over_seeds}).round(4)

# %% [markdown]
# ## Check
#
# The mean is over real tokens: the same text alone, and padded beside a longer one, has the same
# representation, up to the rounding of the model's dtype (16 units of it, and at least 1e-3). And
# the texts that each probe got right add up to its accuracy.

# %%
texts = sorted(next(iter(parts.values()))[0][0][:16], key=len)
together, alone = (
    pooled_representations({}, lm, some, run.probing.max_tokens, run.probing.include_bos)
    for some in (texts, texts[:1])
)
first = alone["baseline"][0]
change = np.abs(together["baseline"][0] - first).max() / np.abs(first).max()
allowed = max(1e-3, 16 * torch.finfo(lm.model.dtype).eps)
print(f"probes that did not converge: {(~rows.converged).sum()} of {len(rows)}")
said = f"padding changes a representation by {change:.1e} of its size; {allowed:.1e} is allowed"
print(said)
assert change <= allowed, said
right = read_rows(run, "probing_texts").correct.map(lambda found: found.count("1") / len(found))
assert np.allclose(right, rows.accuracy), "probing_texts and probing disagree"
