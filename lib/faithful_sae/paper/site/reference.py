"""Docstrings -> the reference of the library as pages of the site, by pdoc with the template and
the colours beside this file.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterable
from pathlib import Path

import pdoc
import pdoc.render

import faithful_sae

HERE = Path(__file__).parent / "reference"
# those that know tensors, texts, models and SAEs, but no run and no parameter file
ROOMS = ("kernels", "matching", "text", "lm", "sae", "metrics", "features")
# pdoc's own stylesheets; the colours are ours
STYLES = ("resources/bootstrap-reboot.min.css", "theme.css", "layout.css", "content.css")
FIRST = "faithful_sae.html"


def write_reference(folder: Path, style: str) -> None:
    """Write a page for each module that others call, below `folder`, which must be there.

    The pages load nothing from a network, and open from disk. `folder / FIRST` is the first.

    Args:
        style: rules of CSS for code.
    """
    rooms = [f"{faithful_sae.__name__}.{room}" for room in ROOMS]
    _import_all(rooms)
    # names that are loaded when first used are not found otherwise
    for name in faithful_sae.__all__:
        setattr(faithful_sae, name, getattr(faithful_sae, name))
    pdoc.render.configure(
        docformat="google", search=False, show_source=False, template_directory=HERE
    )
    pdoc.pdoc(faithful_sae.__name__, *rooms, output_directory=folder)
    # it would lead on to the first page alone
    (folder / "index.html").unlink()
    for page in folder.rglob("*.html"):
        page.write_text(_mended(page.read_text("utf-8")), encoding="utf-8")
    rules = [pdoc.render.env.get_template(name).render() for name in STYLES]
    (folder / "api.css").write_text("\n".join([*rules, style]), encoding="utf-8")


def _mended(page: str) -> str:
    """A link to a part that is not shown, such as a private class, becomes its text. A link without
    text gets a name, which a screen reader says.
    """
    parts = {*re.findall(r' id="([^"]+)"', page)}
    link = re.compile(r'<a href="#([^"]+)">(.*?)</a>')
    page = link.sub(lambda found: found[0] if found[1] in parts else found[2], page)
    return re.sub(r'(<a class="headerlink" href="#([^"]+)")>', r'\1 aria-label="Link to \2">', page)


def _import_all(packages: Iterable[str]) -> None:
    """Before pdoc does, which lets no module that it imports start a process."""
    for package in map(importlib.import_module, packages):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
