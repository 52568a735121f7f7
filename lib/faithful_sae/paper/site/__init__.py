"""The rebuilt paper as a folder of pages to open in a browser: `make paper` ends with it.

    index.html   question, score of the claims, every exhibit, what is missing, how to cite
    figures/     of figures/<profile>/ what the page shows and links to
    notebooks/   the executed notebooks
    explorer/    features, where `make explorer` has written them
    api/         the library's reference, by its docstrings
    site.css

It needs no network: formulas are MathML, and nothing is loaded from elsewhere. Templates are
Jinja's, notebooks are rendered by nbconvert, docstrings by pdoc.
"""

import json
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from pygments.formatters import HtmlFormatter

from faithful_sae.files import ROOT, atomic_path, read_csv, read_json
from faithful_sae.paper.executed import executed_file
from faithful_sae.paper.exhibits import command, notebook_exhibits, profile_note
from faithful_sae.paper.site.markup import markdown, tidy
from faithful_sae.paper.site.notebooks import Executed, Picture, body, digest_of
from faithful_sae.paper.site.reference import FIRST, write_reference
from faithful_sae.paper.verdicts import (
    AGREES,
    DISAGREES,
    NO_DIFFERENCE,
    NOT_MEASURED,
    NOT_TESTABLE,
    UNDECIDED,
)
from faithful_sae.runs.catalogue import Exhibit, exhibits
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.registry import profile_stage, stages
from faithful_sae.runs.schema import Run

HERE = Path(__file__).parent
# a verdict on one claim, and on several
SAID = {
    AGREES: ("agrees", "agree"),
    DISAGREES: ("disagrees", "disagree"),
    NO_DIFFERENCE: ("shows no difference", "show no difference"),
    UNDECIDED: ("is undecided", "are undecided"),
    NOT_TESTABLE: ("cannot be tested", "cannot be tested"),
    NOT_MEASURED: ("is not measured", "are not measured"),
}
# of an exhibit, beside what is shown, what a reader may take along
ALONG = {"table": ("csv", "tex"), "figure": ("pdf",)}
# Pygments' styles for light and for dark
CODE = {"light": "default", "dark": "github-dark"}


@dataclass(frozen=True)
class Part:
    """An exhibit of one language model, or of the profile (`model` is empty)."""

    model: str
    stem: str
    body: Markup
    note: str
    made: dict[str, Any]
    along: list[str]


@dataclass(frozen=True)
class Shown:
    """An exhibit with what its notebook says of it."""

    exhibit: Exhibit
    prose: Markup
    parts: list[Part]


@dataclass(frozen=True)
class Section:
    """A notebook's exhibits."""

    name: str
    title: str
    intro: Markup
    shown: list[Shown]


def write_site(profile: str | Path) -> Path:
    """Write the site of what a profile has so far; its index.html.

    Args:
        profile: a folder of parameter files, or the name of one in params/.

    Raises:
        ParamsError: as load_profile. DiskFullError, ReadOnlyError.
    """
    runs = load_profile(profile)
    with atomic_path(runs[0].site) as tmp:
        (tmp / "figures").mkdir(parents=True)
        _write(runs, tmp)
    return runs[0].site / "index.html"


def score(verdicts: Collection[str]) -> str:
    """How many claims agree, disagree, and so on, as a sentence."""
    counts = {verdict: list(verdicts).count(verdict) for verdict in SAID}
    if not verdicts:
        return "None of the paper's claims has been judged yet."
    *first, last = [f"{n} {SAID[verdict][n > 1]}" for verdict, n in counts.items() if n]
    listed = f"{', '.join(first)} and {last}" if first else last
    number = len(verdicts)
    return f"Of the paper's {number} claim{'s' if number != 1 else ''}, {listed}."


