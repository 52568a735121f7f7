"""The site, built from exhibits and notebooks made by hand: links lead somewhere, nothing comes
from a network, and every exhibit, claim and notebook is on it.
"""

import base64
import inspect
import io
import re
import sys
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from faithful_sae.engine.plan import site_inputs
from faithful_sae.files import PACKAGE, ROOT
from faithful_sae.metrics.sfr import shared_feature_ratio
from faithful_sae.paper.exhibits import save_figure, save_table
from faithful_sae.paper.site import score, write_site
from faithful_sae.paper.site.markup import markdown, tidy
from faithful_sae.runs import schema
from faithful_sae.runs.catalogue import exhibits
from faithful_sae.runs.params import load_profile

# verdict, effect, low, high
JUDGED = [
    ("agrees", 0.5, 0.25, 0.75),
    ("undecided", -0.125, -0.5, 0.25),
    ("undecided", 0.0, -0.5, 0.5),
    ("not testable", None, None, None),
]
CLAIMS = pd.DataFrame(
    [
        (
            f"Claim {n} < {n + 1}",
            f"4.{n}",
            f"Tiny: {n}; & more",
            effect,
            low,
            high,
            2,
            None,
            verdict,
        )
        for n, (verdict, effect, low, high) in enumerate(JUDGED)
    ],
    columns=[
        *("claim", "section", "measured", "effect", "low", "high", "seeds", "seeds_needed"),
        "verdict",
    ],
)
MADE = ("table7", "claims", "missing", "training", "fidelity")
EVIL = "<script>window.hacked = 1</script>"


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 4), colour).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def notebook(shown):
    """One with what real ones have: formulas, links, tables, logs, pictures, a skipped heading."""
    table = pd.DataFrame({"source": ["here", "paper"], "n": [1, 2]})
    outputs = [
        new_output("stream", name="stderr", text="10%\r90%\rdone\n"),
        new_output("execute_result", {"text/html": table._repr_html_(), "text/plain": "plain"}),
        new_output("display_data", {"image/png": shown}),
        new_output("display_data", {"image/png": png("red")}),
        new_output(
            "display_data",
            {"text/html": '<a href="../explorer/index.html#/neox/faithful/seed42/12">12</a>'},
        ),
        new_output("stream", name="stdout", text=EVIL),
        new_output("display_data", data={"text/html": f'<p onclick="hacked()">{EVIL}</p>'}),
    ]
    code, again = (new_code_cell("print(1)", outputs=outputs) for _ in range(2))
    text = "# 02 · Training\n\n$x_i < 1$ [a paper](https://example.org), [gone](../docs/x.md)"
    cells = [new_markdown_cell(text), code, new_markdown_cell("### Same"), again]
    return new_notebook(cells=[*cells, new_markdown_cell("## Same")])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of the smoke profile's runs, and the site's folder, away from the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "ROOT", tmp_path_factory.mktemp("root"))
        run = load_profile("smoke")[0]
        make(run)
        yield run, write_site("smoke").parent


def make(run):
    table = pd.DataFrame({"model": ["Tiny", "GPT-2"], "source": ["here", "paper"], "n": [1, 0.5]})
    save_table([run], "table7", table, note="Counts are small.")
    save_table([run], "claims", CLAIMS)
    save_table([run], "missing", pd.DataFrame(columns=["model", "why"]), note="Nothing is missing.")
    fidelity = {"evaluated_on": [EVIL], "trained_on": ["here"], "include_bos": [True]}
    save_table(run, "fidelity", pd.DataFrame(fidelity | {"ce_diff": [0.5]}))

    def draw(data):
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot(data.x)
        return figure

    picture = save_figure(run, "training", pd.DataFrame({"x": [1, 2]}), draw)
    with open(picture, "rb") as file:
        shown = base64.b64encode(file.read()).decode()
    folder = run.artifacts / "notebooks"
    folder.mkdir(parents=True)
    nbformat.write(notebook(shown), folder / "02_train_sae.ipynb")
    # of one that failed
    (folder / "12_evaluation.ipynb").touch()
    (run.artifacts.parent / "notebooks").mkdir()
    nbformat.write(notebook(shown), run.artifacts.parent / "notebooks" / "07_paper.ipynb")


@pytest.fixture(scope="module")
def pages(made):
    """{address: page}, without those of the reference"""
    _, folder = made
    return {
        page.relative_to(folder).as_posix(): BeautifulSoup(page.read_text("utf-8"), "html.parser")
        for page in folder.rglob("*.html")
        if folder / "api" not in page.parents
    }


@pytest.fixture(scope="module")
def reference(made):
    """{file: text of a page}"""
    _, folder = made
    return {page: page.read_text("utf-8") for page in (folder / "api").rglob("*.html")}


