"""The explorer in a real JupyterLab: a small notebook with a language model of random weights, and
notebook 09 on the smoke profile.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request

import jupytext
import nbformat
import numpy as np
import pytest
import torch
from driver import NARROW, WIDE, watched_page

from conftest import BOS, VOCABULARY, make_model, make_tokenizer
from faithful_sae.features.build import build_index
from faithful_sae.features.explorer.page import write_explorer
from faithful_sae.features.index import FeatureIndex
from faithful_sae.files import ROOT, read_json
from faithful_sae.lm.model import load_model
from faithful_sae.paper.executed import cleaned
from faithful_sae.paper.links import feature_address
from faithful_sae.runs.params import load_params
from faithful_sae.sae.sae import TopKSAE
from feature_folders import write_index

TOKEN = "secret"
SMALL = """\
from faithful_sae import load_model, load_sae
from faithful_sae.features.explorer.widget import Explorer
from faithful_sae.features.index import FeatureIndex

lm = load_model("lm", 1, "cpu", "float32")
Explorer([FeatureIndex("seed42"), FeatureIndex("seed49")], lm, [load_sae("sae42")])"""


@pytest.fixture(scope="module")
def folder(browser, tmp_path_factory):
    """Notebooks to open: small.ipynb with all it needs, and 09.ipynb."""
    folder = tmp_path_factory.mktemp("lab")
    make_model("llama").save_pretrained(folder / "lm")
    make_tokenizer().save_pretrained(folder / "lm")
    lm = load_model(folder / "lm", 1, "cpu", "float32")
    rows = torch.randint(
        2, VOCABULARY, (64, 16), generator=torch.Generator().manual_seed(0)
    ).numpy()
    rows[:, 0] = BOS
    for seed, other in ((42, 49), (49, 42)):
        sae = TopKSAE(lm.d_model, 200, 4, seed=seed)
        sae.save(folder / f"sae{seed}")
        build_index(
            folder / f"seed{seed}",
            lm,
            sae,
            rows,
            about={
                "label": "tiny",
                "run": "tiny",
                "corpus": "noise",
                "seed": seed,
                "other_seed": other,
            },
            twin=np.arange(200),
            twin_cosine=np.linspace(0, 1, 200),
            sfr_threshold=0.7,
        )
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(SMALL)],
            metadata={
                "kernelspec": {
                    "name": "python3",
                    "display_name": "Python 3 (ipykernel)",
                    "language": "python",
                }
            },
        ),
        folder / "small.ipynb",
    )
    jupytext.write(
        jupytext.read(ROOT / "notebooks" / "09_explore_features.py"), folder / "09.ipynb"
    )
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """Address of a JupyterLab that serves the folder to this machine alone."""
    home = folder / ".jupyter"
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "run"),
        # as `make lab`
        "JUPYTER_CONFIG_PATH": str(ROOT / "workflow" / "jupyter"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")]),
    }
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
        f"--IdentityProvider.token={TOKEN}",
        "--ServerApp.password=",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with (
        open(folder / "lab.log", "w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder) as server,
    ):
        try:
            yield _address(folder / "lab.log")
        finally:
            server.terminate()


def _address(log, seconds=90):
    for _ in range(seconds):
        if match := re.search(r"http://127\.0\.0\.1:\d+/", log.read_text()):
            urllib.request.urlopen(f"{match[0]}api/status?token={TOKEN}").close()
            return match[0]
        time.sleep(1)
    raise AssertionError(log.read_text())


def open_notebook(page, address, name):
    """Open a notebook by its place in the folder."""
    page.goto(f"{address}lab/tree/{name}?reset&token={TOKEN}", wait_until="domcontentloaded")
    page.get_by_role("tab", name=name.rpartition("/")[2]).wait_for(timeout=60_000)
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)


def run_all(page, address, name, seconds):
    """Open a notebook, run all its cells, and return the explorer's locator."""
    open_notebook(page, address, name)
    # what is asked of a kernel before that is forgotten
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    explorer = page.locator(".fx-widget")
    explorer.locator(".fx-beside .fx-card").wait_for(timeout=seconds * 1000)
    return explorer


def use(page, explorer):
    """Click, filter, search, type a text and follow a feature of it, go to the twin: by mouse and
    by keys.
    """
    # the twin's, beside it, is another
    heading = explorer.locator(".fx-detail h2").first
    explorer.scroll_into_view_if_needed()
    explorer.locator(".fx-row").nth(2).click()
    heading.get_by_text("Feature 2 ").wait_for()
    page.keyboard.press("ArrowDown")
    heading.get_by_text("Feature 3 ").wait_for()
    explorer.get_by_role("button", name=re.compile("^orphan")).click()
    explorer.get_by_text(re.compile(r"^\d+ of \d+ features$")).wait_for()
    orphans = explorer.locator(".fx-total").text_content()
    explorer.locator(".fx-list").focus()
    page.keyboard.press("/")
    page.keyboard.type("#4")  # letters and digits are commands of JupyterLab outside
    page.wait_for_function(
        "before => document.querySelector('.fx-total').textContent !== before", arg=orphans
    )
    explorer.get_by_role("button", name="clear").click()
    explorer.get_by_role("textbox", name="Your own text").fill(
        "w5 w9 w12 <script>window.hacked=1</script>"
    )
    explorer.get_by_role("button", name="Read").click()
    jump = explorer.locator(".fx-jump").first
    jump.wait_for(timeout=30_000)
    latent = jump.locator("b").text_content()
    jump.click()
    heading.get_by_text(f"Feature {latent} ").wait_for()
    assert explorer.locator(".fx-strip .fx-on").count()
    assert jump.get_attribute("data-open") is not None
    seed = heading.locator("small").text_content()
    explorer.locator(".fx-follow").wait_for()
    heading.focus()
    page.keyboard.press("t")
    page.wait_for_function(
        "before => document.querySelector('.fx-detail h2 small')?.textContent !== before", arg=seed
    )
    assert page.evaluate("window.hacked") is None


