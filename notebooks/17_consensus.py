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
# # 17 · What seeds agree on
#
# Two seeds share only part of their features. The paper asks for text on which they share more. One
# may also keep, of several seeds, what they have in common. Do these features make a better
# dictionary than one seed's, and is that the better way to features that are found again?
#
# Latents of all seeds are put together by their decoder rows. Each begins as a group; two groups
# are joined, the closest first, while
#
# $$ \cos(\sum_{i \in g} d_i, \sum_{j \in h} d_j) \ge \tau $$
#
# and no seed has a latent in both.
#
# A group is a *feature*, and the seeds that it has latents of *find* it. Its latents become one,
#
# $$ p(x)\, d = \overline{p_i(x)} \;\, \overline{d_i} , \qquad \lVert d \rVert = 1 , $$
#
# where $p_i$ are their values before TopK, and $k$ stays what it was. So of copies of one SAE the
# consensus is that SAE. Nothing is trained further.
#
# **Exhibits.** `consensus_found`, `consensus_variance`, `consensus`, `consensus_findings`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("17_consensus", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.metrics.consensus import common_features, consensus_sae
from faithful_sae.paper import consensus as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots import consensus as plots
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s17_consensus import (
    consensus_saes,
    find_features,
    least_seeds,
    measure_saes,
    pair_saes,
)
from faithful_sae.stages.saes import load_saes

# %% [markdown]
# The section `consensus` of the parameter file names two corpora, and how many of the seeds must
# find a feature. The threshold is that of SFR.

# %%
study = run.consensus
seeds = len(run.sae.seeds)
lm = open_model(run)
saes = load_saes(run, lm, study.corpora)
print(f"features that {least_seeds(run)} of {seeds} seeds find at cosine {run.sfr.threshold}")

# %% [markdown]
# ## What seeds have in common
#
# The curve falls from features that two seeds find to those that all do. Its whiskers come from
# leaving out one seed at a time, as in all that follows.

# %%
counts, features = find_features(run, saes)
data = shown.found(run, {"consensus_found": counts})
Image(save_figure(run, "consensus_found", data, plots.found), retina=True)

# %% [markdown]
# ## What stands beside the consensus
#
# An SAE *trained with as many* latents, on the same tokens, is the fair comparison. A single SAE is
# also *cut down* to as many of its latents: those that fire most often, or any. The *whole* one has
# more latents. Seeds of mutual feature regularisation (Marks et al. 2024) are *coupled* in training
# and drawn to the same features.

# %%
made = consensus_saes(run, lm, saes, features)
pairs = pair_saes(run, saes, made)
rows = {"consensus_pairs": pairs, **measure_saes(run, lm, made)}

# %% [markdown]
# A consensus of fewer features, which more seeds find, stands further left. Where its curve runs
# below the others at the same number of latents, what seeds agree on is not what reconstructs best.

# %%
data = shown.variance(run, rows)
Image(save_figure(run, "consensus_variance", data, plots.variance), retina=True)

# %% [markdown]
# ## All measures
#
# EV and CE difference are on held-out text of the SAEs' own corpus; further below also on text that
# none was trained on. FFR is compared among SAEs with as many latents: of $k$ active latents a
# larger share is above its limit, the fewer there are. Detection is how well latents are told by
# the offline judge of n-grams (notebook 12).
#
# SFR is between dictionaries that have no seed in common: the consensus of a few seeds with that of
# as many others, of features that the same share of them finds; of coupled SAEs, between groups.

# %%
Markdown(filename=save_table(run, "consensus", shown.table(run, rows)))

# %% [markdown]
# ## Findings
#
# Each row asks both corpora the same. The last one compares two ways to a higher SFR on other text:
# to take the consensus of its SAEs, or to train single ones on the model's own text instead.

# %%
Markdown(filename=save_table(run, "consensus_findings", shown.findings(run, rows)))

# %% [markdown]
# ## Check
#
# The consensus of copies of one SAE is that SAE, up to rounding; and no more features are found by
# more seeds.

# %%
sae = next(iter(saes.values()))
copies = consensus_sae([sae] * 3, common_features([sae] * 3, run.sfr.threshold))
gap = (copies.W_dec - sae.W_dec).abs().max().item()
print(f"largest difference of a decoder row from the consensus of its copies: {gap:.1e}")
assert gap < 1e-5, f"the consensus of copies differs by {gap:.1e}; 1e-5 is allowed"
falls = counts.groupby(["corpus", "without"], dropna=False).features.diff().dropna()
assert (falls <= 0).all(), "more features are found by more seeds"

# %% [markdown]
# ## What to do
#
# Ask the table of findings what you want the dictionary for: where an SAE trained with as many
# latents explains more, use that to reconstruct, and the consensus to know which of its features
# other seeds find. A consensus of $S$ seeds costs $S$ trainings; the last two rows say what these
# buy over one whole SAE, and over one trained on the model's own text.
