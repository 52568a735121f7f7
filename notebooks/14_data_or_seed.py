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
# # 14 · The text or the seed
#
# The paper asks how many features two seeds of one text share. But two SAEs may differ in their
# text as well. Which of the two decides what an SAE finds? If it is the text, then a feature that
# all seeds find can still be a feature of the text, and not of the language model.
#
# Every SAE is matched with every other: of another seed, of another text, and of both. SFR is the
# share of latents whose matched cosine is at least `sfr.threshold`, as in notebook 03. SAEs of one
# seed begin with the same weights, on whatever text.
#
# **Exhibits.** `source_matrix`, `source_pairs`, `source_components`, `source_kinds`,
# `source_latents`, `source_findings`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("14_data_or_seed", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.paper import data_or_seed as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.links import listed_links
from faithful_sae.paper.plots.data_or_seed import between_texts, kinds
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s14_data_or_seed import (
    compare_sources,
    corpora_of,
    list_latents,
    seeds_of,
)
from faithful_sae.stages.saes import load_saes

# %% [markdown]
# The section `data_or_seed` of the parameter file names texts and seeds. Their SAEs are those of
# notebook 02: nothing is trained here.

# %%
saes = load_saes(run, corpora=corpora_of(run), seeds=seeds_of(run))
rows = compare_sources(run, saes)
pairs = rows["source_pairs"]
print(f"{len(saes)} SAEs, {len(pairs):,} pairs, shared from cosine {run.sfr.threshold} on")

# %% [markdown]
# ## What two SAEs share
#
# On the diagonal are two seeds of one text, as in notebook 03. Beside it are two seeds of two
# texts. A text whose row is nearly as bright as the diagonal teaches an SAE the same features as
# another.

# %%
data = shown.between(run, rows)
Image(save_figure(run, "source_matrix", data, between_texts), retina=True)

# %% [markdown]
# The table sets the two apart. With another text and the same seed, the SAEs began alike; with
# another text and another seed, they did not. PW-MCC is the mean matched cosine, which needs no
# threshold.

# %%
Markdown(filename=save_table(run, "source_pairs", shown.pairs_table(run, rows)))

# %% [markdown]
# ## Which part of a cosine belongs to what
#
# Take a latent of one SAE, and its matched cosine in the SAE of every text and of every other
# seed. Some of the variance of these numbers is between latents: some are found everywhere. Some of
# it belongs to the text: all its seeds find the latent, or none does. The rest changes from seed to
# seed.
#
# `latent x text` is what a text teaches of a latent, whatever the seed. `latent x seed` is what a
# start of weights keeps, whatever the text. `rest` is what another seed changes on one text alone.
# Estimates of a variance that is 0 lie on both sides of 0.

# %%
Markdown(filename=save_table(run, "source_components", shown.components_table(run, rows)))

# %% [markdown]
# ## Where a feature is found
#
# A latent is one of its text if at least the share `data_or_seed.stable` of the text's other seeds
# find it. Of these, some are found by as many seeds of every text. Others are found by no seed of
# the other kind of text: text of a language model on one side, all other text on the other.

# %%
data = shown.kinds_data(run, rows)
Image(save_figure(run, "source_kinds", data, kinds), retina=True)

# %% [markdown]
# These are latents of each kind, the most stable first, and the tokens that each makes likelier. A
# kind that has none is not listed.

# %%
lm = open_model(run)
listed = list_latents(run, saes, lm, rows["source_latents"])
table = shown.listed(run, listed)
Markdown(filename=save_table(run, "source_latents", table))

# %% [markdown]
# Latents of a text and seed named under `features` have a page of contexts in the explorer, which
# sets the texts side by side as well. Do those of one text alone look like features of that text?

# %%
listed_links(run, listed.assign(kind=table["found on"]))

# %% [markdown]
# ## Findings
#
# The verdicts follow the rule of notebook 07, over seeds.

# %%
Markdown(filename=save_table(run, "source_findings", shown.findings(run, rows)))

# %% [markdown]
# ## Check
#
# The same pairs of seeds are in notebook 03's rows, from a matching of its own.

# %%
from faithful_sae.runs.rows import read_rows

same = pairs[pairs.corpus_a == pairs.corpus_b].rename(columns={"corpus_a": "corpus"})
both = same.merge(read_rows(run, "sfr"), on=["corpus", "seed_a", "seed_b"], suffixes=("", "_03"))
difference = (both.sfr - both.sfr_03).abs().max()
print(f"{len(both)} pairs that 03 has, too: SFR differs by {difference:.1e} at most")
assert len(both) == len(same), "a pair of seeds is missing in notebook 03's rows"
assert difference < 1e-9, f"SFR differs by {difference:.1e} from notebook 03's"

# %% [markdown]
# ## In practice
#
# Before you call a feature one of the model, look for it in SAEs of another text: agreement of
# seeds on one text alone does not show it. Where the table above shows that two texts share nearly
# as much as two seeds of one, either of them will do.
