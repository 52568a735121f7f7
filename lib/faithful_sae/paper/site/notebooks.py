"""Executed notebooks -> the pages of the site, by nbconvert with the template beside this file.

Code and what was logged are folded away. A picture that is an exhibit's is not stored again.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from traitlets.config import Config

from faithful_sae.paper.site.markup import markdown

HERE = Path(__file__).parent
CONFIG = {
    # a widget needs a server: what it leaves for pages without one is HTML
    "NbConvertBase": {
        "display_data_priority": ["image/png", "text/html", "text/markdown", "text/plain"]
    },
    # of a progress bar the last state alone
    "CoalesceStreamsPreprocessor": {"enabled": True},
}


@dataclass(frozen=True)
class Picture:
    """A picture that the site has: its address, as seen from the site, and its title."""

    address: str
    title: str


@dataclass(frozen=True)
class Executed:
    """An executed notebook: its page's address, the language model it ran for, and the notebook."""

    file: Path
    address: str
    model: str

    @property
    def up(self) -> str:
        """From its page to the site."""
        return "../" * self.address.count("/")


def digest_of(picture: bytes) -> str:
    """What pictures are told apart by."""
    return hashlib.sha256(picture).hexdigest()[:16]


def body(executed: Executed, site: Path, pictures: dict[str, Picture]) -> tuple[str, str, float]:
    """(title, HTML, seconds that it ran). Pictures that are none of `pictures`, which are by their
    digest, are written below `site`, and added.
    """
    notebook = nbformat.read(executed.file, as_version=4)
    title = executed.file.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = next((x for x in cell.source.splitlines() if x.startswith("#")), title)
            title = heading.lstrip("# ")
            break
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                picture = _stored(output.data["image/png"], title, site, pictures)
                output.metadata["address"] = executed.up + picture.address
                output.metadata["title"] = picture.title
    exporter = HTMLExporter(
        template_name="notebook",
        extra_template_basedirs=[str(HERE)],
        filters={"site_markdown": markdown},
        config=Config(CONFIG),
    )
    html, _ = exporter.from_notebook_node(notebook)
    return title, html, notebook.metadata.get("papermill", {}).get("duration") or 0.0


def _stored(encoded: str, title: str, site: Path, pictures: dict[str, Picture]) -> Picture:
    content = base64.b64decode(encoded)
    digest = digest_of(content)
    if digest not in pictures:
        pictures[digest] = Picture(f"notebooks/{digest}.png", f"Picture of notebook {title}")
        (site / "notebooks").mkdir(exist_ok=True)
        (site / pictures[digest].address).write_bytes(content)
    return pictures[digest]
