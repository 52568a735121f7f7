"""Notebook 12: from SAEs to rows, from rows to tables and verdicts, and the command that evaluates
any SAE. The measures themselves are tested where they are defined.
"""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import EVALUATION
from faithful_sae import TopKSAE
from faithful_sae.metrics.saebench import read_envelope
from faithful_sae.paper import evaluation as shown
from faithful_sae.runs.rows import write_rows
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.sae import load_sae
from faithful_sae.stages import evaluating
from faithful_sae.stages.s12_evaluation import evaluated, group_latents

SEEDS = (42, 49, 1, 2)


@pytest.fixture
def run(make_run):
    return make_run({"sae.seeds": [*SEEDS], "evaluation": EVALUATION})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("corpora", ["text", "elsewhere"], "names 'elsewhere', which is not in sae.train_on"),
        ("corpora", ["text", "text"], "one corpus or two, each once"),
        ("text", "elsewhere", "which is not under `corpora`"),
        ("forget", "text", "what is forgotten cannot be kept"),
        ("window", 12, "must be less than sequence_length = 12"),
        ("edges", [8, 4], "must rise"),
        ("tokens", 100, "at least 16 rows of sequence_length"),
        ("budget", 1, "at least 2"),
        ("seeds", [7], "must list some of sae.seeds"),
    ],
)
def test_parameters_that_make_no_sense(make_run, key, value, said):
    with pytest.raises(ParamsError, match=said):
        make_run({"evaluation": EVALUATION | {key: value}})


def test_of_baselines_two_seeds_are_evaluated(make_run):
    run = make_run({"sae.seeds": [*SEEDS], "sae.baselines": "text", "evaluation": EVALUATION})
    names = evaluated(run)
    assert names[:4] == [("faithful", seed) for seed in SEEDS]
    assert names[8:] == [(name, seed) for name in run.baselines for seed in (42, 49)]


def test_the_middle_of_equal_parts():
    assert evaluating.spread(range(10), 2) == [2, 7]
    assert evaluating.spread(range(3), 5) == [0, 1, 2]


def test_copies_of_one_sae_share_all_latents_and_others_none(run):
    same = TopKSAE(16, 24, 4, 0)
    same.firing = np.full(24, 0.5)
    saes = {}
    for seed in SEEDS:
        other = TopKSAE(16, 24, 4, seed)
        for sae, corpus in ((same, "faithful"), (other, "text")):
            import torch

            sae.firing = torch.full((24,), 0.5)
            saes[corpus, seed] = sae
    firing = [
        {"corpus": corpus, "seed": seed, "latent": latent, "frequency": latent / 100}
        for corpus, seed in saes
        for latent in range(24)
    ]
    write_rows(run, "firing", pd.DataFrame(firing))
    groups, pairs = group_latents(run, saes)
    shared = groups.groupby("corpus").seeds_sharing
    assert shared.min()["faithful"] == 3
    assert shared.max()["text"] < 3
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
    """Every second latent is shared; none is fake."""
    return pd.DataFrame(
        {
            "corpus": corpus,
            "seed": seed,
            "latent": latent,
            "fake": False,
            "seeds_sharing": latent % 2,
        }
        for corpus in ("faithful", "text")
        for seed in SEEDS
        for latent in range(latents)
    )


def verdicts(run, score):
    rows = {"interpretation": interpretation(score), "latent_groups": groups()}
    table = shown.findings(run, rows)
    return {question.split(" ")[0]: row for question, row in table.set_index("question").iterrows()}


def test_planted_differences_get_their_verdicts(run):
    noise = np.random.default_rng(0)

    def score(corpus, seed, latent):
        better = 0.1 * (latent % 2) + 0.05 * (corpus == "faithful")
        return 0.6 + better + 0.02 * noise.normal()

    found = verdicts(run, score)
    assert found["Shared"].verdict == "agrees"
    assert found["Shared"].effect == pytest.approx(0.1, abs=0.02)
    # no orphan is above half of the shared ones, with any seed: nothing tells how sure that is
    assert found["Yet"].verdict == "undecided"
    assert found["Latents"].verdict == "agrees"
    assert found["Latents"].effect == pytest.approx(0.05, abs=0.01)
    assert found["Fake"].verdict == "not testable"


def test_a_difference_that_is_one_of_firing_alone_is_none(run):
    """Shared latents score higher only since those that fire often do."""
    noise = np.random.default_rng(1)
    rows = {
        "interpretation": interpretation(
            lambda corpus, seed, latent: 0.5 + 0.01 * latent + 0.001 * noise.normal()
        ),
        "latent_groups": groups().assign(seeds_sharing=lambda t: (t.latent > 19).astype(int)),
    }
    part = rows["interpretation"].merge(rows["latent_groups"], on=["corpus", "seed", "latent"])
    raw = part.groupby("seeds_sharing").detection_random.mean()
    assert raw[1] - raw[0] == pytest.approx(0.2, abs=0.01)
    table = shown.findings(run, rows)
    # no tenth by density has both kinds
    assert table.verdict[0] == "not testable"


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


def test_any_sae_on_any_model_by_one_command(tmp_path, model_folders):
    sae = TopKSAE(16, 24, 4, 0)
    sae.to_dictionary_learning(tmp_path / "sae")
    text = tmp_path / "text.jsonl"
    words = [f"w{2 + (7 * i + i // 9) % 60}" for i in range(9000)]
    documents = [" ".join(words[i : i + 45]) for i in range(0, 9000, 45)]
    text.write_text("".join(json.dumps({"said": d}) + "\n" for d in documents))
    output = tmp_path / "out"
    call = [sys.executable, "-P", "-m", "faithful_sae", "evaluate"]
    place = ["--model", str(model_folders["llama"]), "--layer", "1", "--output", str(output)]
    sizes = ["--rows", "8", "--tokens", "6000"]
    run = [*call, str(tmp_path / "sae"), *place, *sizes, "--text", str(text)]
    done = subprocess.run(
        [*run, "--text-key", "said"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    core = read_envelope(output / "saebench" / "this_SAE" / "core.json")
    l0 = pd.read_csv(output / "structure.csv").set_index("corpus").l0
    assert core.metrics["sparsity"]["l0"] == pytest.approx(l0["this SAE"])
    assert l0["identity"] == pytest.approx(16)
    assert core.sae_cfg_dict["d_sae"] == load_sae(tmp_path / "sae").d_sae
    # a wrong field ends in one line, before anything is computed
    done = subprocess.run(run, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].strip().startswith(f"{text}")
