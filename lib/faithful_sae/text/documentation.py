"""Text that is on every machine after the install: documentation and source code of the installed
packages.

The embedded models learn from it, so that the whole study runs offline on real text. Files are read
with `ast` and never imported. Pinned versions make the text reproducible: the same packages give
the same documents in the same order.

A corpus takes whole files in the order of a hash of their relative paths, until it has the
characters asked for: a smaller corpus is the head of a larger one and a random sample of the
packages, and its tail holds whole modules that its head has not seen. Labelled tasks read the files
in the opposite order, so a corpus that stops early and a task share few files or none.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from faithful_sae.files import atomic_path
from faithful_sae.text.near_copies import Distinct, Shingle, is_copied, shingles

KINDS = ("docstrings", "doctests", "source", "headers", "topics")
TASKS = ("library", "parameter_or_return", "parameter_type", "word_order", "word_swap")
# characters: of a document, and of a paragraph that can be a near-copy
SHORTEST = 80
NOT_INSTALLED = "package {!r} is not installed: install it, or leave it out of the packages"
# characters: longer classes are split into methods, longer headers at blank lines
LONGEST = 4_000
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
TEST = re.compile(r"(^|/)(_?tests?|testing)(/|$)|(^|/)(test_[^/]*|[^/]*_tests?|conftest)\.py$")

# What would give the library away: package names, the aliases of their documentation, and their
# signature classes.
LIBRARY_NAMES = re.compile(
    r"\b(num_?py|np|sci-?py|sp|scikit[- ]learn|scikit|sklearn|pandas|pd|matplotlib|mpl|pyplot|plt|"
    r"pylab|py_?torch|torch|"
    r"transformers|hugging ?face|hf|datasets|pyarrow|pa|nd-?arrays?|data ?frames?|tensors?)\b",
    re.IGNORECASE,
)
# of a docstring, with the descriptions that a label stands for
SECTIONS = {"parameter": "Parameters", "return": "Returns"}
TYPES = {
    "array": r"(\{?array[-_]like(, sparse matrix\})?|(np\.|numpy )?ndarrays?)"
    r"( of (ints?|floats?|shape.*))?",
    "bool": r"bool(ean)?",
    "float": r"floats?",
    "int": r"int(eger)?s?",
    "str": r"str(ing)?",
}


def extract(kind: str, packages: Sequence[str], max_characters: int) -> list[str]:
    """Documents of one kind from installed packages (ours).

    Args:
        kind: "docstrings" (of modules, classes and functions, one document each; those of a file
            are adjacent), "doctests" (the `>>>` sessions of docstrings), "source" (Python without
            docstrings, one document per top-level function or class, or per method of a long
            class), "headers" (C and C++ headers without their licence) or "topics" (the language
            reference in the standard library; `packages` must be empty).
        packages: import names, e.g. ["numpy", "scipy"]. Their test suites are left out.
        max_characters: the corpus ends before the first document that would take its total above
            this.

    Returns:
        Documents, each at least 80 characters, no two equal. As corpora usually are (Lee et al.
        2022), docstrings, headers and topics are also rid of near-copies: of a paragraph of 80
        characters or more that is one of the paragraphs before it (see near_copies.py). Fewer
        characters than `max_characters` if the packages have no more.

    Raises:
        ValueError: an unknown kind, a package that is not installed, or packages without a document
            of this kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of documentation {kind!r}: one of {', '.join(KINDS)}")
    # a dictionary is a set that keeps its order
    documents = {}
    total = 0
    paragraphs = set()
    for _, document in _stream(kind, packages):
        if kind in ("docstrings", "headers", "topics"):
            document = _without_repeats(document, paragraphs)
        # a long block without a blank line in a header is a generated table
        if (
            len(document) < SHORTEST
            or document in documents
            or (kind == "headers" and len(document) > LONGEST + 2)
        ):
            continue
        if total + len(document) > max_characters:
            break
        documents[document] = None
        total += len(document)
    if not documents:
        raise ValueError(
            f"no {kind} within {max_characters:,} characters in "
            f"{', '.join(packages) or 'the language reference'}"
        )
    return list(documents)


