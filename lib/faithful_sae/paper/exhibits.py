"""The two ways to write an exhibit, save_table and save_figure, and the list of all of them.

A table is printed from its csv and a figure drawn from it. So both can be made again when only
their looks have changed.

Files go to figures/<profile>/, each with its provenance beside it. Everything written says which
profile it is from, and a profile's exhibits say when not all of it has been measured.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd

from faithful_sae.files import (
    ROOT,
    atomic_path,
    file_hash,
    read_csv,
    read_json,
    text_columns,
    write_csv,
)
from faithful_sae.paper.layout import (
    TEX_NEEDS,
    Printed,
    latex,
    lay_out,
    literal,
    markdown,
    row_names,
)
from faithful_sae.paper.names import without_role
from faithful_sae.runs.catalogue import Exhibit, exhibits
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.registry import before, model_stages, stages
from faithful_sae.runs.rows import command, lacking, rows_file
from faithful_sae.runs.schema import Run, plain
from faithful_sae.runs.stage import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

README = """# Tables and figures

These are the exhibits of the profile `{profile}`, as `make paper PROFILE={profile}` writes them. A
table is there as csv, md and tex, a figure as png and pdf, with its caption as md and the csv it is
drawn from; the `.provenance.json` beside it names its parameters, inputs and versions. When and
where it was made is in `artifacts/{profile}/exhibits`.

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


def promised(run: Run, stage: Stage) -> list[Exhibit]:
    """Those of them that it writes whatever studies have been made."""
    return [exhibit for exhibit in notebook_exhibits(run, stage.name) if not exhibit.gathers]


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
    found = [
        (run.label, stage.name, why, command(run, stage))
        for run in runs
        for stage in model_stages(run)
        if stage.paper and (why := _why_unmeasured(run, stage))
    ]
    return pd.DataFrame(found, columns=["model", "notebook", "why", "command"])


def _why_unmeasured(run, stage):
    reasons = [why for name in stage.rows_of(run) if (why := lacking(run, name))]
    if reasons:
        return min(reasons)
    # killed between its rows and its last exhibit
    return "not finished" if unmade(run, stage) else None


def unmade(run: Run, stage: Stage) -> list[str]:
    """Files of a notebook's exhibits for a run that are not there."""
    files = [file for exhibit in promised(run, stage) for file in exhibit.files(run.name)]
    return [file for file in files if not (run.figures / file).exists()]


def save_table(runs: Run | list[Run], exhibit_id: str, table: pd.DataFrame, note: str = "") -> str:
    """Write a table as csv, with all columns and digits, and print it from that as md and tex.

    Args:
        runs: the Run it belongs to (scope model) or the list of them (scope profile).
        exhibit_id: of params/exhibits.yaml, which has its layout.
        note: sentences about these numbers alone, for the caption.

    Returns:
        path of the md, for display.
    """
    exhibit, runs, stem = _place(runs, exhibit_id)
    write_csv(runs[0].figures / f"{stem}.csv", table)
    _provenance(exhibit, runs, stem, note)
    return print_table(runs, exhibit_id)


def print_table(runs: Run | list[Run], exhibit_id: str) -> str:
    """Write md and tex of a table that was saved; the path of the md.

    Args:
        runs, exhibit_id: as save_table.
    """
    _, runs, stem = _place(runs, exhibit_id)
    for suffix, text in table_texts(runs, exhibit_id).items():
        with atomic_path(runs[0].figures / f"{stem}.{suffix}") as tmp:
            tmp.write_text(text, encoding="utf-8")
    return str(runs[0].figures / f"{stem}.md")


def table_texts(runs: Run | list[Run], exhibit_id: str) -> dict[str, str]:
    """{"md" and "tex": what is printed of a table that was saved}, from its csv and provenance.

    Args:
        runs, exhibit_id: as save_table.
    """
    exhibit, runs, stem = _place(runs, exhibit_id)
    folder = runs[0].figures
    tables = printed_tables(runs, exhibit_id)
    record = read_json(folder / f"{stem}.provenance.json")
    note, missing = record.get("note", ""), len(record.get("missing", []))
    head = f"{exhibit.title} ({exhibit.paper})."
    parts = [_caption(exhibit, runs, note, missing)]
    code = [TEX_NEEDS]
    for number, table in enumerate(tables, 1):
        if number == 1:
            caption = f"{head} {_note(exhibit, runs, note, missing)}"
            parts[0] = f"{parts[0]} {literal(table.title)}".strip()
        else:
            caption = f"{exhibit.title}, continued."
            parts += [*filter(None, [literal(table.title)])]
        parts.append(markdown(table))
        label = f"tab:{stem}" if number == 1 else f"tab:{stem}-{number}"
        code.append(latex(table, f"{caption} {table.title}".strip(), label))
    return {"md": "\n\n".join(parts) + "\n", "tex": "\n".join(code)}


def printed_tables(runs: Run | list[Run], exhibit_id: str) -> list[Printed]:
    """The tables that are printed of a csv that was saved; `layout` writes them.

    Args:
        runs, exhibit_id: as save_table.
    """
    # which needs what computes
    from faithful_sae.paper.tables import called_here

    exhibit, runs, stem = _place(runs, exhibit_id)
    assert exhibit.layout
    file = runs[0].figures / f"{stem}.csv"
    # with one seed some tables have not even columns
    there = file.read_text(encoding="utf-8").strip()
    table = read_csv(file, row_names(exhibit.layout)) if there else pd.DataFrame()
    return lay_out(table, exhibit.layout, called_here(runs))


