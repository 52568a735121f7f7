"""The two ways to write an exhibit, save_table and save_figure, and the list of all of them.

Files go to figures/<profile>/, each with its provenance beside it. Everything written says which
profile it is from, and a profile's exhibits say when not all of it has been measured.
"""

import re
import textwrap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from faithful_sae.files import ROOT, atomic_path, file_hash, read_csv, text_columns, write_csv
from faithful_sae.runs.catalogue import HALF, Exhibit, exhibits
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.registry import before, model_stages, stages
from faithful_sae.runs.rows import lacking, rows_file
from faithful_sae.runs.schema import Run, plain
from faithful_sae.runs.stage import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# what LaTeX would take for its own
TEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
README = """# Tables and figures

These are the exhibits of the profile `{profile}`, as `make paper PROFILE={profile}` writes them. A
table is there as csv, md and tex, a figure as png, pdf and the csv it is drawn from; the
`.provenance.json` beside it names its parameters, inputs and versions. When and where it was made
is in `artifacts/{profile}/exhibits`.

| exhibit | paper | made by | files |
|---|---|---|---|
{rows}
"""


def notebook_exhibits(run: Run, notebook: str) -> list[Exhibit]:
    """The exhibits one notebook writes for a run: none that needs what the run leaves out."""
    stage = stages()[notebook]
    if not stage.profile and not stage.wanted(run):
        return []
    return [
        exhibit
        for exhibit in exhibits().values()
        if exhibit.notebook == notebook and (not exhibit.needs or _given(run, exhibit.needs))
    ]


def _given(run: Run, name: str) -> bool:
    """Whether a section of a run, or a key of one, is there and not null."""
    section, _, key = name.partition(".")
    found = getattr(run, section)
    return bool(getattr(found, key) if key and found else found)


def profile_note(runs: list[Run]) -> str:
    """The sentence every exhibit carries, so that no laptop number is taken for the paper's."""
    models = sorted({run.label for run in runs if not run.embedded})
    if any(run.embedded for run in runs):
        models.insert(
            0,
            "small language models of software documentation, trained on the spot; not the "
            "paper's models",
        )
    recipes = {
        run.sae.recipe for run in runs if run.sae and set(run.sae.train_on) - set(run.published)
    }
    if any(run.published for run in runs):
        recipes.add("as published")
    single = [run.label for run in runs if run.sae and len(run.sae.seeds) == 1]
    one = f" One seed ({', '.join(single)}): SFR is not measured, and nothing has an interval."
    return (
        f"Profile {runs[0].profile}: {', '.join(models)}. SAE recipe: {', '.join(sorted(recipes))}."
        f"{one if single else ''}"
    )


def unmeasured(runs: list[Run]) -> pd.DataFrame:
    """What 07's exhibits lack: model, notebook, why, and the command that makes it. Empty when all
    is there.
    """
    found = []
    for run in runs:
        folder = run.file.parent
        # as seen from where it lies: no path of this machine
        built_in = folder == ROOT / "params" / run.profile
        profile = f"PROFILE={run.profile}" if built_in else f"PARAMS={folder.name}"
        for stage in model_stages(run):
            why = _why_unmeasured(run, stage) if stage.paper else None
            if why:
                command = f"make paper {profile} MODELS={run.name}"
                found.append((run.label, stage.name, why, command))
    return pd.DataFrame(found, columns=["model", "notebook", "why", "command"])


def _why_unmeasured(run, stage):
    reasons = [why for name in stage.rows_of(run) if (why := lacking(run, name))]
    if reasons:
        return min(reasons)
    # killed between its rows and its last exhibit
    return "not finished" if unmade(run, stage) else None


def unmade(run: Run, stage: Stage) -> list[str]:
    """Files of a notebook's exhibits for a run that are not there."""
    exhibits = notebook_exhibits(run, stage.name)
    files = [file for exhibit in exhibits for file in exhibit.files(run.name)]
    return [file for file in files if not (run.figures / file).exists()]


