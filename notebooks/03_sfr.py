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
# **Exhibits.** `cosines`, `sfr_curve`. The tables themselves are drawn in 07, over all language
# models.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("03_sfr", params)

# %%
import pandas as pd
import torch
from IPython.display import Image

from faithful_sae import match_features, shared_feature_ratio
from faithful_sae.paper import latent_data
from faithful_sae.paper.estimates import sfr_estimates
from faithful_sae.paper.exhibits import save_figure
from faithful_sae.paper.plots import paper as plots
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s03_sfr import seed_comparison
from faithful_sae.stages.saes import load_saes

# %%
lm = open_model(run)
saes = load_saes(run, lm)
print(f"{len(saes)} SAEs, threshold {run.sfr.threshold}")

# %% [markdown]
# ## All corpora
#
# - `sfr` is the paper's ratio, over all latents.
# - `sfr_alive` leaves out pairs with a dead latent. A latent that died early points where it began,
#   or where the auxiliary loss moved it, and is mostly an orphan. The shares of dead latents stand
#   beside it.
# - `sfr_encoder_decoder` is the stricter criterion of Paulo and Belrose (2025): encoder and decoder
#   are matched apart, and both matchings must pair the same two latents.
# - `sfr_strict` is the authors' code, which asks for more than 0.7 where the paper says at least.
# - `mean_cosine` and `mean_encoder_cosine` need no threshold: the mean cosine of matched latents,
#   PW-MCC. `mean_correlation` is the same for what latents do: the correlation of matched ones over
#   held-out tokens.
#
# The last rows are the floor: a random dictionary, and SAEs with a frozen random decoder. Their
# decoders are the same, so both have the same `sfr` and `mean_cosine`, which are those of chance.
# A number that a trained SAE has in common with them says nothing about what it learnt. In few
# dimensions the matched cosines of random directions are far from 0 though few reach 0.7, so
# compare `mean_cosine` with theirs.

# %%
rows, latents, curve = seed_comparison(run, saes, lm)
columns = rows.columns.drop(["corpus", "seed_a", "seed_b", "d_sae"])
rows.groupby("corpus", sort=False)[list(columns)].mean().round(3)

# %% [markdown]
# ## How much of that is the seed?
#
# One pair of seeds gives one number, and another pair another one. The pairs of S seeds are not
# independent, since each seed is in S - 1 of them. So the interval leaves out one seed at a time
# (jackknife) and has S - 1 degrees of freedom. With two seeds there is one pair, and no interval:
# nothing can be said of a difference between corpora then.

# %%
found = sfr_estimates(run)
pd.DataFrame(
    {
        "SFR": {name: e.value for name, e in found.items()},
        "standard error": {name: e.error for name, e in found.items()},
        "from": {name: e.interval()[0] for name, e in found.items()},
        "to": {name: e.interval()[1] for name, e in found.items()},
        "seeds": {name: e.seeds for name, e in found.items()},
    }
).round(3)

# %% [markdown]
# ## How similar are matched latents?
#
# The ratio is one number cut out of a distribution. Look at the whole of it. A valley at the
# threshold means that shared and orphan are two kinds of latents. A slope means that the number
# depends on where one cuts.

# %%
Image(save_figure(run, "cosines", latent_data.cosines(run, latents), plots.cosines), retina=True)

# %% [markdown]
# The same as a curve: what the ratio would be at another threshold. Where two lines cross, which
# corpus shares more hangs on the threshold.

# %%
Image(
    save_figure(run, "sfr_curve", latent_data.sfr_curve(run, curve), plots.sfr_curve), retina=True
)

# %% [markdown]
# ## Check
#
# A dictionary whose rows are shuffled is the same dictionary: matching must find the shuffle, and
# SFR must be 1 (rows of zeros, which some published SAEs have, apart). Random directions share next
# to nothing.

# %%
sae = saes[run.sae.train_on[0], run.sae.seeds[0]]
shuffle = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(0)).to(lm.device)
twin = match_features(sae.W_dec, sae.W_dec[shuffle])
random = match_features(
    sae.W_dec.cpu(), torch.randn(sae.W_dec.shape, generator=torch.Generator().manual_seed(1))
)
print(
    f"own copy, shuffled: mean cosine {twin.cosine.mean():.6f}; random directions: "
    f"{(random.cosine >= run.sfr.threshold).mean():.3f} shared"
)

# %%
there = (sae.W_dec.norm(dim=-1) > 0).cpu().numpy()
off = 1 - twin.cosine[there].min()
assert off < 1e-5, f"a latent and itself, shuffled, have a cosine of 1 - {off:.1e}; 1e-5 is allowed"
itself = shared_feature_ratio(sae, sae)
assert itself == there.mean(), f"SFR of an SAE and itself is {itself}, not {there.mean()}"
more = (rows.sfr_encoder_decoder - rows.sfr).max()
assert more <= 0, f"encoder and decoder share more than the decoder alone, by {more:.1e}"
