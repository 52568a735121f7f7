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
# # 09 · Explore features
#
# The other notebooks count latents: how many two seeds share, how many fire on noise. Here one
# looks at them one by one. What does a latent respond to? What does it do to the output? Does
# another seed have it? Is it fake?
#
# **Claim to look at.** The paper treats orphans (latents that the other seed does not have) and
# fakes as a loss of quality. If that is so, one should be able to see it: shared latents should be
# easier to read than orphans.
#
# **Exhibits.** `features`, `feature_histograms`, `feature_agreement`, `feature_steering`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("09_explore_features", params)

# %%
from IPython.display import HTML, Image, Markdown

from faithful_sae.features.examples import names
from faithful_sae.features.explorer.widget import Explorer
from faithful_sae.features.steering import continuation
from faithful_sae.features.text import features_of_text
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots import features as feature_plots
from faithful_sae.stages import s09_explore_features as explore
from faithful_sae.stages.model import open_model
from faithful_sae.stages.saes import load_saes

# %%
lm = open_model(run)
saes = load_saes(run, lm)
run.features

# %% [markdown]
# ## An index
#
# One pass over the text keeps, of every latent:
#
# - how often it fires (its activation is above 0), and a histogram of its activations
# - the contexts in which it is strongest
# - a sample of all contexts, some from each level of activation, since a latent that looks clear at
#   its top may be anything below.
#
# Of each row of text only the strongest token of a latent counts as a context. Firing on random
# tokens comes from notebook 04. The *twin*, the matched latent of the other seed, comes from 03.
# With one seed there is none, and which latents are shared is not known.
#
# Each corpus has an index on its own text. What follows is about the first corpus and seed.

# %%
indexes = explore.index_features(run, saes, lm)
first = run.features.corpora[0], run.features.seeds[0]
index, sae = indexes[first], saes[first]
index.latents.drop(columns="histogram").describe().loc[["mean", "min", "50%", "max"]].round(4)

# %% [markdown]
# Which of them are shared, dead, fake? A latent may be several of these. Dead: it fires on none of
# these tokens.

# %%
index.latents.groupby(["shared", "fake", "dead"], dropna=False).agg(
    latents=("latent", "count"), frequency=("frequency", "mean")
).round(4)

# %% [markdown]
# ## The explorer
#
# *Corpora side by side* is the paper's question at a glance: which share of the model's own text's
# features has a counterpart on web text, and which features only one of them has. The nearest
# feature of another corpus can stand beside each. *Steering* writes a text on with more of a
# feature.
#
# Arrow keys in the list go from one latent to the next, `/` searches, `t` goes to the twin.
# `make explorer` writes the same as a page to open without Jupyter. Once notebook 12 has asked
# judges to explain latents, both show what they say and how it scores.

# %%
Explorer(explore.judged_indexes(run), lm, [saes[key] for key in indexes])

# %% [markdown]
# In code, `index.find` and `index.page` give what the explorer shows. Here are the shared latents
# with the strongest activations.

# %%
index.find(shared=True, dead=False, order="max", descending=True).drop(columns="histogram").head()

# %% [markdown]
# ## Four readings of a latent
#
# Two look at contexts, two at tokens (a survey of them: Shu et al. 2025, section 3). With $z_f(X)$
# the activation of latent $f$ at the end of text $X$, and $d_f$ its decoder row:
#
# | method | says | formula | source |
# |---|---|---|---|
# | MaxAct | contexts in which it is strongest | $\arg\max_X z_f(X)$ | Bricken et al. 2023 |
# | PruningMaxAct | the shortest end of such a context that keeps half | shortest suffix $P$ of $X$ with $z_f(P) \ge z_f(X)/2$ | Foote et al. 2023, Gao et al. 2025 |
# | MutInfo | tokens that say most about whether it fires | $\arg\max_w I(\text{token}=w;\ z_f>0)$, counted on the corpus | after Wu et al. 2025 |
# | VocabProj | tokens it makes likelier | $\arg\max_w u_w \cdot \mathrm{norm}(d_f)$ | nostalgebraist 2020 |
# | VocabProjNegative | tokens it makes unlikelier | $\arg\min_w$ of the same | |
#
# The first three read the input, the last reads the output. They need not agree: a latent may stand
# for *what was just read* or for *what comes next*.
#
# The survey has MutInfo among the methods that read the output (3.2): its equations 7 and 8
# estimate the probabilities from output embeddings. Here it reads the input: they are counted on the corpus.
# The counts are exact where those of every token and latent fit in memory. Where they do not, they
# may be too low, which may change which tokens a list has and their order, and captions say so.

# %%
picked = explore.chosen(index.latents, run.features.per_group)
page = index.page(picked.latent[0])
print(picked[["latent", "frequency", "twin", "twin_cosine"]][:1].to_string(index=False))
page["explanations"]

