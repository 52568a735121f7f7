"""Notebook 08's stage on a tiny model: plain SAEs are notebook 02's, the others of a layer come
from one stream, are reused when whole, and rows repeat.
"""

import numpy as np
import pandas as pd
import pytest

from conftest import SEED_DEPENDENCE
from faithful_sae.engine import plan, problems
from faithful_sae.files import MissingInputError
from faithful_sae.metrics.seed_dependence import means_over_seeds
from faithful_sae.metrics.sfr import shared_feature_ratio
from faithful_sae.paper.exhibits import notebook_exhibits
from faithful_sae.paper.plots import seeds as seed_plots
from faithful_sae.paper.seed_claims import findings
from faithful_sae.paper.verdicts import VERDICTS
from faithful_sae.runs.rows import read_rows
from faithful_sae.sae.sae import SAEError
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s08_seed_dependence import STAGE as SEED_STUDY
from faithful_sae.stages.s08_seed_dependence import study_seeds, train_seeds
from faithful_sae.stages.training import train_all, train_stream

SIZES = 1, 24, 4, 400  # layer, d_sae, k, tokens of the plain SAEs


@pytest.fixture
def make_trained(make_run):
    """A run with the SAEs of 02: make_trained({key: value}) -> Run."""

    def make(changes=None):
        alone = {"sae.train_on": ["text"], "sae.seeds": [1, 2, 3]}
        run = make_run(alone | {"seed_dependence": SEED_DEPENDENCE} | (changes or {}))
        train_all(run, open_model(run))
        return run

    return make


@pytest.fixture
def studied(make_trained):
    run = make_trained()
    return run, *train_seeds(run)


def stamp(run, layer):
    return (run.artifacts / "seed_saes" / f"layer{layer}" / "provenance.json").stat().st_mtime_ns


def test_every_sae_that_was_asked_for(studied):
    _, saes, summary = studied
    wanted = {(*SIZES, seed) for seed in (1, 2, 3)}
    wanted |= {
        (*sizes, seed)
        for seed in (1, 2)
        for sizes in ((1, 12, 4, 400), (1, 24, 2, 400), (1, 24, 4, 200), (0, 24, 4, 400))
    }
    assert (
        set(saes)
        == wanted
        == set(
            summary[["layer", "d_sae", "k", "tokens", "seed"]].itertuples(index=False, name=None)
        )
    )
    for (layer, d_sae, k, tokens, seed), sae in saes.items():
        assert (sae.d_sae, sae.k) == (d_sae, k)
        assert [sae.metadata[key] for key in ("layer", "training_tokens", "seed", "corpus")] == [
            layer,
            tokens,
            seed,
            "text",
        ]
    assert summary.weights.nunique() == len(summary)
    assert summary.fvu.between(0, 2).all()


def test_the_plain_saes_are_those_of_02(studied):
    run, _, summary = studied
    layer = run.artifacts / "seed_saes" / "layer1"
    assert {folder.name.rpartition("_")[0] for folder in layer.iterdir() if folder.is_dir()} == {
        "d_sae12_k4_tokens400",
        "d_sae24_k2_tokens400",
        "d_sae24_k4_tokens200",
    }
    of_02 = read_rows(run, "saes").set_index("seed")
    plain = summary[:3].set_index("seed")
    for column in ("weights", "fvu", "l0", "dead", "tokens"):
        assert plain[column].tolist() == of_02[column].tolist()


@pytest.mark.parametrize("budget", [385, 450, 900])
def test_an_sae_is_the_same_beside_others_with_larger_budgets(make_trained, budget):
    """02 trains those of one budget, the study others from a longer stream: what both would train
    must be the same bytes, weights and firing frequencies.

    The budget is six whole batches. A last batch that is cut short may be another one, where the
    longer stream has to go on in the next window to fill it.
    """
    run = make_trained({"sae.tokens": 384})
    lm = open_model(run)
    sizes = {"d_sae": 24, "k": 4, "tokens": 384}
    wanted = [{"name": f"plain{seed}", **sizes, "seed": seed} for seed in (1, 2, 3)]
    wanted.insert(1, {"name": "longer", "d_sae": 12, "k": 2, "tokens": budget, "seed": 1})
    folder = run.artifacts / "together"
    train_stream(run, "text", lm, corpus(run, "text", lm), folder, {}, wanted)
    for seed in (1, 2, 3):
        own = run.artifacts / "saes" / "text" / f"seed{seed}"
        for file in ("sae_weights.safetensors", "sparsity.safetensors"):
            assert (own / file).read_bytes() == (folder / f"plain{seed}" / file).read_bytes()


