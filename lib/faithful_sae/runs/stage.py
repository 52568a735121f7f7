"""What a stage is: the declaration that stands in each notebook's own file in stages/.

Everything else that has to know a notebook asks its declaration: which parameters there are, what
the workflow's steps read and write, what they need, what 07 says is missing. A new stage is a new
file `stages/sNN_name.py` with a `STAGE`, and nothing in this room.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from faithful_sae.lm.architectures import Shape
from faithful_sae.runs.schema import Run, Section

# the SAEs of a run, {(corpus, seed): SAE}
SAEs = dict[tuple[str, int], Any]
# the keys that determine a language model
MODEL = ("model", "revision", "dtype", "device", "threads", "embedded")
# those that say where in it activations are read
HOOK = ("layer", "hook")
# the keys that determine the token rows of a corpus, beside its own
ROWS_OF_TEXT = ("sequence_length", "corpus_tokens", "heldout")


@dataclass(frozen=True)
class Memory:
    """Bytes at a stage's peak: on the device that computes, and in RAM beside it."""

    device: int
    host: int
    weights: bool = True  # whether the language model is among what is on the device


@dataclass(frozen=True)
class Artefact:
    """A folder that a stage makes once: with which parameters (see keys.py), for which rows."""

    folder: Path
    parameters: dict[str, Any]
    rows: Path


class Rates(Protocol):
    """Seconds of each kind of work of one run, as engine.timing measures them, on its `lm`."""

    lm: Any

    def read_token(self) -> float: ...

    def encode_token(self) -> float: ...

    def sae_step(self, d_sae: int, k: int, n_tokens: int, variant: Any = None) -> float: ...

    def once(self, name: str, measure: Callable[[], Any]) -> Any: ...

    def time_of(self, step: Callable[[], Any], seconds: float = ...) -> float: ...

    def ids(self, rows: int) -> Any: ...

    def sae(self, seed: int = 0) -> Any: ...


class Stage:
    """A notebook. Subclasses say what differs; one instance, `STAGE`, stands in each stage's file.

    Attributes:
        sections: its own parts of the parameters, by key.
        optional: which of its sections may be null while others are not.
        with_saes: whether it runs only where there are SAEs.
        profile: whether it runs once per profile, instead of once per language model.
        paper: whether the paper's tables and figures are made of what it measures.
        study: whether it runs only where it is asked for, by the name of its section (STUDIES).
        answers: whether it answers what the paper left open: 07 gathers its findings.
        rows: the csv files it writes, under rows/.
        embedded_rows: those it writes as well where the language model is embedded.
        reads: rows that earlier stages write.
        parameters: keys its rows depend on, beside its sections and what the stages before it
            depend on. `sae.k` is one of a section; `-sae.seeds` leaves one out.
        hours: which of the run's `hours` limits its job.
        lower: keys to lower where the device's memory is too small for it.
        lower_ram: the same for RAM beside a GPU; None: as `lower`.
    """

    sections: ClassVar[dict[str, type[Section]]] = {}
    optional: ClassVar[tuple[str, ...]] = ()
    with_saes: ClassVar[bool] = True
    profile: ClassVar[bool] = False
    paper: ClassVar[bool] = False
    study: ClassVar[bool] = False
    answers: ClassVar[bool] = False
    rows: ClassVar[tuple[str, ...]] = ()
    embedded_rows: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[tuple[str, ...]] = ()
    hours: ClassVar[Literal["generate", "train", "measure"]] = "measure"
    lower: ClassVar[str] = ""
    lower_ram: ClassVar[str | None] = None

    @property
    def name(self) -> str:
        """The stem of its notebook: stages/s03_sfr.py belongs to notebooks/03_sfr.py."""
        return type(self).__module__.rpartition(".")[2].removeprefix("s")

    def asked_for(self, studies: Collection[str]) -> bool:
        """Whether it runs where so many studies are asked for, by their sections."""
        return not self.study or bool({*self.sections} & {*studies})

    def wanted(self, run: Run) -> bool:
        """Whether it runs for a language model."""
        return run.sae is not None and all(getattr(run, name) for name in self.sections)

    def rows_of(self, run: Run) -> tuple[str, ...]:
        """The rows it writes for a run."""
        return (*self.rows, *self.embedded_rows) if run.embedded else self.rows

    def corpora(self, run: Run) -> tuple[str, ...]:
        """Names of the corpora whose token rows it reads."""
        return ()

    def files(self, run: Run) -> Iterable[Path]:
        """What it reads beside corpora and rows."""
        return ()

    def documentation(self, run: Run) -> Iterable[tuple]:
        """(kind, packages, size) of text it reads that is made from installed packages, beside its
        corpora's.
        """
        return ()

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        """The folders it makes and keeps."""
        return ()

    def memory(self, run: Run, shape: Shape) -> Memory:
        """What it takes at its peak."""
        return Memory(0, 0, weights=False)

    def disk(self, run: Run, shape: Shape) -> int:
        """Bytes of its artefacts while it runs, at their largest, beside token rows."""
        return 0

    def tokens(self, run: Run) -> int:
        """Tokens that the language model reads or writes, each once per pass over it."""
        return 0

    def seconds(self, run: Run, rates: Rates) -> float | None:
        """Estimated wall time."""
        return None
