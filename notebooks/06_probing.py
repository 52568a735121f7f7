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
# A logistic regression is fitted on the training texts and scored on the test texts: accuracy, and
# F1 averaged over labels.
#
# **Claim to look at.** Probes on the faithful SAE's reconstruction do best in most cells, and
# always on CoLA (Table 6).
#
# **Exhibits.** Table 6 and Figure 6 are drawn in 07, over all language models.

# %%
import numpy as np
import torch

from faithful_sae.metrics.probing import pooled_representations
from faithful_sae.runs.rows import open_run
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s06_probing import probe_tasks
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.text import labelled
from faithful_sae.text.read import class_counts

# %% tags=["parameters"]
params = "params/smoke/neox.yaml"  # which language model, and everything done with it

# %%
run = open_run(params)
lm = open_model(run)
saes = load_saes(run, lm)
{name: task.documentation or task.train or task.hub for name, task in run.probing.tasks.items()}

# %% [markdown]
# ## The tasks
#
# Three training texts of each task with their labels. Try to tell the label from the text yourself:
# that is what the probe has to do.

# %%
examples = {name: labelled(run, name)[0] for name in run.probing.tasks}
for name, (texts, labels) in examples.items():
    print(f"{name}: {len(texts)} training texts, {class_counts(labels)}")
    for text, label in zip(texts[:3], labels[:3], strict=True):
        print(f"    {label}  {text[:110]!r}")

# %% [markdown]
# ## Probes
#
# One pass of the language model gives all representations of a text, those of every SAE included.
# `majority` is the accuracy of always naming the most frequent training label.

# %%
rows = probe_tasks(run, saes, lm)
rows.pivot_table(index=["task", "majority"], columns="representation", values="accuracy").round(3)

# %% [markdown]
# The accuracy on the reconstruction alone, by the corpus that the SAE was trained on, averaged over
# seeds. This is what the claim is about: is `faithful` the largest of its row?

# %%
chosen = rows[rows.representation == "reconstruction"]
chosen.pivot_table(index="task", columns="corpus", values="accuracy", sort=False).round(3)

# %% [markdown]
# ## Check
#
# The mean is over real tokens: the same text alone, and padded beside a longer one, has the same
# representation, up to the rounding of the model's dtype (16 units of it, and at least 1e-3).

# %%
texts = sorted(examples[next(iter(examples))][0][:16], key=len)
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
