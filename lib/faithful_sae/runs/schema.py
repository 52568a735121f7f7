"""The keys of a parameter file, as frozen dataclasses. No key has a default: what a run does is
what its YAML says.

One file `params/<profile>/<name>.yaml` is one run of notebooks 01-06, 08 and 09 on one language
model; a profile is a folder of them. The commented `params/laptop/*.yaml` give every key's meaning,
unit and section of the paper.
"""

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path

from faithful_sae.files import ROOT

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
TASK_ROLES = ("sst2", "cola", "yelp", "agnews")
DOCUMENTATION_KINDS = ("docstrings", "doctests", "source", "headers", "topics")
DOCUMENTATION_TASKS = ("library", "prose_or_code", "corrupted", "parameter_type")


class ParamsError(ValueError):
    """A parameter file cannot be used; the message names file, key and remedy."""


@dataclass(frozen=True)
class Embedded:
    """A language model trained on the spot on the documentation of installed packages (`model:
    embedded`).
    """

    corpus: str  # name of the corpus it is trained on
    architecture: typing.Literal["gpt_neox", "llama"]
    vocab_size: int
    d_model: int
    d_mlp: int
    n_layers: int
    n_heads: int
    context: int  # tokens
    train_tokens: int  # distinct tokens read from the corpus
    steps: int
    batch_rows: int
    lr: float
    warmup_steps: int
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Hours:
    """Wall-clock limits of a job on a cluster; on one machine nothing is limited. A job that was
    cut off goes on when it is run again.
    """

    generate: float  # notebook 01
    train: float  # the SAEs of one corpus; notebook 08
    measure: float  # every other notebook


@dataclass(frozen=True)
class Generate:
    """The faithful dataset (paper 3.1)."""

    tokens: int
    max_new_tokens: int
    batch_rows: int
    temperature: float
    top_p: float
    first_token: typing.Literal["bos", "flat"]
    shard_tokens: int
    seed: int


@dataclass(frozen=True)
class Corpus:
    """Text from one of four places: `faithful`, `path`, `hub`, `documentation`; the other keys say
    how to read it.

    Several text keys: their texts, joined by an empty line, are one document. In a YAML file
    `listed: <name>` stands for an entry of params/corpora.yaml.
    """

    role: str | None = None
    faithful: str | None = None
    path: str | None = None
    hub: str | None = None
    documentation: str | None = None
    revision: str | None = None
    config: str | None = None
    split: str | None = None
    text_key: str | tuple[str, ...] | None = None
    packages: tuple[str, ...] = ()
    max_characters: int | None = None


@dataclass(frozen=True)
class Published:
    """Where the SAEs of a corpus are read from: a folder in one of the formats of formats/, or one
    in a repository of the Hub.

    `{seed}` stands for each of sae.seeds in turn, in any of the four: publishers put the seed into
    the name of the folder, of the repository or of the branch, and one line then says it for all
    seeds, so that none can be left out or come twice. Folders that are numbered otherwise
    (trainer_0, trainer_1) have those numbers under sae.seeds: nothing is trained from them.
    """

    path: str | None = None  # relative to the YAML
    hub: str | None = None
    revision: str | None = None  # of `hub`: branch, tag or commit
    folder: str | None = None  # inside `hub`; null where its files are at the top

    def of(self, seed) -> "Published":
        """The same with a seed in the place of `{seed}`."""
        return Published(
            **{
                key: value and value.replace("{seed}", str(seed))
                for key, value in vars(self).items()
            }
        )


@dataclass(frozen=True)
class SAE:
    """TopK SAEs, one per corpus and seed (paper 3.2, Table 5)."""

    train_on: tuple[str, ...]
    d_sae: int
    k: int
    lr: float
    tokens: int
    max_epochs: int
    batch_tokens: int
    buffer_tokens: int
    lm_batch_rows: int
    cache_activations: bool
    include_bos: bool
    recipe: typing.Literal["default", "authors"]
    seeds: tuple[int, ...]
    data_seed: int
    published: (
        dict[str, Published] | None
    )  # per corpus of train_on whose SAEs are read instead of trained


@dataclass(frozen=True)
class SFR:
    """Shared feature ratio (paper 3.4)."""

    threshold: float
    dead_below: float


@dataclass(frozen=True)
class FFR:
    """Fake feature ratio (paper 3.5)."""

    tokens: int
    frequency: float
    activation: float
    seed: int


@dataclass(frozen=True)
class Fidelity:
    """The fidelity matrices (paper 4.3, Figure 5, Appendix B)."""

    corpora: tuple[str, ...]
    rows: int
    rows_from: typing.Literal["heldout", "train"]
    batch_rows: int


