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
# # 16 · Learning speed, stability or a common start
#
# SFR rises with training. So a corpus whose SAEs share more features after as many tokens may be no
# more stable: it may only be learnt faster. And two SAEs may agree because they began alike, not
# because they have come to the same features (Brzozowski and Chung 2026 tell agreement from
# convergence). This notebook takes the two apart.
#
# **Over training.** SAEs of several corpora are finished with ever more tokens. Two corpora are
# then compared where both have come as far:
#
# $$ \Delta(x^*) = \mathrm{SFR}(x^*) - \mathrm{SFR}'(x^*), \qquad x^* = \text{the last } x
# \text{ that both reach} , $$
#
# with a straight line between two numbers of tokens. $x$ is the number of tokens; FVU on held-out
# text of the corpus itself; FVU on one text for all; or the mean cosine of decoder rows with what
# they were before training.
#
# **Pairs.** On the model's own text each replicate draws two initialisations, two orders and two
# disjoint samples of text, and trains all eight SAEs that these make. Two of the eight have one,
# two or none of the three in common. Where the initialisation is the same, latents can be compared
# by number as well: what only the optimal matching finds has moved.
#
# **Exhibits.** `learning_curves`, `learning_equal`, `learning_pairs`, `learning_in_common`,
# `learning_findings`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("16_learning", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.paper import learning as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots import learning as plots
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s16_learning import measure_budgets, measure_shared, train_budgets

# %% [markdown]
# The section `learning` of the parameter file names the corpora, the numbers of tokens and the
# samples. Size, learning rate and batches are those of `sae`.

# %%
study = run.learning
print(f"{run.model_name}: {', '.join(study.corpora)}, measured on {study.text}")
print(f"{study.replicates} replicates on {study.corpora[0]}, {study.passes} passes over a sample")

# %% [markdown]
# ## SFR over training
#
# Each point is an SAE finished with so many tokens, its learning rate warmed up and brought down to
# 0: not a snapshot in the middle of a longer training. All have read the beginning of one stream.
# Those with most tokens are notebook 02's.
#
# Training goes to the right in all panels. Look whether the corpora's curves lie on each other, and
# over which of the four.

# %%
lm = open_model(run)
saes = train_budgets(run, lm)
measured, pairs = measure_budgets(run, lm, saes)
rows = {"learning_saes": measured, "learning_pairs": pairs}
Image(save_figure(run, "learning_curves", shown.curves(run, rows), plots.curves), retina=True)

# %% [markdown]
# No measure of progress is fair to all. At equal tokens a text that is learnt slowly is caught
# early. At equal FVU on own text, a text that is hard to reconstruct is caught late, since its FVU
# stays higher for ever. At equal FVU on one text, a corpus that is unlike it is caught last. The
# distance from the start knows no text, but it is of the same decoder rows as SFR.
#
# `at the end` is Δ as far as both come, `throughout` its mean over all of the way that both go.

# %%
Markdown(filename=save_table(run, "learning_equal", shown.equal(run, rows)))

# %% [markdown]
# ## What two SAEs have in common
#
# An *order* is the seed of all that is shuffled on the way from rows of text to batches. A *sample*
# is half of some rows, gone over a whole number of times, so that two SAEs of different orders have
# read the same tokens. Each SAE has its schedule for itself, here too.
#
# On the left is SFR after the most passes, where a tick is SFR by number. On the right is the mean
# matched cosine on the way there. The dashed line is that of untrained dictionaries: above it, SAEs
# with nothing in common have come to something. Where the upper curves do not come down to them,
# the rest is where they began.

# %%
rows["learning_shared"] = measure_shared(run, lm)
common = shown.in_common(rows)
Image(save_figure(run, "learning_pairs", common, plots.in_common), retina=True)

# %% [markdown]
# The same after the most passes, in numbers. The last column is the share of latents whose partner
# in the optimal matching has their own number: they have stayed what they began as.

# %%
last = common.query("passes == passes.max()").drop(columns="passes")
Markdown(filename=save_table(run, "learning_in_common", last))

# %% [markdown]
# ## Verdicts
#
# By the rule of notebook 07. Over training an interval is over seeds, of pairs over replicates, so
# that it speaks of other initialisations, orders and samples. The language model and the text of a
# corpus are given once.

# %%
Markdown(filename=save_table(run, "learning_findings", shown.findings(run, rows)))

# %% [markdown]
# ## In practice
#
# Compare corpora by SFR only with its curves over training beside it: a difference that depends on
# the measure of progress, in `learning_equal`, is one of speed, not of stability. Take agreement of
# SAEs for evidence of features only where their initialisations differ: `learning_findings` says
# what a common start adds by itself.

# %% [markdown]
# ## Check
#
# Before training, SAEs with one initialisation are the same. And no pairing by number can have a
# larger mean cosine than the optimal matching.

# %%
shared = rows["learning_shared"]
least = shared.query("passes == 0 and initialisation").cosine.min()
print(f"least matched cosine of untrained SAEs that are the same: {least:.6f}")
assert least > 1 - 1e-6, f"the same rows have a cosine of {least:.6f}"
gap = (shared.cosine - shared.cosine_by_number).min()
print(f"least that the optimal matching is above pairing by number: {gap:.1e}")
assert gap > -1e-6, f"pairing by number is {-gap:.1e} better than the optimal matching"
