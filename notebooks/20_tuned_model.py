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
# # 20 · SAEs of a model, and of what it becomes
#
# The paper trains SAEs on base models, and leaves open what becomes of them when a model is tuned
# to follow instructions (section 7). Do SAEs of one serve the other? And if they do not: is it the
# model that changed, or the text that it writes?
#
# The language model is trained further on `tuned_model.tuned.text`. The base and the tuned model
# each write a faithful dataset. SAEs of the same seeds are trained in each model $m$ on each text
# $t$, and each is measured in both models. For a number $y(m, t)$, such as explained variance in
# the tuned model, the two effects are
#
# $$ \tfrac12 \sum_t \left( y(\mathrm{tuned}, t) - y(\mathrm{base}, t) \right)
# \quad\text{and}\quad
# \tfrac12 \sum_m \left( y(m, \mathrm{tuned}) - y(m, \mathrm{base}) \right) . $$
#
# A model that was tuned by others has no base here. With `tuned: null` it stays as it is, and the
# text it writes after `tuned_model.start` takes the place of the tuned model's.
#
# **Exhibits.** `tuned_models`, `tuned_served`, `tuned_saes`, `tuned_sharing`, `tuned_pairs`,
# `tuned_findings`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("20_tuned_model", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.paper import tuned_model as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots.tuned_model import served, sharing
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s20_tuned_model import measure_cells, train_cells, tune, write_texts

# %% [markdown]
# The section `tuned_model` of the parameter file says how the model is tuned. Text is sampled as
# `generate` says, and SAEs are trained as `sae` says: those of the base on its own text are those
# of notebook 02.

# %%
models = tune(run, open_model(run))
texts = write_texts(run, models)
saes = train_cells(run, models, texts)
said = shown.sides(run)
print(f"base: {said['base']}; tuned: {said['tuned']}; {len(saes)} SAEs")

# %% [markdown]
# ## How far the model moved
#
# CE in nats per token, on held-out text. A tuned model should predict its text better than the base
# does, or there is nothing to see. Beside it: which share of the variance of its activations those
# of the base explain, token by token, in the place of a reconstruction. Where that is more than an
# SAE explains, the two models hardly differ for an SAE.

# %%
rows = measure_cells(run, models, texts, saes)
Markdown(filename=save_table(run, "tuned_models", shown.models_table(run, rows)))

# %% [markdown]
# ## Do SAEs of one serve the other?
#
# Each column is a model in which all SAEs are measured, on a text. Lines apart: the model of
# training matters. Lines that rise or fall: the text of training does.

# %%
Image(save_figure(run, "tuned_served", shown.served(run, rows), served), retina=True)

# %% [markdown]
# The same in numbers, with the active latents per token (L0) and the fake feature ratio in the
# model (FFR, percent).

# %%
Markdown(filename=save_table(run, "tuned_saes", shown.table(run, rows)))

# %% [markdown]
# ## Do they find the same features?
#
# SAEs of two models, or of two texts, beside two seeds of one. SAEs of one seed begin with the same
# weights, so that only those of two seeds can be set against notebook 03.

# %%
pairs = shown.sharing(run, rows)
Image(save_figure(run, "tuned_sharing", pairs, sharing), retina=True)

# %%
Markdown(filename=save_table(run, "tuned_pairs", pairs))

# %% [markdown]
# ## Findings
#
# The verdicts follow the rule of notebook 07, over seeds. An SAE serves where another was made for
# if it loses no more than a limit that was set before anything was measured: .01 of the explained
# variance, .02 nats, .02 of SFR. What is judged is how far above this limit it stays.

# %%
Markdown(filename=save_table(run, "tuned_findings", shown.findings(run, rows)))

# %% [markdown]
# ## Check
#
# Pairs of SAEs of the base on its own text are in notebook 03's rows, from a matching of its own.

# %%
from faithful_sae.runs.rows import read_rows
from faithful_sae.stages.s20_tuned_model import own_corpora

own, *_ = own_corpora(run)
base = rows["tuned_pairs"].query("model_a == text_a == model_b == text_b == 'base'")
there = read_rows(run, "sfr").query("corpus == @own")
both = base.merge(there, on=["seed_a", "seed_b"], suffixes=("", "_03"))
assert len(both) == len(base), "a pair of seeds is missing in notebook 03's rows"
difference = (both.sfr - both.sfr_03).abs().max()
print(f"{len(both)} pairs that 03 has, too: SFR differs by {difference:.1e} at most")
assert difference < 1e-9, f"SFR differs by {difference:.1e} from notebook 03's"

# %% [markdown]
# ## In practice
#
# Before you use SAEs of a base model on what it was tuned to, look at the findings above: where
# they serve within the limit, no new SAEs are needed. Where they do not, train on the tuned model's
# activations, on its text, or on both: the findings say which of the two has the larger effect.
