"""The list of exhibits and of the paper's numbers: params/exhibits.yaml."""

import functools
from dataclasses import dataclass, field
from typing import Any

import yaml

from faithful_sae.files import ROOT

EXHIBITS_FILE = ROOT / "params" / "exhibits.yaml"
# what a column of halves of 95 % intervals is called, after its numbers' own
HALF = " ±"
SUFFIXES = {"table": ("csv", "md", "tex"), "figure": ("csv", "md", "pdf", "png")}


@dataclass(frozen=True)
class Best:
    """Which numbers of a printed table are compared: the `highest` or `lowest` is bold."""

    highest: list[str] = field(default_factory=list)
    lowest: list[str] = field(default_factory=list)
    within: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Of the numbers that are compared, as in View."""
        return self.highest or self.lowest


@dataclass(frozen=True)
class View:
    """One printed table of a csv."""

    rows: list[str]
    columns: list[str]
    suffix: str = ""
    title: str = ""
    group: str | None = None
    best: list[Best] = field(default_factory=list)

    @property
    def named(self) -> list[str]:
        """Columns by their own names, which `*` does not mean."""
        names = [*self.rows, *(f"{name}{self.suffix}" for name in self.columns)]
        return [name for name in names if "*" not in name]


@dataclass(frozen=True)
class Layout:
    """How the csv of a table is printed; the head of params/exhibits.yaml says what each key
    means.
    """

    views: list[View]
    digits: dict[str, int | str] = field(default_factory=dict)
    printed: dict[str, int | str] = field(default_factory=dict)
    between: dict[str, list[str]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(entry: dict[str, Any]) -> "Layout":
        """As it stands in the file."""
        views = [
            View(**view | {"best": [Best(**best) for best in view.get("best", [])]})
            for view in entry["views"]
        ]
        return Layout(**{**entry, "views": views})

    def form(self, name: str, whole: bool, papers: bool) -> int | str:
        """The form of the numbers of a column, which may be whole, and may be the paper's."""
        found = self._by_name(self.digits, name, 0 if whole else self.digits.get("*", 3))
        return self._by_name(self.printed, name, found) if papers else found

    @staticmethod
    def _by_name(forms, name, otherwise):
        return forms.get(name, forms.get(name.partition(",")[0], otherwise))


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
    gathers: bool = False
    of_paper: bool = False
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    other_model: dict[str, str] = field(default_factory=dict)
    layout: Layout | None = None

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
    layouts = listed()["layouts"]
    return {
        entry["id"]: Exhibit(
            **entry, layout=Layout.of(layouts[entry["id"]]) if entry["kind"] == "table" else None
        )
        for entry in listed()["exhibits"]
    }


def paper_models() -> dict[str, str]:
    """The paper's language models: key -> its spelling."""
    return listed()["models"]
