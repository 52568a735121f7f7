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
# # 19 · A domain with little text
#
# The paper needs no text but the model's own, and section 8 names domains where there is little
# other: biology, robotics. There one may choose between a little real text, gone over many times,
# and as much of the model's own as one likes. Which SAE is better on real text it has not seen?
#
# All SAEs see as many activations at most. Little text gone over too often is learnt by heart. So
# each SAE is trained on several budgets, and the one that explains most of a tenth of its text,
# kept aside, is taken: what somebody with as little text would do. `sae.max_epochs` is no limit
# here.
#
# Each seed has another part of the real text, and another choice of the model's own: 1 % of a text
# is a few documents, and the next few would give another number. So intervals over seeds are also
# over texts. A mixture has half of its activations from each text, so that 1 % is not lost in it.
#
# What is the model's own text worth? With $m(s)$ the measure of SAEs on a share $s$ of the real
# text, linear in $\log s$ between the shares, and $m_0$ that of SAEs on the model's own:
#
# $$\text{worth} = \min\,\{s : m(s) \ge m_0\}$$
#
# **Exhibits.** `domain_shares`, `domain_worth`, `domain`, `domain_findings`.

# %% tags=["parameters"]
params = "smoke/neox"  # or laptop/neox, laptop (its first model), or a parameter file

# %%
# not found? `make ready` in the repository, then choose .venv as the kernel
from faithful_sae.runs.start import start

run = start("19_domain", params)

# %%
from IPython.display import Image, Markdown

from faithful_sae.paper import domain as shown
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.plots.domain import by_share
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s19_domain import arms, measure_arms, train_arms

# %% [markdown]
# The section `domain` of the parameter file names the texts, the shares and the budgets. Size,
# learning rate and batches are those of `sae`.

# %%
d = run.domain
print(f"real text: {d.corpus}, in shares of {', '.join(f'{share:.0%}' for share in d.shares)}")
print(f"own text: {d.own}; evaluated on held-out rows of {d.corpus} and {d.text}")
print(f"{len(arms(run))} kinds of text, at most {d.tokens:,} activations")

# %% [markdown]
# ## Training
#
# `passes` is how often the chosen SAE went over its real text (the model's own, if there is no
# other), mean over seeds. FVU is the share of variance that is left: on the text kept aside, of the
# SAE that was chosen, and of the one that was trained longest. Those that end in `run` are the
# run's, of notebook 02, trained on `sae.tokens`.

# %%
lm = open_model(run)
saes, trained = train_arms(run, lm)
columns = ["distinct_tokens", "passes", "fvu_aside", "fvu_aside_largest"]
trained.groupby("arm", sort=False)[columns].mean().round(3)

# %% [markdown]
# ## On real text that none has seen
#
# The level is the model's own text, which needs no real text. Where the curve of real text crosses
# it, that much real text is worth as much. Intervals are over seeds and over the rows evaluated on;
# other rows would move all curves alike, so that the findings below compare row by row.

# %%
rows = measure_arms(run, lm, saes, trained)
Image(save_figure(run, "domain_shares", shown.curve_data(run, rows), by_share), retina=True)

# %% [markdown]
# In percent of the real text: the least, the middle and the largest of the seeds.

# %%
Markdown(filename=save_table(run, "domain_worth", shown.worth_table(run, rows)))

# %% [markdown]
# SFR is between seeds that have read different parts of a text. Dead latents are those that do not
# fire on the held-out rows of the domain.

# %%
Markdown(filename=save_table(run, "domain", shown.table(run, rows)))

# %% [markdown]
# ## Findings
#
# Each difference is between SAEs of the same seeds on the same held-out rows, with its interval
# over both. A statement agrees where EV is above and the CE difference below, and disagrees where
# one of them is the other way round.

# %%
Markdown(filename=save_table(run, "domain_findings", shown.findings(run, rows)))

# %% [markdown]
# ## Check
#
# The SAE that is taken is never worse on the text kept aside than the one trained longest, and
# each was measured on each text.

# %%
worse = (trained.fvu_aside > trained.fvu_aside_largest).sum()
print(f"{len(trained)} SAEs chosen, {worse} of them worse than the one trained longest")
assert worse == 0, f"{worse} SAEs were not the best of their budgets"
measured = rows["domain_fidelity"]
expected = len(saes) * measured.evaluated_on.nunique()
assert len(measured) == expected, f"{len(measured)} measured, {expected} expected"

# %% [markdown]
# ## In practice
#
# Compare the tokens of real text that you have with what the model's own text is worth: with fewer,
# train on the model's own. Add what real text you have only where the table of findings says that
# half of it beside own text is better than own text alone.
