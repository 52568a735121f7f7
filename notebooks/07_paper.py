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
# Every row measured by notebooks 01 to 06, over all language models of a profile, in the form of
# the paper's tables, with the paper's numbers beside them. `source` says which is which. Nothing is
# left out because it disagrees: the last table goes through the paper's claims one by one.
#
# Not everything need be there: a model that failed, or that nobody has run yet, is left out, and so
# are rows of other parameters than the files now say. The paper's row then stands alone. What is
# missing is named first, with the command that makes it.
#
# **Read this first.** On the `laptop` and `smoke` profiles the language models are small models of
# software documentation, and each corpus plays the role of one of the paper's (first table). Their
# numbers can agree with a claim or not; they cannot equal the paper's.

# %%
from IPython.display import Image, Markdown, display

from faithful_sae.paper import tables
from faithful_sae.paper.claims import claims
from faithful_sae.paper.exhibits import (
    notebook_exhibits,
    profile_note,
    save_figure,
    save_table,
    unmeasured,
)
from faithful_sae.paper.plots import paper as plots
from faithful_sae.paper.plots.method import method, method_boxes
from faithful_sae.runs.catalogue import exhibits
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.rows import measured
from faithful_sae.runs.schema import PAPER_STAGES, PROFILE_STAGE, model_stages

# %% tags=["parameters"]
profile = "smoke"  # a folder of parameter files, or the name of one in params/

# %%
runs = load_profile(profile)
trained = [run for run in runs if run.sae]  # a model may be there for its text alone
Markdown(f"**{profile_note(runs)}** Language models: {', '.join(run.label for run in runs)}.")

# %% [markdown]
# ## What is missing
# An empty table: nothing.

# %%
missing = save_table(runs, "missing", unmeasured(runs))
missing.style.hide(axis="index").set_properties(**{"text-align": "left"})

# %% [markdown]
# ## The method

# %%
Image(save_figure(runs, "method", method_boxes(), method), retina=True)

# %% [markdown]
# ## Who plays which role

# %%
save_table(runs, "corpora", tables.corpora_table(trained), 2)

# %%
save_table(runs, "language_models", tables.language_models(runs), 3)

# %% [markdown]
# ## Table 1: what the faithful dataset covers
# Percent of the vocabulary, overall and as first token; KL(model ‖ dataset) of the first token in
# nats.

# %%
table1 = save_table(runs, "table1", tables.table1(runs))
table1.round(4)

# %% [markdown]
# ## Table 2 and Figure 2: SFR, faithful against instruction corpora

# %%
table2 = save_table(runs, "table2", tables.sfr_table(trained, "table2", tables.INSTRUCTION))
table2.round(4)

# %%
Image(
    save_figure(runs, "sfr_instruction", tables.bars_data(table2, tables.INSTRUCTION), plots.bars),
    retina=True,
)

# %% [markdown]
# ## Table 3: own text and the other model's

# %%
save_table(runs, "table3", tables.table3(trained)).round(4)

# %% [markdown]
# ## Table 4 and Figure 3: SFR, faithful against Web corpora

# %%
table4 = save_table(runs, "table4", tables.sfr_table(trained, "table4", tables.WEB))
table4.round(4)

# %%
shown = {*tables.WEB, *tables.columns_without_role(trained)}
Image(save_figure(runs, "sfr_web", tables.bars_data(table4, shown), plots.bars), retina=True)

# %% [markdown]
# ## Table 5: training configurations

# %%
save_table(runs, "table5", tables.table5(trained))

# %% [markdown]
# ## Table 6 and Figure 6: probing
# Accuracy on the reconstruction in the table; all three representations, accuracy and F1 in the
# figure.

# %%
table6 = save_table(runs, "table6", tables.table6(trained))
table6.round(4)

# %%
data = tables.probing_figure_data(trained)
Image(save_figure(runs, "probing", data, plots.probing), retina=True)

# %% [markdown]
# ## Table 7: fake feature ratio
# In percent of the dictionary.

# %%
table7 = save_table(runs, "table7", tables.table7(trained))
table7.round(4)

# %% [markdown]
# ## Figure 5 and Appendix B: fidelity
# Drawn by notebook 05, one set per language model.

# %%
for run in measured(trained, "fidelity"):
    for kind in ("fidelity_ce", "fidelity_l2", "fidelity_ev"):
        if (drawn := run.figures / f"{exhibits()[kind].stem(run.name)}.png").exists():
            display(Image(str(drawn), retina=True))

# %% [markdown]
# ## The paper's claims

# %%
verdicts = save_table(runs, "claims", claims(runs))
verdicts.style.hide(axis="index").set_properties(
    **{"text-align": "left", "white-space": "pre-wrap"}
)

# %% [markdown]
# ## Features to look at
# Orphans (no match in the other seed) and fake features (that fire on random tokens) of every SAE
# that notebook 09 made an index of, those that fire most first. `make explorer` writes the page
# that the numbers link to.

# %%
from faithful_sae.features.explorer.links import feature_links

feature_links(profile)

# %% [markdown]
# ## Check
# Every exhibit of the paper exists, for this profile and each of its models (08 stands beside the
# paper and has its own), but for notebooks that are named as missing; and a model that is measured
# stands in the tables, one that is not does not.

# %%
unfinished = set(zip(missing.model, missing.notebook))
listed = [
    (e, run)
    for run in runs
    for stage in (*model_stages(run), PROFILE_STAGE)
    if stage in (*PAPER_STAGES, PROFILE_STAGE) and (run.label, stage) not in unfinished
    for e in notebook_exhibits(run, stage)
]
absent = {
    name for e, run in listed for name in e.files(run.name) if not (run.figures / name).exists()
}
print(
    f"{len({e.id for e, _ in listed})} exhibits; absent files: {sorted(absent) or 'none'}; "
    f"notebooks not run: {len(missing)}"
)
print(verdicts.verdict.value_counts().to_dict())
assert not absent
for rows, table in (("dataset", table1), ("probing", table6), ("ffr", table7)):
    assert set(table[table.source == "here"].model) == {
        run.label for run in measured(runs, rows)
    }, rows
