"""A parameter file that is wrong is refused before any work, with a message that names the file and
the key.
"""

import pytest
import yaml
from pydantic import ValidationError

from conftest import EMBEDDED, FEATURES, SEED_DEPENDENCE, VALUES
from faithful_sae.files import ROOT
from faithful_sae.runs import registry
from faithful_sae.runs.keys import SHOWN, stage_settings
from faithful_sae.runs.params import LISTED, load_params, load_profile
from faithful_sae.runs.schema import Corpus, ParamsError, Run, Section
from faithful_sae.stages.s06_probing import Task

HUB = {"hub": "a/b", "revision": "main", "config": "default", "split": "train", "text_key": "text"}


def test_a_valid_file(make_run):
    run = make_run({"sae.lr": "REPLACE"}, load=False)
    run.write_text(
        run.read_text().replace("REPLACE", "2e-4")
    )  # YAML 1.1 reads this as text; here it is a number
    run = load_params(run)
    assert isinstance(run, Run)
    assert run.sae.lr == 2e-4
    assert run.sae.seeds == (42, 49)
    assert run.profile == "handmade"
    assert run.name == "tiny"
    assert run.corpora["faithful"].faithful == "self"
    assert run.corpora["text"].path == "text.jsonl"
    assert run.probing.tasks["parity"].role == "sst2"
    assert run.resolve("text.jsonl") == run.file.parent / "text.jsonl"
    assert isinstance(run.generate.temperature, float)
    with pytest.raises(ValidationError):
        run.layer = 2


def test_an_embedded_model(make_run):
    run = make_run({"model": "embedded", "embedded": EMBEDDED})
    assert run.embedded.n_layers == 2
    assert run.embedded.warmup_steps == 1


def test_a_whole_number_will_do_for_a_float(make_run):
    assert make_run({"generate.temperature": 2}).generate.temperature == 2.0


def seeds(**changes):
    return {"seed_dependence": SEED_DEPENDENCE | changes}


def features(**changes):
    return {"features": FEATURES | changes}


