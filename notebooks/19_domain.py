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
# kept aside, is taken: what somebody with as little text would do.
#
# **Exhibits.** `domain_shares`, `domain`, `domain_findings`.

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
# `passes` is how often the chosen SAE went over its text, mean over seeds. FVU is the share of
# variance that is left: on the text kept aside, of the SAE that was chosen, and of the one that was
# trained longest.

# %%
lm = open_model(run)
saes, trained = train_arms(run, lm)
columns = ["distinct_tokens", "passes", "fvu_aside", "fvu_aside_largest"]
trained.groupby("arm", sort=False)[columns].mean().round(3)

# %% [markdown]
# ## On real text that none has seen
#
# The level is the model's own text, which needs no real text. Where the curve of real text crosses
# it, that much real text is worth as much.

# %%
rows = measure_arms(run, lm, saes, trained)
Image(save_figure(run, "domain_shares", shown.curve_data(run, rows), by_share), retina=True)

# %%
Markdown(filename=save_table(run, "domain", shown.table(run, rows)))

# %% [markdown]
# ## Findings
#
# Each difference is between SAEs of the same seeds, with its interval over seeds. A question has
# two cases, EV and CE difference: it is agreed with where both are.

# %%
Markdown(filename=save_table(run, "domain_findings", shown.findings(run, rows)))

# %% [markdown]
# ## Check
#
# The SAE that is taken is never worse on the text kept aside than the one trained longest, and
# evaluations are on rows that no SAE has seen.

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
# Look for the least share of real text that the table calls better than the model's own. If you
# have more than that, train on it; if you have less, train on the model's own, and let the table
# say whether to add what you have.
