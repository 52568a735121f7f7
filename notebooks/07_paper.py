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
# # 07 · The paper's tables and figures
#
# Here is every row measured by notebooks 01 to 06, over all language models of a profile, in the
# form of the paper's tables, with the paper's numbers beside them. `source` says which is which.
# Nothing is left out because it disagrees: the table of claims goes through them one by one.
#
# Not everything need be there. A model that failed, or that nobody has run yet, is left out. So are
# rows made with other parameters than the files now say. The paper's row then stands alone. What is
# missing is named first, with the command that makes it.
#
# **Read this first.** On the `laptop` and `smoke` profiles the language models are small models of
# software documentation, and each corpus stands in for one of the paper's (first table). Their
# numbers can agree with a claim or not. They cannot equal the paper's.
#
# **Intervals.** `0.547 ± 0.010` is a mean and half of its 95 % interval. The unit is the seed: a
# number of SAEs would be another with other seeds, and pairs of seeds that share one are not
# independent. So the interval leaves out one seed at a time. Where a number is measured on rows or
# texts, these are drawn again as well (bootstrap), and both parts are added. The language model,
# the corpora and their order are one each: of other ones an interval says nothing.
#
# **Floors.** The last columns, rows and bars (grey) are two kinds of SAE that learnt no dictionary:
# a `random dictionary`, left as it was initialised, and a `frozen decoder`, whose decoder stays
# random while the rest is trained. A measure on which they do as well as trained SAEs does not tell
# what these have learnt. No claim is about them.

# %% [markdown]
# ## The profile
#
# A profile is a folder of parameter files, one per language model. The default is the small `smoke`
# profile. Set `profile = "laptop"` to see the numbers of the front page, once `make paper` has made
# them.

# %% tags=["parameters"]
profile = "smoke"  # or laptop, or a folder of parameter files

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start_profile

runs = start_profile(profile)

# %%
import pandas as pd
from IPython.display import Image, Markdown, display

from faithful_sae.paper import evaluation, figure_data, tables
from faithful_sae.paper.claims import claims
from faithful_sae.paper.exhibits import profile_note, save_figure, save_table, unmade, unmeasured
from faithful_sae.paper.links import feature_links
from faithful_sae.paper.open_questions import open_questions
from faithful_sae.paper.plots import paper as plots
from faithful_sae.paper.plots.method import method, method_boxes
from faithful_sae.paper.reanalysis import comparisons, patterns
from faithful_sae.runs.catalogue import exhibits
from faithful_sae.runs.registry import model_stages, profile_stage
from faithful_sae.runs.rows import measured

# %% [markdown]
# The sentence below stands on every table and figure. It says which models were measured, so that
# no number here is taken for one of the paper's.

# %%
trained = [run for run in runs if run.sae]  # a model may be there for its text alone
Markdown(f"**{profile_note(runs)}** Language models: {', '.join(run.label for run in runs)}.")

# %% [markdown]
# ## What is missing
#
# Each row is a notebook of a model whose results are not there, or were made with other parameters.
# `command` makes them.

# %%
missing = unmeasured(runs)
note = "" if len(missing) else "Nothing is missing."
Markdown(filename=save_table(runs, "missing", missing, note))

# %% [markdown]
# ## The method
#
# The paper's Figure 1, redrawn. The language model writes text from BOS alone. SAEs that differ in
# their seed are trained on its activations, on that text and on other corpora. The boxes on the
# right are what is measured below: SFR needs both seeds, the others one SAE at a time.

# %%
Image(save_figure(runs, "method", method_boxes(), method), retina=True)

# %% [markdown]
# ## Which corpus stands in for which
#
# On small profiles each corpus stands in for one of the paper's, and the tables below call it by
# the paper's name (column `plays`). Look at what the text is, how many tokens there were to train
# on, and in how many passes. A role says nothing of how far a text is from the model. That is `CE`,
# the model's own cross-entropy on held-out rows, in nats per token.

# %%
Markdown(filename=save_table(runs, "corpora", tables.corpora_table(trained)))

# %% [markdown]
# Language models that were trained on the spot are worth studying only if `CE`, their held-out
# cross-entropy, lies below that of an n-gram model of the same tokens. `ngram order`,
# from 1 to 8, is the best one on the held-out text itself, which favours the n-gram model. For
# models that come ready-made the columns are empty.

