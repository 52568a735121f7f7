"""The two ways to write an exhibit, save_table and save_figure, and the README's table of them.

Files go to figures/<profile>/, each with its provenance beside it. Everything written says which
profile it is from, and a profile's exhibits say when not all of it has been measured.
"""

import dataclasses
import re

import matplotlib
import pandas as pd

from faithful_sae.files import ROOT, atomic_path, file_hash, write_csv
from faithful_sae.runs.catalogue import Exhibit, exhibits
from faithful_sae.runs.provenance import write_provenance
from faithful_sae.runs.rows import lacking
from faithful_sae.runs.schema import EMBEDDED_ROWS, OPTIONAL, PAPER_STAGES, ROWS, model_stages
from faithful_sae.stages.corpus import hub_of


def notebook_exhibits(run, notebook) -> list[Exhibit]:
    """The exhibits one notebook writes for a run: without those of an embedded model, or of 08 or
    09, where the run has none.
    """
    absent = {"lm_training": not run.embedded}
    return [
        e
        for e in exhibits().values()
        if e.notebook == notebook
        and not absent.get(e.id)
        and (notebook not in OPTIONAL or getattr(run, OPTIONAL[notebook]))
    ]


def profile_note(runs) -> str:
    """The sentence that every exhibit carries, so that no laptop number is taken for the paper's."""
    what = (
        [
            "small language models of software documentation, trained on the spot; not the "
            "paper's models"
        ]
        if any(run.embedded for run in runs)
        else []
    )
    what += sorted({run.label for run in runs if not run.embedded})
    recipes = {
        run.sae.recipe for run in runs if run.sae and set(run.sae.train_on) - set(run.published)
    }
    recipes |= {"as published" for run in runs if run.published}
    return (
        f"Profile {runs[0].profile}: {', '.join(what)}. SAE recipe: {', '.join(sorted(recipes))}."
    )


def unmeasured(runs) -> pd.DataFrame:
    """What 07's exhibits lack: model, notebook, why, and the command that makes it. Empty when all
    is there.
    """
    found = []
    for run in runs:
        folder = run.file.parent
        models = f"MODELS={run.name}"
        profile = (
            f"PROFILE={run.profile}"
            if folder == ROOT / "params" / run.profile
            else f"PARAMS={folder.name}"
        )  # as seen from where it lies: no path of this machine
        for stage in (stage for stage in model_stages(run) if stage in PAPER_STAGES):
            extra = (EMBEDDED_ROWS,) if run.embedded and stage == "01_generate_faithful" else ()
            why = {lacking(run, name) for name in (*ROWS[stage], *extra)} - {None}
            if not all(
                (run.figures / file).exists()
                for e in notebook_exhibits(run, stage)
                for file in e.files(run.name)
            ):
                why = why or {"not finished"}  # killed between its rows and its last exhibit
            if why:
                found.append(
                    {
                        "model": run.label,
                        "notebook": stage,
                        "why": min(why),
                        "command": f"make paper {profile} {models}",
                    }
                )
    return pd.DataFrame(found, columns=["model", "notebook", "why", "command"])


def save_table(runs, exhibit_id, table, digits=4):
    """Write a table as csv (all digits), md and tex (rounded to `digits`), and return it for
    display.

    Args:
        runs: the Run it belongs to (scope model) or the list of them (scope profile).
    """
    exhibit, runs, stem = _place(runs, exhibit_id)
    note = _note(exhibit, runs)
    folder = runs[0].figures
    write_csv(folder / f"{stem}.csv", table)
    rounded = table.map(
        lambda v: "" if pd.isna(v) else f"{v:.{digits}f}" if isinstance(v, float) else str(v)
    )
    rounded.columns = [str(c).replace("_", " ") for c in table.columns]
    with atomic_path(folder / f"{stem}.md") as tmp:
        tmp.write_text(
            f"**{exhibit.title}** ({exhibit.paper}). "
            f"{note}\n\n{rounded.map(_literal).to_markdown(index=False, disable_numparse=True)}\n",
            encoding="utf-8",
        )
    with atomic_path(folder / f"{stem}.tex") as tmp:
        tmp.write_text(
            rounded.to_latex(
                index=False,
                escape=True,
                caption=f"{exhibit.title} ({exhibit.paper}). {note}".replace("_", r"\_"),
                label=f"tab:{stem}",
            ),
            encoding="utf-8",
        )
    _provenance(exhibit, runs, stem)
    return table


