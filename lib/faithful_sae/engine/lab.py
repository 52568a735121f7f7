"""What `make lab` changes of JupyterLab.

It saves of the committed notebooks cells, but not what running them printed, so that these files
change with their sources alone. On the page outputs stay until it is closed. Jupyter calls
`without_outputs` before it saves a file (`pre_save_hook` of its contents manager; so does nbdev,
with a hook of its own).

And it serves the explorer as a page that may read its own files (`files_handler_class`).
"""

from pathlib import Path
from typing import Any

from jupyter_server.base.handlers import AuthenticatedFileHandler

from faithful_sae.files import ROOT
from faithful_sae.runs.registry import stages

# metadata that come from running a notebook, and from looking at what it printed
OF_NOTEBOOK = {"language_info", "widgets"}
OF_CELL = {"execution", "ExecuteTime", "collapsed", "scrolled", "jupyter"}


def without_outputs(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """Take outputs out of a notebook of this repository; one's own are saved as they are.

    Args:
        model: what is saved, as Jupyter's contents API has it.
        path: where, below the manager's root_dir.
    """
    file = Path(contents_manager.root_dir, path.lstrip("/")).resolve()
    ours = file.parent == ROOT / "notebooks" and file.stem in stages()
    if model["type"] != "notebook" or not ours:
        return
    notebook = model["content"]
    for name in OF_NOTEBOOK & notebook["metadata"].keys():
        del notebook["metadata"][name]
    for cell in notebook["cells"]:
        for name in OF_CELL & cell["metadata"].keys():
            del cell["metadata"][name]
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}


class Files(AuthenticatedFileHandler):
    """Jupyter's, but what `make explorer` wrote is not in a sandbox: there its scripts would be
    asked for without the cookie that lets one in. Its own policy allows no script but these.
    """

    def set_headers(self) -> None:
        super().set_headers()
        # where it lies, whatever was asked for
        place = Path(str(self.absolute_path)).resolve()
        written = Path(self.root).resolve().glob("artifacts/*/explorer")
        if any(place.is_relative_to(folder) for folder in written):
            policy = super(AuthenticatedFileHandler, self).content_security_policy
            self.set_header("Content-Security-Policy", policy)