def test_damaged_saes_of_02_are_refused(studied):
    run, *_ = studied
    file = run.artifacts / "saes" / "text" / "seed2" / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(SAEError, match="seed2"):
        train_seeds(run)


def test_without_02_it_says_what_to_run(make_run):
    run = make_run({"seed_dependence": SEED_DEPENDENCE})
    with pytest.raises(MissingInputError, match="run notebooks/02_train_sae"):
        train_seeds(run)


def test_nothing_is_trained_where_nothing_is_swept(make_trained):
    run = make_trained({"seed_dependence": {"corpus": "text", "sweep_seeds": 2}})
    saes, summary = train_seeds(run)
    assert list(saes) == [(*SIZES, seed) for seed in (1, 2, 3)]
    assert len(summary) == 3
    assert not (run.artifacts / "seed_saes").exists()


def test_training_again_reuses_whole_layers_and_makes_damaged_ones_anew(studied, monkeypatch):
    run, saes, summary = studied
    before = stamp(run, 0), stamp(run, 1)
    again, same = train_seeds(run)
    assert (stamp(run, 0), stamp(run, 1)) == before
    assert list(again) == list(saes)
    pd.testing.assert_frame_equal(same, summary)
    file = (
        run.artifacts
        / "seed_saes"
        / "layer0"
        / "d_sae24_k4_tokens400_seed2"
        / "sae_weights.safetensors"
    )
    original = file.read_bytes()
    file.write_bytes(original[:-50])
    monkeypatch.setattr(problems, "ROOT", run.artifacts.parent.parent.parent)
    problems.take_possession([run])
    assert not (
        run.artifacts / "rows" / "seed_saes.csv"
    ).exists()  # so that Snakemake runs the notebook again
    train_seeds(run)
    assert file.read_bytes() == original
    assert stamp(run, 1) == before[1]
    assert stamp(run, 0) > before[0]


def test_a_changed_sweep_retrains_its_layer_alone(studied):
    run, *_ = studied
    before = stamp(run, 0), stamp(run, 1)
    train_seeds(run.changed(seed_dependence=run.seed_dependence.changed(k=(3,))))
    assert stamp(run, 0) == before[0]
    assert stamp(run, 1) > before[1]


def test_budgets_beyond_the_corpus_are_one_sae(make_trained, capsys):
    run = make_trained(
        {"seed_dependence": SEED_DEPENDENCE | {"tokens": [200, 5000, 6000], "layers": []}}
    )
    capsys.readouterr()
    _, summary = train_seeds(run)
    assert "sae.max_epochs = 2" in capsys.readouterr().out
    assert (
        summary.tokens.nunique() == 3 and len(summary[summary.tokens > 400]) == 2
    )  # 200, 400 and the most there is