# each: what is changed, and words the message must have
WRONG = {
    "misspelt key": ({"lable": "x"}, "unknown key lable", "did you mean label?"),
    "misspelt nested key": (
        {"sae.seedz": [1, 2]},
        "unknown key sae.seedz",
        "did you mean sae.seeds?",
    ),
    "misspelt key of a corpus": (
        {"corpora.text.rolle": "pile"},
        "unknown key corpora.text.rolle",
        "did you mean corpora.text.role?",
    ),
    "key like no other": ({"xyzzy": 1}, "unknown key xyzzy"),
    "internal key": ({"file": "x"}, "unknown key file"),
    "missing key": ({"corpus_tokens": KeyError}, "missing key corpus_tokens"),
    "missing nested key": ({"sae.k": KeyError}, "missing key sae.k"),
    "missing section": ({"probing": KeyError}, "missing key probing"),
    "text for int": ({"sae.k": "four"}, "sae.k must be a whole number, not 'four'"),
    "float for int": ({"layer": 1.5}, "layer must be a whole number"),
    "bool for int": ({"sae.k": True}, "sae.k must be a whole number, not True"),
    "bool for float": ({"sae.lr": True}, "sae.lr must be a number, not True"),
    "int for bool": ({"sae.include_bos": 1}, "sae.include_bos must be true or false"),
    "text for float": ({"heldout": "a tenth"}, "heldout must be a number"),
    "int for text": ({"label": 3}, "label must be text"),
    "null where none is allowed": ({"label": None}, "label must be text"),
    "text for list": ({"sae.train_on": "text"}, "sae.train_on must be a list"),
    "wrong item of a list": ({"sae.seeds": [42, "49"]}, "sae.seeds[1] must be a whole number"),
    "list for section": ({"sfr": [1]}, "sfr must be a mapping"),
    "no corpora": ({"corpora": {}}, "corpora must be a mapping with at least one entry"),
    "word not in the list": ({"dtype": "float8"}, "dtype must be one of", "bfloat16", "'float8'"),
    "unknown recipe": ({"sae.recipe": "mine"}, "sae.recipe must be one of default, authors"),
    "unknown variant": (
        {"sae.variant": {"name": "tpok"}},
        "sae.variant.name must be one of topk, relu,",
        "{'name': 'tpok'}",
    ),
    "variant without a name": ({"sae.variant": {"l1": 0.1}}, "sae.variant.name must be one of"),
    "variant that is no mapping": ({"sae.variant": "relu"}, "sae.variant must be a mapping"),
    "misspelt setting": (
        {"sae.variant": {"name": "relu", "warm_up": 0.1}},
        "unknown key sae.variant.warm_up",
        "did you mean sae.variant.warmup?",
    ),
    "setting of another variant": (
        {"sae.variant": {"name": "relu", "experts": 2}},
        "unknown key sae.variant.experts",
    ),
    "setting out of range": (
        {"sae.variant": {"name": "gated", "l1": -1.0}},
        "sae.variant.l1 = -1.0 must be at least 0: weight of the penalty",
    ),
    "setting of another type": (
        {"sae.variant": {"name": "switch", "experts": 2.5}},
        "sae.variant.experts must be a whole number",
    ),
    "setting not in the list": (
        {"sae.variant": {"name": "prolu", "gradient": "true"}},
        "sae.variant.gradient must be one of relu, ste",
    ),
    "wrong share": (
        {"sae.variant": {"name": "matryoshka", "shares": [0.5, "all"]}},
        "sae.variant.shares[1] must be a number",
    ),
    "shares that do not rise": (
        {"sae.variant": {"name": "matryoshka", "shares": [0.5, 0.25, 1.0]}},
        "sae.variant shares = [0.5, 0.25, 1.0] of d_sae = 24 latents must rise to 1",
    ),
    "experts smaller than k": (
        {"sae.variant": {"name": "switch", "experts": 8}},
        "sae.variant experts = 8 must divide d_sae = 24 and leave each at least k = 4",
    ),
    "swept width that the experts do not divide": (
        {"sae.variant": {"name": "switch", "experts": 3}, **seeds(d_sae=[13])},
        "seed_dependence sweeps what sae.variant cannot be: experts = 3",
    ),
    "swept k of a variant without": (
        {"sae.variant": {"name": "relu"}, **seeds()},
        "seed_dependence.k sweeps sae.k, which relu",
    ),
    "k beyond d_sae": ({"sae.k": 25}, "sae.k = 25 exceeds sae.d_sae = 24"),
    "k of 0": ({"sae.k": 0}, "sae.k = 0 must be above 0"),
    "negative tokens": ({"generate.tokens": -5}, "generate.tokens = -5"),
    "not a number": ({"sae.lr": float("nan")}, "sae.lr"),
    "negative layer": ({"layer": -1}, "layer = -1"),
    "layer beyond the embedded model": (
        {"model": "embedded", "embedded": EMBEDDED, "layer": 2},
        "layer = 2 is out of range: the embedded model has blocks 0 to 1",
    ),
    "rows beyond the embedded context": (
        {
            "model": "embedded",
            "embedded": EMBEDDED | {"context": 8},
            "generate.max_new_tokens": 7,
            "probing.max_tokens": 8,
        },
        "sequence_length = 12 exceeds the context of the embedded model, 8 tokens",
    ),
    "samples beyond the embedded context": (
        {"model": "embedded", "embedded": EMBEDDED, "generate.max_new_tokens": 16},
        "generate.max_new_tokens",
    ),
    "texts beyond the embedded context": (
        {"model": "embedded", "embedded": EMBEDDED, "probing.max_tokens": 17},
        "probing.max_tokens",
    ),
    "heads that do not divide": (
        {"model": "embedded", "embedded": EMBEDDED | {"n_heads": 3}},
        "embedded.d_model = 16",
    ),
    "embedded corpus unknown": (
        {"model": "embedded", "embedded": EMBEDDED | {"corpus": "no"}},
        "embedded.corpus = 'no'",
    ),
    "embedded model trained on its own text": (
        {"model": "embedded", "embedded": EMBEDDED | {"corpus": "faithful"}},
        "embedded.corpus",
    ),
    "embedded without its section": ({"model": "embedded"}, "embedded must be given"),
    "section without embedded": ({"embedded": EMBEDDED}, "embedded must be given exactly when"),
    "missing model folder": ({"model": "./nothing"}, "model = './nothing': no such folder"),
    "one token per row": ({"sequence_length": 1}, "sequence_length"),
    "held-out share of 1": ({"heldout": 1.0}, "heldout = 1.0"),
    "top_p beyond 1": ({"generate.top_p": 1.5}, "generate.top_p = 1.5"),
    "temperature 0": ({"generate.temperature": 0.0}, "generate.temperature"),
    "unknown corpus to train on": (
        {"sae.train_on": ["faithful", "tex"]},
        "sae.train_on names 'tex'",
        "faithful, text",
    ),
    "unknown corpus to evaluate on": (
        {"fidelity.corpora": ["tex"]},
        "fidelity.corpora names 'tex'",
    ),
    "corpus named twice": ({"sae.train_on": ["text", "text"]}, "sae.train_on names a corpus twice"),
    "nothing to train on": ({"sae.train_on": []}, "sae.train_on is empty"),
    "no seed": ({"sae.seeds": []}, "sae.seeds must hold at least one seed"),
    "a seed twice": ({"sae.seeds": [42, 42]}, "sae.seeds must hold", "and none twice"),
    "one seed to compare": (
        {"sae.seeds": [42]} | seeds(),
        "seed_dependence compares the seeds of sae.seeds, which holds one: add another, or write n",
    ),
    "buffer below a batch": ({"sae.buffer_tokens": 63}, "sae.buffer_tokens = 63"),
    "budget below a batch": ({"sae.tokens": 63}, "sae.tokens = 63"),
    "threshold beyond 1": ({"sfr.threshold": 1.1}, "sfr.threshold"),
    "frequency of 1": ({"ffr.frequency": 1.0}, "ffr.frequency"),
    "missing corpus file": (
        {"corpora.text.path": "gone.jsonl"},
        "corpora.text.path = 'gone.jsonl': no such file",
    ),
    "two sources": (
        {"corpora.text.hub": "a/b"},
        "corpora.text must have exactly one of",
        "path, hub",
    ),
    "no source": (
        {"corpora.text": {"role": "pile"}},
        "corpora.text must have exactly one of",
        "none",
    ),
    "no text key": ({"corpora.text.text_key": None}, "corpora.text.text_key is missing"),
    "unknown role": ({"corpora.text.role": "the pile"}, "corpora.text.role = 'the pile'"),
    "a role played twice": (
        {
            "corpora.again": {"role": "pile", "path": "text.jsonl", "text_key": "text"},
            "sae.train_on": ["text", "again"],
        },
        "sae.train_on",
        "pile",
    ),
    "hub without split": ({"corpora.text": HUB | {"split": None}}, "corpora.text.split is missing"),
    "hub without configuration": (
        {"corpora.text": HUB | {"config": None}},
        "corpora.text.config is missing",
    ),
    "hub without revision": (
        {"corpora.text": HUB | {"revision": None}},
        "corpora.text.revision is missing",
        "refs/convert/parquet",
    ),
    "a column that is no text": (
        {"corpora.text": HUB | {"text_key": ["a", 1]}},
        "corpora.text.text_key[1] must be text",
    ),
    "a corpus nobody has listed": (
        {"corpora.text": {"listed": "pil"}},
        "corpora.text.listed = 'pil' is not in",
        "corpora.yaml",
        "pile, fineweb",
    ),
    "a task nobody has listed": (
        {"probing.tasks.parity": {"listed": "pile"}},
        "probing.tasks.parity.listed = 'pile' is not in",
        "sst2, cola",
    ),
    "SAEs without a measure": (
        {"ffr": None, "probing": None},
        "ffr, probing must not be null alone",
    ),
    "a measure without SAEs": ({"sae": None}, "sae must not be null alone"),
    "seeds without SAEs": (
        dict.fromkeys(("sae", "sfr", "ffr", "fidelity", "probing"), None)
        | {"seed_dependence": SEED_DEPENDENCE},
        "seed_dependence must be null where sae is",
    ),
    "text of an unknown run": (
        {"corpora.faithful.faithful": "other"},
        "corpora.faithful.faithful = 'other'",
        "other.yaml",
    ),
    "documentation of no kind": (
        {"corpora.text": {"documentation": "books", "packages": ["numpy"], "max_characters": 9}},
        "corpora.text.documentation = 'books'",
    ),
    "documentation of no package": (
        {"corpora.text": {"documentation": "docstrings", "max_characters": 9}},
        "corpora.text.packages",
    ),
    "documentation without end": (
        {"corpora.text": {"documentation": "docstrings", "packages": ["numpy"]}},
        "corpora.text.max_characters",
    ),
    "missing task file": (
        {"probing.tasks.parity.train": "gone.jsonl"},
        "probing.tasks.parity.train = 'gone.jsonl'",
    ),
    "missing test file": (
        {"probing.tasks.parity.test": "gone.jsonl"},
        "probing.tasks.parity.test = 'gone.jsonl'",
    ),
    "task without test": (
        {"probing.tasks.parity.test": None},
        "probing.tasks.parity.test is missing",
    ),
    "probed seed that is not trained": (
        {"probing.seeds": [49, 7]},
        "probing.seeds = [49, 7] must list some of sae.seeds (42, 49), each once; null: all",
    ),
    "probed seed twice": ({"probing.seeds": [49, 49]}, "probing.seeds = [49, 49] must list"),
    "no probed seed": ({"probing.seeds": []}, "probing.seeds = [] must list"),
    "task without labels": (
        {"probing.tasks.parity.label_key": None},
        "probing.tasks.parity.label_key is missing",
    ),
    "features without SAEs": (
        dict.fromkeys(("sae", "sfr", "ffr", "fidelity", "probing"), None) | features(),
        "features must be null where sae is",
    ),
    "features of SAEs on other text": (
        features(corpora=["tex"]),
        "features.corpora holds 'tex', which is not in sae.train_on",
        "faithful, text",
    ),
    "features of one corpus twice": (
        features(corpora=["text", "text"]),
        "features.corpora must hold at least one corpus, and none twice",
    ),
    "features by a key that was renamed": (
        features(corpus="text"),
        "unknown key features.corpus: did you mean features.corpora?",
    ),
    "features of a seed that is not trained": (
        features(seeds=[42, 3]),
        "features.seeds holds 3",
        "sae.seeds (42, 49)",
    ),
    "features of no seed": (features(seeds=[]), "features.seeds must hold at least one"),
    "features of a seed twice": (
        features(seeds=[42, 42]),
        "features.seeds must hold",
        "none twice",
    ),
    "features of less than a row": (
        features(tokens=11),
        "features.tokens = 11",
        "sequence_length = 12",
    ),
    "no contexts": (features(top=0), "features.top = 0 must be above 0"),
    "a dose of nothing": (features(doses=[0, 1]), "features.doses must hold", "(0 is added)"),
    "no doses": (features(doses=[]), "features.doses must hold at least one"),
    "negative seed of features": (features(seed=-1), "features.seed = -1"),
    "misspelt seed key": (
        seeds(layer=[0]),
        "unknown key seed_dependence.layer",
        "did you mean seed_dependence.layers?",
    ),
    "seeds on an unknown corpus": (
        seeds(corpus="tex"),
        "seed_dependence.corpus = 'tex'",
        "not in sae.train_on (faithful, text)",
    ),
    "swept SAEs beside published ones": (
        seeds() | {"sae.published": {"text": {"hub": "a/b", "revision": "main{seed}"}}},
        "seed_dependence.corpus = 'text' is in sae.published",
    ),
    "seeds of its own": (seeds(seeds=[1, 2]), "unknown key seed_dependence.seeds"),
    "one seed to sweep with": (
        seeds(sweep_seeds=1),
        "seed_dependence.sweep_seeds = 1 must lie between 2 and",
    ),
    "more seeds to sweep with than there are": (
        seeds(sweep_seeds=3),
        "seed_dependence.sweep_seeds = 3",
        "the number of sae.seeds, 2",
    ),
    "swept d_sae below k": (
        seeds(d_sae=[12, 3]),
        "seed_dependence.d_sae holds 3",
        "at least sae.k = 4",
    ),
    "swept k beyond d_sae": (seeds(k=[25]), "seed_dependence.k holds 25", "sae.d_sae = 24"),
    "swept k of 0": (seeds(k=[0]), "seed_dependence.k holds 0"),
    "swept budget below a batch": (
        seeds(tokens=[63]),
        "seed_dependence.tokens holds 63",
        "sae.batch_tokens = 64",
    ),
    "a swept value twice": (seeds(k=[2, 3, 2]), "seed_dependence.k names a value twice"),
    "negative layer to sweep": (seeds(layers=[-1]), "seed_dependence.layers holds -1"),
    "swept layer beyond the embedded model": (
        seeds(layers=[2]) | {"model": "embedded", "embedded": EMBEDDED},
        "seed_dependence.layers = 2 is out of range",
    ),
    "half of the median as a limit": (
        {"sae.max_norm": 0.5},
        "sae.max_norm = 0.5 must be above 1: leave out massive activations",
    ),
    "task of another role": ({"probing.tasks.parity.role": "pile"}, "probing.tasks.parity.role"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_refused(make_run, case):
    changes, *words = WRONG[case]
    file = make_run(changes, load=False)
    with pytest.raises(ParamsError) as error:
        load_params(file)
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message, message


def refused(file):
    """What is said of a file that cannot be used."""
    with pytest.raises(ParamsError) as error:
        load_params(file)
    return str(error.value)


def test_duplicate_key(make_run):
    for extra in ("layer: 2\n", "corpora: {}\n"):
        file = make_run(load=False)
        file.write_text(file.read_text() + extra)
        with pytest.raises(
            ParamsError, match=f"{file.name}.*'{extra.split(':')[0]}' is given twice"
        ):
            load_params(file)
    file.write_text(
        file.read_text()
        .replace("layer: 2\n", "")
        .replace("corpora: {}\n", "")
        .replace("  k: 4\n", "  k: 4\n  k: 5\n")
    )
    with pytest.raises(ParamsError, match="'k' is given twice"):
        load_params(file)


@pytest.mark.parametrize(
    "text", ["", "- 1\n", "just words", "a: [1\n", "\tx: 1\n", "a: &x 1\n? [1]\n: 2\n"]
)
def test_not_a_mapping_or_not_yaml(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ParamsError, match=str(file)):
        load_params(file)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ParamsError, match="no such parameter file"):
        load_params(tmp_path / "gone.yaml")
    (tmp_path / "a.yaml").write_bytes(b"label: \xff\n")
    with pytest.raises(ParamsError, match="a.yaml"):
        load_params(tmp_path / "a.yaml")


def test_a_code_tag_is_not_executed(tmp_path):
    (tmp_path / "a.yaml").write_text(
        f"label: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"
    )
    with pytest.raises(ParamsError):
        load_params(tmp_path / "a.yaml")
    assert not (tmp_path / "made").exists()


def test_several_problems_of_one_file_are_a_line_each(make_run):
    file = make_run({"sae.kk": 3, "layer": "one", "heldout": 1.5, "label": KeyError}, load=False)
    lines = refused(file).split("\n  ")
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert sorted(line.removeprefix(f"{file}: ").split(":")[0] for line in lines) == [
        "heldout = 1.5 must be below 1",
        "layer must be a whole number, not 'one'",
        "missing key label",
        "unknown key sae.kk",
    ]


def test_several_contradictions_of_one_file_are_a_line_each(make_run):
    file = make_run({"sae.k": 25, "sae.tokens": 63, "fidelity.corpora": ["tex"]}, load=False)
    first, second, third = refused(file).split("\n  ")
    assert first.startswith(f"{file}: sae.k = 25 exceeds")
    assert second.startswith(f"{file}: sae.tokens = 63")
    assert third.startswith(f"{file}: fidelity.corpora names 'tex'")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"sae.seeds": [42, 2**63]}, "sae.seeds is too large: it must be below 2^63"),
        ({"sae.data_seed": 2**63}, f"sae.data_seed = {2**63} must be below"),
        ({"generate.seed": 2**80}, f"generate.seed = {2**80} must be below"),
        ({"probing.seed": -1}, "probing.seed = -1 must be at least 0"),
    ],
)
def test_a_seed_that_no_generator_takes(make_run, changes, said):
    assert said in refused(make_run(changes, load=False))
    (key,) = changes
    largest = 2**63 - 1
    assert make_run({key: [42, largest] if key == "sae.seeds" else largest})


