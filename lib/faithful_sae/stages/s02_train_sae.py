"""02: SAEs, one per corpus and seed, trained here or read where they are published."""

import dataclasses
import math
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Discriminator, Tag, create_model

from faithful_sae.files import folder_of
from faithful_sae.lm.architectures import Shape, weights
from faithful_sae.runs.keys import settings
from faithful_sae.runs.schema import (
    BASELINES,
    Count,
    Floats,
    Ints,
    Names,
    Need,
    Positive,
    Run,
    Section,
    Seed,
    key,
)
from faithful_sae.runs.stage import HOOK, MODEL, ROWS_OF_TEXT, Artefact, Memory, Rates, Stage
from faithful_sae.sae.settings import SETTINGS, batch_problem


class Published(Section):
    """Where the SAEs of a corpus are read from: a folder, or one in a repository of the Hub.

    `{seed}` stands for each of sae.seeds in turn, in any of the four: publishers put the seed into
    the name of the folder, of the repository or of the branch, and one line then says it for all
    seeds. Folders that are numbered otherwise (trainer_0, trainer_1) have those numbers under
    sae.seeds: nothing is trained from them.
    """

    path: str | None = key("a folder, relative to the file", None)
    hub: str | None = key("a repository of the Hub, owner/name", None)
    revision: str | None = key("of `hub`: branch, tag or commit", None)
    folder: str | None = key("inside `hub`; null where its files are at the top", None)

    def of(self, seed: int) -> "Published":
        """The same with a seed in the place of `{seed}`."""
        told = {k: value and value.replace("{seed}", str(seed)) for k, value in vars(self).items()}
        return Published(**told)

    def check_at(self, run: Run, need: Need, name: str) -> None:
        """Note what is wrong with the entry of a corpus."""
        at = f"sae.published.{name}"
        trained_on = run.sae.train_on
        need(name in trained_on, at, f"is not in sae.train_on ({', '.join(trained_on)})")
        given = ", ".join(place for place in ("path", "hub") if getattr(self, place) is not None)
        need(
            given in ("path", "hub"),
            at,
            f"must have exactly one of path, hub; it has {given or 'none'}",
        )
        seeded = any("{seed}" in (value or "") for value in vars(self).values())
        one = len(run.sae.seeds) == 1
        need(seeded or one, at, "holds no {seed}: all seeds would be one SAE")
        if self.hub:
            why = "is missing: main, or another branch, tag or commit"
            need(self.revision, f"{at}.revision", why)
            folder = self.folder or ""
            inside = ".." not in Path(folder).parts and not folder.startswith("/")
            why = f"= {folder!r} must be a path inside the repository"
            need(inside, f"{at}.folder", why)
        elif self.path:
            alone = not self.revision and not self.folder
            need(alone, at, "has a path, so revision and folder must be left out")
            for seed in run.sae.seeds:
                place = run.resolve(str(self.of(seed).path))
                there = folder_of(place).is_dir()
                need(there, f"{at}.path", f"= {self.path!r}: no such folder ({place})")


def _variant(name: str) -> type[Section]:
    """The section of a variant, from the declaration of its settings; k is sae.k."""
    declared = SETTINGS[name]
    kinds = typing.get_type_hints(declared)
    fields: dict[str, Any] = {"name": (Literal[name], key("which variant"))}
    for field in dataclasses.fields(declared):
        if field.name != "k":
            limits = dict(field.metadata)
            says = key(limits.pop("says"), field.default, **limits)
            kind = kinds[field.name]
            fields[field.name] = (Floats if kind == tuple[float, ...] else kind, says)
    return create_model(name, __base__=Section, __doc__=declared.__doc__, **fields)


VARIANT = {name: _variant(name) for name in SETTINGS}

if TYPE_CHECKING:
    AnyVariant = Any
else:
    # the tags stand in pydantic's places, from which problems are told
    AnyVariant = Annotated[
        typing.Union[tuple(Annotated[kind, Tag(f"<{name}>")] for name, kind in VARIANT.items())],  # noqa: UP007
        Discriminator(lambda value: f"<{value.get('name') if isinstance(value, dict) else value}>"),
    ]


