"""What JupyterLab saves of the committed notebooks: cells, but not what running them printed, so
that these files change with their sources alone. On the page outputs stay until it is closed.

Jupyter calls this before it saves a file (`pre_save_hook` of its contents manager; so does nbdev,
with a hook of its own).
"""

from pathlib import Path
from typing import Any

from faithful_sae.files import ROOT
from faithful_sae.runs.registry import stages

# of a notebook's metadata, what does not come from running it
KEPT = ("jupytext", "kernelspec")


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
    notebook["metadata"] = {k: v for k, v in notebook["metadata"].items() if k in KEPT}
    for cell in notebook["cells"]:
        # marks of the page: which outputs are folded, and when a cell was run
        tags = cell["metadata"].get("tags")
        cell["metadata"] = {"tags": tags} if tags else {}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