def labelled(
    task: str, packages: Sequence[str], max_examples: int, seed: int
) -> list[tuple[str, int]]:
    """Texts with a label that comes from the documentation itself (ours).

    Args:
        task: "library" (which package a paragraph of prose is from; library names and their aliases
            are masked as "_"), "parameter_or_return" (whether a description is a parameter's or a
            returned value's), "parameter_type" (the declared type of a documented parameter, from
            its description alone), "word_order" (a sentence whose words, after the first, stand
            in reverse order, or intact), or "word_swap" (a sentence in which one pair of
            neighbours in four is swapped, or intact). No sentence is in both classes of the last
            two.
        packages: import names.
        max_examples: at most this many in total; every class has the same number, that of the
            rarest class if that is fewer.
        seed: of the order.

    Returns:
        (text, label), shuffled, 20 to 400 characters each, none a near-copy of the others: however
        they are divided, no text to test on is a near-copy of those to train on (see
        near_copies.py). A label is a place in `label_names`.

    Raises:
        ValueError: an unknown task, a package that is not installed, or a class without an example.
    """
    names = label_names(task, packages)
    wanted = max_examples // len(names)
    classes = [[] for _ in names]
    distinct = Distinct()
    for package, docstring in _stream("docstrings", packages, backwards=True):
        for text, label in _examples(task, package, docstring, names):
            fits = 20 <= len(text) <= 400 and len(classes[label]) < wanted
            if fits and distinct.take(text):
                classes[label].append(text)
        if all(len(texts) == wanted for texts in classes):
            break
    size = min(map(len, classes))
    if size == 0:
        missing = names[[len(texts) for texts in classes].index(0)]
        raise ValueError(
            f"task {task!r}: no example of {missing} in {', '.join(packages)} with "
            f"max_examples={max_examples}"
        )
    examples = [(text, label) for label, texts in enumerate(classes) for text in texts[:size]]
    return [examples[i] for i in np.random.default_rng(seed).permutation(len(examples))]


def label_names(task: str, packages: Sequence[str]) -> list[str]:
    """What the integer labels of a task mean, in order.

    Raises:
        ValueError: an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: one of {', '.join(TASKS)}")
    return {
        "library": list(packages),
        "parameter_or_return": list(SECTIONS),
        "parameter_type": list(TYPES),
        "word_order": ["reversed", "intact"],
        "word_swap": ["swapped", "intact"],
    }[task]


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of every package, by import name; of Python if there are none.

    Raises:
        ValueError: one is not installed.
    """
    if not packages:
        return {"python": platform.python_version()}
    distributions = _distributions()
    if missing := [package for package in packages if package not in distributions]:
        raise ValueError(NOT_INSTALLED.format(missing[0]))
    return {package: importlib.metadata.version(distributions[package][0]) for package in packages}


@functools.cache
def _distributions():
    """Of all that can be imported: it takes half a second, and the workflow asks often."""
    return importlib.metadata.packages_distributions()


