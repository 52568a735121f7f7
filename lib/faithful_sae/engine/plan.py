"""What the Snakefile needs to know: which files each notebook reads and writes for a run. All of it
is asked of the stages' declarations.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from faithful_sae.files import PACKAGE, ROOT, folder_of
from faithful_sae.paper.exhibits import notebook_exhibits, promised
from faithful_sae.runs import registry
from faithful_sae.runs.keys import settings, workflow_settings
from faithful_sae.runs.registry import model_stages, profile_stage
from faithful_sae.runs.rows import rows_file
from faithful_sae.runs.schema import Corpus, ParamsError, Run
from faithful_sae.runs.stage import Stage
from faithful_sae.stages.s02_train_sae import sae_settings, text_of
from faithful_sae.stages.text import documentation_path
from faithful_sae.text import documentation


def stages(runs: list[Run]) -> list[Stage]:
    """The stages that run once per language model, for one of the models at least."""
    wanted = {stage.name: stage for run in runs for stage in model_stages(run)}
    return [wanted[name] for name in sorted(wanted)]


def stage_exhibits(run: Run, stage: Stage) -> list[str]:
    """Paths of the exhibits a notebook writes for a run, whatever studies there are."""
    exhibits = promised(run, stage)
    return [str(run.figures / name) for exhibit in exhibits for name in exhibit.files(run.name)]


def stage_outputs(runs: list[Run], stage: Stage) -> list[str]:
    """What a notebook writes for a run, with Snakemake's wildcard {run} in the run's place: rows,
    then exhibits. A rule has one list of outputs: what all its runs have.
    """
    wanted = [run for run in runs if stage in model_stages(run)]
    rows = [
        name for name in stage.rows_of(wanted[0]) if all(name in stage.rows_of(r) for r in wanted)
    ]
    shown = [notebook_exhibits(run, stage.name) for run in wanted]
    exhibits = [exhibit for exhibit in shown[0] if all(exhibit in others for others in shown)]
    folder = wanted[0].artifacts.parent / "{run}" / "rows"
    figures = [name for exhibit in exhibits for name in exhibit.files("{run}")]
    return [
        *(str(folder / f"{name}.csv") for name in rows),
        *(str(wanted[0].figures / name) for name in figures),
    ]


def run_outputs(
    runs: list[Run], of: Callable[[Stage], bool] = bool, some: list[Run] | None = None
) -> list[str]:
    """Everything that the stages `of` which that is true write, for all runs or for `some`."""
    return [
        path.replace("{run}", run.name)
        for run in some or runs
        for stage in model_stages(run)
        if of(stage)
        for path in stage_outputs(runs, stage)
    ]


def paper_inputs(
    runs: list[Run], some: list[Run] | None = None, studies: Collection[str] = ()
) -> list[str]:
    """What the profile's one notebook gathers: the outputs of all that the paper's tables and
    figures are made of, the indexes of features that it links to, and the answers of studies that
    are asked for.
    """
    trained = [run for run in some or runs if run.sae]
    links = [str(rows_file(run, "features")) for run in trained if run.features]
    answers = [
        str(rows_file(run, name))
        for run in trained
        for stage in model_stages(run)
        if stage.answers and stage.asked_for(studies)
        for name in stage.rows
    ]
    return run_outputs(runs, lambda stage: stage.paper, some) + links + answers


def profile_outputs(
    runs: list[Run], some: list[Run] | None = None, studies: Collection[str] = ()
) -> list[str]:
    """Everything `make paper` makes, of all runs or of `some`, and for some studies."""
    made = run_outputs(runs, lambda stage: stage.asked_for(studies), some)
    return made + stage_exhibits(runs[0], profile_stage())


def site_inputs() -> list[Path]:
    """What of the repository the site is made from, beside what a profile has made: the library,
    whose docstrings are its reference, with the templates in it; the notebooks' prose, the list of
    exhibits, and how to cite.
    """
    templates = (PACKAGE / "paper" / "site").rglob("*.*")
    return sorted(
        {
            *PACKAGE.rglob("*.py"),
            *(path for path in templates if path.suffix != ".pyc"),
            *(ROOT / "notebooks").glob("*.py"),
            ROOT / "params" / "exhibits.yaml",
            ROOT / "CITATION.cff",
        }
    )


def chosen_studies(runs: list[Run], names: Any) -> list[str]:
    """The studies called one of `names`, a text with spaces between them; without one, none.

    Raises:
        ParamsError: a name that no study of the runs has.
    """
    return _named("STUDIES", names, registry.studies(runs), runs)


def _named(variable: str, names: Any, known: list[str], runs: list[Run]) -> list[str]:
    """The names in the text of a variable of `make`, each once; all must be known."""
    wanted = list(dict.fromkeys(str(names or "").split()))
    for name in wanted:
        if name not in known:
            there = ", ".join(known) or "none (see docs/parameters.md)"
            raise ParamsError(
                f"{variable}: {name!r} is not in {runs[0].file.parent}, which has {there}"
            )
    return wanted


def chosen(runs: list[Run], names: Any) -> list[Run]:
    """The runs called one of `names`, a text with spaces between them; all of them without one.

    Raises:
        ParamsError: a name that no run has.
    """
    by_name = {run.name: run for run in runs}
    return [by_name[name] for name in _named("MODELS", names, [*by_name], runs)] or runs


def with_sources(runs: list[Run], wanted: list[Run]) -> list[Run]:
    """The wanted runs and those whose text they use."""
    sources = {corpus.faithful for run in wanted for corpus in run.corpora.values()}
    names = {run.name for run in wanted} | sources
    return [run for run in runs if run.name in names]


def stage_inputs(run: Run, stage: Stage, apart: bool = True) -> list[str]:
    """Data a notebook reads: rows of earlier notebooks (this run's, and of runs whose text it
    uses), local files, documentation.

    Args:
        apart: whether the SAEs of each corpus are trained by a job of its own, for which notebook
            02 waits, or by notebook 02.
    """
    if stage is registry.writer("saes") and not apart:
        read = [path for name in run.sae.train_on for path in corpus_inputs(run, name)]
        return list(dict.fromkeys(read))
    corpora = [run.corpora[name] for name in stage.corpora(run)]
    files = [file for corpus in corpora for file in _local_files(run, corpus)]
    files += stage.files(run)
    made = [*map(_documentation, filter(_is_documentation, corpora)), *stage.documentation(run)]
    files += [documentation_path(run, *source) for source in made]
    # of one seed, 09 does without 03's
    there = [name for name in stage.reads if registry.writer(name).wanted(run)]
    files += [rows_file(run, name) for name in there]
    return [*map(str, files), *_texts(run, corpora)]


def corpus_inputs(run: Run, name: str) -> list[str]:
    """Data that training on one corpus reads: a local or extracted file, the text of this or
    another run; the files of SAEs of a folder.
    """
    source = run.corpora[name]
    files = _local_files(run, source)
    if _is_documentation(source):
        files.append(documentation_path(run, *_documentation(source)))
    published = run.published.get(name)
    if published and published.path:
        folders = [folder_of(run.resolve(published.of(seed).path)) for seed in run.sae.seeds]
        files += sorted(file for folder in folders for file in folder.iterdir() if file.is_file())
    # an embedded model is there when its own text is
    own = {str(rows_file(run, "dataset"))} if run.embedded else set()
    return [*map(str, files), *sorted({*_texts(run, [source], own=True), *own})]


def _local_files(run: Run, corpus: Corpus) -> list[Path]:
    """A corpus's own, and that of the subject by which it is retrieved."""
    names = [corpus.path, corpus.retrieve and corpus.retrieve.like]
    return [run.resolve(name) for name in names if name]