# --- what files share -----------------------------------------------------------------------------


@pytest.fixture
def write(make_run):
    """write(name, values) -> a parameter file beside others, which starts from _defaults.yaml if
    there is one; {} is all of conftest's VALUES.
    """
    whole = yaml.safe_load(make_run(load=False).read_text())
    folder = make_run(load=False).parent
    (folder / "tiny.yaml").unlink()

    def written(name, values=None):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(yaml.safe_dump(whole if values is None else values))
        return file

    return written


OTHER = {"role": None, "path": "text.jsonl", "text_key": "text"}


def test_what_a_file_leaves_out_is_as_in_the_defaults_of_its_folder(write):
    write("_defaults.yaml")
    file = write("own.yaml", {"label": "Own", "sae": {"k": 3}, "corpora": {"more": OTHER}})
    run = load_params(file)
    assert run.label == "Own"
    assert run.layer == VALUES["layer"]
    assert run.sae.k == 3
    assert run.sae.d_sae == VALUES["sae"]["d_sae"]
    assert set(run.corpora) == {"faithful", "text", "more"}
    assert run.corpora["text"].role == "pile"
    assert [run.name for run in load_profile(file.parent)] == ["own"]


def test_what_stands_below_a_section_s_keys_is_taken_as_a_whole(write):
    write("_defaults.yaml")
    run = load_params(write("own.yaml", {"corpora": {"text": OTHER}, "sae": {"seeds": [1, 2]}}))
    assert run.corpora["text"] == Corpus(**OTHER)
    assert run.sae.seeds == (1, 2)


