"""Write the reference of all parameters, parameters.md, from the fields of their sections."""

import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from faithful_sae.runs.registry import run_class, stages
from faithful_sae.runs.schema import Corpus, Hours, Section, changes

FILE = Path(__file__).with_name("parameters.md")
INTRODUCTION = """# Parameters

One file `params/<profile>/<name>.yaml` is one run of the notebooks on one language model; a profile
is a folder of them. A file holds what is its own. What it leaves out is taken from the file it
`extends`, or else from the folder's `_defaults.yaml`: section by section and key by key, anything
below a section's keys as a whole. A corpus that is `null` is left out. A key that is in neither
has the default below; one without a default is required. Unknown keys are refused.

Paths are relative to the file that is run. This page is written by `make sync`.
"""


def reference() -> str:
    """The whole page."""
    run = run_class()
    of_stages = {name: stage for stage in stages().values() for name in stage.sections}
    own = [name for name in run.model_fields if name not in of_stages]
    parts = [INTRODUCTION, _part("Every run", run, own), _part("hours", Hours)]
    parts.append(_part("corpora: one entry", Corpus))
    for name, stage in of_stages.items():
        title = f"{name} ([{stage.name}](../notebooks/{stage.name}.ipynb))"
        section = stage.sections[name]
        parts.append(_part(title, section))
        for title, below in _below(section).items():
            parts.append(_part(f"{name}.{title}", below))
    return "\n".join(parts)


def _part(title: str, section: type[Section], names: list[str] | None = None) -> str:
    """A heading, what the section is, and a table of its keys."""
    said = "\n".join(line.strip() for line in str(inspect.getdoc(section)).split("\n"))
    lines = [
        f"## {title}",
        "",
        said,
        "",
        "| key | meaning | values | default |",
        "|---|---|---|---|",
    ]
    for name in names or section.model_fields:
        field = section.model_fields[name]
        about: Any = field.json_schema_extra or {}
        meaning = str(field.description)
        known = {"role": "roles", "documentation": "kinds"}.get(name, "")
        if hasattr(section, known):
            meaning += f": {', '.join(getattr(section, known))}"
        if about.get("paper"):
            meaning += f" (paper {about['paper']})"
        if changes(field) == "nothing":
            meaning += "; changes no number"
        kind = _kind(field.annotation) + _range(field.metadata)
        unit = f", {about['unit']}" if about.get("unit") else ""
        default = _default(field.default, field.is_required())
        lines.append(f"| `{name}` | {meaning} | {kind}{unit} | {default} |")
    return "\n".join([*lines, ""])


def _below(section: type[Section]) -> dict[str, type[Section]]:
    """The sections of the entries of a section's mappings, and those that a name chooses from."""
    found = {}
    for name, field in section.model_fields.items():
        for kind in _parts(field.annotation):
            if typing.get_origin(kind) is dict:
                entry = typing.get_args(kind)[1]
                # those of a union stand where they are alone
                if isinstance(entry, type):
                    found[f"{name}: one entry"] = entry
            elif isinstance(kind, type) and issubclass(kind, Section):
                found[f"{name}: {kind.__name__}"] = kind
    return found


def _parts(kind: Any) -> list[Any]:
    """The types of a union, without what annotates them."""
    if typing.get_origin(kind) is typing.Annotated:
        return _parts(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [part for one in typing.get_args(kind) for part in _parts(one)]
    return [kind]


def _kind(annotation: Any) -> str:
    """A type in words."""
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    words[type(None)] = "null"
    found = []
    for kind in _parts(annotation):
        origin = typing.get_origin(kind)
        if origin is typing.Literal:
            found.append(", ".join(f"`{value}`" for value in typing.get_args(kind)))
        elif origin is tuple:
            found.append(f"list of {words[typing.get_args(kind)[0]]}s")
        elif origin is dict:
            found.append("mapping of names to entries")
        elif isinstance(kind, type) and issubclass(kind, Section):
            found.append("mapping")
        else:
            found.append(words[kind])
    return " or ".join(dict.fromkeys(found))


def _range(metadata: list[Any]) -> str:
    """The limits of a number in words."""
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits = [
        f"{sign} {getattr(limit, name):g}"
        for limit in metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return f" {', '.join(limits)}" if limits else ""


def _default(value: Any, required: bool) -> str:
    if required or value is PydanticUndefined:
        return "required"
    if isinstance(value, Section) and value.model_fields_set:
        given = ", ".join(f"{name}: {getattr(value, name)}" for name in value.model_fields_set)
        return f"`{{{given}}}`"
    if isinstance(value, Section):
        return "its keys' defaults"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if value is None or isinstance(value, bool):
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
