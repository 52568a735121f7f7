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
# # 10 · Architectures
#
# The paper trains SAEs of one kind, TopK. Shu et al. (2025) list a dozen. Does what the paper says
# of faithful text hold for them? And do some kinds share more features between seeds than others,
# as Paulo and Belrose (2025) found of ReLU?
#
# SAEs can be compared only where they have as many active latents per token, since more of them
# reconstruct better. **All are compared at one L0**, that of `sae.k`. Variants that have a `k` have
# it by themselves. The others have a penalty instead, which is looked for.
#
# **Claims to look at.** For each variant: SFR is higher on the model's own text than on another,
# and FFR is lower. SAEs with ReLU and L1 overlap more than TopK SAEs.
#
# **Exhibits.** `architectures`, `architecture_sharing`, `architecture_curves`,
# `architecture_firing`, `architecture_findings`, `planted_ladder`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("10_architectures", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.paper import architectures as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots import architectures as plots
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s10_architectures import (
    measure_variants,
    penalised,
    planted_ladder,
    point_at,
    train_elsewhere,
    train_variants,
)

# %% [markdown]
# The section `architectures` of the parameter file names the variants and the two corpora. Size,
# learning rate and batches are those of `sae`, the same for all.

# %%
study = run.architectures
print(f"{len(study.variants)} variants on {' and '.join(study.corpora)}, at L0 = {run.sae.k}")
print(f"{len(study.seeds or run.sae.seeds)} seeds, {study.tokens:,} tokens each")

# %% [markdown]
# ## Training
#
# All SAEs of a corpus see the same tokens in the same order, except for those whose loss looks at
# what the model makes of the reconstruction: these see whole rows of it. Where a variant has a
# penalty, the first seed is trained with several of them. L0 falls about as a power of the penalty,
# so that the next one is read off a line in logarithms. Below is what was tried on the first
# corpus: each row should bring L0 closer to the wanted one.

# %%
lm = open_model(run)
saes, summary = train_variants(run, lm)
searched = summary.loc[summary.point.str.startswith("search")]
searched = searched.loc[searched.corpus == study.corpora[0], ["variant", "point", "l1", "l0"]]
searched.sort_values("variant", kind="stable").round(3)

# %% [markdown]
# ## What each variant does
#
# L0 is counted on held-out text, with each SAE as it is in use: some are active above thresholds
# that were set when the training was over, and differ from what they were in it. EV is the
# explained variance and CE difference what the model loses by the reconstruction, on held-out text
# of the SAEs' own corpus. *dead* never fired over the last tenth of the training; *duplicates* have
# another latent of the same SAE in (almost) the same direction.
#
# A mean hides what is rare. So the last table has what is left unexplained of the median token, and
# what 99 tokens of 100 stay below. `tilted` weighs badly reconstructed tokens more, to make the
# latter smaller: the table says whether it does, at what it costs the others.

# %%
rows = measure_variants(run, saes, lm) | {"variant_saes": summary}
Markdown(filename=save_table(run, "architectures", shown.table(run, rows)))

# %% [markdown]
# The same with one row per variant. A panel's two dots are the two corpora. In the first panel
# faithful text helps where its dot lies to the right of the other, in the second where it lies to
# the left, and in both only where the whiskers leave no doubt.

# %%
Image(
    save_figure(run, "architecture_sharing", shown.sharing(run, rows), plots.sharing), retina=True
)

# %% [markdown]
# ## Sparsity against fidelity
#
# One L0 is one point of a curve. The curve of a variant that lies above another's explains more
# with as many active latents. It is drawn for the first seed and corpus: at other `k`, and at the
# penalties of the search. The large dots are where all are compared.

# %%
Image(save_figure(run, "architecture_curves", shown.curves(run, rows), plots.curves), retina=True)

# %% [markdown]
# ## How often latents fire
#
# Feature Choice gives every latent its share of the tokens, TopK none. A hump at the left are
# latents that hardly ever fire; what never does is written beside it.

# %%
Image(save_figure(run, "architecture_firing", shown.spectra(run, rows), plots.spectra), retina=True)

# %% [markdown]
# ## Another place of the block
#
# Paulo and Belrose compare SAEs of the MLP's output with those of the residual stream. Where
# `architectures.hook` names another place of the block, SAEs of `sae` are trained there, too, on
# the first corpus. Below is what each pair of seeds shares, by the decoders alone and by both
# matchings, and how much of the variance the worse of the two explains.

# %%
rows["variant_hook"] = train_elsewhere(run)
rows["variant_hook"].round(3)

# %% [markdown]
# ## Verdicts
#
# By the rule of notebook 07, over seeds. Where the L0 of SAEs that are compared is not the same
# within a tenth, the question cannot be tested with them; nor where they explain less than half of
# the variance, as variants with a penalty do after a short training. End-to-end SAEs are not
# trained to explain variance: they must keep half of the CE that x = 0 in their place would cost.
#
# Some variants are in the tables and in no verdict, since their seeds are not independent. `mutual`
# couples seeds in training: its SFR is that between groups, and beside it is that of coupled ones,
# which has been asked of them. `archetypal` begins at centroids that all seeds share,
# `archetypal_own` at its own. `pca`, a baseline, is the same for all seeds, and shares everything.

# %%
Markdown(filename=save_table(run, "architecture_findings", shown.findings(run, rows)))

# %% [markdown]
# ## Worlds whose features are known
#
# Which variant finds features that are really there? In a language model nobody knows them. In the
# worlds below tokens are sums of a few known directions, each of which fires at random, some more
# often than others. MCC is the mean cosine of a feature to the latent matched with it, F1 how well
# that latent tells when the feature fires.
#
# The rungs get harder: orthogonal features; twice as many as dimensions; two features that each
# fire only where another, its parent, does; one that fires on nine tokens of ten. Where a child's
# latent fires in place of its parent's, the parent's recall falls: absorption.
#
# Variants have the settings of the study, but all are trained with one learning rate, and no
# penalty is looked for. Those that need a language model are not here. Where every token has the
# same number of latents, it has room for twice as many features as the mean. So the rows are not at
# one L0: read them with it. *published* are the numbers of SynthSAEBench at an L0 of 25, whose
# world is far larger and whose features hang together.

# %%
rows["variant_planted"] = planted_ladder(run)
Markdown(filename=save_table(run, "planted_ladder", shown.planted(run, rows)))

# %% [markdown]
# ## Check
#
# A TopK SAE has no more active latents than `k`, whatever the text. And a search for a penalty ends
# no further from the wanted L0 than its best attempt.

# %%
measures = rows["variant_measures"]
exact = [name for name, variant in study.variants.items() if variant.name == "topk"]
point = point_at(run.sae.k)
most = measures.loc[measures.variant.isin(exact) & (measures.point == point), "l0"]
print(f"L0 of TopK on held-out text: at most {most.max():.2f} of {run.sae.k}")
assert not (most > run.sae.k).any(), f"TopK has {most.max():.2f} active latents of {run.sae.k}"
first = summary.loc[summary.point == point].groupby(["variant", "corpus"]).l1.nunique()
assert (first.loc[penalised(run)] == 1).all(), "seeds of a variant have different penalties"