def test_a_section_that_the_defaults_leave_out(write):
    write("_defaults.yaml")
    run = load_params(write("own.yaml", seeds()))
    assert run.seed_dependence.sweep_seeds == 2
    nothing = dict.fromkeys(("sae", "sfr", "ffr", "fidelity", "probing"))
    assert load_params(write("text.yaml", nothing)).sae is None


def test_a_problem_of_the_defaults_is_said_of_the_file_that_is_run(write):
    write("_defaults.yaml")
    file = write("own.yaml", {"sae": {"k": 25}})
    assert refused(file).startswith(f"{file}: sae.k = 25 exceeds sae.d_sae = 24")
    write("_defaults.yaml", [1])
    assert refused(file).endswith("_defaults.yaml: the file must be a mapping of keys to values")


def test_a_file_starts_from_the_one_it_extends(write, tmp_path):
    write("_defaults.yaml", {"layer": 2, "nonsense": 1})
    write("../shared/_defaults.yaml")
    write("../shared/base.yaml", {"label": "Base", "sae": {"k": 3}})
    file = write("own.yaml", {"extends": "../shared/base.yaml", "sae": {"lr": 0.5}})
    run = load_params(file)
    assert run.label == "Base"
    assert run.sae.k == 3  # of the file that it extends
    assert run.sae.d_sae == VALUES["sae"]["d_sae"]  # of the defaults beside that
    assert run.sae.lr == 0.5
    assert run.layer == VALUES["layer"], "the defaults beside it are not its own"
    assert run.resolve("text.jsonl") == file.parent / "text.jsonl"