def _texts(run: Run, corpora: list[Corpus], own: bool = False) -> list[str]:
    """Rows that stand for the generated text of corpora, of this run only if `own`."""
    said = [corpus.faithful for corpus in corpora if corpus.faithful]
    names = {run.name if name == "self" else name for name in said if own or name != "self"}
    return [str(run.artifacts.parent / name / "rows" / "dataset.csv") for name in sorted(names)]


def corpus_settings(run: Run, name: str) -> str:
    """The parameters that training on one corpus depends on, as text."""
    keys = (*registry.writer("saes").parameters, f"corpora.{name}")
    made = [sae_settings(run, called) for called in run.sae_names if text_of(run, called) == name]
    return json.dumps([settings(run, keys), *made], sort_keys=True)


def text_marks(run: Run, stage: Stage, workers: int) -> list[str]:
    """Marks of the workers that notebook 01 waits for; with one, which is itself, none."""
    return _marks(run, "text", workers) if stage is registry.writer("dataset") else []


def activation_marks(run: Run, corpus: str, workers: int) -> list[str]:
    """Marks of the workers that training on a corpus waits for, where its activations are kept."""
    kept = run.sae.cache_activations and corpus not in run.published
    return _marks(run, f"activations:{corpus}", workers) if kept else []


def _marks(run: Run, what: str, workers: int) -> list[str]:
    folder = run.artifacts / "workers" / what
    return [str(folder / f"{i}of{workers}") for i in range(workers) if workers > 1]


def share_inputs(run: Run, corpus: str | None = None) -> list[str]:
    """Data that a worker reads: what training on the corpus does, or, for a share of the text,
    notebook 01.
    """
    return corpus_inputs(run, corpus) if corpus else stage_inputs(run, registry.writer("dataset"))


def share_settings(run: Run, corpus: str | None = None) -> str:
    """The parameters that a worker's share depends on, as text."""
    if corpus:
        return corpus_settings(run, corpus)
    return workflow_settings(run, registry.writer("dataset"))


# --- documentation --------------------------------------------------------------------------------


def documentation_files(runs: list[Run]) -> dict[str, list]:
    """{file: [kind, packages, size]} of all that is extracted from installed packages."""
    found = {}
    for run in runs:
        corpora = filter(_is_documentation, run.corpora.values())
        tasks = [source for stage in model_stages(run) for source in stage.documentation(run)]
        for source in [*map(_documentation, corpora), *tasks]:
            found[str(documentation_path(run, *source))] = list(source)
    return found


def _is_documentation(corpus: Corpus) -> bool:
    return corpus.documentation is not None


def _documentation(corpus: Corpus) -> tuple:
    return corpus.documentation, corpus.packages, corpus.max_characters


def make_documentation(source: str, path: str) -> None:
    """Extract one corpus or labelled task; the notebooks of several models read the same file.

    Args:
        source: JSON list as in documentation_files.
    """
    kind, packages, size = json.loads(source)
    documentation.write(kind, packages, size, Path(path))
