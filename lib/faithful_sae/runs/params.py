"""Load a parameter file: a key that is unknown, missing, ill-typed or contradicts another stops
everything before any work, naming file, key and remedy.
"""

import dataclasses
import difflib
import importlib.util
import math
import re
import types
import typing
from pathlib import Path

import yaml

from faithful_sae.files import ROOT, digest
from faithful_sae.runs.catalogue import paper_models
from faithful_sae.runs.schema import (
    DOCUMENTATION_KINDS,
    DOCUMENTATION_TASKS,
    OPTIONAL,
    ROLES,
    SAE_SECTIONS,
    TASK_ROLES,
    ParamsError,
    Run,
    plain,
    stage_corpora,
    stage_settings,
)
from faithful_sae.text.hub import PARQUET

LISTED = ROOT / "params" / "corpora.yaml"
BEFORE = {
    "01_generate_faithful": (),
    "02_train_sae": ("01_generate_faithful",),
    "08_seed_dependence": ("01_generate_faithful",),
}


def load_params(path) -> Run:
    """Read and check one model's YAML.

    Args:
        path: the file; a relative one is looked for in the working directory, then in the
            repository.

    Raises:
        ParamsError: unreadable file; unknown, missing, ill-typed or contradictory key; missing
            corpus, task or model folder.
    """
    path = Path(path)
    file = next((p.resolve() for p in (path, ROOT / path) if p.is_file()), None)
    if file is None:
        raise ParamsError(f"{path}: no such parameter file")
    values = _read(file)
    if isinstance(values, dict):
        _fill_in(values, "corpora", "corpora", file)
        _fill_in(values.get("probing"), "tasks", "probing.tasks", file)
    run = _build(Run, values, file, "", {"file": file})
    _check(run)
    return run


def load_profile(folder) -> list[Run]:
    """All runs of a profile, sorted by name. `folder` is a folder or the name of one in `params/`.

    Raises:
        ParamsError: whatever `read_profile` finds; what it raises.
    """
    runs, problems = read_profile(folder)
    if problems:
        raise ParamsError("\n  ".join(problems))
    return runs


def read_profile(folder) -> tuple[list[Run], list[str]]:
    """(runs that can be used, sorted by name; what is wrong with each other file, one line each,
    and with them together).

    Raises:
        ParamsError: no such folder, or no YAML in it; a folder named like a built-in profile
            (outputs would mix).
    """
    folder = Path(folder)
    if not folder.is_dir() and (ROOT / "params" / folder).is_dir():
        folder = ROOT / "params" / folder
    if not folder.is_dir():
        raise ParamsError(
            f"{folder}: no such profile: give a folder of YAML files, or one of "
            f"{', '.join(sorted(p.name for p in (ROOT / 'params').iterdir() if p.is_dir()))}"
        )
    folder = folder.resolve()
    built_in = ROOT / "params" / folder.name
    if built_in.is_dir() and built_in != folder:
        raise ParamsError(
            f"{folder}: results go to figures/{folder.name}, which belongs to {built_in}: rename "
            "the folder"
        )
    files = sorted(folder.glob("*.yaml"))
    if not files:
        raise ParamsError(
            f"{folder}: no .yaml file in this profile: add one per language model (see "
            "params/laptop)"
        )
    runs = []
    problems = []
    for file in files:
        try:
            runs.append(load_params(file))
        except ParamsError as error:
            problems.append(str(error))
    if len({run.label for run in runs}) < len(runs):
        problems.append(
            f"{folder}: two files have one label ({', '.join(run.label for run in runs)}): tables "
            "tell models apart by it"
        )
    return runs, problems


def made_with(run, stage) -> str:
    """Hash of the parameters that a stage's rows depend on: its own, those of the stages before it,
    and of the runs whose text it uses.

    It is what rows carry and the workflow compares. The name under which a model is shown is not in
    it, and no code: `make paper` compares both, and what is left of a run of weeks is still worth a
    look when a comment has changed.
    """

    def settings(run, stage):
        return {key: value for key, value in stage_settings(run, stage).items() if key != "label"}

    stages = (*BEFORE.get(stage, ("01_generate_faithful", "02_train_sae")), stage)
    others = sorted(
        {run.corpora[name].faithful for s in stages for name in stage_corpora(run, s)}
        - {None, "self"}
    )
    return digest(
        [
            [settings(run, s) for s in stages],
            [
                settings(load_params(run.file.with_name(f"{name}.yaml")), "01_generate_faithful")
                for name in others
            ],
        ]
    )