@pytest.mark.parametrize("said", ["own.yaml", "./own.yaml", "gone.yaml", "..", 3, None])
def test_a_file_that_extends_itself_or_nothing(write, said):
    file = write("own.yaml", {"extends": said})
    named = (file.parent / str(said)).resolve()
    assert refused(file) == (f"{file}: extends = {said!r} must be another parameter file ({named})")


def test_two_files_that_extend_each_other(write):
    first = write("first.yaml", {"extends": "second.yaml"})
    second = write("second.yaml", {"extends": "first.yaml"})
    assert refused(first) == (
        f"{second}: extends = 'first.yaml' must be another parameter file ({first})"
    )


def test_a_corpus_of_the_defaults_is_dropped_with_null(write):
    write("_defaults.yaml")
    own = {
        "corpora": {"text": None, "more": OTHER},
        "sae": {"train_on": ["faithful", "more"]},
        "fidelity": {"corpora": ["more"]},
    }
    assert set(load_params(write("own.yaml", own)).corpora) == {"faithful", "more"}
    file = write("own.yaml", own | {"fidelity": {"corpora": ["text"]}})
    assert "fidelity.corpora names 'text', which is not under `corpora`" in refused(file)
    file = write("own.yaml", {"corpora": {"text": None, "faithful": None}})
    assert "corpora must be a mapping with at least one entry" in refused(file)