# %% [markdown]
# The table shows the same latents for everybody, good or bad to look at. The latents of a group
# that are alive are put in order of how often they fire and cut into parts of one size. The middle
# one of each part is shown. The token where a context is strongest stands in brackets.

# %%
note = explore.mut_info_note(index)
Markdown(filename=save_table(run, "features", explore.describe(index, picked), note=note))

# %% [markdown]
# ## Which can one name?
#
# The simplest name of a latent is the token at which it is strongest. The *share that fits* says
# how often that is so, over contexts of all levels of activation. Below are the twenty latents whose
# names fit best, one for each name. Beside them are twenty drawn at random from all that fire: what
# a latent is like that nobody chose. A latent for a meaning with many words has no such name, even
# if its contexts are easy to read.

# %%
shown = explore.example_features(index)
# contexts in full, and the same bytes every time
styled = shown.style.set_uuid("examples").hide().format(escape="html", precision=2, na_rep="")
HTML(styled.to_html())

# %% [markdown]
# How well do names fit, at random and over all latents that fire? Where most fit, a dictionary is
# close to a list of tokens.

# %%
every = names(index).share
drawn = shown.loc[shown.group == "random", "fits, %"].mean()
print(f"a name fits {drawn:.0f} % of the contexts of a latent drawn at random")
print(f"{(every >= 0.9).mean():.0%} of {len(every)} latents have a name that fits 90 %")

# %% [markdown]
# ## How strongly do they fire?
#
# Histograms over powers of two. A latent with one meaning often has a hump of strong activations of
# its own, apart from the weak ones.

# %%
Image(
    save_figure(
        run, "feature_histograms", explore.histogram_rows(index, picked), feature_plots.histograms
    ),
    retina=True,
)

# %% [markdown]
# ## Do input and output say the same?
#
# For each latent, the share of its MutInfo tokens that VocabProj lists too (blanks and capitals
# apart). Dashed: the chance level, using a randomly chosen latent's VocabProj tokens.

# %%
agreement = explore.agreement_rows(run, index)
print(
    agreement.groupby("group", sort=False)[["agreement", "by_chance"]]
    .agg(["mean", "count"])
    .round(3)
)
Image(save_figure(run, "feature_agreement", agreement, feature_plots.agreement, note), retina=True)

# %% [markdown]
# ## Steering
#
# If a latent means something to the model, making it stronger should change what the model writes,
# and VocabProj should say how. At the hook, at every position but BOS, $x$ becomes $x + a\,d_f$. A
# dose of 1 adds as much as the latent ever reaches on the text by itself. What the SAE does not
# reconstruct stays in $x$, so a dose of 0 changes nothing.

# %%
response = explore.steer_features(run, sae, lm, picked)
Image(save_figure(run, "feature_steering", response, feature_plots.steering), retina=True)

# %% [markdown]
# Here is the text that follows, drawn with the same random numbers before and after. `way` can also
# be `clamp` (set to an amount) or `ablate` (take away).

# %%
text, latent = explore.example_text(run, lm), int(picked.latent[0])
length, amount = min(40, lm.context // 2), 2 * picked["max"][0]
before, after = continuation(lm, sae, text, latent, "add", amount, length, seed=run.features.seed)
print(f"{text!r}\n  goes on      {before!r}\n  with {latent:<7} {after!r}")

# %% [markdown]
# ## Your own text
#
# Type any text: what fires on each of its tokens? Then look at a latent with `index.page(latent)`.

# %%
text = explore.example_text(run, lm)  # or any text of your own, between quotes
fires = features_of_text(lm, sae, text)
fires.groupby("position").head(3).head(12).round(3)

# %% [markdown]
# ## Check
#
# A pass counts each activation once, in the histogram as in the frequency. TopK allows no more than
# $k$ active latents on a token. Both indexes must agree on who is whose twin, and the share of
# shared latents is SFR of notebook 03 (with one seed there are no twins). A dose of 0
# changes nothing at all.

# %%
counted = index.latents.histogram.map(sum)
fired = (index.latents.frequency * index.meta["tokens"]).round()
active = index.latents.frequency.sum()
shared = index.latents.shared.astype(float).mean()
print(f"active latents per token: {active:.3f}; shared: {shared:.3f}")
off = (counted - fired).abs().max()
assert off == 0, f"histogram and frequency of a latent differ by {off:.0f} activations"
most = sae.k or sae.d_sae
assert active <= most + 1e-9, f"{active:.3f} latents per token are active, more than {most}"
assert explore.twins_agree(indexes, run), "twins are not those of notebook 03, or not mutual"
change = response[response.dose == 0].kl.abs().max()
assert change == 0, f"a dose of 0 changes the next token by {change:.1e} nats, not by 0"
