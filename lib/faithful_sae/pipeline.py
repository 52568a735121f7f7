"""What the Snakefile needs to know: which files each notebook reads and writes for a run, and the checks before any work."""

import argparse
import json
from pathlib import Path

from faithful_sae.exhibits import notebook_exhibits
from faithful_sae.params import load_profile
from faithful_sae.provenance import PACKAGE as LIB
from faithful_sae.provenance import ROOT, file_hash, write_json
from faithful_sae.schema import STAGE_KEYS, ParamsError, stage_settings

STAGES = tuple(STAGE_KEYS)
ROWS = {  # the csv files under rows/ that a notebook writes
    "01_generate_faithful": ("dataset", "first_token"), "02_train_sae": ("training", "saes"), "03_sfr": ("sfr", "matching"),
    "04_ffr": ("ffr", "firing"), "05_fidelity_matrix": ("fidelity",), "06_probing": ("probing",)}


def rows_file(run, name) -> str:
    return str(run.artifacts / "rows" / f"{name}.csv")


def stage_exhibits(run, stage) -> list[str]:
    """Paths of the exhibits a notebook writes for a run."""
    return [str(run.figures / name) for exhibit in notebook_exhibits(run, stage) for name in exhibit.files(run.name)]


def exhibit_patterns(run, stage) -> list[str]:
    """The same with Snakemake's wildcard in the run's place. An embedded model's training curve is a by-product of 01."""
    return [str(run.figures / name) for exhibit in notebook_exhibits(run, stage) if exhibit.id != "lm_training"
            for name in exhibit.files("{run}")]


def run_outputs(run) -> list[str]:
    """Everything notebooks 01-06 write for a run."""
    return [path for stage in STAGES[:-1] for path in [rows_file(run, name) for name in ROWS[stage]]
            + [pattern.replace("{run}", run.name) for pattern in exhibit_patterns(run, stage)]]


def profile_outputs(runs) -> list[str]:
    """Everything `make paper` makes."""
    return [path for run in runs for path in run_outputs(run)] + stage_exhibits(runs[0], STAGES[-1])


def stage_inputs(run, stage) -> list[str]:
    """Data a notebook reads: earlier notebooks' rows (this run's, and of runs whose text it uses), local files, documentation."""
    corpora = {"01_generate_faithful": [run.embedded.corpus] if run.embedded else [], "02_train_sae": run.sae.train_on,
               "05_fidelity_matrix": run.fidelity.corpora}.get(stage, [])
    corpora = [run.corpora[name] for name in corpora]
    tasks = list(run.probing.tasks.values()) if stage == "06_probing" else []
    files = [str(run.resolve(path)) for path in [*(c.path for c in corpora), *(t.train for t in tasks), *(t.test for t in tasks)] if path]
    if any(entry.documentation for entry in [*corpora, *tasks]):
        files.append(str(ROOT / "artifacts" / run.profile / "documentation" / "made.json"))
    if stage == "01_generate_faithful" and not run.embedded and run.resolve(run.model).is_dir():
        files += sorted(str(f) for f in run.resolve(run.model).iterdir() if f.is_file())
    if stage == "02_train_sae":
        files.append(rows_file(run, "dataset"))
    elif stage != "01_generate_faithful":
        files.append(rows_file(run, "saes"))
    siblings = {c.faithful for c in corpora if c.faithful} - {"self"}
    return files + [str(run.artifacts.parent / name / "rows" / "dataset.csv") for name in sorted(siblings)]


def settings(run, stage) -> str:
    """The parameters a notebook depends on, as text: Snakemake reruns the notebook when it changes."""
    return json.dumps(stage_settings(run, stage), sort_keys=True)


# --- documentation ------------------------------------------------------------------------------------------------------------

def uses_documentation(runs) -> bool:
    """Whether any corpus or task is made from installed packages."""
    return bool(documentation_sources(runs))


