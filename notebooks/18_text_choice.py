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
# # 18 · How faithful text should be made
#
# The paper samples faithful text after BOS, at temperature 1, and leaves open whether another way
# is better (section 5.4). Its hypothesis: text that covers more of what the model can write makes
# SAEs more stable. This notebook samples text in several ways, trains SAEs on as many activations
# of each, and compares them. Then it does the same with plain text in several sizes.
#
# A text is described by what it covers of the vocabulary, by the model's own CE on it, and by how
# varied it is,
#
# $$ \mathrm{distinct}_n = \frac{|\text{different } n\text{-grams}|}{|n\text{-grams}|} . $$
#
# Its SAEs are described by SFR, FFR, and by what the language model loses on a text that no SAE was
# trained on.
#
# **Exhibits.** `text_choice`, `text_ways`, `text_curves`, `text_coverage`, `text_findings`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("18_text_choice", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.paper import text_choice as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots.text_choice import coverage, curves, ways
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s18_text_choice import (
    make_texts,
    measure_saes,
    measure_texts,
    shares,
    train_texts,
)

# %% [markdown]
# The section `text_choice` of the parameter file names the ways of sampling. Plain text is that of
# notebook 01, of which as many tokens are taken. SAEs have the size and the learning rate of `sae`,
# but fewer activations.

# %%
study = run.text_choice
for name, text in study.texts.items():
    print(f"{name}: {text.model_dump(exclude_none=True)}")
print(f"{study.sampled:,} tokens of each; plain text also x {', '.join(map(str, study.sizes))}")

# %% [markdown]
# ## The texts
#
# `flat` draws the first token of a document from the whole vocabulary. `snippets` are the first
# tokens of rows of a corpus, each followed by a document; they are left out of the text, so that
# every token is the model's own. Here is how a document of each text begins.

# %%
lm = open_model(run)
texts = make_texts(run, lm)
for name in study.texts:
    print(f"{name:>12} {lm.tokenizer.decode(texts[name][0])[:80]!r}")

# %%
described = measure_texts(run, lm, texts)

# %% [markdown]
# ## Their SAEs
#
# All SAEs of one seed begin with the same weights. Each is trained on the same number of
# activations, in as many passes as its text needs. So a smaller text is not trained on less, but
# seen more often.

# %%
saes = train_texts(run, lm, texts)
rows = {"texts": described} | measure_saes(run, lm, saes)

# %% [markdown]
# The table first says what each text is like. Coverage is the share of the vocabulary that occurs,
# and (`first tokens`) that begins a document. KL is that of the model's first-token distribution to
# the text's, and CE the model's own on the text as it is packed. Near-copies are documents of the
# second half of the text that repeat the first half. Counts of n-grams depend on the size, so
# compare them at one size alone.
#
# Below are the SAEs. FVU is on their own text at the end of the training: text that repeats itself
# is learnt sooner, and SFR rises while an SAE learns. EV and CE difference are on held-out text
# that is not the model's. The probe reads the reconstructions.

# %%
Markdown(filename=save_table(run, "text_choice", shown.table(run, rows)))

# %% [markdown]
# ## Ways of sampling
#
# Look for texts that lie on one side of the line, which is plain text. A text may be better in one
# panel and worse in another. Texts share their seeds, so that a difference is known better than
# either of its sides: its interval is in the findings below.

# %%
Image(save_figure(run, "text_ways", shown.ways_data(run, rows), ways), retina=True)

# %% [markdown]
# ## Temperature and size
#
# Above, the texts that differ in temperature alone. Below, plain text in several sizes, at as many
# activations: what is read here is the worth of different text, not of more training.

# %%
Image(save_figure(run, "text_curves", shown.curves_data(run, rows), curves), retina=True)

# %% [markdown]
# ## Coverage
#
# If the hypothesis holds, SFR rises from left to right.

# %%
Image(save_figure(run, "text_coverage", shown.coverage_data(run, rows), coverage), retina=True)

# %% [markdown]
# ## Findings
#
# The verdicts follow the rule of notebook 07, over seeds of SAEs. Where several texts are put in
# order, a straight line of least squares runs through them, and the number is what it rises or
# falls by from the first to the last. By coverage, variety and CE they are placed by their rank, so
# that none that lies far off decides. Each text was sampled once: an interval does not say what
# another sample of the same kind would give.

# %%
Markdown(filename=save_table(run, "text_findings", shown.findings(run, rows)))

# %% [markdown]
# ## Check
#
# Every SAE was trained on as many activations, and the plain text is notebook 01's, from its
# beginning.

# %%
from faithful_sae.stages.corpus import read_shards

trained = {sae.metadata["training_tokens"] for sae in saes.values()}
own = [ids.tolist() for ids, _ in zip(read_shards(run), texts["plain"], strict=False)]
same = own == [ids.tolist() for ids in texts["plain"]]
print(f"{len(saes)} SAEs of {len(shares(run))} texts, each on {trained} activations")
assert trained == {study.tokens}, f"trained on {trained} activations, not {study.tokens}"
assert same, "plain text is not the beginning of notebook 01's"

# %% [markdown]
# ## In practice
#
# Choose by what the SAEs are for: the table of findings says which way of sampling shares more
# features, and which one costs less on text of others. Where it says `no difference` or
# `undecided`, sample plainly: it has nothing to tune, and the paper's numbers are of such text.
