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
# # 05 · Fidelity matrices
#
# Does the model still work when its activations are replaced by what the SAE makes of them? Each
# SAE is evaluated on several corpora, its own and others (paper, section 4.3, Figure 5, Appendix
# B). Rows of the matrices are what an SAE was trained on, columns what it is evaluated on. With
# `rows_from: heldout` the SAE was not trained on that text. Of an embedded model's own training
# corpus the rows are ones that the language model has not seen either; what a ready-made model has
# seen, nobody here can say.
#
# * **CE difference**: next-token cross-entropy with $\hat x$ in place of $x$, minus the model's
#   own. Nats per token, lower is better.
# * **L2**: mean of $(x-\hat x)^2$ over tokens and dimensions.
# * **Explained variance**: $1 - \sum\lVert x-\hat x\rVert^2/\sum\lVert x-\bar x\rVert^2$. Other
#   formulas go by the same name. The table carries them as `ev_authors` and `ev_legacy` (see
#   `faithful_sae/metrics/fidelity.py`).
#
# Where SAEs are trained without massive activations (`max_norm` under `sae:`, see notebook 02), all
# three are there twice. `ce_diff_moderate`, `l2_moderate` and `explained_variance_moderate` are
# those of moderate tokens alone: not BOS, and of a norm up to `max_norm` medians. All other tokens
# keep their activation. In the figures they are the lower matrix.
#
# **Claim to look at.** SAEs trained on faithful text carry over to other corpora better than
# FineWeb's (section 5.5).
#
# **Exhibits.** `fidelity_ce`, `fidelity_l2`, `fidelity_ev`, `fidelity`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("05_fidelity", params)

# %%
import torch
from IPython.display import Image

from faithful_sae.paper import figure_data, tables
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots.paper import matrix
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s05_fidelity import corpus_cross_entropy, fidelity_matrix
from faithful_sae.stages.saes import load_saes

# %%
lm = open_model(run)
saes = load_saes(run, lm, seeds=run.fidelity.seeds)
run.fidelity

# %% [markdown]
# ## Splicing
#
# For every corpus the model runs once as it is, and once per SAE from the hook on, with
# $\hat x$ instead of $x$. `include_bos` says whether the BOS position is replaced and measured too.
# It is an outlier: an SAE that never trained on it reconstructs it badly, and one that did gains
# explained variance from it. The matrices below leave it out, and the table has both.
#
# `ce` is the model's own cross-entropy. `ce_zero` and `ce_mean` replace the activation by 0 and by
# its mean: they say how much there is to lose.

# %%
rows = fidelity_matrix(run, saes, lm)
rows.groupby(["include_bos", "evaluated_on"], sort=False)[
    ["ce", "ce_zero", "ce_mean"]
].mean().round(3)

# %% [markdown]
# ## How far is each text from the model?
#
# The model's own cross-entropy on held-out rows of every corpus, no SAE in place. For its own text
# there are two numbers: as it was sampled, each document after a BOS, and as it is packed into
# rows. They should agree up to `error`. Otherwise packing makes of faithful text something that the
# model would not write. Notebook 07 sets these numbers against SFR.

# %%
corpus_cross_entropy(run, lm).round(3)

# %% [markdown]
# ## The matrices
#
# Each cell is the mean over the SAEs of all measured seeds, and below it half of its 95 % interval.
# Other seeds and other rows of the same text are both in it.
#
# The last rows are the floor, and have no share in the range of colours: a random dictionary, and
# SAEs whose decoder stayed random while their encoder was trained on one of these corpora. What the
# frozen decoder reaches is owed to many directions and a trained encoder, not to learnt features.

# %%
data = figure_data.fidelity(run)

# %% [markdown]
# ## CE difference
#
# What the model loses. The diagonal is an SAE on its own corpus. Look along a row: how much worse
# does the SAE get on text of another kind?

# %%
seeds = len(run.fidelity.seeds or run.sae.seeds)
title = f"{seeds} seed{'s' if seeds > 1 else ''}"
Image(
    save_figure(
        run, "fidelity_ce", data, lambda d: matrix(d, "ce_diff", f"CE difference (nats), {title}")
    ),
    retina=True,
)

# %% [markdown]
# ## L2
#
# The size of the error itself, in squared units of the activations. Compare it within a model, not
# between models.

# %%
Image(save_figure(run, "fidelity_l2", data, lambda d: matrix(d, "l2", f"L2, {title}")), retina=True)

# %% [markdown]
# ## Explained variance
#
# The same error, relative to how much the activations vary on the corpus of the column. Here higher
# is better.

# %%
Image(
    save_figure(
        run,
        "fidelity_ev",
        data,
        lambda d: matrix(
            d, "explained_variance", f"Explained variance, {title}", lower_is_better=False
        ),
    ),
    retina=True,
)

# %% [markdown]
# ## Everything measured
#
# All measures under all their names, with BOS and without. The exhibit has a row for each cell of
# the matrices, with intervals. Below is its mean over the evaluation corpora: rows with BOS show
# how much a single position can change explained variance.

# %%
table = tables.fidelity(run)
save_table(run, "fidelity", table)
measures = [name for name in table if f"{name} ±" in table]
table.groupby(["include_bos", "trained_on"], sort=False)[measures].mean().round(3)

# %% [markdown]
# ## Check
#
# Splicing in the activation itself must change nothing at all, whatever the architecture and dtype.
# KL is at least 0, up to the rounding of float32, in which it is computed.

# %%
ids = torch.tensor(corpus(run, run.fidelity.corpora[0], lm).heldout[:2], dtype=torch.int64)
logits, x = lm.logits(ids)
difference = (lm.spliced_logits(ids, x) - logits).abs().max().item()
print(
    f"largest change of a logit with x spliced in for x: {difference}; SAEs raise CE on average "
    f"by {rows.ce_diff[rows.trained_on.isin(run.sae.train_on)].mean():.3f}"
)
assert difference == 0, f"x spliced in for x changes a logit by {difference:.1e}, not by 0"
assert rows.kl.min() > -1e-5, f"KL is {rows.kl.min():.1e}; at least -1e-5 is allowed"
most = rows.explained_variance.max()
assert most <= 1, f"an SAE explains {most:.6f} of the variance, more than all"