def addresses(page):
    return [tag[name] for name in ("src", "href") for tag in page.find_all(attrs={name: True})]


def test_links_lead_to_files_and_parts_of_pages(made, pages):
    _, folder = made
    for name, page in pages.items():
        ids = {tag["id"] for tag in page(id=True)}
        for address in addresses(page):
            path, _, part = unquote(address).partition("#")
            if path and "://" not in path:
                assert (folder / name).parent.joinpath(path).is_file(), (name, address)
            elif part:
                assert part in ids, (name, address)


def test_nothing_is_loaded_from_a_network(made, pages):
    _, folder = made
    for name, page in pages.items():
        loaded = [
            tag.get("src") or tag.get("href")
            for tag in page(["script", "link", "img", "iframe", "source", "object", "video"])
        ]
        assert [address for address in loaded if address and "//" in address] == [], name
        assert not re.search(r"@import|import\s*\(", str(page)), name
    assert not re.search(r"url\(|@import", (folder / "site.css").read_text("utf-8"))
    assert pages["notebooks/07_paper.html"].find("a", href="https://example.org")


def test_every_exhibit_stands_once_with_its_title(pages):
    index = pages["index.html"]
    shown = [tag["id"] for tag in index(id=True) if tag["id"] in exhibits()]
    assert sorted(shown) == sorted(MADE)
    for name in MADE:
        assert index.find(id=name).find(["h2", "h3"]).get_text() == exhibits()[name].title


def test_what_the_notebook_says_of_an_exhibit_stands_with_it(pages):
    said = pages["index.html"].find(id="table7").get_text(" ", strip=True)
    assert "The claim: the faithful SAE has the lowest FFR" in said
    assert "Counts are small." in said


def test_exhibits_that_are_not_there_are_named(pages):
    missing = pages["index.html"].find(id="missing").get_text(" ", strip=True)
    assert "Nothing is missing." in missing
    assert exhibits()["table1"].title in missing
    assert exhibits()["cosines"].title in missing
    assert exhibits()["table7"].title not in missing
    assert f"make paper PROFILE=smoke MODELS={load_profile('smoke')[0].name}" in missing


def test_claims_are_counted_and_listed(pages):
    index = pages["index.html"]
    said = "Of the paper's 4 claims, 1 agrees, 2 are undecided and 1 cannot be tested."
    assert [tag.get_text() for tag in index(class_="score")] == [said]
    rows = index.find("table", class_="claims").tbody("tr")
    assert [row.th.find(string=True).strip() for row in rows] == CLAIMS.claim.tolist()
    shown = [[cell.get_text(strip=True) for cell in row("td")[1:3]] for row in rows]
    assert shown == [
        ["agrees", "+0.500 [+0.250, +0.750]"],
        ["undecided", "-0.125 [-0.500, +0.250]"],
        ["undecided", "+0.000 [-0.500, +0.500]"],
        ["not testable", "none"],
    ]
    assert [item.get_text() for item in rows[1].th("li")] == ["Tiny: 1", "& more"]


def test_without_claims_the_score_says_so():
    assert score([]) == "None of the paper's claims has been judged yet."
    assert score(["disagrees"]) == "Of the paper's 1 claim, 1 disagrees."


def test_the_paper_s_rows_are_marked(pages):
    rows = pages["index.html"].find(id="table7").tbody("tr")
    assert [row.get("class") for row in rows] == [None, ["paper"]]


def test_every_notebook_has_a_page(made, pages):
    run, _ = made
    assert {*pages} - {"index.html"} == {
        f"notebooks/02_train_sae-{run.name}.html",
        "notebooks/07_paper.html",
    }
    text = pages["notebooks/07_paper.html"].main
    assert [tag.get_text() for tag in text.find_all("h1")] == ["02 · Training"]
    assert text.find("details", class_="log").pre.get_text().strip() == "done"
    assert "12" in text.get_text()


def test_a_picture_is_stored_once(made, pages):
    run, folder = made
    alone = [*(folder / "notebooks").glob("*.png")]
    assert len(alone) == 1, "the exhibit's own is in figures/"
    sources = [tag["src"] for tag in pages["notebooks/07_paper.html"]("img")]
    assert sources == [f"../figures/training_{run.name}.png", f"../notebooks/{alone[0].name}"] * 2