@dataclass(frozen=True)
class Task:
    """A labelled corpus: `train` and `test` files, a Hub dataset, or one made from documentation."""

    role: str | None = None
    train: str | None = None
    test: str | None = None
    hub: str | None = None
    documentation: str | None = None
    revision: str | None = None
    config: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    text_key: str | tuple[str, ...] | None = None
    label_key: str | None = None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Probing:
    """Linear probes (paper 3.6)."""

    tasks: dict[str, Task]
    max_train: int
    max_test: int
    max_tokens: int
    batch_rows: int
    include_bos: bool
    inverse_regularisation: float
    max_iter: int
    seed: int


@dataclass(frozen=True)
class SeedDependence:
    """Many SAEs that differ in their seed, then in one thing more at a time (Paulo and Belrose
    2025); the rest is `sae`'s.
    """

    corpus: str
    seeds: tuple[int, ...]
    sweep_seeds: int  # the first so many of the seeds are trained at every swept value
    d_sae: tuple[int, ...]
    k: tuple[int, ...]
    tokens: tuple[int, ...]
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Features:
    """What the latents of one corpus' SAEs respond to and do (notebook 09)."""

    corpus: str  # one of sae.train_on: its SAEs, on its own text
    seeds: tuple[int, ...]
    tokens: int
    batch_rows: int
    top: int
    strata: int
    samples: int  # per stratum
    left: int
    right: int
    listed: int
    pruned: int
    per_group: int
    doses: tuple[float, ...]
    steered_rows: int
    seed: int


@dataclass(frozen=True)
class Run:
    """One language model's run: everything in its YAML, and where its results go."""

    label: str
    beside: str | None
    model: str
    revision: str | None
    dtype: typing.Literal["auto", "float32", "bfloat16", "float16"]
    device: typing.Literal["auto", "cpu", "cuda"]
    gpus: int  # in no key of an artefact: the blocks compute the same, wherever they are
    threads: int
    hours: Hours
    layer: int
    sequence_length: int
    corpus_tokens: int
    heldout: float
    embedded: Embedded | None
    generate: Generate
    corpora: dict[str, Corpus]
    sae: SAE | None  # null, with the next four: text is generated, and that is all
    sfr: SFR | None
    ffr: FFR | None
    fidelity: Fidelity | None
    probing: Probing | None
    seed_dependence: SeedDependence | None
    features: Features | None
    file: Path = dataclasses.field(metadata={"internal": True})

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

    def resolve(self, path) -> Path:
        """A path of the YAML, relative to the YAML's folder."""
        return (self.file.parent / Path(path).expanduser()).resolve()

    @property
    def model_folder(self) -> Path | None:
        """The folder of a local model; None for an embedded one and for one of the Hub."""
        folder = self.resolve(self.model)
        return folder if not self.embedded and folder.is_dir() else None

    @property
    def published(self) -> dict[str, Published]:
        """The corpora whose SAEs are read instead of trained."""
        return (self.sae.published if self.sae else None) or {}

    @property
    def job_gpus(self) -> int:
        """How many GPUs a job of this run uses."""
        return self.gpus if self.device == "cuda" else 0

    @property
    def tasks(self) -> dict[str, Task]:
        return self.probing.tasks if self.probing else {}

    def settings(self, *keys) -> dict:
        """The named top-level values as plain data, for a hash or for provenance."""
        return {key: plain(getattr(self, key)) for key in keys}


