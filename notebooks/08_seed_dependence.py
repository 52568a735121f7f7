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
# # 08 · Seed dependence
#
# Notebook 03 asks how much two seeds share *on which text*. Paulo and Belrose (2025), *Sparse
# Autoencoders Trained on the Same Data Learn Different Features*, asked it of seeds alone: same
# model, same text, same order, another initialisation. FaithfulSAE takes its measure from them.
# Here their experiments are repeated on this run's language model, with the SAEs that notebook 02
# trained on one corpus. Then one number is changed at a time: latents, active latents, training
# tokens, layer.
#
# Their criterion is stricter than SFR. Decoder rows and encoder columns are matched apart. A latent
# is **shared** if *both* matchings give it the same counterpart and *both* cosines reach the
# threshold. A latent that is not shared is a *miss*.
#
# **Claims to look at.** All that they report of TopK SAEs. The table at the end goes through them
# one by one.
#
# **Exhibits.** `seed_cosines`, `seed_firing`, `seed_curve`, `seed_threshold`, `seed_max_cosine`,
# `seed_sweeps`, `seed_mean_cosines`, `seed_findings`.
#
# **What differs from theirs.**
#
# - They train on the output of an MLP. Here it is the residual stream that enters a block, unless
#   the run's `hook` is `mlp` or `attention`.
# - They train on billions of tokens, here on as many as the parameters say.
# - They compare several architectures, here all SAEs are TopK.
# - The learning rate is the same for all SAEs here, whatever else is changed.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("08_seed_dependence", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.metrics.seed_dependence import hit_masks, means_over_seeds
from faithful_sae.metrics.sfr import match_seeds
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots import seeds as seed_plots
from faithful_sae.paper.seed_claims import findings
from faithful_sae.stages.s08_seed_dependence import study_seeds, train_seeds

# %%
study, seeds, threshold = run.seed_dependence, run.sae.seeds, run.sfr.threshold
print(
    f"{len(seeds)} seeds on {study.corpus}, threshold {threshold}; swept with "
    f"{study.sweep_seeds} seeds:"
)
print(f"d_sae {study.d_sae}, k {study.k}, tokens {study.tokens}, layers {study.layers}")

# %% [markdown]
# ## Training the seeds
#
# The SAEs that are as `sae` says are those of notebook 02. Those with one number changed are
# trained here, from the same stream of activations: each sees the same tokens in the same order.
# An SAE with a smaller budget sees the first of them, on a schedule of its own. Finished ones are
# reused. `fvu` is the unexplained share of the variance at the end. `dead` counts latents that no
# longer fire, which can be shared only by chance.

# %%
saes, summary = train_seeds(run)
sizes = summary.groupby(["layer", "d_sae", "k", "tokens"], sort=False)
sizes.agg(seeds=("seed", "count"), fvu=("fvu", "mean"), dead=("dead", "mean")).round(3)

# %% [markdown]
# ## All pairs of seeds
#
# With S seeds there are S(S-1)/2 pairs, each matched twice. The columns put three definitions of
# *shared* beside each other: theirs, the decoder alone (SFR of notebook 03), and theirs with each
# latent's nearest neighbour in place of its match.

# %%
rows = study_seeds(run, saes)
plain = rows["seed_pairs"].query("sweep == 'seeds'")
shown = ["shared", "shared_decoder", "shared_maximum", "agree", "alignment", "mmcs", "dead"]
plain[shown].describe().loc[["mean", "std", "min", "max"]].round(3)

# %% [markdown]
# ## Hits and misses (their Figure 1)
#
# Each latent of the first SAE, matched with the second. If *shared* is a kind of latent and not a
# cut through a cloud, there are two clouds. Hits are similar on both sides and matched to the same
# counterpart by both. The others are misses. Lines of equal density show the clouds where points
# lie on each other.

# %%
latents = rows["seed_latents"]
Image(
    save_figure(
        run, "seed_cosines", latents.assign(threshold=threshold), seed_plots.matched_cosines
    ),
    retina=True,
)

