"""What the Snakefile needs to know: which files each notebook reads and writes for a run, and the checks before any work."""

import argparse
import json
from pathlib import Path

from faithful_sae import hub
from faithful_sae.corpora import check_hub_sources, check_sources, documentation_path, write_documentation
from faithful_sae.exhibits import notebook_exhibits
from faithful_sae.provenance import ROOT, file_hash, remove
from faithful_sae.schema import MODEL_STAGES, PAPER_STAGES, PROFILE_STAGE, ParamsError, model_stages, stage_corpora, stage_settings

ROWS = {  # the csv files under rows/ that a notebook writes
    "01_generate_faithful": ("dataset", "first_token"), "02_train_sae": ("training", "saes"), "03_sfr": ("sfr", "matching"),
    "04_ffr": ("ffr", "firing"), "05_fidelity_matrix": ("fidelity",), "06_probing": ("probing",),
    "08_seed_dependence": ("seed_saes", "seed_pairs", "seed_latents", "seed_modes", "seed_curve", "seed_fits", "seed_threshold"),
    "09_explore_features": ("features", "dose_response")}


def rows_file(run, name) -> str:
    return str(run.artifacts / "rows" / f"{name}.csv")


def stage_exhibits(run, stage) -> list[str]:
    """Paths of the exhibits a notebook writes for a run."""
    return [str(run.figures / name) for exhibit in notebook_exhibits(run, stage) for name in exhibit.files(run.name)]


def stages(runs) -> list[str]:
    """The notebooks that run once per language model, for one of the models at least."""
    return [stage for stage in MODEL_STAGES if any(stage in model_stages(run) for run in runs)]


def stage_outputs(runs, stage) -> list[str]:
    """What a notebook writes for a run, with Snakemake's wildcard {run} in the run's place: rows, then exhibits.

    The embedded models' own rows and figure are outputs only where all models are embedded: a rule has one list of outputs.
    """
    embedded, run = all(run.embedded for run in runs), next(run for run in runs if stage in model_stages(run))
    rows = ROWS[stage] + (("language_model",) if embedded and stage == "01_generate_faithful" else ())
    shown = [e for e in notebook_exhibits(run, stage) if embedded or e.id != "lm_training"]
    return ([str(run.artifacts.parent / "{run}" / "rows" / f"{name}.csv") for name in rows]
            + [str(run.figures / name) for exhibit in shown for name in exhibit.files("{run}")])


def run_outputs(runs, wanted=MODEL_STAGES) -> list[str]:
    """Everything the `wanted` notebooks write for all runs."""
    return [path.replace("{run}", run.name) for run in runs for stage in model_stages(run) if stage in wanted
            for path in stage_outputs(runs, stage)]


def paper_inputs(runs) -> list[str]:
    """What the profile's one notebook gathers: the outputs of all that the paper's tables and figures are made of."""
    return run_outputs(runs, PAPER_STAGES)


def profile_outputs(runs) -> list[str]:
    """Everything `make paper` makes."""
    return run_outputs(runs) + stage_exhibits(runs[0], PROFILE_STAGE)


def stage_inputs(run, stage) -> list[str]:
    """Data a notebook reads: earlier notebooks' rows (this run's, and of runs whose text it uses), local files, documentation."""
    corpora = [run.corpora[name] for name in stage_corpora(run, stage)]
    tasks = list(run.tasks.values()) if stage == "06_probing" else []
    files = [str(run.resolve(path)) for path in [*(c.path for c in corpora), *(t.train for t in tasks), *(t.test for t in tasks)] if path]
    files += [str(documentation_path(run, *source)) for source in _sources(run, corpora, tasks)]
    if stage == "01_generate_faithful" and (folder := run.model_folder):
        files += sorted(str(f) for f in folder.iterdir() if f.is_file())
    if stage in ("02_train_sae", "08_seed_dependence"):
        files.append(rows_file(run, "dataset"))
    elif stage != "01_generate_faithful":
        files.append(rows_file(run, "saes"))
    if stage == "09_explore_features":
        files += [rows_file(run, "sfr"), rows_file(run, "matching"), rows_file(run, "firing")]
    siblings = {c.faithful for c in corpora if c.faithful} - {"self"}
    return files + [str(run.artifacts.parent / name / "rows" / "dataset.csv") for name in sorted(siblings)]


def settings(run, stage) -> str:
    """The parameters a notebook depends on, as text: Snakemake reruns the notebook when it changes."""
    return json.dumps(stage_settings(run, stage), sort_keys=True)


# --- documentation ------------------------------------------------------------------------------------------------------------

def documentation_files(runs) -> dict[str, list]:
    """{file: [kind, packages, size, is a task]} of all that has to be extracted from installed packages."""
    sources = [source for run in runs for source in _sources(run, run.corpora.values(), run.tasks.values())]
    return {str(documentation_path(runs[0], *source)): source for source in sources}


def _sources(run, corpora, tasks):
    return ([[c.documentation, c.packages, c.max_characters, False] for c in corpora if c.documentation]
            + [[t.documentation, t.packages, run.probing.max_train + run.probing.max_test, True] for t in tasks if t.documentation])


