"""Which code a result depends on: the files a module uses, and a hash of what they compute."""

import ast
import functools
import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from faithful_sae import PUBLIC
from faithful_sae.files import PACKAGE, digest

# rooms and modules that move and check: no number comes from them
PLUMBING = ("files", "runs", "engine", "paper", "text/hub", "sae/formats", "sae/settings")
# another version of one of these may compute another last digit
ARITHMETIC = ("torch", "transformers", "tokenizers", "numpy", "numba")
# and of this one where it is imported
SOMETIMES = {"sklearn": "scikit-learn"}


def lib_files(path: Path, but: tuple[str, ...] = ()) -> list[Path]:
    """The files of this library that a notebook (.py) or module uses, sorted.

    Args:
        but: rooms and modules (as in PLUMBING) whose own imports are not followed.
    """
    found: set[Path] = set()
    todo = [Path(path)]
    while todo:
        places = [
            PACKAGE / name.replace(".", "/") for name in imports(todo.pop(), declarations=False)
        ]
        files = {
            file
            for place in places
            for file in (place.with_suffix(".py"), place / "__init__.py")
            if file.exists()
        }
        todo += [file for file in files - found if not _within(file, but)]
        found |= files
    return sorted(found)


@functools.cache
def code_hash(*modules: str) -> str:
    """Hash of what some modules ("lm/model") and all they import compute, and of the libraries
    under them. A changed comment or docstring leaves it as it is; plumbing counts where named.
    """
    named = {PACKAGE / f"{module}.py" for module in modules}
    files = named.union(*(lib_files(file, PLUMBING) for file in named))
    trees = {
        str(file.relative_to(PACKAGE)): ast.dump(_without_docstrings(file))
        for file in files
        if file in named or not _within(file, PLUMBING)
    }
    imported = [
        library
        for name, library in SOMETIMES.items()
        if any(f"module='{name}" in tree for tree in trees.values())
    ]
    versions = {name: importlib.metadata.version(name) for name in (*ARITHMETIC, *imported)}
    return digest(versions | trees)


def imports(file: Path, declarations: bool = True) -> tuple[str, ...]:
    """Names below faithful_sae that a file imports anywhere; some are of things, not of modules.

    Args:
        declarations: whether what a Stage's declaration imports counts. It says what a stage
            needs, and nothing that a notebook computes depends on it.
    """
    return _imports(file, file.stat().st_mtime_ns, declarations)


@functools.cache
def _imports(file: Path, changed: int, declarations: bool) -> tuple[str, ...]:
    """As `imports`, of a file as it was when it was last changed: a start of the workflow asks some
    thousand times.
    """
    return tuple(_found_imports(file, declarations))


def _found_imports(file, declarations) -> Iterator[str]:
    todo: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while todo:
        node = todo.pop()
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            room, _, rest = name.partition(".")
            if room == "faithful_sae" and rest:
                yield PUBLIC.get(rest, rest)
        if declarations or not _is_declaration(node):
            todo += ast.iter_child_nodes(node)


def _is_declaration(node: ast.AST) -> bool:
    bases = node.bases if isinstance(node, ast.ClassDef) else []
    return any(isinstance(base, ast.Name) and base.id == "Stage" for base in bases)


def _within(file: Path, rooms: tuple[str, ...]) -> bool:
    name = file.relative_to(PACKAGE).with_suffix("").as_posix()
    return any(name == room or name.startswith(f"{room}/") for room in rooms)


def _without_docstrings(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return tree