# %%
Markdown(filename=save_table(runs, "language_models", tables.language_models(runs)))

# %% [markdown]
# ## Table 1: what the faithful dataset covers
#
# Percent of the vocabulary, overall and as first token, and KL(model ‖ dataset) of the first token
# in nats. The claims: over 90 % of the vocabulary for every model, and a KL below 2 for most
# (section 5.4). Few tokens cover less of a vocabulary, so look at `tokens` and `vocabulary` too.
#
# The second table says what each number could be at best: what the model's own training text covers
# of the vocabulary, and how much of that the samples cover. `expected` is what perfect sampling of
# as many documents gives.

# %%
table1 = tables.table1(runs)
Markdown(filename=save_table(runs, "table1", table1))

# %% [markdown]
# ## Table 2 and Figure 2: SFR, faithful against instruction corpora
#
# The claim: SFR is higher on faithful text than on each instruction corpus (section 4.1). Compare
# `faithful` with the other corpora of its row, and the difference with the intervals: bold says
# which is highest, not that another pair of seeds would say so too. The second table is what the
# paper's own two seeds give here, without the others.
#
# SFR still grows when an SAE is trained longer (notebook 08), so with few tokens it also measures
# how fast a corpus is learnt. That holds for Tables 3 and 4, too.

# %%
table2 = tables.sfr_table(trained, "table2", tables.INSTRUCTION)
Markdown(filename=save_table(runs, "table2", table2))

# %% [markdown]
# The same numbers as bars: measured here on the left, the paper's hatched on the right. Look at the
# order of the bars within a model. Their height differs between models with size, dictionary and
# training.

# %%
Image(
    save_figure(
        runs, "sfr_instruction", figure_data.bars(trained, table2, tables.INSTRUCTION), plots.bars
    ),
    retina=True,
)

# %% [markdown]
# ## Table 3: own text and the other model's
#
# The claim: SFR is higher on a model's own text than on text of another model (section 5.2). For
# each `target`, compare the row whose text is its own with the row whose text is the other model's.

# %%
Markdown(filename=save_table(runs, "table3", tables.table3(trained)))

# %% [markdown]
# ## Table 4 and Figure 3: SFR, faithful against Web corpora
#
# The claim: on Web corpora SFR is at least that on faithful text, for most models (section 5.3).
# Corpora that stand in for none of the paper's have columns of their own here.

# %%
table4 = tables.sfr_table(trained, "table4", tables.WEB)
Markdown(filename=save_table(runs, "table4", table4))

# %% [markdown]
# The same numbers as bars. This is the figure of the front page: is the faithful bar the lowest of
# its model, as the claim says for most?

# %%
shown = {*tables.WEB, *tables.columns_without_role(trained)}
Image(
    save_figure(runs, "sfr_web", figure_data.bars(trained, table4, shown), plots.bars), retina=True
)

# %% [markdown]
# ## Is it more than a threshold?
#
# A ratio that is cut at 0.7 may be 0 for SAEs that are half way there. The mean cosine of matched
# latents (PW-MCC) needs no threshold. Look whether corpora keep their order from column to column:
# decoder, encoder, and what the latents do on held-out text. If they change it in `alive`, dead
# latents decide. The baselines say what is left of each column without a learnt dictionary.

# %%
Markdown(filename=save_table(runs, "shared_features", tables.shared_features(trained)))

# %% [markdown]
# ## Does distance from the model lower SFR?
#
# The paper's reason for its claims is that text far from the model makes SAEs less alike. Roles are
# a detour to that. Here it is asked directly: each corpus is a point, its cross-entropy under the
# model against the SFR of its SAEs. The paper expects them to fall from left to right.

# %%
data = figure_data.mechanism(trained)
Image(save_figure(runs, "mechanism_points", data, plots.mechanism), retina=True)

# %% [markdown]
# The rank correlation says how well they keep that order; `±` is what redrawing each number within
# its error does to it. The verdict is on the size: what SFR falls by, along a straight line, from
# the text that the model predicts best to the one that it predicts worst. Its interval is over
# seeds, for the corpora that there are. `p corpora` asks the other question: how often would so few
# corpora, in any order, fall as much?