def write(kind: str, packages: Sequence[str], size: int, path: Path) -> None:
    """Write a jsonl file with the key `text`, or `text` and `label` (int), atomically.

    Args:
        kind: as of `extract`, or a task as of `labelled`.
        packages: import names.
        size: characters at most, or examples at most of a task (drawn with seed 0).
        path: of the file.

    Raises:
        ValueError: as they do.
    """
    if kind in TASKS:
        examples = labelled(kind, packages, size, seed=0)
        rows = [{"text": text, "label": label} for text, label in examples]
    else:
        rows = [{"text": text} for text in extract(kind, packages, size)]
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _stream(
    kind: str, packages: Sequence[str], backwards: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield (package, document), file after file in the order of the hash, parsing no more than is
    taken.
    """
    if kind == "topics":
        if packages:
            raise ValueError(
                "topics are in the standard library and take no packages, got "
                f"{', '.join(packages)}"
            )
        # a large dictionary, read only if asked for
        from pydoc_data.topics import topics

        yield from (("python", topics[name]) for name in sorted(topics, key=_hash))
        return
    suffixes = (".h", ".hpp", ".cuh") if kind == "headers" else (".py",)
    files = sorted(
        (_hash(f"{package}/{path.relative_to(root).as_posix()}"), package, path)
        for package in packages
        for root in [_folder(package)]
        for suffix in suffixes
        for path in root.rglob(f"*{suffix}")
        if not TEST.search(path.relative_to(root).as_posix())
    )
    for _, package, path in reversed(files) if backwards else files:
        yield from ((package, document) for document in _documents(kind, path))


def _hash(name):
    return hashlib.sha256(name.encode()).hexdigest()


def _folder(package):
    """Where a package is, without importing it."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(NOT_INSTALLED.format(package))
    return Path(next(iter(spec.submodule_search_locations)))


def _documents(kind: str, path: Path) -> Iterable[str]:
    """Every document of one kind in one file, in the order of the file."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
    if kind == "headers":
        return _headers(text)
    try:
        with warnings.catch_warnings(action="ignore"):  # about other people's escape sequences
            tree = ast.parse(text)
    except (SyntaxError, ValueError):  # templates and files for other versions of Python
        return []
    if kind == "source":
        return _source(tree, text.split("\n"))
    docstrings = [inspect.cleandoc(node.value.value) for node in _docstring_nodes(tree)]
    if kind == "doctests":
        return ["\n\n".join(_sessions(docstring)) for docstring in docstrings]
    return docstrings


def _docstring_nodes(tree: Any) -> Iterator[Any]:
    """The expression statements that are docstrings. Only bodies are walked: expressions are most
    of a tree's nodes.
    """
    if ast.get_docstring(tree, clean=False) is not None:
        yield tree.body[0]
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            yield from _docstring_nodes(node)


def _without_repeats(document: str, seen: set[Shingle]) -> str:
    """Drop paragraphs that are near-copies of what is in `seen`, and add the others to it."""
    kept = []
    for paragraph in BLANK_LINES.split(document):
        own = shingles(paragraph)
        if len(paragraph) < SHORTEST or not is_copied(len(own & seen), len(own)):
            kept.append(paragraph)
            seen |= own
    return "\n\n".join(kept).strip()


def _sessions(docstring):
    """Doctest examples with their output, which doctest ends at a blank line."""
    for paragraph in BLANK_LINES.split(docstring):
        if start := re.search(r"^[ \t]*>>> ", paragraph, re.MULTILINE):
            yield textwrap.dedent(paragraph[start.start() :]).strip()


def _source(tree, lines):
    for statement in list(_docstring_nodes(tree)):
        lines[statement.lineno - 1 : statement.end_lineno] = [None] * (
            statement.end_lineno - statement.lineno + 1
        )
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and len(_code(lines, node)) > LONGEST:
            yield from (_code(lines, part) for part in node.body if isinstance(part, FUNCTIONS))
        elif isinstance(node, (ast.ClassDef, *FUNCTIONS)):
            yield _code(lines, node)


def _code(lines, node):
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return textwrap.dedent(
        "\n".join(line for line in lines[first - 1 : node.end_lineno] if line is not None)
    ).strip()


def _headers(text):
    # licences are the comments at the top, before the first line of code
    text = re.sub(
        r"\A(\s*(/\*.*?\*/|//[^\n]*))+",
        lambda match: (
            "" if re.search(r"copyright|licen[sc]e", match[0], re.IGNORECASE) else match[0]
        ),
        text,
        flags=re.DOTALL,
    )
    block = ""
    for paragraph in BLANK_LINES.split(text.strip()):
        if len(block) + len(paragraph) > LONGEST:
            yield block
            block = ""
        block = f"{block}\n\n{paragraph}" if block else paragraph
    yield block


def _examples(task, package, docstring, names):
    """Yield (text, label) of one docstring."""
    if task == "parameter_type":
        for declared, description in _described(docstring, r"\w+ ?: ([^\n]+)"):
            parts = re.split(r",? *(?:\(?optional|\(?default|=)", declared.strip().strip("`"))
            for label, name in enumerate(names):
                if re.fullmatch(TYPES[name], parts[0].strip(" ,`"), re.IGNORECASE):
                    yield description, label
        return
    if task == "parameter_or_return":
        for label, name in enumerate(names):
            # up to the next heading
            of = rf"^{SECTIONS[name]}\n-+\n(.*?)(?=^\S[^\n]*\n---|\Z)"
            for section in re.findall(of, docstring, re.MULTILINE | re.DOTALL)[:1]:
                for _, description in _described(section, r"(\w[^\n]*)"):
                    yield description, label
        return
    for paragraph in BLANK_LINES.split(docstring):
        prose = " ".join(paragraph.split())
        if not re.fullmatch(r"[A-Z][^\n]*[.!?]", prose) or re.search(
            r">>>|::|--|==|\.\. |^\s+", paragraph
        ):
            continue
        if task == "library":
            yield LIBRARY_NAMES.sub("_", prose), names.index(package)
            continue
        for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", prose):
            # only plain sentences: their order must be a matter of grammar, not of markup or
            # formulas
            if re.fullmatch(r"[A-Z][a-z]*(,? [A-Za-z][a-z]*){5,40}[.]", sentence):
                label = int(_hash(sentence), 16) % 2
                altered = _altered(task, sentence)
                if altered != sentence:
                    yield sentence if names[label] == "intact" else altered, label


def _described(text, declaration):
    """Yield (what is declared, description on one line) of entries whose indented description
    follows a declaration. declaration: a pattern with one group.
    """
    for declared, description in re.findall(
        rf"^{declaration}\n((?:[ \t]+\S[^\n]*\n)+)", text + "\n", re.MULTILINE
    ):
        yield declared, " ".join(description.split())


def _altered(task, sentence):
    """Its words in another order, but for the first, whose capital would give it away."""
    first, *words = sentence[:-1].split(" ")
    if task == "word_order":
        words.reverse()
    else:
        pairs = [i for i in range(0, len(words) - 1, 2) if words[i] != words[i + 1]]
        rng = np.random.default_rng(int(_hash(sentence), 16))
        for i in rng.permutation(pairs)[: max(round(len(pairs) / 4), 1)]:
            words[i : i + 2] = words[i + 1], words[i]
    return " ".join([first, *words]) + "."