def test_pages_can_be_read_by_all(made, pages):
    """What a screen reader goes by: language, landmarks, headings, names of pictures and tables."""
    for name, page in pages.items():
        assert page.html["lang"] == "en", name
        assert len(page("main")) == len(page("h1")) == 1, name
        ids = [tag["id"] for tag in page(id=True)]
        assert len(ids) == len(set(ids)), name
        levels = [int(tag.name[1]) for tag in page(re.compile("^h[1-6]$"))]
        assert max(b - a for a, b in zip([0, *levels], levels, strict=False)) == 1, name
        assert all(tag["alt"] for tag in page("img")), name
        assert all(tag.get("scope") for tag in page("th")), name
        assert all(tag.parent["tabindex"] == "0" for tag in page("table")), name
    assert (
        pages["index.html"].find("img")["alt"] == f"{exhibits()['training'].title}, {made[0].label}"
    )


def test_text_of_a_corpus_is_no_script(pages):
    scripts = [script.get_text() for page in pages.values() for script in page("script")]
    assert not any("hacked" in script for script in scripts)
    assert not any(tag.get("onclick") for page in pages.values() for tag in page(True))
    assert EVIL in pages["index.html"].find(id="fidelity").get_text()


def test_every_module_below_the_runs_has_a_page_of_the_reference(made, reference):
    _, folder = made
    rooms = ("kernels", "matching", "text", "lm", "sae", "metrics", "features")
    modules = [file for room in rooms for file in (PACKAGE / room).rglob("*.py")]
    names = {".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in modules}
    names = {name.removesuffix(".__init__") for name in names}
    found = {".".join(page.relative_to(folder / "api").with_suffix("").parts) for page in reference}
    assert found == names | {"faithful_sae"}


def test_links_of_the_reference_lead_to_files_and_parts_of_pages(reference):
    ids = {page: {*re.findall(r' id="([^"]+)"', text)} for page, text in reference.items()}
    for page, text in reference.items():
        assert not re.search(r' src="[^"]*//', text), page
        for address in re.findall(r' (?:href|src)="([^"]+)"', text):
            path, _, part = unquote(address).partition("#")
            if "://" not in path:
                target = (page.parent / path).resolve() if path else page
                assert target.is_file(), (page, address)
                assert not part or part in ids[target], (page, address)


def test_the_reference_says_what_docstrings_say(made, reference):
    _, folder = made
    said = BeautifulSoup(reference[folder / "api" / "faithful_sae.html"], "html.parser")
    sentence = inspect.getdoc(shared_feature_ratio).split("\n")[0]
    assert sentence in str(said.find(id="shared_feature_ratio"))


def test_the_reference_names_no_place_of_this_machine(reference):
    assert not [page for page, text in reference.items() if str(ROOT) in text]
    assert not [page for page, text in reference.items() if re.search(" at 0x[0-9a-f]+", text)]


def test_a_site_without_any_result(make_run):
    page = BeautifulSoup(write_site(make_run().file.parent).read_text("utf-8"), "html.parser")
    assert "None of the paper's claims" in str(page.find(class_="score"))
    assert exhibits()["method"].title in str(page.find(id="missing"))


def test_the_same_results_give_the_same_pages(made):
    _, folder = made
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    write_site("smoke")
    after = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert before == after


def test_the_workflow_knows_what_the_site_reads(made):
    """Every file of the repository that is opened is one that the site is made again for."""
    opened = set()
    watching = True

    def watch(event, given):
        if watching and event == "open" and isinstance(given[0], str):
            opened.add(Path(given[0]).resolve())

    # there is no way to take it back
    sys.addaudithook(watch)
    write_site("smoke")
    watching = False
    known = site_inputs()
    assert {ROOT / "CITATION.cff", ROOT / "notebooks" / "02_train_sae.py"} <= {*known} & opened
    here = {path for path in opened if path.is_relative_to(ROOT) and path.is_file()}
    # libraries, and the parameters, with which exhibits are made again
    beside = (sys.prefix, ROOT / "params" / "smoke")
    others = {path for path in here if not any(map(path.is_relative_to, beside))}
    assert others <= {*known}


def test_formulas_of_all_notebooks_are_drawn():
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(file, as_version=4).cells:
            if cell.cell_type == "markdown" and "$" in cell.source:
                page = BeautifulSoup(markdown(cell.source), "html.parser")
                assert page.math, f"{file.name}: {cell.source}"
                # LaTeX that docutils does not know is shown as it is
                assert not [code for code in page("code") if "\\" in code.get_text()], file.name


def test_a_formula_with_an_unknown_command_is_shown_as_it_is():
    assert "<code>\\nonsense{x} &lt; 1</code>" in markdown("so $\\nonsense{x} < 1$")


def test_headings_below_a_level_skip_none():
    page = tidy("<h4>a</h4><h2>b</h2><h6>c</h6>", 2, bool, "x")
    assert page == "<h3>a</h3><h2>b</h2><h3>c</h3>"