def _write(runs, site):
    explorer = runs[0].artifacts.parent / "explorer"
    if explorer.is_dir():
        shutil.copytree(explorer, site / "explorer")
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["profile"] = runs[0].profile
    executed = _executed(runs)
    pages = {notebook.address for notebook in executed}
    sections = [section for name in stages() if (section := _section(runs, site, pages, name))]
    pictures = {
        digest_of(drawn.read_bytes()): Picture(f"figures/{drawn.name}", f"{title}, {part.model}")
        for section in sections
        for shown in section.shown
        for part in shown.parts
        if (drawn := runs[0].figures / f"{part.stem}.png").exists()
        and (title := shown.exhibit.title)
    }
    ran = []
    for notebook in executed:
        title, seconds = _notebook_page(environment, notebook, site, pages, pictures)
        ran.append({"title": title, "notebook": notebook, "seconds": seconds})
    own_style = (HERE / "site.css").read_text(encoding="utf-8")
    (site / "site.css").write_text(own_style + _of_code(".highlight"), encoding="utf-8")
    (site / "api").mkdir()
    write_reference(site / "api", _of_code(".pdoc-code"))
    # the paper's own come first
    sections.sort(key=lambda section: section.name != profile_stage().name)
    claims = _claims(runs[0])
    page = environment.get_template("index.html.jinja").render(
        up="",
        note=profile_note(runs),
        score=score([] if claims is None else claims.verdict.tolist()),
        claims=[] if claims is None else claims.to_dict("records"),
        sections=sections,
        ran=ran,
        absent=_absent(runs),
        explorer=(site / "explorer").is_dir(),
        reference=f"api/{FIRST}",
        own=_own_exhibits(sections),
        cite=yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")),
    )
    (site / "index.html").write_text(page, encoding="utf-8")


def _own_exhibits(sections):
    """Those with a place of their own on the page."""
    return {
        shown.exhibit.id: shown
        for section in sections
        for shown in section.shown
        if shown.exhibit.id in ("claims", "missing")
    }


def _of_code(selector: str) -> str:
    """Rules of CSS that colour code."""
    style = ""
    for scheme, name in CODE.items():
        rules = HtmlFormatter(style=name).get_style_defs(selector)
        style += f"@media screen and (prefers-color-scheme: {scheme}) {{\n{rules}\n}}\n"
    return style


# --- exhibits -------------------------------------------------------------------------------------


def _section(runs, site, pages, name):
    """A notebook's section: its exhibits that are there, in the order of the list; None without
    any.
    """
    own = [exhibit for exhibit in exhibits().values() if exhibit.notebook == name]
    there = {exhibit.id: _there(runs, exhibit) for exhibit in own}
    if not any(there.values()):
        return None
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    heading, _, intro = notebook.cells[0].source.partition("\n")
    # which exhibits there are one sees
    intro = re.sub(r"\*\*Exhibits?\.\*\*.*?(\n\n|$)", "", intro, flags=re.S)
    told: set[int] = set()
    shown = []
    for exhibit in own:
        prose = _prose(notebook.cells, exhibit.id, told)
        if there[exhibit.id]:
            parts = [_part(run, exhibit, site) for run in there[exhibit.id]]
            text = tidy(prose, 3, lambda link: _leads(site, pages, "", link), exhibit.title)
            shown.append(Shown(exhibit, text, parts))
    text = tidy(markdown(intro), 2, lambda link: _leads(site, pages, "", link), name)
    return Section(name, heading.lstrip("# "), text, shown)


def _prose(cells, exhibit_id, told):
    """What stands above the cell that makes an exhibit, without headings; once, where a cell makes
    several.
    """
    above = 0
    for number, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            above = number
        elif f'"{exhibit_id}"' in cell.source:
            if above in told:
                return ""
            told.add(above)
            return markdown(re.sub(r"^#+ .*$", "", cells[above].source, flags=re.M))
    return ""


def _places(runs: list[Run], exhibit: Exhibit) -> list[Run]:
    """The runs that an exhibit is made for: the first stands for the profile."""
    asked = runs if exhibit.scope == "model" else runs[:1]
    return [run for run in asked if exhibit in notebook_exhibits(run, exhibit.notebook)]


def _complete(run: Run, exhibit: Exhibit) -> bool:
    return all((run.figures / name).exists() for name in exhibit.files(run.name))