def documentation_sources(runs) -> list:
    """What has to be extracted from installed packages: sorted [kind, packages, size, is a task]."""
    sources = {(c.documentation, c.packages, c.max_characters, False) for run in runs for c in run.corpora.values() if c.documentation}
    sources |= {(t.documentation, t.packages, run.probing.max_train + run.probing.max_test, True)
                for run in runs for t in run.probing.tasks.values() if t.documentation}
    return sorted([list(map(lambda v: list(v) if isinstance(v, tuple) else v, source)) for source in sources], key=str)


def make_documentation(profile, output):
    """Extract all documentation of a profile once, before the notebooks of several models ask for it at the same time."""
    from faithful_sae import corpora

    runs = load_profile(profile)
    print(f"  ▸ documentation of installed packages for {runs[0].profile}", flush=True)
    files = [corpora.documentation_file(runs[0], *source) for source in documentation_sources(runs)]
    write_json(output, {file.name: file_hash(file) for file in files})
    print(f"  ✓ documentation: {len(files)} corpora and tasks, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB", flush=True)


# --- before any work ------------------------------------------------------------------------------------------------------------

def preflight(runs):
    """Find what would fail later, and forget results whose artefacts are gone or damaged so that they are made again.

    Raises:
        ParamsError: a local model folder without config, weights or tokenizer; a layer or length beyond the model's; a local
        corpus or task file that cannot be read, is empty, is not UTF-8 or lacks its key.
    """
    for run in runs:
        if not run.embedded and run.resolve(run.model).is_dir():
            _check_model_folder(run, run.resolve(run.model))
        if any(c.path for c in run.corpora.values()) or any(t.train for t in run.probing.tasks.values()):
            from faithful_sae.corpora import check_sources  # imports more than a run without local files needs
            check_sources(run)
        _forget_damaged(run)


def _check_model_folder(run, folder):
    def need(ok, key, why):
        if not ok:
            raise ParamsError(f"{run.file}: {key} {why}")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParamsError(f"{run.file}: model = {run.model!r}: no readable config.json in {folder} ({error})") from None
    need(list(folder.glob("*.safetensors")), "model", f"= {run.model!r}: no *.safetensors weights in {folder}")
    need((folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file(), "model",
         f"= {run.model!r}: no tokenizer in {folder}: copy tokenizer.json and tokenizer_config.json beside config.json")
    tokenizer = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            tokenizer |= {k: v for k, v in json.loads((folder / name).read_text(encoding="utf-8")).items() if v is not None}
    need("bos_token" in tokenizer or "eos_token" in tokenizer, "model",
         f"= {run.model!r}: its tokenizer has neither BOS nor EOS: set bos_token in {folder / 'tokenizer_config.json'}")
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    context = config.get("max_position_embeddings", config.get("n_positions"))
    need(layers is None or run.layer < layers, "layer", f"= {run.layer} is out of range: {run.model} has blocks 0 to {(layers or 0) - 1}")
    need(context is None or run.sequence_length <= context, "sequence_length",
         f"= {run.sequence_length} exceeds the context of {run.model}, {context} tokens")
    need(context is None or run.generate.max_new_tokens < context, "generate.max_new_tokens",
         f"= {run.generate.max_new_tokens} must be below the context of {run.model}, {context} tokens: BOS takes one position")
    need(context is None or run.probing.max_tokens <= context, "probing.max_tokens",
         f"= {run.probing.max_tokens} exceeds the context of {run.model}, {context} tokens")


def _forget_damaged(run):
    folders = {"dataset": [run.artifacts / "faithful"] + ([run.artifacts / "lm"] if run.embedded else []),
               "saes": [run.artifacts / "saes" / name for name in run.sae.train_on]}
    for name, artefacts in folders.items():
        rows = Path(rows_file(run, name))
        if rows.exists() and not all(map(_whole, artefacts)):
            rows.unlink()


def _whole(folder):
    try:
        return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["content"] == file_hash(folder)
    except (OSError, ValueError, KeyError):
        return False


def main():
    parser = argparse.ArgumentParser(description="Extract the documentation a profile is made from.")
    parser.add_argument("command", choices=["documentation"])
    parser.add_argument("profile")
    parser.add_argument("output")
    args = parser.parse_args()
    make_documentation(args.profile, args.output)


if __name__ == "__main__":
    main()
