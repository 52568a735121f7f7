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
# # 15 · Pruning fake features
#
# Some latents fire often on random tokens: the paper calls them fake (notebook 04). It hopes that
# an SAE without them is close to the simplest factorisation, in the sense of the shortest
# description (section 8). Here they are removed. The SAE that is left is smaller, and not trained
# again: each token has its k largest latents among those that are left.
#
# As many latents are removed in other orders: those first that fire most on text that the model
# wrote, those that fire most or least on text that the SAE was not trained on, and at random. So it
# shows whether fake latents are worth less than others, and than others that fire often.
#
# How long a description is (Ayonrinde et al. 2024): latents $z_f$ are rounded to whole steps
# $\delta$, and each takes, per token, the bits that its entropy says,
#
# $$ q_f = \mathrm{round} \left( \frac{z_f |d_f|}{\delta s} \right) $$
#
# $$ \mathrm{DL} = \sum_f H(q_f) = \sum_f \left[ H(q_f > 0) + p_f H(q_f \mid q_f > 0) \right] $$
#
# with $s$ the spread of activations and $p_f$ the share of tokens with $q_f > 0$. The first part
# says which latents are active, the second how much. A coarser step takes fewer bits and leaves
# more unexplained. So SAEs are compared at one FVU $= 1 - EV$: a tenth above the larger of the two
# SAEs' own.
#
# **Exhibits.** `pruning`, `pruning_curves`, `pruning_findings`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("15_pruning", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.paper import pruning as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots import pruning as plots
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s15_pruning import prune
from faithful_sae.stages.saes import load_saes

# %% [markdown]
# The section `pruning` of the parameter file names the corpora whose SAEs are pruned, the text on
# which all are measured, and the shares of latents that are removed.

# %%
p = run.pruning
lm = open_model(run)
saes = load_saes(run, lm, p.corpora)
print(f"{len(saes)} SAEs of {', '.join(p.corpora)}, measured on {p.text}")

# %% [markdown]
# ## Without as many latents as are fake
#
# Every row but the first of a corpus has as many latents less: the number that is fake, SAE by SAE.
# `accuracy` is that of probes on the reconstruction. `bits per token` are those that reach the FVU
# at which a row is compared. This FVU is larger where the SAE that is left reconstructs worse, so
# that it is the ratio behind them that counts, to what the whole SAE takes at the same FVU: below 1
# the SAE that is left would be the shorter description.

# %%
rows = prune(run, lm, saes)
Markdown(filename=save_table(run, "pruning", shown.table(run, rows)))

# %% [markdown]
# ## The more are removed
#
# Each line removes latents in its own order. The first point of a line is as many latents as are
# fake; bands are 95 % intervals over seeds. A line that stays at the dashed one removes latents
# that nobody misses.

# %%
data = shown.curves(run, rows)
Image(save_figure(run, "pruning_curves", data, plots.curves), retina=True)

# %% [markdown]
# ## Findings
#
# Differences are taken seed by seed: how much better (more EV and accuracy, less CE, fewer bits) an
# SAE is without its fake latents than without as many others. Intervals are over seeds, and for
# EV, CE and accuracy over rows and texts, too.

# %%
found = shown.findings(run, rows)
Markdown(filename=save_table(run, "pruning_findings", found))

# %% [markdown]
# **What to do.** Take fake latents out of an SAE only where this table says that they cost less
# than others and that the rest takes fewer bits; elsewhere they are at work, and firing on random
# tokens alone is no reason to remove a latent. To make an SAE smaller, remove in the order whose
# line stays longest at the dashed one, and look at CE on text of your own before you rely on it.

# %% [markdown]
# ## Check
#
# An SAE of which no latent is removed is compared with itself: it takes once its own bits. And no
# entropy is below 0.

# %%
whole = shown.at_equal_fvu(rows["pruning_bits"]).query("order == 'nothing'")
ratio = whole.ratio.dropna()
print(f"bits of the whole SAE, at a tenth above its FVU: {whole.bits.mean():.1f} per token")
assert (ratio == 1).all(), f"the whole SAE has {ratio.max():.3f} times its own bits"
bits = rows["pruning_bits"].query("order == 'nothing'")
assert (bits.which_bits >= 0).all(), f"an entropy is {bits.which_bits.min():.3f}"
assert (bits.value_bits >= 0).all(), f"an entropy is {bits.value_bits.min():.3f}"
