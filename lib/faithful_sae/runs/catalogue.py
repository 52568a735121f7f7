"""The list of exhibits and of the paper's numbers: params/exhibits.yaml."""

import functools
from dataclasses import dataclass

import yaml

from faithful_sae.files import ROOT

EXHIBITS_FILE = ROOT / "params" / "exhibits.yaml"
SUFFIXES = {"table": ("csv", "md", "tex"), "figure": ("csv", "pdf", "png")}


@dataclass(frozen=True)
class Exhibit:
    """One entry of params/exhibits.yaml."""

    id: str
    title: str
    kind: str
    scope: str
    paper: str
    notebook: str
    numbers: dict | None = None

    def stem(self, run_name=None) -> str:
        """File name without suffix; a model's exhibit carries the run's name."""
        return f"{self.id}_{run_name}" if self.scope == "model" else self.id

    def files(self, run_name=None) -> list[str]:
        """File names it consists of, provenance apart."""
        return [f"{self.stem(run_name)}.{suffix}" for suffix in SUFFIXES[self.kind]]


@functools.cache
def _listed():
    return yaml.safe_load(EXHIBITS_FILE.read_text(encoding="utf-8"))


def exhibits() -> dict[str, Exhibit]:
    """All exhibits by id, in the order of the list."""
    return {entry["id"]: Exhibit(**entry) for entry in _listed()["exhibits"]}


def paper_models() -> dict[str, str]:
    """The paper's language models: key -> its spelling."""
    return _listed()["models"]