def test_the_example_of_the_documentation_loads(tmp_path):
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    example = page.partition("```yaml\n")[2].partition("```")[0]
    folder = tmp_path / "mine"
    (folder / "text").mkdir(parents=True)
    (folder / "text" / "stories.jsonl").write_text('{"text": "a story"}\n')
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "params").symlink_to(ROOT / "params")
    (folder / "my.yaml").write_text(example)
    run = load_params(folder / "my.yaml")
    own = yaml.safe_load(example)
    assert run.label == own["label"]
    assert run.layer == own["layer"]
    assert run.model_folder == tmp_path / "models" / "mine"
    assert run.sae.train_on == tuple(own["sae"]["train_on"])
    assert run.sae.d_sae == own["sae"]["d_sae"]
    assert run.corpora["stories"].path == "text/stories.jsonl"
    assert run.embedded is None
    assert run.seed_dependence is None
    # of the file that it extends
    laptop = yaml.safe_load((ROOT / "params" / "laptop" / "_defaults.yaml").read_text())
    assert run.sae.batch_tokens == laptop["sae"]["batch_tokens"]
    assert set(run.tasks) == set(laptop["probing"]["tasks"])


# --- corpora of the Hub ---------------------------------------------------------------------------


def test_a_listed_corpus_is_what_the_list_says_but_for_what_is_written_beside(make_run):
    run = make_run(
        {
            "corpora.pile": {"role": "pile", "listed": "pile"},
            "corpora.text.role": None,
            "probing.tasks.cola": {"role": "cola", "listed": "cola"},
            "corpora.flan": {"listed": "flan", "revision": "0" * 40},
        }
    )
    assert run.corpora["pile"] == Corpus(
        role="pile",
        hub="monology/pile-uncopyrighted",
        revision="refs/convert/parquet",
        config="default",
        split="train",
        text_key="text",
    )
    assert run.corpora["flan"].revision == "0" * 40
    assert run.corpora["flan"].text_key == (
        "inputs",
        "targets",
    )
    assert run.probing.tasks["cola"] == Task(
        role="cola",
        hub="nyu-mll/glue",
        revision="refs/convert/parquet",
        config="cola",
        text_key="sentence",
        label_key="label",
        train_split="train",
        test_split="validation",
    )