class SAE(Section):
    """SAEs of one variant, one per corpus and seed."""

    train_on: Names = key("corpora, an SAE of each seed on each", paper="3.2")
    d_sae: Count = key("latents", paper="Table 5")
    k: Count = key(
        "active latents per token, on average where the variant lets tokens differ; relu, gated "
        "and prolu have an l1 instead",
        paper="3.2, Table 5",
    )
    variant: AnyVariant = key(
        "which SAE is trained, by its name, with settings of its own",
        VARIANT["topk"].model_validate({"name": "topk"}),
    )
    lr: Positive = key("peak learning rate of Adam", paper="Table 5")
    tokens: Count = key("activations each SAE is trained on", unit="tokens", paper="Table 5")
    max_epochs: Count = key("a corpus with fewer tokens is repeated at most so often", 10)
    batch_tokens: Count = key("activations per step", unit="tokens")
    buffer_tokens: Count = key("activations that are shuffled together", unit="tokens")
    lm_batch_rows: Count = key("rows per forward pass of the language model")
    cache_activations: bool = key(
        "keep them on disk, for large models gone over more than once", False, changes="nothing"
    )
    include_bos: bool = key("train on the activation at BOS (the authors: true)", False)
    max_norm: float | None = key(
        "leave out massive activations: those whose norm is above so many times the median; null: "
        "none",
        None,
        unit="medians",
        later=True,
        gt=1,
    )
    recipe: Literal["default", "authors"] = key(
        "authors: optimiser and AuxK of their public code; the paper names neither", "default"
    )
    seeds: Ints = key(
        "initialisations compared; of one alone SFR is not measured, and nothing has an interval",
        (42, 49),
        paper="Table 5",
    )
    data_seed: Seed = key("order of the activations, the same for all seeds", 0)
    published: dict[str, Published] | None = key(
        "per corpus of train_on, where its SAEs are read from instead of trained", None
    )
    baselines: str | None = key(
        "a corpus of train_on, on which untrained baselines are made beside its SAEs: a random "
        "dictionary, and a frozen random decoder whose encoder is trained",
        None,
    )

    def settings(self, k: int) -> Any:
        """The variant's settings (sae/settings.py), with so many active latents if it has a k."""
        declared = SETTINGS[self.variant.name]
        names = [field.name for field in dataclasses.fields(declared)]
        return declared(**{name: getattr(self.variant, name, k) for name in names})

    def check(self, run: Run, need: Need) -> None:
        for i, seed in enumerate(self.seeds):
            need(seed >= 0, f"sae.seeds[{i}]", f"= {seed} must be at least 0")
        why = f"= {self.k} exceeds sae.d_sae = {self.d_sae}: at most every latent can be active"
        if need(self.k <= self.d_sae, "sae.k", why):
            problem = self.settings(self.k).problem(self.d_sae)
            need(not problem, "sae.variant", problem)
            dependent = self.settings(self.k).dependent
            why = f"{self.variant.name} {dependent}; compare it in architectures.variants"
            need(not dependent, "sae.variant", why)
            sizes = (self.d_sae, self.batch_tokens, run.sequence_length)
            problem = batch_problem(self.settings(self.k), *sizes)
            need(not problem, "sae.batch_tokens", problem)
        once = self.seeds and len(set(self.seeds)) == len(self.seeds)
        need(once, "sae.seeds", "must hold at least one seed, and none twice")
        for name in ("buffer_tokens", "tokens"):
            value = getattr(self, name)
            why = f"= {value} must be at least sae.batch_tokens = {self.batch_tokens}"
            need(value >= self.batch_tokens, f"sae.{name}", why)
        if check_corpora(run, need, "sae.train_on", self.train_on):
            played = [run.corpora[name].role for name in self.train_on]
            roles = [role for role in played if role is not None]
            twice = (
                f"has two corpora in one role ({', '.join(roles)}): the tables have one column each"
            )
            need(len(set(roles)) == len(roles), "sae.train_on", twice)
        for name, entry in (self.published or {}).items():
            entry.check_at(run, need, name)
        if self.baselines is not None:
            trained = [name for name in self.train_on if name not in (self.published or {})]
            why = f"= {self.baselines!r} must be a corpus of sae.train_on whose SAEs are trained "
            why += f"here ({', '.join(trained)}), or null"
            need(self.baselines in trained, "sae.baselines", why)


def check_corpora(run: Run, need: Need, at: str, names: tuple[str, ...]) -> bool:
    """Note names of corpora that are none, or come twice; whether all are well."""
    known = ", ".join(run.corpora)
    there = [
        need(name in run.corpora, at, f"names {name!r}, which is not under `corpora` ({known})")
        for name in dict.fromkeys(names)
    ]
    some = need(names, at, "is empty: name at least one corpus")
    once = need(len(set(names)) == len(names), at, "names a corpus twice")
    return some and once and all(there)


def check_seeds(run: Run, need: Need, at: str, seeds: tuple[int, ...] | None) -> None:
    """Note seeds of a measurement that no SAEs are trained with, or that come twice."""
    if seeds is None:
        return
    known = run.sae.seeds if run.sae else ()
    why = (
        f"= {list(seeds)} must list some of sae.seeds ({', '.join(map(str, known))}), each once; "
        "null: all"
    )
    some = bool(seeds) and {*seeds} <= {*known}
    need(some and len({*seeds}) == len(seeds), at, why)


# what the SAEs of a corpus depend on beside its text: trained ones, and (with the corpus's own
# entry of sae.published) those that are read, whose tokens and batches are for measuring them
WHERE = (*HOOK, "threads", "dtype", "device")
TRAINED = (*WHERE, "sae", "-sae.train_on", "-sae.published", "-sae.baselines")
READ = (
    *WHERE,
    "sae.seeds",
    "sae.d_sae",
    "sae.k",
    "sae.tokens",
    "sae.include_bos",
    "sae.lm_batch_rows",
    "sae.batch_tokens",
    "sae.max_norm",
)