def _there(runs, exhibit):
    return [run for run in _places(runs, exhibit) if _complete(run, exhibit)]


def _part(run, exhibit, site):
    stem = exhibit.stem(run.name)
    model = run.label if exhibit.scope == "model" else ""
    figures = site / "figures"
    along = [f"{stem}.{suffix}" for suffix in ALONG[exhibit.kind]]
    for name in along:
        shutil.copyfile(run.figures / name, figures / name)
    provenance = run.figures / f"{stem}.provenance.json"
    made = {}
    if provenance.exists():
        circumstances = run.artifacts.parent / "exhibits" / f"{stem}.json"
        made = read_json(provenance)
        # a half of the bytes say the same
        said = json.dumps(made, ensure_ascii=False, separators=(",", ":"))
        (figures / provenance.name).write_text(said, encoding="utf-8")
        along.append(provenance.name)
        made |= read_json(circumstances) if circumstances.exists() else {}
    title = f"{exhibit.title}, {model}" if model else exhibit.title
    if exhibit.kind == "table":
        _, _, table = (run.figures / f"{stem}.md").read_text(encoding="utf-8").partition("\n\n")
        rows = len(table.splitlines()) - 2
        shown = tidy(markdown(table), 4, lambda _: False, title) if rows > 0 else Markup()
    else:
        picture = f"{stem}.png"
        with Image.open(run.figures / picture) as drawn:
            width, height = (side // 2 for side in drawn.size)
            # the colours of a drawing are few: a third of the bytes shows the same
            drawn.convert("RGB").quantize(dither=Image.Dither.NONE).save(figures / picture)
        address = f"figures/{picture}"
        shown = Markup(
            '<a class="picture" href="{}"><img src="{}" alt="{}" width="{}" height="{}" '
            'loading="lazy"></a>'
        ).format(address, address, title, width, height)
    return Part(model, stem, shown, made.get("note", ""), made, along)


def _claims(run: Run) -> pd.DataFrame | None:
    exhibit = exhibits()["claims"]
    if not _complete(run, exhibit):
        return None
    claims = read_csv(run.figures / "claims.csv", ("claim", "section", "measured", "verdict"))
    return claims.astype(object).where(claims.notna(), None)


def _absent(runs: list[Run]) -> list[dict[str, str]]:
    """Exhibits that are not there, by notebook and language model, and the command that makes
    them.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for exhibit in exhibits().values():
        for run in _places(runs, exhibit):
            if not _complete(run, exhibit):
                stage = stages()[exhibit.notebook]
                model = run.label if exhibit.scope == "model" else "all"
                row = {"notebook": stage.name, "model": model, "command": command(run, stage)}
                found.setdefault((stage.name, model), row | {"titles": []})["titles"].append(
                    exhibit.title
                )
    return list(found.values())


# --- notebooks ------------------------------------------------------------------------------------


def _executed(runs: list[Run]) -> list[Executed]:
    """The executed notebooks, in their order."""
    found = []
    for name, stage in stages().items():
        for run in runs[:1] if stage.profile else runs:
            if file := executed_file(run, stage):
                stem = name if stage.profile else f"{name}-{run.name}"
                model = "" if stage.profile else run.label
                found.append(Executed(file, f"notebooks/{stem}.html", model))
    return found


def _notebook_page(environment, notebook, site, pages, pictures):
    title, cells, seconds = body(notebook, site, pictures)
    cells = tidy(cells, 0, lambda link: _leads(site, pages, notebook.up, link), title)
    page = environment.get_template("notebook.html.jinja").render(
        up=notebook.up, title=title, model=notebook.model, cells=cells
    )
    (site / notebook.address).parent.mkdir(exist_ok=True)
    (site / notebook.address).write_text(page, encoding="utf-8")
    return title, seconds


def _leads(site, pages, up, link):
    """Whether a link of a page leads somewhere: to the network, on the page, or in the site."""
    if re.match(r"https?:|#", link):
        return True
    address = link.partition("#")[0]
    if not address.startswith(up):
        return False
    return (site / address.removeprefix(up)).is_file() or address.removeprefix(up) in pages
