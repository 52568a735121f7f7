"""The cards (README.md) of what `make publish` uploads: parameters, provenance and results, read
from what the run left, in the two templates beside this file.
"""

import bisect
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from faithful_sae.files import read_json
from faithful_sae.paper.names import heading
from faithful_sae.paper.tables import gather, text_of
from faithful_sae.runs.catalogue import exhibits, paper_models
from faithful_sae.runs.keys import SHOWN, settings
from faithful_sae.runs.params import LISTED
from faithful_sae.runs.rows import read_rows
from faithful_sae.runs.schema import Run
from faithful_sae.sae.formats.hooks import in_words

PAPER = (
    'Cho et al. (2025), "FaithfulSAE: Towards Capturing Faithful Features with Sparse '
    'Autoencoders without External Dataset Dependencies"'
)
TEMPLATES = Path(__file__).parent
ARCHITECTURES = {"topk": "TopK"}  # SAELens' name of one -> the title's
PACKAGES = ("torch", "transformers", "huggingface_hub", "numpy")
# of the section `sae`: stands elsewhere in the card, or changes no number
LEFT_OUT = ("train_on", "lm_batch_rows", "cache_activations", "published", "baselines")
RESULTS = (  # rows, their column, the card's, digits, where the paper has it
    ("sfr", "sfr", "SFR", 4, ("table4", "table2", "table3")),
    ("sfr", "sfr_alive", "SFR, alive", 4, ()),
    ("ffr", "ffr", "FFR, %", 2, ("table7",)),
    ("fidelity", "ce_recovered", "CE recovered", 4, ()),
    ("fidelity", "explained_variance", "explained variance", 4, ()),
)
STATISTICS = {  # column of the rows -> the card's, and its format
    "documents": ("documents", ",.0f"),
    "tokens": ("tokens", ",.0f"),
    "all_token_coverage": ("vocabulary covered, %", ".4g"),
    "first_token_coverage": ("covered by first tokens, %", ".4g"),
    "kl": ("KL of the first token, nats", ".4g"),
}
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M")  # the Hub's


def model_name(run: Run) -> str:
    """The language model as it may be named in public: its Hub id, the name of its folder without
    the path, or `embedded`.
    """
    folder = run.model_folder
    return folder.name if folder else run.model_name


def sae_card(
    run: Run, names: Sequence[str], repository: str, dataset: str, measured: Collection[str]
) -> ModelCard:
    """The card of a run's SAEs.

    Args:
        names: the corpora whose SAEs it holds.
        repository: id of the SAEs' repository.
        dataset: id of the faithful dataset's.
        measured: which of the rows `sfr`, `ffr`, `fidelity` are of these SAEs.
    """
    corpora = [run.corpora[name] for name in names]
    trained_on = {corpus.hub for corpus in corpora if corpus.hub}
    if any(corpus.faithful == "self" for corpus in corpora):
        trained_on.add(dataset)
    trained_with = settings(run, ("sae", "sequence_length", "dtype"), SHOWN)
    sae = trained_with.pop("sae")
    hook = in_words(run.hook, run.layer)
    example = f"{names[0]}/seed{sae['seeds'][0]}"
    saes = run.artifacts / "saes"
    architecture = read_json(saes / example / "cfg.json")["architecture"]
    return ModelCard.from_template(
        ModelCardData(
            license="other",
            library_name="saelens",
            tags=["sparse-autoencoder", "interpretability", "faithful-sae"],
            base_model=None if run.embedded or run.model_folder else run.model_name,
            datasets=sorted(trained_on),
        ),
        template_path=str(TEMPLATES / "saes.md.jinja"),
        run=run,
        names=names,
        repository=repository,
        measured=measured,
        example=example,
        architecture=ARCHITECTURES.get(architecture, architecture),
        model=_model(run),
        paper=PAPER,
        paper_model=paper_models().get(run.beside or ""),
        corpora=_corpora(run, names),
        results=_results(run, names, measured),
        parameters=_yaml(
            {"hook": hook}
            | {key: value for key, value in sae.items() if key not in LEFT_OUT}
            | trained_with
        ),
        provenance=_provenance(saes / names[0]),
    )