MODEL_KEYS = ("model", "revision", "dtype", "device", "threads", "embedded")
STAGE_KEYS = {  # what a notebook depends on: a changed value reruns the notebooks that name its key
    "01_generate_faithful": ("label", "sequence_length", "corpus_tokens", "heldout", "generate"),
    "02_train_sae": ("label", "layer", "sequence_length", "corpus_tokens", "heldout", "sae"),
    "03_sfr": ("label", "threads", "sfr"),
    "04_ffr": ("label", "layer", "sequence_length", "ffr"),
    "05_fidelity_matrix": (
        "label",
        "layer",
        "sequence_length",
        "corpus_tokens",
        "heldout",
        "fidelity",
    ),
    "06_probing": ("layer", "probing"),
    "07_paper": (
        "label",
        "beside",
        "sae",
        "sfr",
        "ffr",
        "corpora",
        "probing",
        "layer",
        "sequence_length",
    ),
    "08_seed_dependence": (
        "label",
        "layer",
        "sequence_length",
        "corpus_tokens",
        "heldout",
        "sae",
        "sfr",
        "seed_dependence",
    ),
    "09_explore_features": (
        "label",
        "layer",
        "sequence_length",
        "corpus_tokens",
        "heldout",
        "sfr",
        "ffr",
        "features",
    ),
}
PROFILE_STAGE = "07_paper"  # once per profile, every other once per model
MODEL_STAGES = tuple(stage for stage in STAGE_KEYS if stage != PROFILE_STAGE)
SAE_SECTIONS = ("sae", "sfr", "ffr", "fidelity", "probing")
OPTIONAL = {
    "08_seed_dependence": "seed_dependence",
    "09_explore_features": "features",
}  # notebook -> the section without which it is not run
ROWS = {  # the csv files under rows/ that a notebook writes
    "01_generate_faithful": ("dataset", "first_token"),
    "02_train_sae": ("training", "saes"),
    "03_sfr": ("sfr", "matching"),
    "04_ffr": ("ffr", "firing"),
    "05_fidelity_matrix": ("fidelity",),
    "06_probing": ("probing",),
    "08_seed_dependence": (
        "seed_saes",
        "seed_pairs",
        "seed_latents",
        "seed_modes",
        "seed_curve",
        "seed_fits",
        "seed_threshold",
    ),
    "09_explore_features": ("features", "dose_response"),
}
EMBEDDED_ROWS = "language_model"  # 01 writes it as well, for an embedded model
PAPER_STAGES = tuple(
    stage for stage in MODEL_STAGES if stage not in OPTIONAL
)  # whose rows PROFILE_STAGE gathers


def model_stages(run) -> list[str]:
    """The stages that run for one language model: no OPTIONAL one without its section, and without
    `sae` only 01.
    """
    stages = [
        stage for stage in MODEL_STAGES if stage not in OPTIONAL or getattr(run, OPTIONAL[stage])
    ]
    return stages if run.sae else stages[:1]


def stage_corpora(run, stage) -> tuple[str, ...]:
    """Names of the corpora a notebook reads."""
    return {
        "01_generate_faithful": run.embedded and (run.embedded.corpus,),
        "02_train_sae": run.sae and run.sae.train_on,
        "05_fidelity_matrix": run.fidelity and run.fidelity.corpora,
        "08_seed_dependence": run.seed_dependence and (run.seed_dependence.corpus,),
        "09_explore_features": run.features and (run.features.corpus,),
    }.get(stage) or ()


def stage_settings(run, stage) -> dict:
    """The part of a run's parameters that one notebook depends on, with only the corpora it reads."""
    keys = (
        STAGE_KEYS[stage] if stage in ("03_sfr", "07_paper") else (*MODEL_KEYS, *STAGE_KEYS[stage])
    )
    settings = run.settings(*keys)
    if settings.get("sae"):
        del settings["sae"]["cache_activations"]  # which changes no number
    if stage in ("01_generate_faithful", "02_train_sae", "05_fidelity_matrix", *OPTIONAL):
        settings["corpora"] = {name: plain(run.corpora[name]) for name in stage_corpora(run, stage)}
        if stage != "05_fidelity_matrix":  # whose titles name the roles
            for entry in settings["corpora"].values():
                del entry["role"]
    if stage == "08_seed_dependence":  # which has a corpus and seeds of its own
        del settings["sae"]["train_on"], settings["sae"]["seeds"], settings["sae"]["published"]
    if stage in OPTIONAL:
        del settings["sfr"]["dead_below"]
    return settings


def wanted_saes(run, layer, cap) -> list[dict]:
    """The SAEs of one layer of 08 as stages.training takes them: every seed as `sae` has it, some
    seeds with one number changed.

    Args:
        cap: tokens that the corpus and sae.max_epochs allow. Budgets beyond it are cut to it, and
            are one SAE then, not several.
    """
    s = run.sae
    d = run.seed_dependence
    plain = {"d_sae": s.d_sae, "k": s.k, "tokens": s.tokens}
    some = d.seeds[: d.sweep_seeds]
    groups = [(plain, d.seeds if layer == run.layer else some)]
    if layer == run.layer:
        groups += [
            (plain | {key: value}, some)
            for key in ("d_sae", "k", "tokens")
            for value in getattr(d, key)
        ]
    found = {}
    for sizes, seeds in groups:
        sizes = sizes | {"tokens": min(sizes["tokens"], cap)}
        for seed in seeds:
            name = "_".join(f"{key}{value}" for key, value in sizes.items()) + f"_seed{seed}"
            found[name] = {"name": name, **sizes, "seed": seed}
    return list(found.values())


def plain(value) -> typing.Any:
    """A parameter value as JSON-serialisable data."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value