def test_the_list_has_the_papers_corpora_and_says_licence_and_access_of_each():
    listed = yaml.safe_load(LISTED.read_text())
    assert {name: entry["hub"] for name, entry in listed["corpora"].items()} == {
        "pile": "monology/pile-uncopyrighted",
        "fineweb": "HuggingFaceFW/fineweb",
        "openwebtext": "Skylion007/openwebtext",
        "tinystories": "roneneldan/TinyStories",
        "flan": "Open-Orca/FLAN",
        "open-instruct": "xzuyn/open-instruct-uncensored-alpaca",
        "alpaca": "aifeifei798/merged_uncensored_alpaca",
    }
    assert set(listed["tasks"]) == {"sst2", "cola", "yelp", "agnews"}
    for kind, known in (("corpora", Corpus), ("tasks", Task)):
        for entry in listed[kind].values():
            assert isinstance(entry.pop("licence"), str)
            assert isinstance(entry.pop("gated"), bool)
            assert set(entry) <= set(known.model_fields)
            assert entry["revision"]
            assert entry["config"]
            assert entry["text_key"]


# --- profiles -------------------------------------------------------------------------------------


def test_profile(make_run):
    make_run({"label": "B"}, name="b")
    make_run({"label": "A"}, name="a")
    folder = make_run(name="c", load=False).parent
    assert [run.name for run in load_profile(folder)] == ["a", "b", "c"]


def test_profile_without_a_file(tmp_path):
    with pytest.raises(ParamsError, match=f"{tmp_path}: no .yaml file"):
        load_profile(tmp_path)


def test_unknown_profile():
    with pytest.raises(ParamsError, match="nowhere: no such profile: .*smoke"):
        load_profile("nowhere")


def test_profile_named_like_a_built_in_one(tmp_path):
    (tmp_path / "smoke").mkdir()
    with pytest.raises(ParamsError, match="rename the folder"):
        load_profile(tmp_path / "smoke")


def test_every_parameter_file_of_the_repository_loads():
    files = sorted(f for f in (ROOT / "params").glob("*/*.yaml"))
    for folder in {f.parent for f in files}:
        for run in load_profile(folder):
            assert run.profile == folder.name
            assert set(run.sae.train_on if run.sae else ()) <= set(run.corpora)