def test_rows(studied):
    run, saes, _ = studied
    rows = study_seeds(run, saes)
    pairs = rows["seed_pairs"]
    assert pairs.groupby("sweep").size().to_dict() == {
        "seeds": 3,
        "d_sae": 2,
        "k": 2,
        "tokens": 2,
        "layer": 2,
    }
    for row in pairs[pairs.sweep == "seeds"].itertuples():
        a, b = (saes[(*SIZES, seed)] for seed in (row.seed_a, row.seed_b))
        assert row.shared == shared_feature_ratio(a, b, 0.7, "encoder+decoder")
        assert row.shared_decoder == shared_feature_ratio(a, b, 0.7)
    tokens = pairs[(pairs.sweep == "tokens") & (pairs.value == 200)].iloc[0]
    assert tokens.shared_decoder == shared_feature_ratio(
        saes[1, 24, 4, 200, 1], saes[1, 24, 4, 200, 2], 0.7
    )
    layer = pairs[(pairs.sweep == "layer") & (pairs.value == 0)].iloc[0]
    assert layer.shared_decoder == shared_feature_ratio(
        saes[0, 24, 4, 400, 1], saes[0, 24, 4, 400, 2], 0.7
    )
    plain = pairs[pairs.sweep == "seeds"].iloc[0]
    for sweep, value in (
        ("d_sae", 24),
        ("k", 4),
        ("tokens", 400),
        ("layer", 1),
    ):  # each sweep goes through the plain SAEs
        row = pairs[(pairs.sweep == sweep) & (pairs.value == value)].iloc[0]
        assert row.shared == plain.shared
        assert row.mmcs == plain.mmcs
    cut = (
        rows["seed_threshold"].query("definition == 'shared_decoder' and threshold == 0.7").iloc[0]
    )
    shares = pairs[pairs.sweep == "seeds"].shared_decoder
    np.testing.assert_allclose(cut["share"], shares.mean())
    assert cut["share_low"] <= shares.mean() <= cut["share_high"]
    # every seed is a base, and every pair is tested
    assert rows["seed_who"].base.tolist() == [1, 2, 3]
    assert len(rows["seed_sharing"]) == 3 * 24
    assert len(rows["seed_modes"]) == 3
    files = {f.name: f.read_bytes() for f in (run.artifacts / "rows").glob("seed_*.csv")}
    assert set(files) == {f"{name}.csv" for name in SEED_STUDY.rows}
    study_seeds(run, train_seeds(run)[0])
    assert files == {f.name: f.read_bytes() for f in (run.artifacts / "rows").glob("seed_*.csv")}


def test_figures_and_findings_of_tiny_rows(studied):
    run, saes, _ = studied
    rows = study_seeds(run, saes)
    latents = rows["seed_latents"].assign(threshold=0.7)
    firing = rows["seed_sharing"].query("base == 1").assign(threshold=0.7, others=2)
    pairs = rows["seed_pairs"]
    swept = pairs[pairs.sweep != "seeds"].assign(plain=24)
    drawn = ["shared", "shared_decoder", "dead", "mmcs", "matched_cosine"]
    means = means_over_seeds(swept, ["sweep", "value"], drawn)
    swept = swept.merge(means, on=["sweep", "value"], suffixes=("", "_mean"))
    for draw, data in (
        (seed_plots.matched_cosines, latents),
        (seed_plots.matched_cosines, latents.assign(agree=True, decoder_cosine=1.0)),
        (seed_plots.firing, firing),
        (seed_plots.firing, firing.assign(firing=0.0)),
        (seed_plots.maximum_cosines, latents),
        (seed_plots.only_in_base, rows["seed_extrapolated"]),
        (seed_plots.thresholds, rows["seed_threshold"].assign(chosen=0.7)),
        (seed_plots.sweeps, swept),
        (seed_plots.mean_cosines, swept),
        (seed_plots.sweeps, swept[:0]),
    ):
        assert draw(data).get_axes()
    table = findings(run, rows)
    assert set(table.verdict) <= {*VERDICTS}
    assert not table.measured.str.contains("nan").any()


def test_a_run_without_the_section_has_no_08(make_run):
    without, with_it = make_run(name="a"), make_run({"seed_dependence": SEED_DEPENDENCE}, name="b")
    assert plan.stages([without]) == [s for s in plan.stages([with_it]) if s != SEED_STUDY]
    assert not notebook_exhibits(without, SEED_STUDY.name)
    assert len(notebook_exhibits(with_it, SEED_STUDY.name)) == 8
    made = [f for f in plan.profile_outputs([without, with_it]) if "seed_" in f.rsplit("/", 1)[1]]
    assert made
    assert all("/b/" in f or "_b." in f for f in made)
    assert not any(
        "seed_" in f.rsplit("/", 1)[1] for f in plan.paper_inputs([without, with_it])
    )  # 07 does not wait for 08