def _literal(text):
    """A cell may hold text of a corpus: what Markdown would take for its own, or for HTML, is
    written as an entity. a_b may stay.
    """
    return re.sub(
        r"[<|*`~$]|&(?=#?\w+;)|\((?<=\]\()|(?<!\w)_|_(?!\w)",
        lambda found: f"&#{ord(found[0])};",
        text,
    )


def save_figure(runs, exhibit_id, data, draw):
    """Write a figure's data as csv, draw the figure from that csv, and write it as pdf and png.

    Args:
        data: DataFrame. draw: function of the DataFrame read back from the csv, returning a
            matplotlib Figure.

    Returns:
        path of the png, for display.
    """
    exhibit, runs, stem = _place(runs, exhibit_id)
    folder = runs[0].figures
    write_csv(folder / f"{stem}.csv", data)
    figure = draw(pd.read_csv(folder / f"{stem}.csv", keep_default_na=False, na_values=[""]))
    # above everything: a legend below the axes hangs on to the lower edge of whatever is saved
    figure.text(
        0.005,
        1 + 0.03 / figure.get_figheight(),
        _note(exhibit, runs, "\n"),
        fontsize=5.5,
        color="0.35",
        va="bottom",
    )
    for suffix, undated in (
        ("pdf", {"CreationDate": None}),
        ("png", {"Software": None}),
    ):  # same data, same bytes
        with (
            atomic_path(folder / f"{stem}.{suffix}") as tmp,
            matplotlib.rc_context({"pdf.fonttype": 42}),
        ):
            figure.savefig(
                tmp, format=suffix, dpi=200, bbox_inches="tight", pad_inches=0.06, metadata=undated
            )
    _provenance(exhibit, runs, stem)
    return str(folder / f"{stem}.png")


def _place(runs, exhibit_id):
    runs = runs if isinstance(runs, list) else [runs]
    exhibit = exhibits()[exhibit_id]
    return exhibit, runs, exhibit.stem(runs[0].name)


def _note(exhibit, runs, separator=" "):
    lacks = exhibit.scope == "profile" and len(unmeasured(runs))
    return profile_note(runs) + (
        f"{separator}Not complete: table `missing` names {lacks} of its notebooks that have not "
        "run."
        if lacks
        else ""
    )


def _provenance(exhibit, runs, stem):
    keys = [field.name for field in dataclasses.fields(runs[0]) if field.name != "file"]
    rows = {
        run.name: [
            path
            for path in sorted((run.artifacts / "rows").glob("*.csv"))
            if not lacking(run, path.stem)
        ]
        for run in runs
    }
    write_provenance(
        runs[0].figures / f"{stem}.provenance.json",
        parameters={run.name: run.settings(*keys) for run in runs},
        inputs={
            f"{name}/{path.name}": file_hash(path) for name, paths in rows.items() for path in paths
        }
        | hub_of(runs[0]).commits(),
        device=runs[0].device,
        missing=unmeasured(runs).to_dict("records") if exhibit.scope == "profile" else None,
    )


def readme_table(profile="laptop") -> str:
    """The README's table of exhibits, with a link to each file of the committed profile."""
    lines = ["| exhibit | paper | made by | files |", "|---|---|---|---|"]
    for exhibit in exhibits().values():
        names = (
            [None]
            if exhibit.scope == "profile"
            else sorted(p.stem for p in (ROOT / "params" / profile).glob("*.yaml"))
        )
        suffix = "md" if exhibit.kind == "table" else "png"
        links = " ".join(
            f"[{name or exhibit.id}](figures/{profile}/{exhibit.stem(name)}.{suffix})"
            for name in names
        )
        lines.append(f"| {exhibit.title} | {exhibit.paper} | {exhibit.notebook} | {links} |")
    return "\n".join(lines)


def write_readme_table():
    """Put the table between its two markers in README.md."""
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split("<!-- exhibits -->\n")
    after = rest.split("<!-- /exhibits -->")[1]
    readme.write_text(
        f"{before}<!-- exhibits -->\n{readme_table()}\n<!-- /exhibits -->{after}", encoding="utf-8"
    )


if __name__ == "__main__":
    write_readme_table()
