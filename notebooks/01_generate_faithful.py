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
# # 01 · Generate the faithful dataset
#
# A sparse autoencoder is usually trained on text from the Web. FaithfulSAE asks what happens when
# it is trained on text the language model wrote itself. This notebook makes that text: sequences
# sampled from the model, prompted with nothing but the beginning-of-sequence token (paper, section
# 3.1).
#
# **Claim to look at.** The faithful dataset uses nearly all of the model's vocabulary, but its
# documents start with only a part of it. Their first tokens follow the model's own distribution
# (Table 1, Appendix C).
#
# **Exhibits.** `first_token` (Appendix C), one row of Table 1, and for an embedded model
# `lm_training`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("01_generate_faithful", params)

# %%
import pandas as pd
import torch
from IPython.display import Image, display

from faithful_sae.metrics.coverage import (
    dataset_statistics,
    first_token_fit,
    first_token_table,
)
from faithful_sae.paper.exhibits import save_figure
from faithful_sae.paper.plots.paper import first_token, lm_training
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.stages.corpus import make_faithful, read_shards, start_of
from faithful_sae.stages.model import open_model, pretraining_counts, train_embedded_model

# %%
run

# %% [markdown]
# ## The language model
#
# With `model: embedded` there is no download: a small language model is trained here, on the
# documentation of the packages that come with the installation. With a folder or a Hub id nothing
# is trained, and the next two cells show nothing.
#
# A model of this size is worth studying only if it has learnt something that counting cannot give.
# Its held-out cross-entropy should lie clearly below that of an interpolated n-gram model fitted on
# exactly the same tokens. The order of the n-grams, up to 8, is chosen on the held-out text itself.
# That makes the n-gram model as good as it can be, and the margin as small.

# %%
log = train_embedded_model(run)
if log is not None:
    evaluation = read_rows(run, "language_model")
    display(evaluation.round(3))

# %% [markdown]
# The figure shows the training, whose number of steps is fixed. Look for the point at which the
# held-out cross-entropy falls below the line of the n-gram model.

# %%
if log is not None:
    against = {name: evaluation[name][0] for name in ("ce_ngram", "ngram_order")}
    size = run.embedded.vocab_size
    data = log.assign(model=run.label, vocab_size=size, **against)
    display(Image(save_figure(run, "lm_training", data, lm_training), retina=True))

# %% [markdown]
# ## What the model says to nothing
#
# Given BOS alone, the model has a distribution over first tokens. Everything it generates starts
# with a draw from it. What BOS means depends on how a model was trained: in a chat model it may
# begin a turn. So `start` under `generate:` can name something else that documents are sampled
# after, such as the token between the documents of the training, or a chat turn with an empty
# question. Embedded models have seen BOS at the start of every row of 128 tokens, in the middle of
# a document as often as not. So that is what they continue: a window of documentation, not always
# its beginning.

# %%
lm = open_model(run)
given = start_of(run, lm)
print(f"documents are sampled after {lm.tokenizer.decode(given)!r}")
start = lm.next_distribution(given)
top = start.topk(10)
pd.DataFrame(
    {
        "token": [repr(lm.tokenizer.decode([i])) for i in top.indices.tolist()],
        "probability": top.values,
    }
).round(4)

# %% [markdown]
# ## Sampling
#
# Temperature 1, top-p 1, no top-k: the model's distribution as it is. A document ends where the
# model samples its end token or the length limit is reached. The sampled ids are kept. (The authors
# decode the text and tokenise it again, which gives other ids.) Sampling goes shard by shard, so an
# interrupted run resumes at the shard where it stopped.

# %%
make_faithful(run, lm)
documents = list(read_shards(run))
print(f"{len(documents):,} documents")
for ids in documents[:3]:
    print("—" * 100, lm.tokenizer.decode(ids)[:400], sep="\n")

# %% [markdown]
# ## Table 1: what it covers
#
# Coverage is the share of the vocabulary that occurs at all, and that occurs as a first token. The
# divergence KL(model ‖ dataset) of the first token is infinite as soon as one possible token is
# missing. It is therefore taken over the tokens that do occur, and `missing_mass` is the model's
# probability of the others.
#
# Two of these numbers have a limit that is not the text's. No text covers tokens that hardly any
# text has, such as single bytes: `pretraining_coverage` is what the model's own training text
# covers, where it is known, and `relative_coverage` the share of that which the samples cover. And
# KL is not 0 even if sampling is perfect, since rare tokens are not drawn: the `expected` values
# are those of as many first tokens, drawn from the model's distribution itself.

# %%
statistics, first_counts, counts = dataset_statistics(documents, start, pretraining_counts(run))
write_rows(run, "dataset", pd.DataFrame([statistics]))
pd.DataFrame([statistics]).round(4)

# %% [markdown]
# ## Appendix C: the first token
#
# Left is the model, right is the dataset. Above are the ten likeliest tokens, below all of them in
# order. The dataset's tail is cut where the number of documents ends: a token of probability far
# below one over that number is not seen.

# %%
data = first_token_table(start, first_counts, counts, lm.tokenizer)
write_rows(run, "first_token", data)
Image(save_figure(run, "first_token", data, first_token), retina=True)

# %% [markdown]
# ## Check
#
# If sampling is what it claims to be, the first tokens are multinomial draws from the model's
# distribution, or with `first_token: flat` from a uniform one. A chi-square test must not find
# otherwise. Its cells are tokens in order of probability, at least five expected in each, so that
# many tokens of the tail share a cell. A tail that has the right weight but spreads it wrongly
# over its tokens is therefore not found out. What a narrow dtype rounds away does not count.

# %%
g = run.generate
flat = g.first_token == "flat"
drawn_from = torch.full_like(start, 1 / len(start)) if flat else start
p, cells = first_token_fit(drawn_from, first_counts, torch.finfo(lm.model.dtype).eps)
of = "a uniform" if flat else "the model's"
said = f"first tokens as draws from {of} distribution: p = {p:.3g} over {cells} cells"
print(said)
as_it_is = flat or (g.temperature, g.top_p) == (1.0, 1.0)
assert p > 1e-4 or not as_it_is, f"{said}; 1e-4 is the least allowed"
