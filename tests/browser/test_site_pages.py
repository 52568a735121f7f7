"""The site in Chromium, opened from disk: the committed exhibits of the laptop profile, notebooks
made by hand, an explorer, and the library's reference.
"""

import itertools
import shutil
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from driver import NARROW, WIDE, watched_page

from faithful_sae.features.explorer.page import write_explorer
from faithful_sae.features.index import FeatureIndex
from faithful_sae.files import ROOT
from faithful_sae.paper.site import write_site
from faithful_sae.runs import schema
from faithful_sae.runs.params import load_profile
from feature_folders import write_index
from test_site import notebook, png

REFERENCE = "api/faithful_sae.html"
PAGES = ("index.html", "notebooks/07_paper.html", REFERENCE, "api/faithful_sae/sae/sae.html")
# what each kind of section is looked at by: axe takes minutes for all tables
PARTS = [".top", "nav", "#claims", "#profile", "#section-03_sfr", "#features-explorer", "#cite"]
# between the margins of a sheet of A4
SHEET = {"width": 672, "height": 984}


@pytest.fixture(scope="module")
def folder(browser, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("root")
        patch.setattr(schema, "ROOT", root)
        shutil.copytree(ROOT / "figures" / "laptop", root / "figures" / "laptop")
        artifacts = load_profile("laptop")[0].artifacts.parent
        (artifacts / "notebooks").mkdir(parents=True)
        nbformat.write(notebook(png("blue")), artifacts / "notebooks" / "07_paper.ipynb")
        index = write_index(tmp_path_factory.mktemp("artifacts"), "neox", "faithful", 42, 49)
        write_explorer(artifacts / "explorer", [FeatureIndex(index)])
        return write_site("laptop").parent


@pytest.fixture
def page(browser, folder):
    with watched_page(browser) as one:
        yield one


def visit(page, folder, address):
    page.goto(f"file://{folder}/{address}")


@pytest.mark.parametrize("address", PAGES)
def test_every_picture_is_drawn(page, folder, address):
    visit(page, folder, address)
    pictures = page.locator("img")
    pictures.evaluate_all("all => all.forEach((img) => { img.loading = 'eager'; })")
    page.wait_for_function("() => [...document.images].every((img) => img.complete)")
    broken = "all => all.filter((img) => !img.naturalWidth).map((img) => img.src)"
    assert pictures.evaluate_all(broken) == []


@pytest.mark.parametrize("address", PAGES)
def test_every_link_leads_to_a_file_or_a_part_of_the_page(page, folder, address):
    visit(page, folder, address)
    here = page.url
    for link in page.locator("a[href]").evaluate_all("all => all.map((a) => a.href)"):
        target, _, part = link.partition("#")
        if target == here:
            assert page.locator(f"[id='{unquote(part)}']").count() == 1, link
        elif target.startswith("file:"):
            assert Path(unquote(target.removeprefix("file://"))).is_file(), link


@pytest.mark.parametrize("address", PAGES)
def test_nothing_is_wider_than_a_telephone(page, folder, address):
    page.set_viewport_size(NARROW)
    visit(page, folder, address)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


@pytest.mark.parametrize("address", PAGES[:2])
def test_nothing_is_wider_than_a_sheet(page, folder, address):
    page.set_viewport_size(SHEET)
    page.emulate_media(media="print")
    visit(page, folder, address)
    wide = f"all => all.filter((e) => e.scrollWidth > {SHEET['width']}).map((e) => e.className)"
    assert page.locator("main, main *:not(math, math *)").evaluate_all(wide) == []


def test_the_page_is_dark_where_the_system_is(page, folder):
    lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3)"
    found = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for address in PAGES:
            visit(page, folder, address)
            found[scheme, address] = max(map(int, page.evaluate(lightness)))
    assert {value for (scheme, _), value in found.items() if scheme == "light"} == {255}
    assert max(value for (scheme, _), value in found.items() if scheme == "dark") < 64


@pytest.mark.parametrize(
    ("address", "scheme", "size"),
    [*itertools.product(PAGES, ("light", "dark"), (WIDE,)), (PAGES[0], "light", NARROW)],
)
def test_axe_finds_nothing_serious(page, folder, address, scheme, size):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser")
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size(size)
    visit(page, folder, address)
    looked_at = {"include": PARTS if address == "index.html" else ["html"]}
    found = axe.Axe().run(page, context=looked_at).response["violations"]
    serious = [
        (violation["id"], node["html"][:200])
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]
    assert serious == []


def test_the_explorer_is_one_link_away(page, folder):
    visit(page, folder, "index.html")
    page.get_by_role("link", name="The explorer").click()
    page.wait_for_selector(".fx-row")
    page.go_back()
    assert page.title() == "FaithfulSAE, rebuilt: profile laptop"


def test_a_feature_that_a_notebook_names_opens_and_back_returns(page, folder):
    visit(page, folder, "notebooks/07_paper.html")
    page.get_by_role("link", name="12", exact=True).first.click()
    page.wait_for_function(
        "() => document.querySelector('.fx-detail h2')?.textContent.startsWith('Feature 12 ')"
    )
    page.go_back()
    assert page.url.endswith("/notebooks/07_paper.html")
