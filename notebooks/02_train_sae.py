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
# # 02 · Train the sparse autoencoders
#
# One TopK SAE per corpus and seed (paper, sections 2.5 and 3.2, Table 5):
#
# $$ z = \mathrm{TopK}_k\bigl(\mathrm{ReLU}((x - b_\mathrm{dec}) W_\mathrm{enc}
#    + b_\mathrm{enc})\bigr), \qquad
#    \hat x = z\, W_\mathrm{dec} + b_\mathrm{dec}, \qquad \lVert W_{\mathrm{dec},i} \rVert = 1 . $$
#
# $x$ is read at the hook in one block of the language model (`layer`). Without more it is the
# residual stream entering the block; `hook: mlp` or `hook: attention` takes what the block's MLP or
# its attention adds to that stream. The seeds of a corpus see the same activations in the same
# order. Whatever differs between them later is due to initialisation alone.
#
# SAEs that somebody has published (`published` under `sae:`) are read instead of trained, and
# measured on the same text.
#
# Beside them stand two kinds of SAE that did not learn a dictionary (`baselines` under `sae:`), one
# of each per seed: a *random dictionary*, which is left as it was initialised, and a *frozen
# decoder*, whose decoder stays random while the rest is trained. What a measure gives for them is
# its floor.
#
# **Exhibit.** `training`: how the unexplained variance falls, how many latents are active, how many
# have died. `activation_norms`, where massive activations are left out (`max_norm` under `sae:`).

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("02_train_sae", params)

# %%
import torch
from IPython.display import Image, display

from faithful_sae.paper import latent_data
from faithful_sae.paper.exhibits import save_figure
from faithful_sae.paper.names import named
from faithful_sae.paper.plots.paper import activation_norms, training
from faithful_sae.sae.activations import token_activations
from faithful_sae.sae.formats.hooks import in_words
from faithful_sae.stages import training as trained
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.saes import load_saes

# %%
lm = open_model(run)
run.sae

# %% [markdown]
# ## The activations
#
# A corpus is packed into rows that start with BOS. The forward pass stops at the hook. The BOS
# position has an activation unlike all others (much larger in most models), so whether SAEs train
# on it is a choice: `include_bos`.

# %%
rows = corpus(run, run.sae.train_on[0], lm)
ids = torch.tensor(rows.train[:4], dtype=torch.int64)
x = lm.activations(ids)
print(lm.tokenizer.decode(ids[0])[:300])
print(
    f"\n{in_words(run.hook, run.layer)}"
    f"\nactivations {tuple(x.shape)}; norm at BOS {x[:, 0].norm(dim=-1).mean():.1f}, elsewhere "
    f"{x[:, 1:].norm(dim=-1).mean():.1f}"
)

# %% [markdown]
# ## Massive activations
#
# In many models a few positions have activations far larger than all others: BOS, often the first
# token after it, and single tokens such as line breaks or end tokens, on which attention heads rest
# that have nothing to attend to. Such a *massive activation* (Sun et al. 2024) is ten to a hundred
# times the median in norm, so that one in a thousand may hold most of the variance. Squared error
# is then about these, and so are explained variance and L2.
#
# The table has the largest norms of the first corpus's activations, in units of their median, by
# position. Where the largest is far above the median at positions other than BOS, the model has
# massive activations there. Small models may have none at all.
#
# With `max_norm` under `sae:`, activations above so many medians are left out of the training. The
# figure then shows norms by position and in all, on logarithmic scales, with the limit dashed.
# Notebook 05 measures with the tokens left out and without.

# %%
norms = trained.activation_norms(run, run.sae.train_on[0], lm)
by_position = norms.loc[norms.kind == "position", ["place", "median", "largest"]]
display(by_position.nlargest(5, "largest").round(2).astype({"place": int}))
if run.sae.max_norm is not None:
    display(Image(save_figure(run, "activation_norms", norms, activation_norms), retina=True))

# %% [markdown]
# ## Training
#
# One pass of the language model feeds all seeds of a corpus. If a corpus has SAEs already, made
# from the same text with the same parameters and code, they are not trained again. Under
# `make paper` one job per corpus has trained them before, and this cell gathers them.
#
# Published SAEs are converted to the same layout. Only their publishers know what they were trained
# on, so `tokens` stays empty. `source` says where they are from, and the rest is measured here.
#
# The baselines stand last. A random dictionary has seen no tokens; its numbers are those of the
# text that the frozen decoder is trained on. How much smaller is the unexplained variance of SAEs
# whose decoder was trained as well?

# %%
curves, summary = trained.train_all(run, lm)
summary.drop(columns="weights").round(4)

# %% [markdown]
# The tokens left out, the largest first: which they are, where in a row, and their norm. `massive`
# above counts them, each once, and `norm_limit` is the norm from which on they were left out. It
# follows from the first activations of the training, and is the same if that was interrupted or
# reads kept activations. Without `max_norm` the table is empty.

# %%
massive = trained.massive_activations(run, run.sae.train_on[0]).head(10)
massive.assign(text=[repr(lm.tokenizer.decode([i])) for i in massive.token]).round(1)

# %% [markdown]
# ## Training curves
#
# The fraction of variance unexplained (FVU) is
# $\sum\lVert x-\hat x\rVert^2 / \sum\lVert x-\bar x\rVert^2$ over a batch. L0 is at most $k$, and
# smaller where fewer than $k$ latents are positive. A latent counts as dead when it has not fired
# for a tenth of the training (recipe `default`) or for five batches (recipe `authors`). A line is
# the mean over seeds, the band around it goes from the least to the largest.
#
# Published SAEs have no curve but a dashed line: the same numbers over a tenth of `tokens` of this
# run's own text.

# %%
data = latent_data.training(named(run, curves))
Image(save_figure(run, "training", data, training), retina=True)

# %% [markdown]
# ## Check
#
# What was saved is an SAE in the sense of the equation above. SAEs trained here have unit decoder
# rows. At most $k$ latents are active (published SAEs may have a threshold instead). The
# reconstruction explains more than the mean does.

# %%
saes = load_saes(run, lm)
name = run.sae.train_on[0]
sae = saes[name, run.sae.seeds[0]]
tokens = token_activations(lm, ids, run.sae.include_bos)
tokens = tokens[tokens.norm(dim=-1) <= sae.metadata.get("norm_limit", float("inf"))]
variance = (tokens - tokens.mean(0)).pow(2).sum()
unexplained = (tokens - sae.reconstruct(tokens)).pow(2).sum() / variance
active = int((sae.encode(tokens) > 0).sum(-1).max())
print(f"{len(saes)} SAEs; most active latents on a token: {active}; FVU here {unexplained:.3f}")

# %%
norms = [s.W_dec.norm(dim=-1) for (corpus, _), s in saes.items() if corpus not in run.published]
off = max([0.0, *((norm - 1).abs().max().item() for norm in norms)])
assert off < 1e-5, f"the norm of a decoder row is off 1 by {off:.1e}; 1e-5 is allowed"
assert active <= (sae.k or sae.d_sae), f"{active} latents are active on a token, not {sae.k}"
said = (
    f"{name}: the first SAE leaves {unexplained:.2f} of the variance: lower sae.lr, or train more"
)
assert unexplained < 1 or name in run.published, said