# %% [markdown]
# The eye is quick to see two clouds. Silverman's test asks how much a density of the mean of both
# cosines must be smoothed until it has one mode, and how often samples from that one-mode density
# need as much. A small `p` speaks for two. The test is known to be cautious: a large one is no sign
# of one kind. It is made for every pair of seeds.

# %%
rows["seed_modes"][["modes", "p"]].describe().loc[["min", "25%", "50%", "75%", "max"]].round(3)

# %% [markdown]
# ## Who is shared: frequent or rare latents? (their Figure 2)
#
# For each latent of the first SAE: the cosine to its match, averaged over all other seeds, how
# often it fires over the last tenth of the training, and how many of the other seeds share it.

# %%
frequency = rows["seed_sharing"].query("base == @seeds[0]").drop(columns="base")
frequency = frequency.assign(others=len(seeds) - 1, threshold=threshold)
Image(save_figure(run, "seed_firing", frequency, seed_plots.firing), retina=True)

# %% [markdown]
# One SAE is one draw. So the same is asked with each SAE as the base: of the twentieth of its
# living latents that fires most, `most` are shared by all others, and `all` of the living are;
# `least` of the twentieth that fires least are shared by none, and `none` of the living. `most_p`
# and `least_p` are the chances of so many. `rank` is the rank correlation of the mean cosine with
# how often a latent fires.

# %%
columns = ["base", "alive", "size", "most", "all", "most_p", "least", "none", "least_p", "rank"]
rows["seed_who"][columns].round(4)

# %% [markdown]
# ## Would more seeds find everything? (their Figure A1)
#
# A latent that no other seed shares is *only in the base*. With more seeds fewer are. A power law
# $a n^{-b}$ falls to nothing: enough seeds find every feature that any seed finds. They fit one
# with an offset, $a n^{-b} + c$, and conclude that some latents never find a counterpart. But few
# SAEs do not tell what a hundred would. A third law shows it. In it no latent is private: others
# find each one with a probability $p$ of its own, and $p$ is drawn from $\mathrm{Beta}(\alpha,
# \beta)$. The share that $n - 1$ others miss is then
#
# $$\mathrm{E}[(1 - p)^{n - 1}] = B(\alpha, \beta + n - 1) / B(\alpha, \beta),$$
#
# which falls to nothing too, but slowly. Its two numbers are fitted to how many others found each
# latent. Look at how near the laws are to each other where SAEs were seen, and how far apart after.

# %%
curves = rows["seed_extrapolated"]
Image(save_figure(run, "seed_curve", curves, seed_plots.only_in_base), retina=True)

# %% [markdown]
# Bars and bands are 95 % intervals over seeds. All is computed again without each seed in turn, so
# a set of all seeds has none. `at_100` is what a law says of a hundred SAEs. Its interval takes the
# law for granted, and so does that of the offset `c`. Which law is right they do not say. Where one
# without private latents follows the curve to within its bars, `c` is not identified: it says how
# the curve bends between the numbers of seeds that were seen, and no more.
#
# The points are averages over the same SAEs, not independent measurements. So beside Akaike's
# criterion (`aicc`) stands a test that does not need independence: how well a power law predicts a
# point that its fit has not seen (`loo`). The beta-binomial law is not fitted to the points.

# %%
rows["seed_fits"].set_index("law").T.round(4)

# %% [markdown]
# ## Does the result depend on the threshold? (their Figure A2)
#
# Where two kinds of latents exist, the share hardly depends on where between them one cuts: look
# for a flat stretch around the dashed line. A slope means that another threshold gives another
# number.

# %%
cuts = rows["seed_threshold"].assign(chosen=threshold)
Image(save_figure(run, "seed_threshold", cuts, seed_plots.thresholds), retina=True)

# %% [markdown]
# ## Does the result depend on the matching? (their Figure A3)
#
# Earlier work took, for each latent, the largest cosine to any latent of the other SAE. Its mean is
# MMCS. Several latents may then claim the same one. A latent above the diagonal has a neighbour
# nearer than its match, taken by another latent.

