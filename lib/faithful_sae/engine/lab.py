"""What JupyterLab saves of the committed notebooks: cells, but not what running them printed, so
that these files change with their sources alone. On the page outputs stay until it is closed.

Jupyter calls this before it saves a file (`pre_save_hook` of its contents manager; so does nbdev,
with a hook of its own).
"""

from pathlib import Path
from typing import Any

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
