"""The list of exhibits and of the paper's numbers: params/exhibits.yaml."""

import functools
from dataclasses import dataclass, field
from typing import Any

import yaml

from faithful_sae.files import ROOT

EXHIBITS_FILE = ROOT / "params" / "exhibits.yaml"
# what a column of halves of 95 % intervals is called, after its numbers' own
HALF = " ±"
SUFFIXES = {"table": ("csv", "md", "tex"), "figure": ("csv", "pdf", "png")}


@dataclass(frozen=True)
class Exhibit:
    """One entry of params/exhibits.yaml, whose head says what each key means."""

    id: str
    title: str
    kind: str
    scope: str
    paper: str
    notebook: str
    needs: str | None = None
    of_paper: bool = False
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    other_model: dict[str, str] = field(default_factory=dict)

    def stem(self, run_name: str) -> str:
        """File name without suffix; a model's exhibit carries the run's name."""
        return f"{self.id}_{run_name}" if self.scope == "model" else self.id

    def files(self, run_name: str) -> list[str]:
        """File names it consists of, provenance apart."""
        return [f"{self.stem(run_name)}.{suffix}" for suffix in SUFFIXES[self.kind]]


@functools.cache
def listed() -> dict[str, Any]:
    """The file as it stands: `models` and `exhibits`."""
    return yaml.safe_load(EXHIBITS_FILE.read_text(encoding="utf-8"))


def exhibits() -> dict[str, Exhibit]:
    """All exhibits by id, in the order of the list."""
    return {entry["id"]: Exhibit(**entry) for entry in listed()["exhibits"]}


def paper_models() -> dict[str, str]:
    """The paper's language models: key -> its spelling."""
    return listed()["models"]