# %%
Image(
    save_figure(
        run,
        "seed_max_cosine",
        latents[["decoder_cosine", "max_cosine", "match", "maximum", "agree"]],
        seed_plots.maximum_cosines,
    ),
    retina=True,
)

# %% [markdown]
# ## What changes the overlap? (their Figures 4, 5 and A4)
#
# One number is changed, the others are those of the plain SAEs (in bold). Each dot is a pair of
# seeds, and bars are 95 % intervals over seeds of their mean. With few seeds these are wide.
# Dead latents, dotted, can hardly be shared and push the overlap down.
#
# Two things to keep in mind. If overlap still grows with training, a setting that learns more
# slowly also shares less for that reason alone: the panels compare SAEs of one budget, not finished
# ones. And the residual stream that enters layer 0 is the token embedding, which holds no more
# different vectors than the vocabulary has tokens.

# %%
swept = rows["seed_pairs"].query("sweep != 'seeds'")
drawn = ["shared", "shared_decoder", "dead", "mmcs", "matched_cosine"]
means = means_over_seeds(swept, ["sweep", "value"], drawn)
swept = swept.merge(means, on=["sweep", "value"], suffixes=("", "_mean"))
plain_values = {name: getattr(run.sae, name) for name in ("d_sae", "k", "tokens")}
swept = swept.assign(plain=swept.sweep.map(plain_values | {"layer": run.layer}))
Image(save_figure(run, "seed_sweeps", swept, seed_plots.sweeps), retina=True)

# %% [markdown]
# The same changes, seen through the mean cosines instead of a threshold: of the matched latents,
# and of the nearest ones (MMCS).

# %%
Image(save_figure(run, "seed_mean_cosines", swept, seed_plots.mean_cosines), retina=True)

# %% [markdown]
# ## Their findings, here
#
# Each verdict is computed from the rows above by the rule of notebook 07. The unit is the seed: a
# mean over pairs is computed again without each seed in turn, and its interval is Student's, with
# one degree of freedom less than seeds. A statement *agrees* if what should be above 0 is, by its
# one-sided 95 % bound; it *disagrees* if that is below 0; otherwise it is *undecided*. That two
# shares are *the same* agrees if their 90 % interval lies in a margin, which stands in the
# statement. `effect` is the difference that is weakest for the statement, with its 95 %
# interval. `p (Holm)` is corrected for all statements of the table. What they say of how well
# latents can be explained stands in notebook 12, which measures it.

# %%
verdicts = findings(run, rows)
Markdown(filename=save_table(run, "seed_findings", verdicts))

# %% [markdown]
# ## Check
#
# A seed compared with itself shares everything, whatever the order of its latents. And two ends of
# the curve can be had without combinations. With two seeds, what is not shared is only in the base.
# With all seeds, it is what no other seed shares.

# %%
first = next(iter(saes.values()))
twins = hit_masks(match_seeds({"itself": first, "copy": first}), threshold)
missed = sum(int((~hits).sum()) for hits in twins.values())
curve = rows["seed_curve"]
mean = curve.groupby("seeds").only_in_base.mean()
last = curve[curve.seeds == curve.seeds.max()].set_index("base").only_in_base
unshared = rows["seed_sharing"].groupby("base").seeds_sharing.agg(lambda n: (n == 0).mean())
print(f"only in the base: {mean.iloc[0]:.3f} with 2 seeds, {mean.iloc[-1]:.3f} with all")
print(verdicts.verdict.value_counts().to_dict())

# %%
assert not missed, f"{missed} latents do not share themselves"
off = {
    "only in the base with 2 seeds": abs(mean.iloc[0] - (1 - plain.shared.mean())),
    "only in the base with all": (last - unshared).abs().max(),
    "only in the base with a seed more": mean.diff().fillna(0).max(),
    "shared, beyond the decoder": (plain.shared - plain.shared_decoder).max(),
}
for what, by in off.items():
    assert by < 1e-12, f"{what}: off by {by:.1e}; 1e-12 is allowed"