def steer(page, explorer):
    """A text goes on with a dose of the feature, and without one as if there were none."""
    panel = explorer.get_by_role("region", name="Steering")
    panel.get_by_label("Beginning of a text").fill("w5 <b>w9</b>")
    dose = panel.get_by_label("Dose")
    for value, same in (("8", False), ("0", True)):
        dose.fill(value)
        panel.get_by_role("button", name="Write").click()
        panel.get_by_text(f"with a dose of {value}").wait_for(timeout=30_000)
        before, after = panel.locator(".fx-written p").all_text_contents()
        assert before.startswith("w5 <b>w9</b>")
        assert (before == after) is same


def test_a_small_notebook(browser, lab, folder):
    with watched_page(browser) as page:
        explorer = run_all(page, lab, "small.ipynb", 120)
        steer(page, explorer)
        use(page, explorer)
        explorer.get_by_label("Your label").fill("seen")
        explorer.get_by_label("Your label").press("Enter")
        explorer.locator(".fx-row[aria-selected=true] b").get_by_text("seen").wait_for()
        page.screenshot(path=folder / "wide.png")  # to be looked at, in pytest's folder
        page.evaluate("document.body.dataset.jpThemeLight = 'false'")
        assert (
            page.evaluate("getComputedStyle(document.querySelector('.fx')).colorScheme") == "dark"
        )
        # JupyterLab's sidebar takes most of a narrow window
        page.get_by_role("tab", name="File Browser").click()
        page.set_viewport_size(NARROW)
        page.wait_for_function("() => document.querySelector('.fx').clientWidth > 250")
        assert page.evaluate(
            "(() => { const fx = document.querySelector('.fx'); return fx.scrollWidth <= "
            "fx.clientWidth })()"
        )
        page.screenshot(path=folder / "narrow.png")
        page.set_viewport_size(WIDE)
        with page.expect_response(
            lambda response: response.request.method == "PUT" and "small.ipynb" in response.url
        ):
            page.locator("[data-command='docmanager:save']").first.click()
    # of the twin, which was the last to be opened
    (kept,) = read_json(folder / "seed49.labels.json").values()
    assert list(kept.values()) == ["seen"]
    saved = json.loads((folder / "small.ipynb").read_text())
    shown = [
        output["data"]
        for cell in saved["cells"]
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) == 1
    assert "Feature 0 of tiny/noise/seed42" in "".join(shown[0]["text/html"])


def executed(index, profile, source):
    """07 with a table of links, as it is kept beside the figures of a profile."""
    links = " ".join(
        f'<a href="{feature_address(index.meta, latent)}">{latent}</a>' for latent in (7, 12)
    )
    shown = nbformat.v4.new_output("display_data", {"text/html": links})
    source.cells.append(nbformat.v4.new_code_cell("links", outputs=[shown]))
    folder = profile / "figures" / "p" / "notebooks"
    explorer = os.path.relpath(profile / "artifacts" / "p" / "explorer", folder)
    folder.mkdir(parents=True)
    nbformat.write(cleaned(source, source, explorer), folder / "07_paper.ipynb")


def test_links_of_an_executed_notebook(browser, lab, folder):
    """They lead to files that there are, and the middle mouse button opens the feature."""
    source = nbformat.read(folder / "small.ipynb", as_version=4)
    index = FeatureIndex(write_index(folder / "made"))
    write_explorer(folder / "artifacts" / "p" / "explorer", [index])
    executed(index, folder, source)
    with watched_page(browser) as page:
        open_notebook(page, lab, "figures/p/notebooks/07_paper.ipynb")
        links = page.locator("a[href*='explorer/index.html']")
        # Lab puts the place of the file in the link
        page.locator("a[href*='/files/artifacts/p/explorer/index.html']").first.wait_for()
        for link in links.all():
            answer = page.request.get(link.get_attribute("href"), headers={"Referer": lab})
            assert answer.status == 200
        assert links.count() == 2
        with page.context.expect_page() as opened:
            links.last.click(button="middle")
        opened.value.locator(".fx-detail h2").get_by_text("Feature 12 ").first.wait_for()


def test_other_pages_stay_in_a_sandbox(lab, folder):
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "artifacts" / "other.html").write_text("<script>1</script>")
    request = urllib.request.Request(f"{lab}files/artifacts/other.html?token={TOKEN}")
    request.add_header("Referer", lab)
    with urllib.request.urlopen(request) as answer:
        assert "sandbox allow-scripts" in answer.headers["Content-Security-Policy"]


def test_notebook_09(browser, lab):
    run = load_params("params/smoke/neox.yaml")
    if not (run.artifacts / "rows" / "firing.csv").exists():
        pytest.skip(
            "notebooks 01 to 04 have not run on the smoke profile: make paper PROFILE=smoke"
        )
    with watched_page(browser) as page:
        use(page, run_all(page, lab, "09.ipynb", 300))