def save_table(
    runs: Run | list[Run],
    exhibit_id: str,
    table: pd.DataFrame,
    digits: int = 4,
    note: str = "",
    titles: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Write a table as csv (all digits), md and tex (rounded), and return it for display.

    Args:
        runs: the Run it belongs to (scope model) or the list of them (scope profile).
        exhibit_id: of params/exhibits.yaml.
        digits: behind the point, in md and tex.
        note: sentences about these numbers alone, for the caption.
        titles: what columns are called in md and tex, by their names up to a comma.
    """
    exhibit, runs, stem = _place(runs, exhibit_id)
    folder = runs[0].figures
    caption_note = _note(exhibit, runs, note)
    write_csv(folder / f"{stem}.csv", table)
    shown = _with_intervals(table.map(lambda value: _cell(value, digits)))
    shown.columns = [_title(str(column), titles or {}) for column in shown.columns]
    markdown = shown.map(_literal).to_markdown(index=False, disable_numparse=True)
    said = _note(exhibit, runs, note, shown=_literal)
    _write(folder / f"{stem}.md", f"**{exhibit.title}** ({exhibit.paper}). {said}\n\n{markdown}\n")
    caption = f"{exhibit.title} ({exhibit.paper}). {caption_note}".translate(TEX)
    tex = shown.to_latex(index=False, escape=True, caption=caption, label=f"tab:{stem}")
    _write(folder / f"{stem}.tex", tex)
    _provenance(exhibit, runs, stem)
    return table


def _title(column, titles):
    name, comma, rest = column.partition(",")
    return titles.get(name, name.replace("_", " ")) + comma + rest


def _with_intervals(shown):
    """Columns `x ±`, which hold halves of intervals, behind their numbers: 0.547 ± 0.010."""
    halves = [column for column in shown if str(column).endswith(HALF)]
    for half in halves:
        number = half.removesuffix(HALF)
        known = shown[half] != ""
        shown.loc[known, number] += " ± " + shown.loc[known, half]
    return shown.drop(columns=halves)


def _cell(value, digits):
    if pd.isna(value):
        return ""
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _write(path, text):
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def _literal(text: str) -> str:
    """A cell may hold text of a corpus: what Markdown would take for its own, or for HTML, is
    written as an entity. a_b may stay.
    """
    return re.sub(
        r"[<|*`~$]|&(?=#?\w+;)|\((?<=\]\()|(?<!\w)_|_(?!\w)",
        lambda found: f"&#{ord(found[0])};",
        text,
    )


def save_figure(
    runs: Run | list[Run],
    exhibit_id: str,
    data: pd.DataFrame,
    draw: Callable[[pd.DataFrame], "Figure"],
    note: str = "",
) -> str:
    """Write a figure's data as csv, draw the figure from that csv, and write it as pdf and png.

    Args:
        runs: the Run it belongs to (scope model) or the list of them (scope profile).
        exhibit_id: of params/exhibits.yaml.
        data: what is drawn.
        draw: makes the figure of the data read back from the csv.
        note: as save_table.

    Returns:
        path of the png, for display.
    """
    # for which the workflow, which asks for the list alone, does not wait
    import matplotlib

    from faithful_sae.paper.plots.style import as_written

    exhibit, runs, stem = _place(runs, exhibit_id)
    folder = runs[0].figures
    write_csv(folder / f"{stem}.csv", data)
    figure = draw(read_csv(folder / f"{stem}.csv", text_columns(data)))
    # above everything: a legend below the axes hangs on to the lower edge of whatever is saved
    above = figure.text(
        0.005,
        1 + 0.03 / figure.get_figheight(),
        _note(exhibit, runs, textwrap.fill(note, 100), "\n"),
        fontsize=5.5,
        color="0.35",
        va="bottom",
    )
    as_written([above])
    # found once: for "tight" each file would be drawn twice
    box = figure.get_tightbbox().padded(0.06)
    # neither date nor version: same data, same bytes
    for suffix, undated in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        with (
            atomic_path(folder / f"{stem}.{suffix}") as tmp,
            matplotlib.rc_context({"pdf.fonttype": 42}),
        ):
            figure.savefig(tmp, format=suffix, dpi=figure.dpi, bbox_inches=box, metadata=undated)
    _provenance(exhibit, runs, stem)
    return str(folder / f"{stem}.png")


def _place(runs: Run | list[Run], exhibit_id: str) -> tuple[Exhibit, list[Run], str]:
    """The exhibit, its runs as a list, and the stem of its files."""
    runs = runs if isinstance(runs, list) else [runs]
    exhibit = exhibits()[exhibit_id]
    return exhibit, runs, exhibit.stem(runs[0].name)


def _note(exhibit, runs, own, separator=" ", shown: Callable[[str], str] = str):
    if exhibit.of_paper:
        return f"The paper's printed numbers; profile {runs[0].profile} measured none of them."
    note = shown(profile_note(runs))
    lacks = len(unmeasured(runs)) if exhibit.scope == "profile" else 0
    if lacks:
        note += (
            f"{separator}Not complete: table `missing` names {lacks} of its notebooks that have "
            "not run."
        )
    return f"{note}{separator}{shown(own)}" if own else note


def _provenance(exhibit, runs, stem):
    rows = {
        f"{run.name}/{name}.csv": file_hash(rows_file(run, name))
        for run in runs
        for stage in _made_of(exhibit, run)
        for name in stage.rows_of(run)
        if not lacking(run, name)
    }
    write_provenance(
        runs[0].figures / f"{stem}.provenance.json",
        runs[0].artifacts.parent / "exhibits" / f"{stem}.json",
        parameters={run.name: plain(run) for run in runs},
        inputs=rows | runs[0].hub.commits(),
        device=runs[0].device,
        missing=unmeasured(runs).to_dict("records") if exhibit.scope == "profile" else None,
    )


def _made_of(exhibit, run):
    """The stages whose rows are finished when a notebook makes its exhibit for a run: what else is
    there depends on what happens to have run.
    """
    stage = stages()[exhibit.notebook]
    return [s for s in model_stages(run) if s.paper] if stage.profile else before(stage)


def figures_readme(profile: str = "laptop") -> str:
    """The text of figures/README.md: the exhibits, with links to the files of a profile."""
    runs = load_profile(profile)
    rows = []
    for exhibit in exhibits().values():
        suffix = "md" if exhibit.kind == "table" else "png"
        names = [exhibit.id]
        if exhibit.scope == "model":
            names = [
                run.name for run in runs if exhibit in notebook_exhibits(run, exhibit.notebook)
            ]
        links = " ".join(f"[{name}]({profile}/{exhibit.stem(name)}.{suffix})" for name in names)
        links = links or f"only with `{exhibit.needs}`"
        notebook = f"[{exhibit.notebook}](../notebooks/{exhibit.notebook}.ipynb)"
        rows.append(f"| {exhibit.title} | {exhibit.paper} | {notebook} | {links} |")
    return README.format(profile=profile, rows="\n".join(rows))


def write_figures_readme() -> None:
    """Write figures/README.md."""
    with atomic_path(ROOT / "figures" / "README.md") as tmp:
        tmp.write_text(figures_readme(), encoding="utf-8")
