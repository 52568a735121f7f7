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
# # 12 · What are the features worth?
#
# Two seeds may share a feature that means nothing, and one seed may find a good one alone. SFR does
# not say whether features are any good, and the paper leaves it open (section 7). The survey of Shu
# et al. (2025, section 4) lists how one would know. Here are the evaluations that need no other
# language model and no download.
#
# SAEs of two corpora are compared, on text that is the same for all. Beside them stand SAEs that
# never learned their directions: what they reach is the floor of a measure. `PCA` and `identity`
# are no SAEs at all: principal components of this text, as many as the SAEs have active latents,
# and the activation itself, channel by channel. What they reach needs no dictionary.
#
# **Exhibits.** `structure`, `sparse_probes`, `evaluation_positions`, `evaluation_tuned`,
# `interpretability`, `interpretability_sharing`, `interpretability_pairs`,
# `interpretability_selected`, `evaluation_features`, `evaluation_findings`. Notebook 07 has a row
# for each SAE.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("12_evaluation", params)

# %%
from IPython.display import Image, Markdown, display

from faithful_sae.paper import evaluation as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots import evaluation as plots
from faithful_sae.stages import s12_evaluation as evaluation
from faithful_sae.stages.model import open_model
from faithful_sae.stages.saes import load_saes

# %% [markdown]
# The section `evaluation` of the parameter file names the corpora, the text, and how much of it.

# %%
lm = open_model(run)
trained = load_saes(run, lm)
saes = evaluation.compared(run, lm, trained)
e = run.evaluation
print(
    f"{len(evaluation.evaluated(run))} SAEs on {e.text}: {', '.join([*e.corpora, *run.baselines])}"
)

# %% [markdown]
# ## Structure
#
# What weights and reconstructions say: SAEBench's core (Karvonen et al. 2025). `bias` is below 1
# where reconstructions are too short. `CE score` and `KL score` are 0 where the model runs on
# nothing and 1 where it runs as well as it can; in a small model nearly everything is near 1, so
# look at the nats as well. `nearest row` is the mean largest cosine of a latent to another one.
#
# The identity reconstructs everything and has as many latents active as there are dimensions. The
# components of `PCA` are those of this text, which the SAEs have not seen. All tokens but BOS
# count, massive ones too.

# %%
rows = evaluation.measure_structure(run, lm, saes)
Markdown(filename=save_table(run, "structure", shown.structure(run, rows)))

# %% [markdown]
# ## What a few latents tell
#
# Probes of notebook 06 read all latents. Here a probe may have one, two or five of them, chosen on
# training texts: by the difference of means (SAEBench), or in the order in which an L1 penalty lets
# them in (Kantamneni et al. 2025). Channels of the activation (`baseline`) and its principal
# `components` are given the same chance. TPP says how much a probe loses when the latents that
# speak for its own label are taken away, beyond what others lose. SCR says whether a probe that
# confused two properties is freed of one of them when its latents are taken away. An audit (Chanin
# 2026) found that TPP falls as SAEs train on, and that SCR can change its sign: they are to be
# compared with others' numbers, and not relied on.

# %%
rows |= evaluation.probe_sparsely(run, lm, saes)
Markdown(filename=save_table(run, "sparse_probes", shown.sparse_probes(run, rows)))

# %% [markdown]
# ## Where in a row
#
# An SAE is trained on all positions of its rows. At the beginning the model has little to go by,
# later it has more context, and the reconstruction may be better in one place than in another (He
# et al. 2024). Massive activations, where `sae.max_norm` leaves them out, are left out here too.

# %%
rows["positions"] = evaluation.measure(run, lm, saes, "positions")
Markdown(filename=save_table(run, "evaluation_positions", shown.positions(run, rows)))

# %% [markdown]
# ## On a model that was trained further
#
# Is an SAE of a base model of use on what the model becomes? With `evaluation.tuned` a copy of the
# model is trained further on other text, and the SAEs are measured on both, on held-out rows of
# that text.

# %%
rows["fine_tuned"] = evaluation.measure(run, lm, saes, "fine_tuned")
if e.tuned:
    tuned = save_table(run, "evaluation_tuned", shown.fine_tuned(run, rows))
    display(Markdown(filename=tuned))

# %% [markdown]
# ## Can a latent be explained?
#
# A judge explains a latent from some windows of text, and is then tested on others, of other
# documents. **Detection** asks in which windows the latent fires, **fuzzing** whether it fires on
# the tokens that are marked. A score is a balanced accuracy: guessing has 0.5. Silent windows are
# drawn at random, or they are *hard*: they hold the token on which the latent fires most.
#
# Both judges are offline. `tokens` knows at most ten tokens of a latent, `ngram` at most ten
# weights on tokens and on those before them. They know no meaning. So their levels cannot be set
# beside those of a large language model, but differences between groups of latents can.
#
# Two columns say what a score is worth: with the explanation of another latent that fires as often
# (`permuted`), and with the best single token. `evaluation.judges` adds language models and
# sentence encoders, which judge some latents of each SAE; what language models said is kept, and
# never asked for twice. The identity is not here: of its latents one of each two opposites fires at
# every token, so that there is no text where they are silent.

