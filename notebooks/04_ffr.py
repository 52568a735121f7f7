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
# # 04 · Fake feature ratio
#
# A sequence of uniformly random tokens is no text. A latent that keeps firing on it may respond to
# something other than what the model understands. It need not: TopK fires $k$ latents on any input,
# and a latent of a common class of tokens, such as single bytes, fires often on random ids and is
# well understood. The paper calls it *fake* when it fires on more
# than $\tau$ = 10 % of such tokens (section 3.5):
#
# $$ \mathrm{FFR} = 100 \cdot \frac{\#\{\,i : \text{share of random tokens on which } z_i > 0
#    \text{ exceeds } \tau\,\}}{d_\mathrm{sae}} \;\% . $$
#
# **Claim to look at.** The SAEs trained on faithful text have the lowest FFR for most models (Table
# 7).
#
# **Exhibit.** `firing`. Table 7 itself is drawn in 07.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("04_ffr", params)

# %%
import torch
from IPython.display import Image

from faithful_sae.metrics.ffr import random_batches
from faithful_sae.paper import latent_data
from faithful_sae.paper.exhibits import save_figure
from faithful_sae.paper.plots import paper as plots
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s04_ffr import fake_features
from faithful_sae.stages.saes import load_saes

# %%
lm = open_model(run)
saes = load_saes(run, lm)
run.ffr

# %% [markdown]
# ## What random tokens look like
#
# Each row is BOS and then tokens drawn uniformly from the vocabulary. BOS is not counted.

# %%
every = torch.arange(lm.vocab_size)
sample = next(random_batches(200, run.sequence_length, every, lm.bos_id, run.ffr.seed, 1))
lm.tokenizer.decode(sample[0, 1:40])

# %% [markdown]
# ## Counting
#
# `ffr` counts a latent as firing when its activation is above 0, as the paper says. `ffr_authors`
# asks for more than 1.0, as the authors' code does. That is an absolute number, whose meaning
# changes with the scale of a model's activations. `ffr_occurring` draws only ids that stand in the
# text that the model wrote (notebook 01): the embeddings of tokens which it never met hardly moved
# in training, and a latent that reacts to those says little about it.

# %%
rows, latents = fake_features(run, saes, lm)
shown = ["ffr", "ffr_occurring", "ffr_authors", "fake"]
rows.groupby("corpus", sort=False)[shown].mean().round(3)

# %% [markdown]
# ## How often does each latent fire?
#
# A handful of latents decide the ratio. The figure shows all of them in order, mean and range over
# seeds. Those above the dashed line are fake.

# %%
Image(save_figure(run, "firing", latent_data.firing(run, latents), plots.firing), retina=True)

# %% [markdown]
# ## Check
#
# If at most $k$ latents fire on a token, firing frequencies sum to at most $k$, and no more than
# $k/\tau$ latents of an SAE can be fake. This holds for TopK. SAEs with a threshold have no such
# limit.

# %%
total = latents.groupby(["corpus", "seed"]).frequency.sum()
fake = rows.set_index(["corpus", "seed"]).fake
print(
    f"active latents per random token: {total.min():.2f} to {total.max():.2f}; most fake in one "
    f"SAE: {fake.max()}"
)
# TopK fires at most k latents; an SAE with thresholds may fire any number
beyond = {key: total[key] - (sae.k or sae.d_sae) for key, sae in saes.items()}
off = max(beyond.values())
assert off < 1e-9, f"more than k latents per token are active, by {off:.1e}: {beyond}"
off = (fake * run.ffr.frequency - total).max()
assert off < 1e-9, f"more latents are fake than can fire so often, by {off:.1e}"
