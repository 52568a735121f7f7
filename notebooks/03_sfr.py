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
# # 03 · Shared feature ratio
#
# Two SAEs that differ in their seed alone should find the same features, if those features are the
# model's. To compare them, the decoder rows of one are matched one to one with those of the other,
# so that the total cosine is the largest possible (Hungarian matching). A latent whose matched
# cosine reaches the threshold is *shared*, any other an *orphan*:
#
# $$ \mathrm{SFR} = \frac{\#\{\,i : \cos(d_i, d'_{\pi(i)}) \ge 0.7\,\}}{d_\mathrm{sae}} . $$
#
# **Claim to look at.** Faithful text gives a higher SFR than instruction text (Tables 2 and 3), but
# not than Web text (Table 4).
#
# **Exhibit.** `cosines`. The tables themselves are drawn in 07, over all language models.

# %%
import torch
from IPython.display import Image

from faithful_sae import match_features, shared_feature_ratio
from faithful_sae.paper.exhibits import save_figure
from faithful_sae.paper.plots.paper import cosines
from faithful_sae.runs.rows import open_run
from faithful_sae.stages.s03_sfr import seed_comparison
from faithful_sae.stages.saes import load_saes

# %% tags=["parameters"]
params = "params/smoke/neox.yaml"  # which language model, and everything done with it

# %%
run = open_run(params)
saes = load_saes(run)
print(f"{len(saes)} SAEs, threshold {run.sfr.threshold}")

# %% [markdown]
# ## All corpora
#
# - `sfr` is the paper's ratio, over all latents.
# - `sfr_alive` leaves out pairs with a dead latent. A dead latent points in the direction it was
#   initialised with and can only be an orphan. The shares of dead latents stand beside it.
# - `sfr_encoder_decoder` is the stricter criterion of Paulo and Belrose (2025): encoder and decoder
#   are matched apart, and both matchings must pair the same two latents.
# - `sfr_strict` is the authors' code, which asks for more than 0.7 where the paper says at least.

# %%
rows, latents = seed_comparison(run, saes)
rows.set_index("corpus").round(3)

# %% [markdown]
# ## How similar are matched latents?
#
# The ratio is one number cut out of a distribution. Look at the whole of it. A valley at the
# threshold means that shared and orphan are two kinds of latents. A slope means that the number
# depends on where one cuts.

# %%
Image(
    save_figure(run, "cosines", latents.assign(threshold=run.sfr.threshold), cosines), retina=True
)

# %% [markdown]
# ## Check
#
# A dictionary whose rows are shuffled is the same dictionary: matching must find the shuffle, and
# SFR must be 1 (rows of zeros, which some published SAEs have, apart). Random directions share next
# to nothing.

# %%
sae = saes[run.sae.train_on[0], run.sae.seeds[0]]
shuffle = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(0))
found = match_features(sae.W_dec, sae.W_dec[shuffle])
random = match_features(
    sae.W_dec, torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(1))
)
print(
    f"own copy, shuffled: mean cosine {found.cosine.mean():.6f}; random directions: "
    f"{(random.cosine >= run.sfr.threshold).mean():.3f} shared"
)

# %%
there = (sae.W_dec.norm(dim=-1) > 0).numpy()
off = 1 - found.cosine[there].min()
assert off < 1e-5, f"a latent and itself, shuffled, have a cosine of 1 - {off:.1e}; 1e-5 is allowed"
itself = shared_feature_ratio(sae, sae)
assert itself == there.mean(), f"SFR of an SAE and itself is {itself}, not {there.mean()}"
more = (rows.sfr_encoder_decoder - rows.sfr).max()
assert more <= 0, f"encoder and decoder share more than the decoder alone, by {more:.1e}"
