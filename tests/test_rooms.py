"""The rooms of the library: imports point one way, and only the upper rooms know a run."""

import ast

import pytest

from faithful_sae.files import PACKAGE
from faithful_sae.runs.code import imports

# from the ground up: a room may import from those before it
ROOMS = (
    *("files", "kernels", "matching", "text", "lm", "sae", "metrics", "features"),
    *("runs", "stages", "paper", "engine"),
)
WITHOUT_RUN = ROOMS[: ROOMS.index("runs")]
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module):
    return module.relative_to(PACKAGE).parts[0]


def name(module):
    return module.relative_to(PACKAGE).as_posix()


def test_at_most_three_modules_stand_outside_the_rooms():
    assert {room(module) for module in MODULES} == {*ROOMS, "__init__.py", "__main__.py"}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in ROOMS], ids=name)
def test_imports_point_down(module):
    above = ROOMS[ROOMS.index(room(module)) + 1 :]
    assert not {found.split(".")[0] for found in imports(module)} & set(above)


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in WITHOUT_RUN], ids=name)
def test_no_run_below_the_stages(module):
    arguments = [
        node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.arg)
    ]
    assert "run" not in {argument.arg for argument in arguments}
    assert "Run" not in {getattr(argument.annotation, "id", None) for argument in arguments}
