"""The cards (README.md) of what `make publish` uploads: parameters, provenance and results, read
from what the run left.
"""

import json
import textwrap
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from faithful_sae.paper.tables import heading
from faithful_sae.runs.catalogue import exhibits, paper_models
from faithful_sae.runs.params import LISTED
from faithful_sae.runs.rows import read_rows
from faithful_sae.stages.corpus import hub_of

PAPER = (
    'Cho et al. (2025), "FaithfulSAE: Towards Capturing Faithful Features with Sparse '
    "Autoencoders without External Dataset "
    'Dependencies"'
)
SHOWN = ("torch", "transformers", "huggingface_hub", "numpy")  # of the packages in provenance


def model_name(run) -> str:
    """The language model as it may be named in public: its Hub id, the name of its folder without
    the path, or `embedded`.
    """
    folder = run.model_folder
    return folder.name if folder else run.model


def sae_card(run, names, repository, dataset, measured) -> ModelCard:
    """The card of a run's SAEs.

    Args:
        names: the corpora whose SAEs it holds. repository, dataset: ids of the SAEs' and the
            faithful dataset's repositories.
        measured: which of the rows `sfr`, `ffr`, `fidelity` are of these SAEs.
    """
    s = run.sae
    example = f"{names[0]}/seed{run.sae.seeds[0]}"
    data = ModelCardData(
        license="other",
        library_name="saelens",
        tags=["sparse-autoencoder", "interpretability", "faithful-sae"],
        **_base_model(run),
        datasets=sorted(
            {run.corpora[name].hub for name in names if run.corpora[name].hub}
            | ({dataset} if any(run.corpora[name].faithful == "self" for name in names) else set())
        ),
    )
    parameters = {
        "hook": f"residual stream entering block {run.layer} (blocks.{run.layer}.hook_resid_pre)",
        "d_sae": s.d_sae,
        "k": s.k,
        "seeds": list(s.seeds),
        "recipe": s.recipe,
        "lr": s.lr,
        "tokens": s.tokens,
        "max_epochs": s.max_epochs,
        "batch_tokens": s.batch_tokens,
        "buffer_tokens": s.buffer_tokens,
        "include_bos": s.include_bos,
        "data_seed": s.data_seed,
        "sequence_length": run.sequence_length,
        "dtype": run.dtype,
    }
    return ModelCard(f"""---
{data.to_yaml()}
---

# TopK sparse autoencoders of {run.label}

{len(names) * len(s.seeds)} sparse autoencoders (SAEs) of {_model(run)}, one per corpus and seed, in `<corpus>/seed<n>/`; trained by the
FaithfulSAE companion, a reproduction of {PAPER}. They are not the paper's own SAEs.

## Corpora

{_corpora(run, names).to_markdown(index=False)}

## Results

{_results(run, names, measured)}

## Loading

Each folder is in SAELens' layout (version 6).

```python
from huggingface_hub import snapshot_download
folder = snapshot_download("{repository}", allow_patterns="{example}/*") + "/{example}"

import faithful_sae                   # the companion
sae = faithful_sae.load_sae(folder)

from sae_lens import SAE              # SAELens
sae = SAE.load_from_disk(folder)

from sparsify import SparseCoder      # sparsify, by way of the companion
faithful_sae.load_sae(folder).to_sparsify("for_sparsify")
sae = SparseCoder.load_from_disk("for_sparsify")
```

In a parameter file of the companion, to measure these SAEs without training:
`published: {{{names[0]}: {{hub: {repository}, revision: main, folder: "{names[0]}/seed{{seed}}"}}}}`.

## Parameters

{_yaml(parameters)}

## Provenance

{_provenance(run, run.artifacts / "saes" / names[0])} Each corpus's `provenance.json` says the same of its SAEs.

## Licence and attribution

The weights are derived from the activations of {_model(run)} on the corpora above. The companion's code is under the MIT licence; whoever
publishes or uses the weights has to keep to the licences of the model and of the corpora, some of which (Llama's and Gemma's, for
instance) bind what is made with the model. Cite {PAPER}.
""")


def dataset_card(run, repository) -> DatasetCard:
    """The card of a run's faithful dataset."""
    rows = run.artifacts / "rows" / "dataset.csv"
    statistics = (
        read_rows(run, "dataset", "01_generate_faithful").iloc[0] if rows.exists() else None
    )
    documents = int(statistics.documents) if statistics is not None else None
    data = DatasetCardData(
        license="other",
        pretty_name=f"Faithful text of {run.label}",
        task_categories=["text-generation"],
        tags=["synthetic", "faithful-sae"],
        size_categories=_size_category(documents) if documents else None,
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
    )
    return DatasetCard(f"""---
{data.to_yaml()}
---

# Faithful text of {run.label}

Text that {_model(run)} wrote itself, prompted with its BOS token alone: the *faithful dataset* of {PAPER}, made
by the FaithfulSAE companion. It is not the paper's own dataset. It is a sample of the model, unfiltered: whatever the model says, it says.

| column | |
|---|---|
| `ids` | the sampled token ids, without the BOS they began with; the last is EOS (or BOS) where the model ended the document |
| `text` | the ids decoded, special tokens dropped; tokenising it again may give other ids, and training uses `ids` |
| `length` | number of ids |

## Statistics

{_statistics(run, statistics)}

## Loading

```python
from datasets import load_dataset
rows = load_dataset("{repository}", split="train")    # streaming=True to read it as it comes
```

## Parameters

{_yaml({"model": model_name(run)} | run.settings("dtype", "generate"))}

## Provenance

{_provenance(run, run.artifacts / "faithful")}

## Licence and attribution

The text is the output of {_model(run)}, whose licence may bind what is done with it. Cite {PAPER}.
""")