# --- what a notebook depends on -------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value, stages",
    [
        ("sfr.threshold", 0.6, {"03_sfr", "07_paper", "08_seed_dependence", "09_explore_features"}),
        ("ffr.frequency", 0.2, {"04_ffr", "07_paper", "09_explore_features"}),
        ("features.top", 5, {"09_explore_features"}),
        ("probing.max_iter", 9, {"06_probing", "07_paper"}),
        ("fidelity.rows", 9, {"05_fidelity", "07_paper"}),
        ("generate.seed", 9, {"01_generate_faithful"}),
        ("sae.lr", 0.5, {"02_train_sae", "07_paper", "08_seed_dependence"}),
        ("sae.seeds", [42, 49, 1], {"02_train_sae", "07_paper", "08_seed_dependence"}),
        ("sfr.dead_below", 0.1, {"03_sfr", "07_paper"}),
        ("seed_dependence.k", [3], {"08_seed_dependence"}),
        (
            "corpora.text.text_key",
            "body",
            {
                "02_train_sae",
                "03_sfr",
                "05_fidelity",
                "07_paper",
                "08_seed_dependence",
                "09_explore_features",
            },
        ),
    ],
)
def test_a_changed_value_reaches_the_notebooks_that_use_it(make_run, key, value, stages):
    before, after = make_run(seeds() | features()), make_run(seeds() | features() | {key: value})
    changed = {
        name
        for name, stage in registry.stages().items()
        if stage_settings(before, stage, SHOWN) != stage_settings(after, stage, SHOWN)
    }
    # those that the library gains may use any of them
    assert {name for name in changed if name < "10"} == stages


def test_the_fixture_lists_every_key():
    """VALUES in conftest is the shape of a file; a key that the schema gains must be given there
    too, but for a section that has defaults for all of its own.
    """
    fields = registry.run_class().model_fields
    assert set(VALUES) <= set(fields)
    left_out = [fields[name] for name in set(fields) - set(VALUES)]
    assert all(isinstance(field.default, Section) for field in left_out)
    assert yaml.safe_dump(VALUES)


# --- what passes as YAML and cannot be meant ------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("layer: 010", "010 would be read as 8: write that, or quotes around a text"),
        ("layer: -0_7", "-0_7 would be read as -7"),
        ("layer: 1:30", "1:30 would be read as 90"),
        ("heldout: 0:0.5", "0:0.5 would be read as 0.5"),
        ("label: 2024", "label must be text, not 2024: put quotes around it"),
        ('label: ""', "label is blank: write something"),
        ('label: "  "', "label is blank: write something"),
        ('label: "a\\nb"', "label = 'a\\nb' must be one line without control characters"),
        (
            "corpus_tokens: 9223372036854775808",
            "corpus_tokens is too large: it must be below 2^63",
        ),
        ("heldout: .nan", "heldout must be a finite number, not nan"),
    ],
)
def test_what_cannot_be_meant(make_run, line, said):
    """One line, in the place of the key's own."""
    file = make_run(load=False)
    key = line.split(":")[0]
    lines = file.read_text().splitlines()
    (at,) = [i for i, text in enumerate(lines) if text.startswith(f"{key}:")]
    lines[at] = line
    file.write_text("\n".join(lines))
    found = refused(file)
    assert said in found
    assert "\n" not in found


def test_a_learning_rate_without_end(make_run):
    found = refused(make_run({"sae.lr": float("inf")}, load=False))
    assert "sae.lr must be a finite number, not inf" in found


@pytest.mark.parametrize("name", ["no", "off", "yes", "on", "y", "n"])
def test_english_words_are_names_and_labels_not_truth_values(make_run, name):
    file = make_run(
        {"corpora.NAME": {"role": None, "path": "text.jsonl", "text_key": "text"}}, load=False
    )
    text = file.read_text().replace("label: Tiny", f"label: {name}").replace("NAME:", f"{name}:")
    file.write_text(text)
    run = load_params(file)
    assert run.label == name
    assert name in run.corpora


def test_a_truth_value_is_true_or_false(make_run):
    file = make_run(load=False)
    file.write_text(file.read_text().replace("include_bos: false", "include_bos: off", 1))
    assert "include_bos must be true or false, not 'off'" in refused(file)


@pytest.mark.parametrize("name", ["_private", ".hidden", "-option", "a b", "a/b", "é|", "{run}"])
def test_a_corpus_whose_name_fits_no_folder(make_run, name):
    with pytest.raises(ParamsError, match="corpora are folder names too: "):
        make_run({"corpora": {name: {"role": "pile", "path": "text.jsonl", "text_key": "text"}}})