# %%
Markdown(filename=save_table(runs, "mechanism", tables.mechanism(trained)))

# %% [markdown]
# ## Table 5: training configurations
#
# What the SAEs were trained with, here and in the paper. Sizes, tokens and recipe are the first
# place to look when a number above or below disagrees.

# %%
Markdown(filename=save_table(runs, "table5", tables.table5(trained)))

# %% [markdown]
# ## Table 6 and Figure 6: probing
#
# Accuracy of probes on the reconstruction, mean over seeds. The claims: the faithful SAE reads best
# in most cells, and on CoLA for every model (section 5.6). Compare the corpora within a row, which
# is one task of one model.
#
# Beside them stands what can be read without an SAE: a label at random (`chance`), the most
# frequent one (`majority`), a probe on how well the model predicts the text (`likelihood`) and one
# on the activations themselves (`baseline`). Where the baseline is no better than chance, or leaves
# no room above it, a cell says nothing of SAEs.

# %%
table6 = tables.table6(trained)
Markdown(filename=save_table(runs, "table6", table6))

# %% [markdown]
# All three representations. The dotted line is the probe on the activations themselves. Look at how
# far the reconstruction falls below it: that is what the SAE has lost. F1 is in the csv beside the
# figure.

# %%
data = figure_data.probing(trained)
Image(save_figure(runs, "probing", data, plots.probing), retina=True)

# %% [markdown]
# ## Table 7: fake feature ratio
#
# In percent of the dictionary, mean over seeds. The claim: the faithful SAE has the lowest FFR, for
# most models (section 5.7). One latent is 100 / `d_sae` percent, so on a small dictionary a
# difference may be a single latent. The second table leaves out ids that the model does not
# write: see whether the order of corpora survives that.

# %%
table7 = tables.table7(trained)
Markdown(filename=save_table(runs, "table7", table7))

# %% [markdown]
# ## Figure 5 and Appendix B: fidelity
#
# Drawn by notebook 05, one set per language model. The claim: of the Web SAEs (faithful, Pile,
# FineWeb), FineWeb's has the highest CE difference on corpora that are none of the three's own
# (section 5.5). Compare their rows in those columns.

# %%
for run in measured(trained, "fidelity"):
    for kind in ("fidelity_ce", "fidelity_l2", "fidelity_ev"):
        if (drawn := run.figures / f"{exhibits()[kind].stem(run.name)}.png").exists():
            display(Image(str(drawn), retina=True))

# %% [markdown]
# ## The paper's claims
#
# A claim names differences that should be above 0. By one rule (`faithful_sae/paper/verdicts.py`):
#
# - *agrees*: the one-sided 95 % bound of each of them is above 0.
# - *disagrees*: one of them is below 0, by its bound.
# - *no difference*: all lie within a narrow margin around 0, by their 90 % intervals.
# - *undecided*: the seeds are too few for differences of this size; `seeds needed` says how many
#   would show them four times out of five.
# - *not testable*: the number would come out like this whatever the SAEs' text, as for a probe at
#   chance, or the profile lacks what is compared.
#
# A claim on most models or cells agrees when more than half do, and disagrees when that can no
# longer happen. `effect` and its interval are of the difference that speaks least for the claim.
# Where `seeds needed` is empty though a claim is undecided, seeds alone would not do: it takes more
# test texts, more rows, or models that are not measured yet. `p (Holm)` is corrected for the number
# of claims in the table. Nothing is tuned until a claim holds.

# %%
verdicts = claims(runs)
Markdown(filename=save_table(runs, "claims", verdicts))

