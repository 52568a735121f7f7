"""What `make lab` adds to JupyterLab's configuration; one's own stays."""

from faithful_sae.engine.lab import Files, without_outputs

c = get_config()  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
c.FileContentsManager.pre_save_hook = without_outputs
c.FileContentsManager.files_handler_class = Files
