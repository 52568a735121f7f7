"""Notebook 12: from SAEs to rows, from rows to tables and verdicts, and the command that evaluates
any SAE. The measures themselves are tested where they are defined.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from conftest import EVALUATION, TEXT
from faithful_sae import TopKSAE
from faithful_sae.__main__ import main as command_line
from faithful_sae.engine.evaluate import ResultError, read_theirs
from faithful_sae.features.index import FeatureError
from faithful_sae.features.judging import Explanation
from faithful_sae.features.windows import cut
from faithful_sae.metrics.saebench import read_envelope
from faithful_sae.paper import evaluation as shown
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.sae import load_sae
from faithful_sae.stages import evaluating
from faithful_sae.stages.judging import Beside, Judging, judges_beside
from faithful_sae.stages.s12_evaluation import evaluated, group_latents
from faithful_sae.text.near_copies import near_copies
from faithful_sae.text.packing import Cut, pack

SEEDS = (42, 49, 1, 2)


@pytest.fixture
def run(make_run):
    return make_run({"sae.seeds": [*SEEDS], "corpora.other": TEXT, "evaluation": EVALUATION})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("corpora", ["text", "elsewhere"], "names 'elsewhere', which is not in sae.train_on"),
        ("corpora", ["text", "text"], "one corpus or two, each once"),
        ("corpora", ["text", "faithful"], "which is not the model's own text"),
        ("text", "elsewhere", "which is not under `corpora`"),
        ("text", "faithful", "SAEs that are measured on it were trained on it"),
        ("forget", "text", "what is forgotten cannot be kept"),
        ("window", 12, "must be less than sequence_length = 12"),
        ("edges", [8, 4], "must rise"),
        ("tokens", 100, "at least 16 rows of sequence_length"),
        ("budget", 1, "at least 2"),
        ("seeds", [7], "must list some of sae.seeds"),
        ("tuned", {"text": "elsewhere"}, "evaluation.tuned.text"),
        ("crossed", ["numpy"], "two packages, or none"),
        ("crossed", ["numpy", "nympy"], "'nympy', which is not installed"),
        ("judges", {"ngram": {"model": "self"}}, "a judge is called that is always there"),
        ("judges", {"a": {}}, "exactly one of model and encoder"),
        ("judges", {"a": {"encoder": "packaged", "url": "http://host/v1"}}, "needs `model`"),
        ("judges", {"a": {"model": "self", "key_variable": "KEY"}}, "it needs `url`"),
        ("judges", {"a": {"model": "./nowhere"}}, "no such folder"),
        ("judges", {"a": {"model": "owner/name"}}, "the commit of a model of the Hub"),
        ("judges", {"a": {"model": "m", "url": "https://me:pw@host/v1"}}, "no name, key or query"),
        ("crossed", ["numpy", "nympy.x"], "'nympy.x', which is not installed"),
        ("judges", {"a": {"model": "self", "prices": [1.0]}}, "two numbers of 0 or more"),
    ],
)
def test_parameters_that_make_no_sense(make_run, key, value, said):
    with pytest.raises(ParamsError, match=said):
        make_run({"corpora.other": TEXT, "evaluation": EVALUATION | {key: value}})


def test_of_baselines_two_seeds_are_evaluated(make_run):
    changes = {"corpora.other": TEXT, "sae.baselines": "text", "evaluation": EVALUATION}
    run = make_run({"sae.seeds": [*SEEDS], **changes})
    names = evaluated(run)
    assert names[:4] == [("faithful", seed) for seed in SEEDS]
    assert names[8:] == [(name, seed) for name in run.baselines for seed in (42, 49)]


def test_the_middle_of_equal_parts():
    assert evaluating.spread(range(10), 2) == [2, 7]
    assert evaluating.spread(range(3), 5) == [0, 1, 2]
    assert evaluating.spread([], 5) == []


def test_copies_of_one_sae_share_all_latents_and_others_none(run):
    saes = {}
    for seed in SEEDS:
        for corpus, number in (("faithful", 0), ("text", seed)):
            saes[corpus, seed] = TopKSAE(16, 24, 4, number)
    firing = [
        {"corpus": corpus, "seed": seed, "latent": latent, "frequency": latent / 100}
        for corpus, seed in saes
        for latent in range(24)
    ]
    write_rows(run, "firing", pd.DataFrame(firing))
    groups, pairs = group_latents(run, saes)
    of = {corpus: part for corpus, part in groups.groupby("corpus")}
    assert {*of["faithful"].found_in[of["faithful"].seed == 49]} == {"42 1 2"}
    # of random directions hardly any is at .7 in encoder and decoder alike
    assert (of["text"].found_in == "").mean() > 0.8
    # fake above a tenth of random tokens
    assert sorted(groups.loc[groups.fake].latent.unique()) == [*range(11, 24)]
    own = pairs.loc[pairs.corpus == "faithful"]
    assert (own.match == own.latent).all()
    assert own.alignment.min() == pytest.approx(1)


def interpretation(score, seeds=SEEDS, latents=40):
    """Rows of one judge: `score(corpus, seed, latent)`, densities that rise with the latent."""
    return pd.DataFrame(
        {
            "corpus": corpus,
            "seed": seed,
            "judge": "ngram",
            "kind": "ngram",
            "latent": latent,
            "density": (latent // 2 + 1) / 100,
            "scored": True,
            "detection_random": score(corpus, seed, latent),
            "text": "",
        }
        for corpus in ("faithful", "text")
        for seed in seeds
        for latent in range(latents)
    )


def groups(latents=40):
    """Every second latent is found in the next seed, and every fourth is fake."""
    return pd.DataFrame(
        {
            "corpus": corpus,
            "seed": seed,
            "latent": latent,
            "fake": latent % 4 == 2,
            "found_in": str(SEEDS[SEEDS.index(seed) - 1]) if latent % 2 else "",
        }
        for corpus in ("faithful", "text")
        for seed in SEEDS
        for latent in range(latents)
    )


def verdicts(run, score, table=None, latents=40):
    rows = {"interpretation": interpretation(score, latents=latents)}
    rows["latent_groups"] = groups(latents) if table is None else table
    found = shown.findings(run, rows).set_index("question")
    return {str(said).split(" ")[0]: row for said, row in found.iterrows()}


def test_planted_differences_get_their_verdicts(run):
    noise = np.random.default_rng(0)

    def score(corpus, seed, latent):
        better = 0.1 * (latent % 2) - 0.06 * (latent % 4 == 2) + 0.05 * (corpus == "faithful")
        return 0.6 + better + 0.02 * noise.normal()

    found = verdicts(run, score)
    # a fake orphan lowers the mean of the others by half of what it lacks
    assert found["Shared"].effect == pytest.approx(0.1 + 0.03, abs=0.02)
    assert found["Latents"].verdict == "agrees"
    assert found["Latents"].effect == pytest.approx(0.05, abs=0.01)
    assert found["Fake"].verdict == "agrees"


def test_where_nothing_differs_orphans_are_as_good_as_the_shared(run):
    noise = np.random.default_rng(3)
    found = verdicts(run, lambda *_: 0.6 + 0.05 * noise.normal(), latents=400)
    # half of them score above half of the others
    assert found["Yet"].effect == pytest.approx(0.25, abs=0.05)
    assert found["Yet"].verdict == "agrees"
    assert found["Shared"].verdict in ("undecided", "no difference")


def test_orphans_that_all_score_below_are_not_many(run):
    noise = np.random.default_rng(4)
    found = verdicts(
        run,
        lambda corpus, seed, latent: 0.5 + 0.3 * (latent % 2) + 0.35 * (noise.random() < 0.1),
    )
    assert found["Yet"].effect < -0.1
    assert found["Yet"].verdict == "disagrees"


def test_latents_that_no_other_seed_has_are_orphans_on_disk_too(run):
    noise = np.random.default_rng(0)

    def score(corpus, seed, latent):
        return 0.6 + 0.1 * (latent % 2) + 0.02 * noise.normal()

    write_rows(run, "latent_groups", groups())
    found = verdicts(run, score, read_rows(run, "latent_groups"))
    assert found["Shared"].effect == pytest.approx(0.1, abs=0.02)


def test_a_difference_that_is_one_of_firing_alone_is_none(run):
    """Shared latents score higher only since those that fire often do."""
    noise = np.random.default_rng(1)

    def score(corpus, seed, latent):
        return 0.5 + 0.01 * latent + 0.001 * noise.normal()

    table = groups().assign(found_in=lambda t: np.where(t.latent > 19, "1 2", ""))
    part = interpretation(score).merge(table, on=["corpus", "seed", "latent"])
    raw = part.groupby("found_in").detection_random.mean()
    assert raw["1 2"] - raw[""] == pytest.approx(0.2, abs=0.01)
    # no tenth by density has both kinds
    assert verdicts(run, score, table)["Shared"].verdict == "not testable"


def test_a_seed_that_is_left_out_shares_nothing(run):
    """Latents are shared by the very first seed alone: without it there is none, and no error."""
    table = groups().assign(found_in=lambda t: np.where(t.latent % 2 == 1, str(SEEDS[0]), ""))
    found = verdicts(run, lambda corpus, seed, latent: 0.6 + 0.1 * (latent % 2), table)
    assert found["Shared"].verdict == "undecided"


def test_results_of_an_sae_that_nothing_is_described_of(run):
    tables = {"interpretation": interpretation(lambda *_: 0.7), "latent_pairs": pd.DataFrame()}
    columns = ["corpus", "seed", "latent", "input", "output"]
    tables["descriptions"] = pd.DataFrame([["text", 42, 3, 1.0, 0.5]], columns=columns)
    found = evaluating.envelopes(tables, ("text", 42), TopKSAE(16, 24, 4, 0), {})
    assert found["descriptions"]["eval_result_metrics"] == {
        "faithful_sae": {"input": 1.0, "output": 0.5}
    }
    score = found["autointerp_ngram"]["eval_result_metrics"]["faithful_sae"]["detection_random"]
    assert score == pytest.approx(0.7)
    other = evaluating.envelopes(tables, ("text", 49), TopKSAE(16, 24, 4, 0), {})
    assert "descriptions" not in other


def test_pairs_are_scored_in_both_seeds(run):
    rows = {
        "interpretation": interpretation(lambda corpus, seed, latent: seed + latent / 100),
        "latent_groups": groups(),
        "latent_pairs": pd.DataFrame(
            [{"corpus": "text", "seed_a": 42, "seed_b": 1, "latent": 3, "match": 7}]
        ).assign(alignment=0.9),
    }
    (pair,) = shown.pairs(run, rows).to_dict("records")
    assert pair["score_1"] == pytest.approx(42.03)
    assert pair["score_2"] == pytest.approx(1.07)


class Oracle:
    """A judge that is asked about few latents, and always says yes."""

    def __init__(self):
        self.asked = set()

    def identity(self):
        return {"kind": "oracle"}

    def explain(self, windows, budget):
        return Explanation("everything")

    def detect(self, explanation, windows):
        self.asked.add(len(windows))
        return [1.0] * len(windows)

    def fuzz(self, explanation, windows, marks):
        return [1.0] * len(windows)


def test_a_judge_beside_scores_some_latents_by_its_own_number_of_windows(lm, rows):
    saes = {("text", 42): TopKSAE(lm.d_model, 24, 4, 0)}
    many = np.concatenate([rows] * 20)
    sizes = evaluating.Sizes(window=3, windows=6, least=2)
    codes, pieces = evaluating.explained(lm, saes, many, sizes)
    judge = Oracle()
    found = evaluating.interpretation(
        lm, codes, pieces, sizes, [Beside("yes man", judge, latents=2, windows=3)]
    )
    offline, beside = (found.loc[found.judge == name] for name in ("ngram", "yes man"))
    assert len(offline) == 24
    assert beside.latent.isin(offline.latent[offline.scored]).tolist() == [True, True]
    # right on all that fire, wrong on all that are silent
    assert beside.detection_random.tolist() == [0.5, 0.5]
    assert max(judge.asked) <= 3


@pytest.mark.parametrize("cut_off", [0, 0.5])
@pytest.mark.parametrize("turns", [2, *evaluating.TURNS])
def test_no_held_out_document_explains_a_latent(turns, cut_off):
    """Held-out rows stand behind the others, and a document may go on in them: documents of a
    number each.
    """
    crossing = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        texts = (np.full(rng.integers(1, 60), i + 1) for i in range(600))
        rows = pack((Cut(ids) if rng.random() < cut_off else ids for ids in texts), 0, 17, 10**6)
        rows, heldout = rows[:-16], rows[-16:]
        pieces = cut(rows, 0, 4, turns)
        crossing += bool({*rows.ravel()} & {*heldout.ravel()} - {0})
        assert not {*pieces.ids[~pieces.test].ravel()} & {*heldout.ravel()}
    assert crossing > 5


def test_the_seed_decides_what_is_drawn(lm, rows):
    """Windows and marks, places and rivals: the same again, others with another seed."""
    saes = {("text", 42): TopKSAE(lm.d_model, 24, 4, 0)}
    many = np.concatenate([rows] * 20)

    def measured(seed):
        sizes = evaluating.Sizes(window=3, windows=6, least=2, described=8, seed=seed)
        codes, pieces = evaluating.explained(lm, saes, many, sizes)
        return [
            evaluating.interpretation(lm, codes, pieces, sizes),
            evaluating.descriptions(lm, saes, codes, pieces, rows, sizes),
        ]

    for one, again, other in zip(measured(0), measured(0), measured(1), strict=True):
        assert len(one)
        pd.testing.assert_frame_equal(one, again, check_exact=True)
        assert not one.equals(other)


PROBING = SimpleNamespace(
    inverse_regularisation=1.0, max_iter=1000, max_tokens=8, include_bos=False, batch_rows=16
)


def described(package, n, seed):
    """(texts, labels) of a package: its word, that of the label, and others."""
    rng = np.random.default_rng([seed, package])
    labels = rng.integers(2, size=n)
    words = np.column_stack([2 + 20 * package + 10 * labels, rng.integers(45, 60, (n, 5))])
    return [" ".join(f"w{i}" for i in text) for text in words], [str(label) for label in labels]


def test_a_property_is_a_package_or_a_label(lm):
    """Texts of two packages, whose labels are the words that they hold."""
    given = {
        name: (described(i, 80, 0), described(i, 60, 1)) for i, name in enumerate(("one", "other"))
    }
    saes = {("text", 42): TopKSAE(lm.d_model, 24, 4, 0)}
    found = evaluating.crossed_probes(lm, saes, given, PROBING, 0)
    # either property can be read alone, and the confused probe cannot tell them apart
    assert (found.oracle > found.base + 0.1).all()
    alone = {"one": given["one"]}
    assert evaluating.crossed_probes(lm, saes, alone, PROBING, 0).empty


def test_no_test_text_is_a_copy_of_what_another_package_trains_on(lm, monkeypatch):
    """Packages copy from each other: a quarter of what one is tested on is the other's."""
    one, other = ([described(i, 60, seed) for seed in (0, 1)] for i in (0, 1))
    other[1] = tuple(
        [*tested, *trained[:20]] for tested, trained in zip(other[1], one[0], strict=True)
    )
    pooled, read = [], evaluating._pooled

    def spy(lm, saes, task, parts, probing):
        pooled.extend(texts for texts, _ in parts)
        return read(lm, saes, task, parts, probing)

    monkeypatch.setattr(evaluating, "_pooled", spy)
    saes = {("text", 42): TopKSAE(lm.d_model, 24, 4, 0)}
    evaluating.crossed_probes(lm, saes, {"one": one, "other": other}, PROBING, 0)
    trained, tested = pooled
    assert near_copies(one[0][0], other[1][0]) == 0.25
    assert near_copies(trained, tested) == 0
    assert len(trained) == len(tested) == 120