# %%
rows["interpretation"], rows["descriptions"] = evaluation.interpret(run, lm, saes)
Markdown(filename=save_table(run, "interpretability", shown.scores(run, rows)))

# %% [markdown]
# ## Are shared latents easier to explain?
#
# Paulo and Belrose (2025) find that latents which more seeds share score higher, and that many
# which a seed has alone score high, too. Dots are medians and whiskers quartiles over latents. The
# verdicts stand below.

# %%
rows["latent_groups"], rows["latent_pairs"] = evaluation.group_latents(run, trained)
figure = save_figure(run, "interpretability_sharing", shown.sharing(run, rows), plots.sharing)
Image(figure, retina=True)

# %% [markdown]
# Each dot is a latent and its match in another seed. Were scores a matter of the feature alone,
# well aligned pairs would lie on the line.

# %%
figure = save_figure(run, "interpretability_pairs", shown.pairs(run, rows), plots.pairs)
Image(figure, retina=True)

# %% [markdown]
# Their Table 1 shows one pair for each of five alignments: the best where both seeds agree, and the
# one that differs most where they do not. A selection finds extremes in noise as well. So the same
# selection is made from pairs that were shuffled: `shuffled_1` and `shuffled_2` are what it finds
# there, and `p` is how often it finds as much.

# %%
Markdown(filename=save_table(run, "interpretability_selected", shown.selected(run, rows)))

# %% [markdown]
# ## What goes in, what comes out, what is absorbed, what can be forgotten
#
# - **By input**: five tokens that describe a latent are put into text where it is silent. Does it
#   fire? And does it fire more than for the tokens of a rival (chance: 1/2)?
# - **By output**: the latent is made stronger. Do its own tokens gain more than those of two rivals
#   (chance: 1/3)?
# - **Absorbed**: the latent of a class of tokens, say digits, is silent on some of them because a
#   latent of its own stands for these (Chanin et al. 2024).
# - **Unlearned**: latents that fire on one text and not on another are clamped. How much harder
#   does the first become, as a share of the way to a model that only counts tokens? Latents and
#   dose are chosen on other rows, where the text to keep becomes at most 1 % harder; what it costs
#   here stands beside.
# - **RAVEL**: of two cities, the latents of one's country are given to the other. Does its country
#   change, and its continent stay (Huang et al. 2024)? Only with `evaluation.cities`, and of a
#   model that knows some.

# %%
rows["absorption"] = evaluation.measure(run, lm, saes, "absorption")
rows["unlearning"] = evaluation.measure(run, lm, saes, "unlearning")
rows["ravel"] = evaluation.measure(run, lm, saes, "ravel")
Markdown(filename=save_table(run, "evaluation_features", shown.features(run, rows)))

# %% [markdown]
# ## Verdicts
#
# Two questions that the paper leaves open: are latents that were trained on the model's own text
# easier to explain, and are fake ones harder? And two findings of Paulo and Belrose (2025), on
# latents that seeds share and on those that they do not. The unit is the seed: one is left out at a
# time, as an SAE that is scored. Intervals speak of seeds, on this text. Groups of latents are
# compared among those that fire about as often, since latents that fire often score otherwise.

# %%
Markdown(filename=save_table(run, "evaluation_findings", shown.findings(run, rows)))

# %% [markdown]
# ## In SAEBench's form
#
# What was measured of each SAE is also written as a result of SAEBench, a file per evaluation, for
# whoever reads these. Where the definition is another one, so is the id: no number of an offline
# judge can be taken for one of a large model's.

# %%
folder = evaluation.write_results(run, saes, rows)
print(
    len([*folder.iterdir()]), "SAEs:", ", ".join(sorted({p.stem for p in folder.rglob("*.json")}))
)

# %% [markdown]
# ## Check
#
# A balanced accuracy lies between 0 and 1. With the explanation of another latent a judge should do
# little better than guess: what is above 0.5 is what latents that fire as often have in common.

# %%
scored = rows["interpretation"].query("scored")
values = scored[[*shown.SCORES]]
own, permuted = values.detection_random.mean(), values.detection_random_permuted.mean()
print(f"detection {own:.3f} with the latent's own explanation, {permuted:.3f} with another's")
beyond = int(((values < 0) | (values > 1)).to_numpy().sum())
assert beyond == 0, f"{beyond} balanced accuracies are beyond 0 to 1"