def print_tables(profile: str) -> None:
    """Print all tables of a profile again that are there, from their csv."""
    runs = load_profile(profile)
    for exhibit in exhibits().values():
        for run in runs if exhibit.scope == "model" else runs[:1]:
            saved = run.figures / f"{exhibit.stem(run.name)}.provenance.json"
            if exhibit.kind == "table" and saved.exists():
                print_table(run if exhibit.scope == "model" else runs, exhibit.id)


def save_figure(
    runs: Run | list[Run],
    exhibit_id: str,
    data: pd.DataFrame,
    draw: Callable[[pd.DataFrame], "Figure"],
    note: str = "",
) -> str:
    """Write a figure's data as csv, draw the figure from that csv, and write it as pdf and png, and
    its caption as md. In the picture there is no more of it than the model it is of.

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

    from faithful_sae.paper.plots.style import as_written, corpora_without_role

    exhibit, runs, stem = _place(runs, exhibit_id)
    folder = runs[0].figures
    write_csv(folder / f"{stem}.csv", data)
    with corpora_without_role(without_role(load_profile(runs[0].file.parent))):
        figure = draw(read_csv(folder / f"{stem}.csv", text_columns(data)))
    if exhibit.scope == "model":
        # above everything: a legend below the axes hangs on to the lower edge of what is saved
        at = {"va": "bottom", "ha": "left", "fontsize": 8, "fontweight": "bold"}
        as_written([figure.text(0.005, 1 + 0.03 / figure.get_figheight(), runs[0].label, **at)])
    # found once: for "tight" each file would be drawn twice
    box = figure.get_tightbbox().padded(0.06)
    # neither date nor version: same data, same bytes
    for suffix, undated in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        with (
            atomic_path(folder / f"{stem}.{suffix}") as tmp,
            matplotlib.rc_context({"pdf.fonttype": 42}),
        ):
            figure.savefig(tmp, format=suffix, dpi=figure.dpi, bbox_inches=box, metadata=undated)
    caption = _caption(exhibit, runs, note, _lacking(exhibit, runs))
    with atomic_path(folder / f"{stem}.md") as tmp:
        tmp.write_text(f"{caption}\n\n![{exhibit.title}]({stem}.png)\n", encoding="utf-8")
    _provenance(exhibit, runs, stem, note)
    return str(folder / f"{stem}.png")


def _place(runs: Run | list[Run], exhibit_id: str) -> tuple[Exhibit, list[Run], str]:
    """The exhibit, its runs as a list, and the stem of its files."""
    runs = runs if isinstance(runs, list) else [runs]
    exhibit = exhibits()[exhibit_id]
    return exhibit, runs, exhibit.stem(runs[0].name)


def _lacking(exhibit, runs):
    """How many notebooks a profile's exhibit lacks."""
    return len(unmeasured(runs)) if exhibit.scope == "profile" else 0


def _caption(exhibit, runs, note, lacks):
    """In Markdown."""
    said = _note(exhibit, runs, note, lacks, shown=literal)
    return f"**{exhibit.title}** ({exhibit.paper}). {said}"


def _note(exhibit, runs, own, lacks, shown: Callable[[str], str] = str):
    if exhibit.of_paper:
        return f"The paper's printed numbers; profile {runs[0].profile} measured none of them."
    note = shown(profile_note(runs))
    if lacks:
        note += f" Not complete: table `missing` names {lacks} of its notebooks that have not run."
    return f"{note} {shown(own)}" if own else note


def _provenance(exhibit, runs, stem, note=""):
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
        note=note,
    )


def _made_of(exhibit, run):
    """The stages whose rows are finished when a notebook makes its exhibit for a run: what else is
    there depends on what happens to have run.
    """
    stage = stages()[exhibit.notebook]
    if stage.profile:
        return [s for s in model_stages(run) if s.paper]
    return before(stage)


def figures_readme(profile: str = "laptop") -> str:
    """The text of figures/README.md: the exhibits, with links to the files of a profile."""
    runs = load_profile(profile)
    rows = []
    for exhibit in exhibits().values():
        names = [exhibit.id]
        if exhibit.scope == "model":
            names = [
                run.name for run in runs if exhibit in notebook_exhibits(run, exhibit.notebook)
            ]
        links = " ".join(f"[{name}]({profile}/{exhibit.stem(name)}.md)" for name in names)
        links = links or f"only with `{exhibit.needs}`"
        notebook = f"[{exhibit.notebook}](../notebooks/{exhibit.notebook}.ipynb)"
        executed = f"{profile}/notebooks/{exhibit.notebook}.ipynb"
        if (ROOT / "figures" / executed).exists():
            notebook += f" ([executed]({executed}))"
        rows.append(f"| {exhibit.title} | {exhibit.paper} | {notebook} | {links} |")
    return README.format(profile=profile, rows="\n".join(rows))


def write_exhibits() -> None:
    """Write figures/README.md, and the tables of all profiles as they are printed."""
    for folder in sorted((ROOT / "figures").iterdir()):
        if (ROOT / "params" / folder.name).is_dir():
            print_tables(folder.name)
    with atomic_path(ROOT / "figures" / "README.md") as tmp:
        tmp.write_text(figures_readme(), encoding="utf-8")
