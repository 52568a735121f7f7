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
# # 11 · One SAE for several layers
#
# An SAE is trained for one layer. But blocks add little to the residual stream, so that
# neighbouring layers hold nearly the same. Ghilardi et al. (2024) train one SAE for a group of
# them, and pay for one training instead of several. What does it cost, and do two seeds of it share
# fewer features?
#
# How far two layers are from each other is the mean angle between their activations of a token,
#
# $$ d(p, q) = \frac{1}{\pi} \, \mathrm{mean}_t \arccos \cos(x_t^p, x_t^q) , $$
#
# 0 where they point the same way and ½ where they are orthogonal. Neighbours are joined, the
# closest first. There are as few groups as a limit of AMAD allows, the mean over groups of the
# largest distance within one.
#
# **Exhibits.** `layer_distances`, `layer_groups`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("11_layer_groups", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.metrics.layers import amad
from faithful_sae.paper import layers as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots.layers import distances
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s11_layer_groups import (
    called,
    group_layers,
    measure_layers,
    train_layers,
)

# %% [markdown]
# The section `layer_groups` of the parameter file names the corpus, the layers and the limit. Size,
# learning rate and batches are those of `sae`.

# %%
study = run.layer_groups
print(f"{run.model_name} on {study.corpus}: groups within {study.within}")

# %% [markdown]
# ## Which layers are alike
#
# Layer 0 enters the first block: it is the embedding, which knows the token and nothing of what
# stands before it. So it is often alone. Outlined are the groups.

# %%
lm = open_model(run)
table, groups = group_layers(run, lm)
print("groups:", ", ".join(called(group) for group in groups))
Image(
    save_figure(run, "layer_distances", shown.distance_data(table, groups), distances), retina=True
)

# %% [markdown]
# ## One SAE for a group
#
# Each token gives the activation of one layer of the group, drawn at random, so that the SAE of a
# group sees no more tokens than that of one layer. Later layers are larger, and would decide alone:
# each is divided by its spread. In use the SAE is scaled back to the layer.
#
# EV and CE difference are those on held-out text at the layer, SFR is over pairs of seeds. A
# group's SAE has one decoder, so that its SFR is the same at all its layers. Of a layer alone both
# are one.

# %%
saes = train_layers(run, lm, groups)
rows = measure_layers(run, lm, groups, saes)
Markdown(filename=save_table(run, "layer_groups", shown.table(run, rows)))

# %% [markdown]
# ## Check
#
# AMAD, the mean over groups of the largest distance within one, stays below the limit. And a group
# has one decoder: scaled to another layer, it shares as many features between seeds.

# %%
matrix = table.pivot(index="layer_a", columns="layer_b", values="distance")
within = amad(matrix.to_numpy(), [[matrix.index.get_loc(i) for i in group] for group in groups])
print(f"AMAD of {len(groups)} groups: {within:.3f}, at most {study.within}")
assert within <= study.within or len(groups) == len(matrix), f"AMAD is {within:.3f}"
grouped = rows["layer_sfr"].query("kind == 'group'")
spread = grouped.groupby(["group", "seed_a", "seed_b"]).sfr.agg(lambda sfr: sfr.max() - sfr.min())
assert (spread == 0).all(), f"SFR of a group differs by {spread.max():.3f} between its layers"
