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
# # 13 · Feature geometry
#
# Does an SAE find the same feature twice? Each latent has a direction, its row of the decoder. If
# two rows of one SAE point the same way, two latents stand for one feature.
#
# $$ \mathrm{nearest}_i = \max_{j \ne i} \cos(d_i, d_j) $$
#
# In a space of few dimensions even random directions are close to each other. So the same number
# for as many random directions stands beside it: only what lies above that floor says something
# about the SAE.
#
# **Exhibit.** `geometry`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("13_geometry", params)

# %%
from IPython.display import Image

from faithful_sae.paper import latent_data
from faithful_sae.paper.exhibits import save_figure
from faithful_sae.paper.names import named
from faithful_sae.paper.plots.geometry import nearest_cosines
from faithful_sae.stages.s13_geometry import decoder_geometry
from faithful_sae.stages.saes import load_saes

# %% [markdown]
# The parameter file names the language model; its SAEs are those that notebook 02 made.

# %%
saes = load_saes(run, corpora=run.sae.train_on)
print(f"{len(saes)} SAEs of {run.sae.d_sae} latents; duplicates from {run.geometry.duplicate} on")

# %% [markdown]
# ## Nearest neighbours
#
# `mean` is the mean of the largest cosine over the latents of an SAE, `random` the floor, and
# `duplicates` the share of latents that have a neighbour at the threshold or above.

# %%
rows, latents = decoder_geometry(run, saes)
rows.groupby("corpus", sort=False)[["mean", "random", "duplicates"]].mean().round(3)

# %% [markdown]
# The curve shows all latents instead of their mean. A curve to the right of the dashed line has
# latents that are closer than chance; a jump near 1 would be features that were found twice.

# %%
data = latent_data.nearest(named(run, latents))
Image(save_figure(run, "geometry", data, nearest_cosines), retina=True)

# %% [markdown]
# ## Check
#
# The nearest neighbour of a latent cannot be further than that of any other, so the relation is
# symmetric where two latents choose each other: the largest cosine of an SAE occurs at least twice.

# %%
largest = latents.groupby(["corpus", "seed"]).nearest.nlargest(2).groupby(level=[0, 1])
gap = (largest.max() - largest.min()).max()
print(f"largest difference between the two nearest latents of an SAE: {gap:.1e}")
assert gap < 1e-5, f"the two nearest latents of an SAE differ by {gap:.1e}; 1e-5 is allowed"
size = latents.nearest.abs().max()
assert size <= 1 + 1e-5, f"a cosine is {size:.6f}; 1 + 1e-5 is allowed"