def make_documentation(kind, packages, size, task, path):
    """Extract one corpus or labelled task; the notebooks of several models read the same file."""
    write_documentation(path, kind, packages, size, task)
    print(f"  ✓ {kind} of {', '.join(packages) or 'the language reference'}, {Path(path).stat().st_size / 1e6:.1f} MB", flush=True)


# --- before any work ------------------------------------------------------------------------------------------------------------

def preflight(runs):
    """Find what would fail later.

    Raises:
        ParamsError: a local model folder without config, weights or tokenizer; a layer or length beyond the model's; a local
        corpus or task file that cannot be read, is empty, is not UTF-8 or lacks its key; results of another folder's in the way.
    """
    for run in runs:
        if folder := run.model_folder:
            files = [file.name for file in folder.iterdir()]
            _check_model(run, files, folder / "config.json", folder)
        check_sources(run)
    owner = ROOT / "artifacts" / runs[0].profile / "profile.txt"
    folder = str(runs[0].file.parent)
    if owner.exists() and (other := owner.read_text(encoding="utf-8").strip()) != folder:
        raise ParamsError(f"{folder}: artifacts/{runs[0].profile} holds the results of {other}: rename the folder, or `make clean "
                          f"PARAMS={other}` first")


def preflight_hub(runs):
    """The same for what is read from the Hub, under the profile's lock: all of it is looked up, held to the commits found, and begun.

    Raises:
        ParamsError: a model or dataset that is gated, renamed or missing, of another revision, without parquet files or the columns
        asked for, or that cannot be reached.
    """
    for run in runs:
        if not run.embedded and not run.model_folder:
            try:
                at = hub.commit(run, "model", run.model, run.revision)
                config = hub.fetch("model", run.model, at, "config.json")
                _check_model(run, hub.repository_files("model", run.model, at), config, f"its files at {at}")
            except hub.HubError as error:
                raise ParamsError(f"{run.file}: model: {error}") from None
        check_hub_sources(run)
    for note in hub.moved(runs[0]):
        print(f"  {note}", flush=True)


def take_possession(runs):
    """Under the profile's lock: note whose results these are, clear what killed runs left, and forget rows whose artefacts are
    gone or damaged, so that they are made again."""
    folder = ROOT / "artifacts" / runs[0].profile
    (folder / "profile.txt").write_text(f"{runs[0].file.parent}\n", encoding="utf-8")
    for leftover in folder.rglob(".*.tmp"):
        remove(leftover)
    for run in runs:
        _forget_damaged(run)


def _check_model(run, files, config, where):
    def need(ok, key, why):
        if not ok:
            raise ParamsError(f"{run.file}: {key} {why}")
    try:
        config = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParamsError(f"{run.file}: model = {run.model!r}: no readable config.json in {where} ({error})") from None
    need(any(file.endswith(".safetensors") for file in files), "model", f"= {run.model!r}: no *.safetensors weights in {where}")
    need({"tokenizer.json", "tokenizer_config.json"} & set(files), "model",
         f"= {run.model!r}: no tokenizer in {where}: copy tokenizer.json and tokenizer_config.json beside config.json")
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    context = config.get("max_position_embeddings", config.get("n_positions"))
    need(layers is None or run.layer < layers, "layer", f"= {run.layer} is out of range: {run.model} has blocks 0 to {(layers or 0) - 1}")
    swept = max(run.seed_dependence.layers, default=0) if run.seed_dependence else 0
    need(layers is None or swept < layers, "seed_dependence.layers", f"holds {swept}: {run.model} has blocks 0 to {(layers or 0) - 1}")
    need(context is None or run.sequence_length <= context, "sequence_length",
         f"= {run.sequence_length} exceeds the context of {run.model}, {context} tokens")
    need(context is None or run.generate.max_new_tokens < context, "generate.max_new_tokens",
         f"= {run.generate.max_new_tokens} must be below the context of {run.model}, {context} tokens: BOS takes one position")
    need(context is None or not run.probing or run.probing.max_tokens <= context, "probing.max_tokens",
         f"= {run.probing and run.probing.max_tokens} exceeds the context of {run.model}, {context} tokens")


def _forget_damaged(run):
    folders = {"dataset": [run.artifacts / "faithful"] + ([run.artifacts / "lm"] if run.embedded else []),
               "saes": [run.artifacts / "saes" / name for name in (run.sae.train_on if run.sae else ())]}
    if run.seed_dependence:
        folders["seed_saes"] = [run.artifacts / "seed_saes" / f"layer{layer}" for layer in {run.layer, *run.seed_dependence.layers}]
    if run.features:
        folders["features"] = [run.artifacts / "features" / run.features.corpus / f"seed{seed}" for seed in run.features.seeds]
    for name, artefacts in folders.items():
        rows = Path(rows_file(run, name))
        if rows.exists() and not all(map(_whole, artefacts)):
            rows.unlink()


def _whole(folder):
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["content"] == file_hash(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def main():
    parser = argparse.ArgumentParser(description="Extract one corpus or task from the documentation of installed packages.")
    parser.add_argument("source", help="JSON list: kind, packages, size, whether it is a labelled task")
    parser.add_argument("output")
    args = parser.parse_args()
    make_documentation(*json.loads(args.source), args.output)


if __name__ == "__main__":
    main()
