"""Load a parameter file: a key that is unknown, missing, ill-typed or contradicts another stops
everything before any work, naming file, key and remedy.

A file holds what is its own. What it leaves out is taken from the file it `extends`, or else from
the folder's `_defaults.yaml`: sections key by key, anything below a section's keys as a whole.
"""

import copy
import difflib
import functools
import re
import string
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from faithful_sae.files import ROOT
from faithful_sae.runs.catalogue import paper_models
from faithful_sae.runs.registry import run_class, stages
from faithful_sae.runs.schema import Model, Need, ParamsError, Run, Section, one_of

LISTED = ROOT / "params" / "corpora.yaml"
DEFAULTS = "_defaults.yaml"
BRACES = {"{", "}"}  # the workflow takes what is between them for a wildcard
EXPECTED = {  # what pydantic asks for, in words
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a mapping with at least one entry",
    "too": "a mapping with at least one entry",
    "model": "a mapping of keys to values",
}
LIMITS = {
    "greater_than": ("gt", "must be above"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be below"),
    "less_than_equal": ("le", "must be at most"),
}


def load_params(path: str | Path) -> Run:
    """Read and check one model's YAML.

    Args:
        path: the file, which is looked for in the working directory, then in the repository;
            `profile/model` for a file in params/; or the name of a profile there, for its first.

    Raises:
        ParamsError: unreadable file; unknown, missing, ill-typed or contradictory keys; missing
            corpus, task or model folder. A line for each.
    """
    path = Path(path)
    built_in = ROOT / "params"
    named = [built_in / f"{path}.yaml", *(_files(built_in / path) if path.name else [])]
    file = next((p.resolve() for p in (path, ROOT / path, *named) if p.is_file()), None)
    if file is None:
        known = ", ".join(f"{p.parent.name}/{p.stem}" for p in _files(built_in, "*/*.yaml"))
        raise ParamsError(f"{path}: no such parameter file, and none of {known}")
    values = _merged(file)
    if isinstance(values, dict):
        if isinstance(values.get("corpora"), dict):  # null: one of the defaults that this has not
            values["corpora"] = {k: v for k, v in values["corpora"].items() if v is not None}
        _fill_in(values.get("corpora"), "corpora", "corpora", file)
        if isinstance(probing := values.get("probing"), dict):
            _fill_in(probing.get("tasks"), "tasks", "probing.tasks", file)
    try:
        run = run_class().model_validate(values)
    except ValidationError as error:
        lines = [f"{file}: {_said(problem)}" for problem in error.errors()]
        raise ParamsError("\n  ".join(dict.fromkeys(lines))) from None
    run._file = file
    problems = _contradictions(run)
    if problems:
        raise ParamsError("\n  ".join(problems))
    return run


def load_profile(name: str | Path) -> list[Run]:
    """All runs of a profile, sorted by name.

    Args:
        name: a folder, or the name of one in `params/`.

    Raises:
        ParamsError: as read_profile, and for every file that cannot be used.
    """
    runs, problems = read_profile(name)
    if problems:
        raise ParamsError("\n  ".join(problems))
    return runs


def profile_folder(name: str | Path) -> Path:
    """The folder of a profile, links resolved; what is in it is not read.

    Args:
        name: a folder, or the name of one in `params/`; a relative one is looked for in the
            working directory, then in the repository.

    Raises:
        ParamsError: no such folder; one named like a built-in profile (outputs would mix), or so
            that no workflow can use it.
    """
    built_in = ROOT / "params"
    places = (Path(name), ROOT / name, built_in / name)
    folder = next((place.resolve() for place in places if place.is_dir()), None)
    if folder is None:
        known = ", ".join(sorted(p.name for p in built_in.iterdir() if p.is_dir()))
        raise ParamsError(
            f"{name}: no such profile: give a folder of YAML files, or one of {known}"
        )
    owner = built_in / folder.name
    if owner.is_dir() and owner != folder:
        raise ParamsError(
            f"{folder}: results go to figures/{folder.name}, which belongs to {owner}: rename the "
            "folder"
        )
    for path in (ROOT, Path(folder.name)):
        if set(str(path)) & BRACES:
            raise ParamsError(f"{path}: a folder of results may have no {{ or }}: rename it")
    return folder


def read_profile(name: str | Path) -> tuple[list[Run], list[str]]:
    """(runs that can be used, sorted by name; what is wrong with the other files, a line each).

    Raises:
        ParamsError: as profile_folder; no YAML in it.
    """
    folder = profile_folder(name)
    files = _files(folder)
    if not files:
        raise ParamsError(
            f"{folder}: no .yaml file in this profile: add one per language model (see "
            "params/laptop)"
        )
    runs: list[Run] = []
    problems = []
    for file in files:
        if set(file.stem) & {*BRACES, *string.whitespace}:
            problems.append(f"{file}: a model's name may have no space and no {{ or }}: rename it")
            continue
        try:
            runs.append(load_params(file))
        except ParamsError as error:
            problems += str(error).split("\n  ")
    labels = [run.label for run in runs]
    if len(set(labels)) < len(labels):
        problems.append(
            f"{folder}: two files have one label ({', '.join(labels)}): "
            "tables tell models apart by it"
        )
    return runs, problems


def _files(folder: Path, pattern: str = "*.yaml") -> list[Path]:
    # hidden ones are what editors and macOS keep beside a file
    found = sorted(folder.glob(pattern))
    return [file for file in found if file.name != DEFAULTS and file.name[0] != "."]


def _merged(file: Path, seen: tuple[Path, ...] = ()) -> Any:
    """What a file says, over what the file it extends says."""
    values = _read(file)
    if not isinstance(values, dict):
        return values
    defaults = file.with_name(DEFAULTS)
    base = defaults if defaults.is_file() and file != defaults else None
    if "extends" in values:
        said = values.pop("extends")
        base = (file.parent / str(said)).resolve()
        if not base.is_file() or base in (*seen, file):
            raise ParamsError(f"{file}: extends = {said!r} must be another parameter file ({base})")
    below = _merged(base, (*seen, file)) if base else {}
    if not isinstance(below, dict):
        raise ParamsError(f"{base}: the file must be a mapping of keys to values")
    return below | {name: _over(below.get(name), value) for name, value in values.items()}


def _over(below, value):
    """A section over that of the file below, key by key; what the file itself says comes first."""
    if not isinstance(below, dict) or not isinstance(value, dict):
        return value
    return value | {name: entry for name, entry in below.items() if name not in value}


def _read(file):
    # the tables ask for each run's parameters some hundred times
    return copy.deepcopy(_parsed(file, file.read_bytes()))


@functools.cache
def _parsed(file, content):
    try:
        return yaml.load(content.decode("utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise ParamsError(f"{file}: not a readable YAML file: {said}") from None


def _fill_in(entries, kind, key, file):
    """Put what params/corpora.yaml says in the place of `listed: <name>`; keys beside it stay."""
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and "listed" in entry:
            entry = dict(entry)
            listed = entry.pop("listed")
            known = _read(LISTED)[kind]
            if listed not in known:
                raise ParamsError(
                    f"{file}: {key}.{name}.listed = {listed!r} is not in {LISTED}, which has "
                    f"{', '.join(known)}"
                )
            of_list = {k: v for k, v in known[listed].items() if k not in ("licence", "gated")}
            entries[name] = of_list | entry


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML keeps the last one in silence) and numbers
    that are not what they seem. It takes keys as they stand (a corpus may be called 2023), yes, no,
    on and off as text, and 2e-4 as a number.
    """

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen = []  # a key may be a list, which no set takes
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.append(key.value)
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> int | float:
        whole = node.tag.endswith("int")
        number = self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)
        if ":" in node.value or re.match(r"[-+]?0[0-9_]+$", node.value):
            why = f"{node.value} would be read as {number}: write that, or quotes around a text"
            raise yaml.constructor.ConstructorError(None, None, why, node.start_mark)
        return number


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:bool"]
    for first, pairs in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


# --- problems in words ----------------------------------------------------------------------------


def _said(problem):
    """One of pydantic's problems as `key` and remedy."""
    where = list(problem["loc"])
    place = [part for part in where if not _is_tag(part)]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    key = key.removeprefix(".") or "the file"
    kind, value, limits = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key {key}: {_near(where)}"
    if kind == "missing":
        return f"missing key {key}: add it (docs/parameters.md has every key with its meaning)"
    if kind == "unmeant":
        return f"{key} {problem['msg']}"
    if kind == "union_tag_invalid":
        known = ", ".join(re.findall("<(.*?)>", limits["expected_tags"]))
        return f"{key}.name must be one of {known}: {key} is {value!r}"
    if kind == "literal_error":
        return f"{key} must be one of {_expected(limits)}, not {value!r}"
    if kind in LIMITS:
        name, words = LIMITS[kind]
        limit = limits[name] if isinstance(limits[name], int) else f"{limits[name]:g}"
        return f"{key} = {value} {words} {limit}: {_field(where).description}"
    expected = EXPECTED.get(kind.split("_")[0])
    if expected is None:
        return f"{key}: {problem['msg']}"
    quoted = ": put quotes around it" if kind == "string_type" and value is not None else ""
    return f"{key} must be {expected}, not {value!r}{quoted}"


def _is_tag(part):
    """Of a place: "<text>" and the like are tags of pydantic's, not keys."""
    return str(part).startswith("<")


def _expected(limits):
    """The words of pydantic's "'a', 'b' or 'c'"."""
    return ", ".join(re.findall(r"'([^']*)'", limits["expected"]))


def _near(place):
    """The key that may have been meant, or all there are."""
    known = list(_model(place[:-1]).model_fields)
    prefix = "".join(f"{part}." for part in place[:-1] if not _is_tag(part))
    near = difflib.get_close_matches(str(place[-1]), known, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"


def _field(place):
    """The field of a value, or of the list that it stands in."""
    while isinstance(place[-1], int):
        place = place[:-1]
    return _model(place[:-1]).model_fields[place[-1]]


def _model(place: list) -> type[Section]:
    """The section at a place of the parameters."""
    kind: Any = run_class()
    for part in place:
        if _is_tag(part):
            kind = next(one for one in get_args(kind) if one.__metadata__[0].tag == part)
            kind = get_args(kind)[0]
            continue
        kind = get_args(kind)[1] if get_origin(kind) is dict else kind.model_fields[part].annotation
        while get_origin(kind) is Annotated or type(None) in get_args(kind):
            kind = get_args(kind)[0]
    return kind


def noting(run: Run, found: list[str]) -> Need:
    """A function that notes problems of a run's keys in a list, a line each."""

    def need(ok, key, why):
        if not ok:
            found.append(f"{run.file}: {key} {why}")
        return bool(ok)

    return need


def too_small(run: Run, model: Model) -> list[str]:
    """What a run's language model is too small for, a line each."""
    found: list[str] = []
    for section in (run, *_sections(run)):
        section.check_model(run, model, noting(run, found))
    return found


def _sections(run: Run) -> list[Section]:
    """Those that are not null, and not about SAEs where there are none."""
    read = [stage for stage in stages().values() if run.sae or not stage.with_saes]
    named = [getattr(run, name) for stage in read for name in stage.sections]
    return [section for section in named if section is not None]


def _contradictions(run: Run) -> list[str]:
    """What keys say against each other, a line each."""
    found: list[str] = []
    need = noting(run, found)
    run.check(run, need)
    if run.beside is not None:
        why = one_of(run.beside, paper_models()) + ", or null"
        need(run.beside in paper_models(), "beside", why)
    with_saes = [stage for stage in stages().values() if stage.with_saes]
    together = [
        name for stage in with_saes for name in stage.sections if name not in stage.optional
    ]
    absent = [name for name in together if getattr(run, name) is None]
    # one that the file leaves to its defaults goes with the others
    given = [name for name in together if name in run.model_fields_set and name not in absent]
    why = f"must not be null alone: all of {', '.join(together)} are, or none"
    if not need(not absent or not given, ", ".join(absent), why):
        return found
    for stage in with_saes if absent else ():
        for name in stage.optional:
            need(getattr(run, name) is None, name, "must be null where sae is")
    for section in _sections(run) if not found else ():
        section.check(run, need)
    if run.embedded and not found:
        found += too_small(
            run, Model("the embedded model", run.embedded.n_layers, run.embedded.context)
        )
    return found
