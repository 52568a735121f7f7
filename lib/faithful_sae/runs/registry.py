"""The stages there are, found in stages/: the class of a run is made of their sections.

Stages are imported by name when they are asked for. So a notebook does not depend on the code of
stages it does not use, and a new one is known by its file alone.
"""

import functools
import importlib
import pkgutil
from collections.abc import Iterable

from pydantic import create_model

from faithful_sae.files import PACKAGE
from faithful_sae.runs.schema import Run, key
from faithful_sae.runs.stage import Stage


@functools.cache
def stages() -> dict[str, Stage]:
    """All stages by the name of their notebook, in its order."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE / "stages")]))
    numbered = [name for name in names if name[0] == "s" and name[1].isdigit()]
    modules = [importlib.import_module(f"faithful_sae.stages.{name}") for name in numbered]
    return {module.STAGE.name: module.STAGE for module in modules}


@functools.cache
def run_class() -> type[Run]:
    """Run with the section of every stage: required, unless all its keys have a default."""
    fields = {}
    for stage in stages().values():
        for name, section in stage.sections.items():
            whole = all(not field.is_required() for field in section.model_fields.values())
            default = section() if whole else ...
            if name in stage.optional:
                default = None
            title = str(section.__doc__).split("\n")[0]
            fields[name] = (section | None, key(title, default))
    return create_model("Run", __base__=Run, __module__=__name__, **fields)


def profile_stage() -> Stage:
    """The stage that runs once per profile and gathers the others' rows."""
    return next(stage for stage in stages().values() if stage.profile)


def model_stages(run: Run) -> list[Stage]:
    """The stages that run for one language model."""
    return [stage for stage in stages().values() if not stage.profile and stage.wanted(run)]


def studies(runs: Iterable[Run]) -> list[str]:
    """Sections of the studies that some runs have, which are made only where they are asked for."""
    found = [stage for run in runs for stage in model_stages(run) if stage.study]
    return list(dict.fromkeys(name for stage in found for name in stage.sections))


def writer(rows: str) -> Stage:
    """The stage that writes rows/<rows>.csv."""
    return next(stage for stage in stages().values() if rows in (*stage.rows, *stage.embedded_rows))


def before(stage: Stage) -> list[Stage]:
    """The stages whose rows a stage reads, and those before them, in order."""
    found = {}
    for rows in stage.reads:
        earlier = writer(rows)
        found |= {s.name: s for s in (*before(earlier), earlier)}
    return [found[name] for name in sorted(found)]
