"""What is written for readers: links lead somewhere, generated pages are current."""

import re
import runpy

import pytest

from faithful_sae.files import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    # what leaves the repository is GitHub's: the badge of its workflow
    local = [target for target in targets if not re.match(r"\w+://|\.\./\.\./actions/", target)]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_reference_of_parameters_is_current():
    written = (ROOT / "docs" / "parameters.md").read_text(encoding="utf-8")
    script = runpy.run_path(str(ROOT / "docs" / "write_parameters.py"))
    assert written == script["reference"](), "run `make sync`"


def test_the_readme_is_one_screen():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 900