# %% [markdown]
# ## What the paper's own tables can carry
#
# The same question for the paper's printed numbers: would another pair of seeds have turned a
# comparison round? The paper gives no intervals, so the noise has to be assumed. It is assumed
# twice, low and high, and a reader can see what hangs on that.
#
# - **SFR** of one pair of seeds scatters like a share of `d_sae` latents. That is how it scatters
#   on the laptop profile's models, at 128, 512 and 2048 latents. The high noise adds 0.0085 per
#   corpus, the most that another sample or order of the text did there.
# - **FFR** is a count of a few latents. Low: its variance is 0.4 of its mean, as on the laptop
#   profile. High: variance and mean are equal, as for counts of independent events.
# - **Probes** are compared on the same sentences, so only those count on which two probes differ:
#   8 % to 25 % of SST-2 and CoLA, 2 % to 6 % of Yelp, each compared with the better of the others.
#
# `p` is two-sided and Holm's, over all comparisons of a measure. A `reading` is *for* or *against*
# the claim where p is below 0.05, and else *open*. Open does not mean that the claim is wrong: it
# means that two seeds cannot tell. Nobody has measured the noise on the paper's models, and the
# language model and the text are one each. So this speaks of seeds and sentences alone.

# %%
paper = comparisons()
Markdown(filename=save_table(runs, "paper_reanalysis", paper))

# %% [markdown]
# The same as a picture. To the right lies what the paper claims. Thick: the 95 % interval under low
# noise. Thin: under high noise. Look for filled points, which both assumptions leave standing.

# %%
Image(save_figure(runs, "paper_differences", paper, plots.reanalysis), retina=True)

# %% [markdown]
# How many comparisons of each claim are decided, under low noise and under high noise.

# %%
for reading in ("reading_low", "reading_high"):
    display(pd.crosstab([paper.measure, paper.section], paper[reading]))

# %% [markdown]
# Cells that are open one by one may say something together. Faithful text is best in 12 of 18
# probing cells, and three candidates would give 6 by chance: it is CoLA that makes the difference,
# as a sign pattern, and six of CoLA's 18 accuracies do not beat naming the larger class. The last
# rows ask whether the printed digits are those of means over two seeds.

# %%
Markdown(filename=save_table(runs, "paper_patterns", patterns()))

# %% [markdown]
# ## SAE by SAE: what the features are worth
#
# The paper leaves this open (section 7). Notebook 12 measures it where it is asked for, by
# `make paper STUDIES=evaluation`. Here is one number of each of its evaluations, for every SAE: how
# far those of one text differ is what chance does. `PCA` and `identity` need no training, and SAEs
# with frozen or random directions have learned none. Where they do as well, a number says little.

# %%
worth = evaluation.summary(trained)
if len(worth):
    display(Markdown(filename=save_table(runs, "evaluation_summary", worth)))
else:
    print("Not measured with these parameters yet.")

# %% [markdown]
# ## What the paper left open
#
# Sections 5.4, 7 and 8 of the paper name what it did not do. Notebooks 12 and 14 to 20 do it, each
# made only where it is asked for: `make paper STUDIES="data_or_seed pruning"` makes two. A question
# that has not been asked yet is not in the table. `docs/which_text.md` has all names, and what the
# answers mean to somebody who trains SAEs tomorrow: which text to use.

# %%
answers = open_questions(trained)
if len(answers):
    display(Markdown(filename=save_table(runs, "open_questions", answers)))
else:
    print("No study has been made with these parameters yet.")

# %% [markdown]
# ## Features to look at
#
# Orphans (no match in the other seed) and fake features (that fire on random tokens) of every SAE
# that notebook 09 made an index of, those that fire most first. Do they look like mistakes?
# `make explorer` writes the page that the numbers link to.

# %%
feature_links(runs)

# %% [markdown]
# ## Check
#
# Every exhibit of the paper exists, for this profile and each of its models, except those of
# notebooks that are named as missing. (08 stands beside the paper and has its own.) A model that is
# measured stands in the tables, and one that is not does not.

# %%
unfinished = set(zip(missing.model, missing.notebook, strict=True))
absent = [
    file
    for run in runs
    for stage in (*model_stages(run), profile_stage())
    if (stage.paper or stage.profile) and (run.label, stage.name) not in unfinished
    for file in unmade(run, stage)
]
print(f"absent files: {absent or 'none'}; notebooks not run: {len(missing)}")
print(verdicts.verdict.value_counts().to_dict())
assert not absent, f"absent files: {absent}"
for rows, table in (("dataset", table1), ("probing", table6), ("ffr", table7)):
    here = {run.label for run in measured(runs, rows)}
    shown = set(table[table.source == "here"].model)
    assert shown == here, f"{rows}: the table shows {shown}, but measured are {here}"