def test_a_server_without_a_key_is_noticed_before_any_pass(run, lm, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = {"model": "small", "url": "http://localhost:9/v1", "key_variable": "NO_SUCH_KEY"}
    judges = {"small": Judging(**server)}
    run = run.changed(evaluation=run.evaluation.changed(judges=judges))
    with pytest.raises(FeatureError, match="NO_SUCH_KEY is not set"):
        judges_beside(run, lm, 1)


def test_any_sae_on_any_model_by_one_command(tmp_path, model_folders, monkeypatch):
    sae = TopKSAE(16, 24, 4, 0)
    sae.to_dictionary_learning(tmp_path / "sae")
    text = tmp_path / "text.jsonl"
    words = [f"w{2 + (7 * i + i // 9) % 60}" for i in range(9000)]
    documents = [" ".join(words[i : i + 45]) for i in range(0, 9000, 45)]
    text.write_text("".join(json.dumps({"said": d}) + "\n" for d in documents))
    output = tmp_path / "out"
    place = ["--model", str(model_folders["llama"]), "--layer", "1", "--output", str(output)]
    sizes = ["--rows", "8", "--tokens", "6000"]
    call = ["faithful_sae", "evaluate", str(tmp_path / "sae"), *place, *sizes, "--text", str(text)]
    theirs = tmp_path / "theirs.json"
    metrics = {"sparsity": {"l0": 3.0}, "reconstruction_quality": {"mse": 0.5}}
    theirs.write_text(json.dumps({"eval_type_id": "core", "eval_result_metrics": metrics}))
    monkeypatch.setattr(sys, "argv", [*call, "--text-key", "said", "--beside", str(theirs)])
    command_line()
    beside = pd.read_csv(output / "beside_1.csv").drop_duplicates("metric")
    beside = beside.set_index("metric")
    assert beside.difference["l0"] == pytest.approx(beside.ours["l0"] - 3)
    assert "divides by the tokens of a batch" in beside.why["mse"]
    core = read_envelope(output / "saebench" / "this_SAE" / "core.json")
    l0 = pd.read_csv(output / "structure.csv").set_index("corpus").l0
    assert core.metrics["sparsity"]["l0"] == pytest.approx(l0["this SAE"])
    assert l0["identity"] == pytest.approx(16)
    tables = {path.stem: pd.read_csv(path) for path in output.glob("*.csv")}
    whole = tables["positions"].query("corpus == 'identity'")
    assert whole.ce_diff.abs().max() < 1e-5
    assert whole.explained_variance.min() == pytest.approx(1)
    beside = ["this SAE", "random dictionary", "PCA", "identity"]
    for name in ("structure", "positions", "ablated_probes", "crossed_probes"):
        assert [*dict.fromkeys(tables[name].corpus)] == beside, name
    # the source of a function is longer than these few rows
    assert tables["unlearning"].empty
    assert core.sae_cfg_dict["d_sae"] == load_sae(tmp_path / "sae").d_sae
    # a wrong field ends in one line, before anything is computed
    monkeypatch.setattr(sys, "argv", call)
    with pytest.raises(SystemExit) as ended:
        command_line()
    assert str(ended.value).strip().startswith(f"{text}")
    assert len(str(ended.value).strip().splitlines()) == 1


def test_only_results_of_the_same_definitions_stand_beside(tmp_path):
    theirs = tmp_path / "theirs.json"
    record = {"eval_type_id": "ravel", "eval_result_metrics": {}}
    theirs.write_text(json.dumps(record))
    with pytest.raises(ResultError, match="a result of ravel, and only those of core"):
        read_theirs(theirs)
    with pytest.raises(ResultError, match="not a readable JSON file"):
        read_theirs(tmp_path / "none.json")