# --- parts ----------------------------------------------------------------------------------------


def _base_model(run):
    return {} if run.embedded or run.model_folder else {"base_model": run.model}


def _model(run):
    if run.embedded:
        return (
            f"{run.label} (a small {run.embedded.architecture} trained by the companion on "
            "installed packages' documentation)"
        )
    return f"`{model_name(run)}`"


def _yaml(values):
    return (
        f"```yaml\n{yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)}```"
    )


def _corpora(run, names):
    """What each corpus is, with its commit and licence where they are known."""
    licences = {
        entry["hub"]: entry["licence"]
        for entry in yaml.safe_load(LISTED.read_text(encoding="utf-8"))["corpora"].values()
    }
    trained = read_rows(run, "saes", "02_train_sae").drop_duplicates("corpus").set_index("corpus")
    rows = []
    for name in names:
        c = run.corpora[name]
        text = (
            f"faithful text of {run.label if c.faithful == 'self' else c.faithful}"
            if c.faithful
            else f"a local file, {Path(c.path).name}"
            if c.path
            else c.hub
            or f"{c.documentation} of {', '.join(c.packages) or 'the language reference'}"
        )
        rows.append(
            {
                "corpus": name,
                "text": text,
                "commit": hub_of(run).commits().get(f"dataset {c.hub} {c.revision}", ""),
                "licence": licences.get(c.hub, ""),
                "activations": f"{int(trained.tokens[name]):,}",
                "passes": round(float(trained.passes[name]), 2),
            }
        )
    return pd.DataFrame(rows)


def _results(run, names, measured):
    """Means over seeds, the paper's beside them where it has a counterpart."""
    table = pd.DataFrame(index=pd.Index(names, name="corpus"))
    for rows, notebook, column, title, digits, tables in (
        ("sfr", "03_sfr", "sfr", "SFR", 4, ("table4", "table2", "table3")),
        ("sfr", "03_sfr", "sfr_alive", "SFR, alive", 4, ()),
        ("ffr", "04_ffr", "ffr", "FFR, %", 2, ("table7",)),
        ("fidelity", "05_fidelity_matrix", "ce_recovered", "CE recovered", 4, ()),
        ("fidelity", "05_fidelity_matrix", "explained_variance", "explained variance", 4, ()),
    ):
        if rows in measured:
            values = read_rows(run, rows, notebook)
            if rows == "fidelity":
                values = values[~values.include_bos].rename(columns={"trained_on": "corpus"})
            table[title] = (
                values.groupby("corpus")[column]
                .mean()
                .reindex(names)
                .map(f"{{:.{digits}f}}".format)
            )
            if paper := _paper(run, names, tables):
                table[f"{title}, paper"] = [paper.get(name, "") for name in names]
    if not len(table.columns):
        return "Not measured."
    meaning = {
        "sfr": "SFR: share of latents that two seeds have in common, at cosine "
        f"{run.sfr.threshold:g} (alive: among those that fire).",
        "ffr": f"FFR: latents that fire on more than {100 * run.ffr.frequency:g} % of random "
        "tokens.",
        "fidelity": "CE recovered (1: the model runs on the reconstruction as on its own "
        "activations; 0: as on zeros) and explained variance: "
        f"mean over {', '.join(run.fidelity.corpora)}, without BOS.",
    }
    beside = (
        [f"The paper's numbers are those of its {paper_models()[run.beside]}."]
        if any("paper" in c for c in table.columns)
        else []
    )
    table.index = [heading(run, name) for name in names]
    return (
        " ".join(
            [
                "Means over seeds.",
                *(text for rows, text in meaning.items() if rows in measured),
                *beside,
            ]
        )
        + f"\n\n{table.to_markdown(disable_numparse=True)}\n\nAll rows are in `results/`."
    )


def _paper(run, names, tables):
    found = {}
    for table in tables:
        numbers = (exhibits()[table].numbers or {}).get(run.beside, {})
        found |= {
            name: numbers[run.corpora[name].role]
            for name in names
            if run.corpora[name].role in numbers and name not in found
        }
    return found


def _statistics(run, statistics):
    if statistics is None:
        return "Not measured."
    columns = {
        "documents": "documents",
        "tokens": "tokens",
        "all_token_coverage": "vocabulary covered, %",
        "first_token_coverage": "covered by first tokens, %",
        "kl": "KL of the first token, nats",
    }
    rows = [
        {"": run.label}
        | {
            title: f"{statistics[key]:.4g}"
            if isinstance(statistics[key], float) and key not in ("documents", "tokens")
            else f"{int(statistics[key]):,}"
            for key, title in columns.items()
        }
    ]
    if paper := exhibits()["table1"].numbers.get(run.beside):
        rows.append(
            {"": f"the paper, {paper_models()[run.beside]}"}
            | {columns[key]: paper[key] for key in paper if key in columns}
        )
    return pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)


def _provenance(run, artefact):
    """Commit, versions and device of an artefact's provenance.json, in a sentence."""
    record = json.loads((artefact / "provenance.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {record['packages'][name]}" for name in SHOWN)
    at = f", model at commit {record['inputs']['commit']}" if record["inputs"].get("commit") else ""
    return "\n".join(
        textwrap.wrap(
            f"Made {record['written'][:10]} on {record['device']} by the companion's commit "
            f"{record['git_commit']}{at}, "
            f"with {versions}.",
            130,
        )
    )


def _size_category(n):
    bounds = [
        (1_000, "n<1K"),
        (10_000, "1K<n<10K"),
        (100_000, "10K<n<100K"),
        (1_000_000, "100K<n<1M"),
        (10_000_000, "1M<n<10M"),
    ]
    return [next((name for limit, name in bounds if n < limit), "10M<n<100M")]