def dataset_card(run: Run, repository: str) -> DatasetCard:
    """The card of a run's faithful dataset.

    Args:
        repository: its id.
    """
    statistics = gather([run], "dataset")
    files = [{"split": "train", "path": "data/train-*.parquet"}]
    return DatasetCard.from_template(
        DatasetCardData(
            license="other",
            pretty_name=f"Faithful text of {run.label}",
            task_categories=["text-generation"],
            tags=["synthetic", "faithful-sae"],
            size_categories=None if statistics is None else _size(statistics.documents.iloc[0]),
            configs=[{"config_name": "default", "data_files": files}],
        ),
        template_path=str(TEMPLATES / "dataset.md.jinja"),
        run=run,
        repository=repository,
        model=_model(run),
        paper=PAPER,
        statistics=None if statistics is None else _statistics(run, statistics.iloc[0]),
        parameters=_yaml({"model": model_name(run)} | settings(run, ("dtype", "generate"), SHOWN)),
        provenance=_provenance(run.artifacts / "faithful"),
    )


# --- parts ----------------------------------------------------------------------------------------


def _model(run):
    if run.embedded:
        return (
            f"{run.label} (a small {run.embedded.architecture} trained by the companion on "
            "installed packages' documentation)"
        )
    return f"`{model_name(run)}`"


def _yaml(values):
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)


def _corpora(run, names):
    """What each corpus is, with its commit and licence where they are known."""
    listed = yaml.safe_load(LISTED.read_text(encoding="utf-8"))["corpora"].values()
    licences = {entry["hub"]: entry["licence"] for entry in listed}
    commits = run.hub.commits()
    trained = read_rows(run, "saes").drop_duplicates("corpus").set_index("corpus")
    rows = []
    for name in names:
        corpus = run.corpora[name]
        text = text_of(run, corpus)
        if corpus.path:  # without the folders of this machine
            text = f"a local file, {Path(corpus.path).name}"
        rows.append(
            {
                "corpus": name,
                "text": text,
                "commit": commits.get(f"dataset {corpus.hub} {corpus.revision}", ""),
                "licence": licences.get(corpus.hub, ""),
                "activations": f"{int(trained.tokens[name]):,}",
                "passes": round(float(trained.passes[name]), 2),
            }
        )
    return pd.DataFrame(rows).to_markdown(index=False)


def _results(run, names, measured):
    """Means over seeds, the paper's beside them where it has a counterpart."""
    table = pd.DataFrame(index=pd.Index([heading(run, name) for name in names]))
    for rows, column, title, digits, table_ids in RESULTS:
        if rows not in measured:
            continue
        values = read_rows(run, rows)
        if rows == "fidelity":
            values = values.loc[~values.include_bos].rename(columns={"trained_on": "corpus"})
        means = values.groupby("corpus")[column].agg("mean")
        table[title] = [f"{means[name]:.{digits}f}" for name in names]
        paper = {}
        for table_id in table_ids:
            paper = exhibits()[table_id].numbers.get(run.beside or "", {}) | paper
        beside = [paper.get(run.corpora[name].role, "") for name in names]
        if any(beside):
            table[f"{title}, paper"] = beside
    return table.to_markdown(disable_numparse=True) if len(table.columns) else None


def _statistics(run, measured):
    """What was measured of the dataset, the paper's beside it where it has a counterpart."""
    here = {title: f"{measured[key]:{form}}" for key, (title, form) in STATISTICS.items()}
    rows = [{"": run.label} | here]
    beside = run.beside or ""
    paper = exhibits()["table1"].numbers.get(beside)
    if paper:
        numbers = {STATISTICS[key][0]: value for key, value in paper.items()}
        rows.append({"": f"the paper, {paper_models()[beside]}"} | numbers)
    return pd.DataFrame(rows).fillna("").to_markdown(index=False, disable_numparse=True)


def _provenance(artefact):
    """Commit, versions and device of an artefact's provenance.json, in a sentence."""
    record = read_json(artefact / "provenance.json")
    versions = ", ".join(f"{name} {record['packages'][name]}" for name in PACKAGES)
    commit = record["inputs"].get("commit")
    at = f", model at commit {commit}" if commit else ""
    return (
        f"Made {record['written'][:10]} on {record['device']} by the companion's commit\n"
        f"{record['git_commit']}{at}, with {versions}."
    )


def _size(documents):
    """The Hub's category of so many documents."""
    return [SIZES[bisect.bisect([10**n for n in range(3, 8)], documents)]]