def _read(file):
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(
            f"{file}: not a readable YAML file: {' '.join(str(error).split())}"
        ) from None


def _fill_in(section, kind, key, file):
    """Put what params/corpora.yaml says in the place of `listed: <name>`; keys beside it are kept."""
    entries = section.get(kind) if isinstance(section, dict) else None
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        if isinstance(entry, dict) and "listed" in entry:
            listed = entry.pop("listed")
            known = _read(LISTED)[kind]
            if listed not in known:
                raise ParamsError(
                    f"{file}: {key}.{name}.listed = {listed!r} is not in {LISTED}, which has "
                    f"{', '.join(known)}"
                )
            entries[name] = {
                field: value
                for field, value in known[listed].items()
                if field not in ("licence", "gated")
            } | entry


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (PyYAML keeps the last one in silence) and reads
    2e-4 as a number.
    """

    def construct_mapping(self, node, deep=False):
        seen = []  # a key may be a list, which no set takes
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.append(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _build(cls, values, file, prefix, internal=types.MappingProxyType({})):
    if not isinstance(values, dict):
        raise ParamsError(
            f"{file}: {prefix.rstrip('.') or 'the file'} must be a mapping of keys to values"
        )
    fields = {f.name: f for f in dataclasses.fields(cls) if not f.metadata.get("internal")}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            raise ParamsError(
                f"{file}: unknown key {prefix}{key}: "
                + (
                    f"did you mean {prefix}{near[0]}?"
                    if near
                    else f"known here: {', '.join(fields)}"
                )
            )
    hints = typing.get_type_hints(cls)
    built = {}
    for name, field in fields.items():
        if name in values:
            built[name] = _convert(hints[name], values[name], file, prefix + name)
        elif field.default is dataclasses.MISSING:
            raise ParamsError(
                f"{file}: missing key {prefix}{name}: add it (params/laptop shows every key with "
                "its meaning)"
            )
    return cls(**built, **internal)


def _convert(kind, value, file, key):
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)

    def wrong(expected):
        return ParamsError(f"{file}: {key} must be {expected}, not {value!r}")

    if origin is types.UnionType:  # `X | None` or `X | tuple of X | None`
        several = next((kind for kind in args if typing.get_origin(kind) is tuple), args[0])
        return (
            None
            if value is None
            else _convert(several if isinstance(value, list) else args[0], value, file, key)
        )
    if origin is typing.Literal:
        if value not in args:
            raise wrong(f"one of {', '.join(args)}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong("a list")
        return tuple(_convert(args[0], item, file, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict) or not value:
            raise wrong("a mapping with at least one entry")
        return {
            str(name): _build(args[1], item, file, f"{key}.{name}.") for name, item in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, file, f"{key}.")
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise wrong(
            {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        )
    return value


# --- checks across keys ---------------------------------------------------------------------------


def _check(run):
    def need(ok, key, why):
        if not ok:
            raise ParamsError(f"{run.file}: {key} {why}")

    positive = {
        "gpus": run.gpus,
        "threads": run.threads,
        "sequence_length": run.sequence_length,
        "corpus_tokens": run.corpus_tokens,
    }
    for section in (
        "hours",
        "embedded",
        "generate",
        "sae",
        "ffr",
        "fidelity",
        "probing",
        "features",
    ):
        part = getattr(run, section)
        positive |= (
            {
                f"{section}.{f.name}": getattr(part, f.name)
                for f in dataclasses.fields(part)
                if f.type in (int, float)
                and f.name not in ("seed", "data_seed", "activation", "weight_decay")
            }
            if part
            else {}
        )
    for key, value in positive.items():
        need(value > 0, key, f"= {value} must be above 0")
    need(run.sequence_length > 1, "sequence_length", "must be at least 2: BOS and one token")
    need(run.layer >= 0, "layer", f"= {run.layer} must be 0 or more")
    need(
        0 < run.heldout < 1,
        "heldout",
        f"= {run.heldout} must lie between 0 and 1: it is the share of each corpus kept for "
        "evaluation",
    )
    need(
        (run.embedded is not None) == (run.model == "embedded"),
        "embedded",
        "must be given exactly when model is `embedded`; write `embedded: null` otherwise",
    )
    need(
        run.beside is None or run.beside in paper_models(),
        "beside",
        f"= {run.beside!r} must be one of {', '.join(paper_models())}, or null",
    )
    need(run.generate.seed >= 0, "generate.seed", f"= {run.generate.seed} must be 0 or more")
    for name in (*run.corpora, *run.tasks):
        need(
            re.fullmatch(r"[\w.-]*\w[\w.-]*", name),
            "corpora",
            f"and tasks are folder names too, so {name!r} may hold letters, digits, - _ . only",
        )
    if run.embedded:
        e = run.embedded
        need(
            257 <= e.vocab_size <= 6207,
            "embedded.vocab_size",
            f"= {e.vocab_size} must lie between 257 (all bytes and BOS) and 6207 (5-grams in 64 "
            "bits)",
        )
        need(
            e.warmup_steps < e.steps,
            "embedded.warmup_steps",
            f"= {e.warmup_steps} must be below embedded.steps = {e.steps}",
        )
        need(
            run.layer < e.n_layers,
            "layer",
            f"= {run.layer} must be below embedded.n_layers = {e.n_layers}",
        )
        need(
            run.sequence_length <= e.context,
            "sequence_length",
            f"= {run.sequence_length} exceeds embedded.context = {e.context}",
        )
        need(
            run.generate.max_new_tokens < e.context,
            "generate.max_new_tokens",
            f"= {run.generate.max_new_tokens} must be below embedded.context = {e.context}: BOS "
            "takes one position",
        )
        need(
            not run.probing or run.probing.max_tokens <= e.context,
            "probing.max_tokens",
            f"= {run.probing and run.probing.max_tokens} exceeds embedded.context = {e.context}",
        )
        need(
            e.d_model % e.n_heads == 0,
            "embedded.d_model",
            f"= {e.d_model} must be a multiple of embedded.n_heads = {e.n_heads}",
        )
        need(
            e.corpus in run.corpora and run.corpora[e.corpus].faithful is None,
            "embedded.corpus",
            f"= {e.corpus!r} must name a corpus under `corpora` that is not itself generated",
        )
    elif run.model.startswith((".", "/", "~")):
        need(
            run.resolve(run.model).is_dir(),
            "model",
            f"= {run.model!r}: no such folder ({run.resolve(run.model)})",
        )
    g = run.generate
    need(
        run.gpus == 1 or run.device == "cuda",
        "gpus",
        f"= {run.gpus} needs device: cuda; write `gpus: 1` with device: {run.device}",
    )
    need(
        0 < g.top_p <= 1,
        "generate.top_p",
        f"= {g.top_p} must be above 0 and at most 1 (1 = the paper's plain sampling)",
    )
    for name, corpus in run.corpora.items():
        _check_source(
            run,
            need,
            f"corpora.{name}",
            corpus,
            ("faithful", "path", "hub", "documentation"),
            ROLES,
            DOCUMENTATION_KINDS,
        )
        if corpus.faithful not in (None, "self"):
            need(
                run.file.with_name(f"{corpus.faithful}.yaml").is_file(),
                f"corpora.{name}.faithful",
                f"= {corpus.faithful!r}: no {corpus.faithful}.yaml in {run.file.parent}; write "
                "`self` for this model's own text",
            )
        need(
            not corpus.documentation or corpus.max_characters,
            f"corpora.{name}.max_characters",
            "is missing: how much text to take",
        )
        need(
            not corpus.hub or corpus.split,
            f"corpora.{name}.split",
            "is missing: which split of the Hub dataset",
        )
    absent = [section for section in SAE_SECTIONS if not getattr(run, section)]
    need(
        len(absent) in (0, len(SAE_SECTIONS)),
        ", ".join(absent),
        f"must not be null alone: all of {', '.join(SAE_SECTIONS)} are, or none",
    )
    for section in OPTIONAL.values():
        need(not absent or not getattr(run, section), section, "must be null where sae is")
    if not absent:
        _check_saes(run, run.sae, need)
    if run.seed_dependence:
        _check_seed_dependence(run, run.seed_dependence, need)
    if run.features:
        _check_features(run, run.features, need)


def _check_saes(run, s, need):
    seeds = {
        "sae.data_seed": s.data_seed,
        "ffr.seed": run.ffr.seed,
        "probing.seed": run.probing.seed,
    }
    for key, value in (seeds | {f"sae.seeds[{i}]": seed for i, seed in enumerate(s.seeds)}).items():
        need(value >= 0, key, f"= {value} must be 0 or more")
    need(
        run.ffr.activation >= 0,
        "ffr.activation",
        f"= {run.ffr.activation} must be 0 (the paper's) or more: latents are never negative",
    )
    need(
        s.k <= s.d_sae,
        "sae.k",
        f"= {s.k} exceeds sae.d_sae = {s.d_sae}: at most every latent can be active",
    )
    need(
        len(s.seeds) >= 2 and len(set(s.seeds)) == len(s.seeds),
        "sae.seeds",
        "must hold at least two different seeds: SFR compares them",
    )
    need(
        s.buffer_tokens >= s.batch_tokens,
        "sae.buffer_tokens",
        f"= {s.buffer_tokens} must be at least sae.batch_tokens = {s.batch_tokens}",
    )
    need(
        s.tokens >= s.batch_tokens,
        "sae.tokens",
        f"= {s.tokens} must be at least sae.batch_tokens = {s.batch_tokens}",
    )
    for key, names in (("sae.train_on", s.train_on), ("fidelity.corpora", run.fidelity.corpora)):
        need(names, key, "is empty: name at least one corpus")
        need(len(set(names)) == len(names), key, "names a corpus twice")
        for name in names:
            need(
                name in run.corpora,
                key,
                f"names {name!r}, which is not under `corpora` ({', '.join(run.corpora)})",
            )
    roles = [run.corpora[name].role for name in s.train_on if run.corpora[name].role]
    need(
        len(set(roles)) == len(roles),
        "sae.train_on",
        f"has two corpora in one role ({', '.join(roles)}): the tables have one column each",
    )
    for name, entry in run.published.items():
        _check_published(run, need, f"sae.published.{name}", name, entry)
    need(
        0 < run.sfr.threshold <= 1,
        "sfr.threshold",
        f"= {run.sfr.threshold} must be a cosine above 0 and at most 1",
    )
    need(
        0 <= run.sfr.dead_below < 1,
        "sfr.dead_below",
        f"= {run.sfr.dead_below} must be a frequency from 0 to below 1",
    )
    need(
        run.ffr.frequency < 1,
        "ffr.frequency",
        f"= {run.ffr.frequency} must be a share below 1 (the paper's 0.1)",
    )
    for name, task in run.probing.tasks.items():
        key = f"probing.tasks.{name}"
        _check_source(
            run, need, key, task, ("train", "hub", "documentation"), TASK_ROLES, DOCUMENTATION_TASKS
        )
        if task.train:
            need(task.test, f"{key}.test", "is missing: the file to measure accuracy on")
            need(
                run.resolve(task.test).is_file(),
                f"{key}.test",
                f"= {task.test!r}: no such file ({run.resolve(task.test)})",
            )
        need(
            not task.hub or (task.train_split and task.test_split),
            f"{key}.train_split",
            "and test_split must be given for a Hub dataset",
        )


def _check_published(run, need, key, name, entry):
    given = [kind for kind in ("path", "hub") if getattr(entry, kind) is not None]
    need(name in run.sae.train_on, key, f"is not in sae.train_on ({', '.join(run.sae.train_on)})")
    need(
        len(given) == 1,
        key,
        f"must have exactly one of path, hub; it has {', '.join(given) or 'none'}",
    )
    need(
        any("{seed}" in (value or "") for value in plain(entry).values()),
        key,
        "holds no {seed}: all seeds would be one SAE",
    )
    if entry.hub:
        need(
            entry.revision, f"{key}.revision", "is missing: main, or another branch, tag or commit"
        )
        need(
            not entry.folder
            or ".." not in Path(entry.folder).parts
            and not entry.folder.startswith("/"),
            f"{key}.folder",
            f"= {entry.folder!r} must be a path inside the repository",
        )
    else:
        need(
            not entry.revision and not entry.folder,
            key,
            "has a path, so revision and folder must be left out",
        )
        for seed in run.sae.seeds:
            folder = run.resolve(entry.of(seed).path)
            need(folder.is_dir(), f"{key}.path", f"= {entry.path!r}: no such folder ({folder})")


def _check_seed_dependence(run, d, need):
    need(
        d.corpus in run.corpora,
        "seed_dependence.corpus",
        f"= {d.corpus!r} is not under `corpora` ({', '.join(run.corpora)})",
    )
    need(
        len(d.seeds) >= 2 and len(set(d.seeds)) == len(d.seeds),
        "seed_dependence.seeds",
        "must hold at least two different seeds",
    )
    need(
        2 <= d.sweep_seeds <= len(d.seeds),
        "seed_dependence.sweep_seeds",
        f"= {d.sweep_seeds} must lie between 2 and the number of seed_dependence.seeds, "
        f"{len(d.seeds)}",
    )
    s = run.sae
    layers = run.embedded.n_layers if run.embedded else math.inf
    for name, low, high, why in (
        ("d_sae", s.k, math.inf, f"must be at least sae.k = {s.k}: k latents are active"),
        (
            "k",
            1,
            s.d_sae,
            f"must lie between 1 and sae.d_sae = {s.d_sae}: at most every latent can be active",
        ),
        (
            "tokens",
            s.batch_tokens,
            math.inf,
            f"must be at least sae.batch_tokens = {s.batch_tokens}",
        ),
        (
            "layers",
            0,
            layers - 1,
            f"must be 0 or more, and below embedded.n_layers = {layers}"
            if run.embedded
            else "must be 0 or more",
        ),
    ):
        values = getattr(d, name)
        key = f"seed_dependence.{name}"
        need(len(set(values)) == len(values), key, "names a value twice")
        for value in values:
            need(low <= value <= high, key, f"holds {value}, which {why}")


def _check_features(run, f, need):
    need(
        f.corpus in run.sae.train_on,
        "features.corpus",
        f"= {f.corpus!r} is not in sae.train_on ({', '.join(run.sae.train_on)})",
    )
    need(
        f.seeds and len(set(f.seeds)) == len(f.seeds),
        "features.seeds",
        "must hold at least one seed, and none twice",
    )
    for seed in f.seeds:
        need(
            seed in run.sae.seeds,
            "features.seeds",
            f"holds {seed}, which is not in sae.seeds ({', '.join(map(str, run.sae.seeds))})",
        )
    need(
        f.tokens >= run.sequence_length,
        "features.tokens",
        f"= {f.tokens} must be at least sequence_length = {run.sequence_length}: one row",
    )
    need(f.seed >= 0, "features.seed", f"= {f.seed} must be 0 or more")
    need(
        f.doses and all(dose > 0 for dose in f.doses),
        "features.doses",
        "must hold at least one dose, each above 0, in units of a latent's largest activation (0 "
        "is added)",
    )


def _check_source(run, need, key, entry, sources, roles, kinds):
    given = [name for name in sources if getattr(entry, name) is not None]
    need(
        len(given) == 1,
        key,
        f"must have exactly one of {', '.join(sources)}; it has {', '.join(given) or 'none'}",
    )
    need(
        entry.role is None or entry.role in roles,
        f"{key}.role",
        f"= {entry.role!r} must be one of {', '.join(roles)}, or null",
    )
    source = given[0]
    value = getattr(entry, given[0])
    if source == "documentation":
        need(
            value in kinds, f"{key}.documentation", f"= {value!r} must be one of {', '.join(kinds)}"
        )
        for package in entry.packages:
            need(
                importlib.util.find_spec(package),
                f"{key}.packages",
                f"names {package!r}, which is not installed",
            )
        need(
            bool(entry.packages) != (value == "topics"),
            f"{key}.packages",
            "must list installed packages (none for topics)",
        )
    if source == "hub":
        need(
            entry.revision,
            f"{key}.revision",
            f"is missing: {PARQUET}, where the Hub has every dataset as parquet, or a commit of it",
        )
        need(
            entry.config,
            f"{key}.config",
            "is missing: which configuration of the Hub dataset (`default` where it has one alone)",
        )
    if source in ("path", "train"):
        need(
            run.resolve(value).is_file(),
            f"{key}.{source}",
            f"= {value!r}: no such file ({run.resolve(value)})",
        )
    if source in ("path", "train", "hub"):
        plain = str(value).removesuffix(".gz").endswith(".txt")
        need(
            entry.text_key or plain, f"{key}.text_key", "is missing: the field that holds the text"
        )
        need(
            source == "path" or not hasattr(entry, "label_key") or entry.label_key,
            f"{key}.label_key",
            "is missing: the field that holds the label",
        )