# what the activations of a corpus depend on
ACTIVATIONS = (
    *WHERE,
    "sae.buffer_tokens",
    "sae.lm_batch_rows",
    "sae.include_bos",
    "sae.data_seed",
)


def sae_settings(run: Run, name: str) -> dict[str, Any]:
    """The parameters that the SAEs of a corpus, or a baseline, depend on."""
    if name in BASELINES:
        return settings(run, (*TRAINED, "sae.baselines"))
    keys = (*READ, f"sae.published.{name}") if name in run.published else TRAINED
    return settings(run, keys)


def text_of(run: Run, name: str) -> str:
    """The corpus whose activations the SAEs of that name are made on."""
    return run.sae.baselines if name in BASELINES else name


def sae_artefact(run: Run, name: str) -> Path:
    """The artefact that holds the SAEs of a corpus, or both baselines, which are made together."""
    return run.artifacts / ("baselines" if name in BASELINES else f"saes/{name}")


def sae_folder(run: Run, name: str, seed: int) -> Path:
    """Where an SAE of a corpus, or a baseline, is."""
    kind = name if name in BASELINES else ""
    return sae_artefact(run, name) / kind / f"seed{seed}"


class TrainSAE(Stage):
    sections = {"sae": SAE}
    paper = True
    rows = ("training", "saes")
    reads = ("dataset",)
    parameters = (*MODEL, *ROWS_OF_TEXT, *HOOK)
    hours = "train"
    lower = "sae.buffer_tokens or sae.lm_batch_rows"
    lower_ram = "corpus_tokens"

    def corpora(self, run: Run) -> tuple[str, ...]:
        return run.sae.train_on if run.sae else ()

    def files(self, run: Run) -> Iterable[Path]:
        return [trained_file(run, name) for name in run.sae.train_on]

    def artefacts(self, run: Run) -> Iterable[Artefact]:
        for name in run.sae_names:
            folder = sae_artefact(run, name)
            yield Artefact(folder, sae_settings(run, name), trained_file(run, text_of(run, name)))
            # of 02 too: Snakemake does not make again what lies between things that are there
            yield Artefact(folder, sae_settings(run, name), run.artifacts / "rows" / "saes.csv")

    def memory(self, run: Run, shape: Shape) -> Memory:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.budget import (
            context_bytes,
            group_bytes,
            reading_bytes,
            saving_bytes,
        )
        from faithful_sae.stages.training_budget import sae_training_bytes

        s = run.sae
        n = len(s.seeds)
        one = sae_bytes(shape.d_model, s.d_sae)
        if len(run.published) == len(s.train_on):  # read and measured, not trained
            work = n * one + 3 * 4 * s.batch_tokens * s.d_sae
            saved = 0
        else:
            # baselines take less: a pair of them has the moments and gradients of one W_enc
            work = sae_training_bytes(run, shape, n)
            work += context_bytes(run, shape, [s.variant])
            saved = n * 3 * one
        device = weights(shape) + group_bytes(run, shape) + work
        return Memory(device, reading_bytes(run) + saving_bytes(run, saved))

    def disk(self, run: Run, shape: Shape) -> int:
        from faithful_sae.sae.sae import sae_bytes
        from faithful_sae.stages.budget import kept_bytes
        from faithful_sae.stages.training_budget import sae_training_disk

        s = run.sae
        n = len(s.seeds)
        done = n * sae_bytes(shape.d_model, s.d_sae)
        trained = len(s.train_on) - len(run.published)
        beside = sae_training_disk(run, shape, n) - done if trained else 0
        return len(run.sae_names) * done + trained * kept_bytes(run, shape) + beside

    def tokens(self, run: Run) -> int:
        from faithful_sae.stages.budget import tokens_read

        s = run.sae
        measured = len(run.published) * (s.tokens // 10)
        # baselines are made in a pass of their own; activations that are kept are there by then
        passes = len(s.train_on) - len(run.published)
        passes += s.baselines is not None and not s.cache_activations
        return passes * tokens_read(run, s.tokens) + measured

    def seconds(self, run: Run, rates: Rates) -> float:
        """Of each corpus: the tokens read, and a step of every SAE for each batch; a baseline's is
        taken for as long as another's.
        """
        from faithful_sae.stages.budget import budget

        s = run.sae
        n_tokens = budget(run, s.tokens)
        trained = len(run.sae_names) - len(run.published)
        steps = trained * len(s.seeds) * math.ceil(n_tokens / s.batch_tokens)
        step = rates.sae_step(s.d_sae, s.k, n_tokens)
        return self.tokens(run) * rates.read_token() + steps * step


def trained_file(run: Run, corpus: str) -> Path:
    """What stands for the SAEs of a corpus in the workflow: a file with their hash."""
    return run.artifacts / "trained" / f"{corpus}.txt"


STAGE = TrainSAE()
