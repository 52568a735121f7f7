"""The untrained baselines: what is frozen, what is not, and that every table shows them without a
claim noticing.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from faithful_sae import TopKSAE, shared_feature_ratio, train_saes
from faithful_sae.engine.plan import corpus_settings
from faithful_sae.engine.steps import train_corpus
from faithful_sae.files import read_json, remove
from faithful_sae.metrics.sfr import compare_seeds
from faithful_sae.paper import figure_data, tables
from faithful_sae.paper.claims import claims
from faithful_sae.paper.plots import paper as plots
from faithful_sae.paper.plots.style import GREYS, corpus_looks
from faithful_sae.runs.catalogue import HALF
from faithful_sae.runs.rows import read_rows, write_rows
from faithful_sae.runs.schema import BASELINES, ParamsError
from faithful_sae.sae.recipe import RECIPES
from faithful_sae.sae.sae import SAEError, sae_bytes
from faithful_sae.sae.train import Training
from faithful_sae.sae.variants import PCA, FrozenDecoder, RandomDictionary, TopK, Variant
from faithful_sae.sae.variants.base import Moment
from faithful_sae.stages.budget import saes_bytes
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s02_train_sae import STAGE as TRAINING
from faithful_sae.stages.s02_train_sae import sae_artefact, sae_folder
from faithful_sae.stages.s03_sfr import seed_comparison
from faithful_sae.stages.s04_ffr import fake_features
from faithful_sae.stages.s05_fidelity import fidelity_matrix
from faithful_sae.stages.s06_probing import probe_tasks
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import activation_stream, corpus_is_trained, train_all

D, F, K, LR = 8, 24, 3, 2e-2
RANDOM, FROZEN = BASELINES
# 20 batches of 50
DATA = torch.randn(20, 50, D, generator=torch.Generator().manual_seed(4)) @ torch.randn(
    D, D, generator=torch.Generator().manual_seed(5)
)


def trained(variant, recipe="default", seeds=(7,)):
    return train_saes(list(DATA), D, F, variant, seeds, LR, 1000, 50, recipe)


# --- variants -------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_frozen_decoder_keeps_its_bytes_while_the_rest_learns(recipe):
    variant = FrozenDecoder(K)
    before = Training(variant.new(D, F, 7, "cpu"), variant, 1.0, RECIPES[recipe], 1).sae
    (sae,) = trained(variant, recipe)
    assert sae.W_dec.numpy().tobytes() == before.W_dec.numpy().tobytes()
    assert not torch.allclose(sae.W_enc, before.W_enc, atol=0.01)
    assert not torch.equal(sae.b_dec, before.b_dec)
    assert sae.b_enc.any() == RECIPES[recipe].train_b_enc
    (random,) = trained(RandomDictionary(K), recipe)
    errors = [(one.reconstruct(DATA) - DATA).square().mean() for one in (sae, random)]
    assert errors[0] < 0.9 * errors[1]
    loss = sae.training_log.loss
    assert loss.tail(3).mean() < loss.head(3).mean()


@pytest.mark.parametrize("dead", [(), (0, 5, 11, 17, 20, 23)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_gradients_of_what_is_not_frozen_are_autograds(recipe, dead):
    sae = TopKSAE(D, F, K, 1)
    sae.b_enc = 0.1 * torch.randn(F, generator=torch.Generator().manual_seed(2))
    for name, w in sae.weights.items():
        setattr(sae, name, w.double())
    moment = Moment(0.0, torch.tensor(dead, dtype=torch.int64), RECIPES[recipe])
    x = DATA[0].double()
    found = []
    for function in (TopK.loss_and_gradients, Variant.loss_and_gradients):
        parameters = FrozenDecoder(K).parameters(sae)
        gradients = {name: torch.full_like(w, torch.nan) for name, w in parameters.items()}
        function(FrozenDecoder(K), sae, x, moment, gradients)
        found.append(gradients)
    by_hand, by_autograd = found
    assert {*by_hand} == {"W_enc", "b_enc", "b_dec"}
    for name, gradient in by_hand.items():
        torch.testing.assert_close(gradient, by_autograd[name], rtol=0, atol=1e-13)
        assert gradient.abs().max() > 1e-4


def test_what_a_frozen_decoder_learns_is_what_topk_does_where_its_decoder_is_put_back():
    """The same optimiser, by another way: TopK, whose decoder is taken back after every step."""
    training = Training(TopKSAE(D, F, K, 7), TopK(K), LR, RECIPES["default"], 20)
    start = training.sae.W_dec.clone()
    for i, x in enumerate(DATA):
        training.step(i, x)
        training.sae.W_dec.copy_(start)
    (sae,) = trained(FrozenDecoder(K))
    torch.testing.assert_close(sae.W_enc, training.finish().W_enc, rtol=0, atol=1e-6)


def test_of_a_random_dictionary_only_b_dec_is_set():
    (sae,) = trained(RandomDictionary(K))
    new = TopKSAE(D, F, K, 7)
    for name in ("W_enc", "b_enc", "W_dec"):
        assert torch.equal(getattr(sae, name), getattr(new, name)), name
    assert torch.equal(sae.b_dec, DATA[0].mean(0))


def test_what_a_random_dictionary_does_is_measured_over_the_last_tenth():
    (sae,) = trained(RandomDictionary(K))
    last = DATA[18:].flatten(0, 1)
    fires = (sae.encode(last) > 0).float()
    torch.testing.assert_close(sae.firing, fires.mean(0), rtol=0, atol=1e-6)
    x = DATA[19].double()
    unexplained = ((x - sae.reconstruct(DATA[19])) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    row = sae.training_log.iloc[-1]
    assert row.fvu == pytest.approx(unexplained.item(), rel=1e-5)
    assert row.l0 == pytest.approx(fires[50:].sum().item() / 50)


def test_pca_has_numpys_components_and_explains_their_share_of_the_variance():
    """With k = D, every component of a token is kept, with one of its signs."""
    (sae,) = trained(PCA(D))
    first = DATA[0].double().numpy()
    _, sizes, components = np.linalg.svd(first - first.mean(0))
    cosine = np.abs((components * sae.W_dec[: 2 * D : 2].double().numpy()).sum(1))
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    assert torch.equal(sae.W_dec[1 : 2 * D : 2], -sae.W_dec[: 2 * D : 2])
    torch.testing.assert_close(sae.reconstruct(DATA), DATA, atol=1e-4, rtol=0)
    # the others fire nowhere
    assert not sae.encode(DATA[19])[:, 2 * D :].any()
    assert sae.training_log.dead.iloc[-1] == F - 2 * D
    # the first component alone
    sae.W_enc[:, 2:] = 0
    error = (sae.reconstruct(DATA[0]) - DATA[0]).square().sum() / (sizes**2).sum()
    assert error.item() == pytest.approx(1 - sizes[0] ** 2 / (sizes**2).sum(), rel=1e-4)


@pytest.mark.parametrize("variant", [FrozenDecoder(K), RandomDictionary(K), PCA(K)])
def test_a_training_goes_on_from_its_state(variant):
    def training():
        return Training(variant.new(D, F, 1, "cpu"), variant, 1e-2, RECIPES["default"], 20)

    first, second = training(), training()
    for i in range(9):
        first.step(i, DATA[i])
    tensors, numbers = first.state()
    second.restore({name: w.clone() for name, w in tensors.items()}, numbers)
    for i in range(9, 20):
        first.step(i, DATA[i])
        second.step(i, DATA[i])
    one, other = first.finish(), second.finish()
    for name, w in one.weights.items():
        assert torch.equal(w, other.weights[name]), name
    assert torch.equal(one.firing, other.firing)


# --- what they share ------------------------------------------------------------------------------


def test_random_dictionaries_share_nothing_and_their_pw_mcc_is_scipys():
    wide = 64
    x = torch.randn(500, wide, generator=torch.Generator().manual_seed(1))
    saes = train_saes([x], wide, 256, RandomDictionary(4), [1, 2], 1e-3, 500, 500)
    rows, _, _ = compare_seeds(dict(enumerate(saes)), x, 0.7, 0.0)
    draws = [torch.randn(256, wide, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    a, b = (w.double().numpy() / np.linalg.norm(w.numpy(), axis=1, keepdims=True) for w in draws)
    cosine = a @ b.T
    matched = cosine[linear_sum_assignment(cosine, maximize=True)]
    assert rows.sfr.item() == 0 == (matched >= 0.7).mean()
    assert rows.mean_cosine.item() == pytest.approx(matched.mean(), abs=1e-6)
    # the encoder of a random dictionary is its decoder
    assert rows.mean_encoder_cosine.item() == pytest.approx(matched.mean(), abs=1e-6)


def test_two_frozen_decoders_share_what_two_random_dictionaries_do():
    """Few dimensions, so that it is not 0."""
    frozen = trained(FrozenDecoder(K), seeds=(1, 2))
    random = trained(RandomDictionary(K), seeds=(1, 2))
    assert shared_feature_ratio(*frozen) == shared_feature_ratio(*random) > 0


# --- stages ---------------------------------------------------------------------------------------


@pytest.fixture
def with_baselines(make_run):
    run = make_run({"sae.baselines": "text"})
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    return run, lm


def test_they_come_behind_the_corpora_one_per_seed(with_baselines):
    run, lm = with_baselines
    names = ["faithful", "text", RANDOM, FROZEN]
    assert list(load_saes(run, lm)) == [(name, seed) for name in names for seed in (42, 49)]
    assert list(load_saes(run, lm, corpora=["text"])) == [("text", 42), ("text", 49)]
    saes = read_rows(run, "saes")
    assert saes.corpus.unique().tolist() == names
    assert saes.groupby("corpus").tokens.first()[[RANDOM, FROZEN]].tolist() == [0, 400]
    assert {*read_rows(run, "training").corpus} == {*names}


def test_they_are_made_of_the_corpus_in_its_order(with_baselines):
    run, lm = with_baselines
    saes = load_saes(run, lm)
    stream = activation_stream(run, "text", corpus(run, "text", lm), lm, 400)
    first = next(iter(stream)).float()
    assert torch.equal(saes[RANDOM, 42].b_dec, first.mean(0))
    assert torch.equal(saes[FROZEN, 42].W_dec, saes[RANDOM, 42].W_dec)
    assert not torch.equal(saes[FROZEN, 42].W_enc, saes[RANDOM, 42].W_enc)
    about = [saes[name, 42].metadata for name in BASELINES]
    assert [one["corpus"] for one in about] == ["text", "text"]
    assert [one["baseline"] for one in about] == [*BASELINES]
    assert [one["training_tokens"] for one in about] == [0, 400]


def test_they_are_reused_and_leave_the_saes_of_corpora_alone(with_baselines):
    run, lm = with_baselines

    def stamps(some):
        return [
            (sae_artefact(some, name) / "provenance.json").stat().st_mtime_ns
            for name in ("text", "faithful", RANDOM)
        ]

    before = stamps(run)
    assert corpus_is_trained(run, "text")
    train_all(run, lm)
    assert stamps(run) == before
    moved = run.changed(sae=run.sae.changed(baselines="faithful"))
    assert corpus_is_trained(run.changed(sae=run.sae.changed(baselines=None)), "text")
    assert not corpus_is_trained(moved, "faithful")
    train_all(moved, lm)
    assert stamps(moved)[:2] == before[:2]
    assert stamps(moved)[2] > before[2]
    without = run.changed(sae=run.sae.changed(baselines=None))
    train_all(without, lm)
    assert list(load_saes(without, lm)) == list(load_saes(run, lm, ["faithful", "text"]))


def test_the_step_of_their_corpus_makes_them(with_baselines, tmp_path):
    run, _ = with_baselines
    remove(sae_artefact(run, RANDOM))
    train_corpus(run.file, "faithful", tmp_path / "faithful.txt")
    assert not sae_artefact(run, RANDOM).exists()
    train_corpus(run.file, "text", tmp_path / "text.txt")
    assert sae_folder(run, RANDOM, 49).exists()
    said = [(tmp_path / f"{name}.txt").read_text().split() for name in ("faithful", "text")]
    records = [read_json(sae_artefact(run, name) / "provenance.json") for name in run.sae_names]
    faithful, text, baselines, same = (record["content"] for record in records)
    assert said == [[faithful], [text, baselines]]
    assert same == baselines


def test_the_step_depends_on_them_where_they_are_made(make_run):
    without, run = make_run(), make_run({"sae.baselines": "text"})
    assert corpus_settings(run, "text") != corpus_settings(without, "text")
    assert corpus_settings(run, "faithful") == corpus_settings(without, "faithful")
    for artefact in TRAINING.artefacts(run):
        if artefact.folder == sae_artefact(run, FROZEN):
            assert artefact.rows.name in ("text.txt", "saes.csv")


def test_what_they_take_is_counted(with_baselines):
    run, lm = with_baselines
    without = run.changed(sae=run.sae.changed(baselines=None))
    weights = sae_bytes(16, 24)
    kept = sum(file.stat().st_size for file in sae_artefact(run, RANDOM).rglob("sae_weights.*"))
    assert 4 * weights <= kept < 4 * (weights + 1000)
    assert TRAINING.disk(run, lm.shape) - TRAINING.disk(without, lm.shape) == 4 * weights
    assert saes_bytes(run, lm.shape) - saes_bytes(without, lm.shape) == 4 * weights
    assert TRAINING.tokens(run) - TRAINING.tokens(without) == 400


def test_a_pair_of_them_takes_less_than_an_sae_in_training():
    def taken(variant):
        training = Training(variant.new(D, F, 1, "cpu"), variant, LR, RECIPES["default"], 20)
        training.step(0, DATA[0])
        moments = [
            state[name]
            for state in training.optimiser.state.values()
            for name in ("exp_avg", "exp_avg_sq")
        ]
        held = [*training.sae.weights.values(), *training.gradients.values(), *moments]
        return sum(4 * tensor.numel() for tensor in held)

    one = taken(TopK(K))
    assert one == 4 * sae_bytes(D, F)
    assert taken(FrozenDecoder(K)) + taken(RandomDictionary(K)) < one


def test_a_damaged_one_is_refused(with_baselines):
    run, lm = with_baselines
    file = sae_folder(run, FROZEN, 49) / "sae_weights.safetensors"
    file.write_bytes((sae_folder(run, FROZEN, 42) / file.name).read_bytes())
    with pytest.raises(SAEError, match="seed49: its weights are not those"):
        load_saes(run, lm)


def test_every_measure_has_them(with_baselines):
    run, lm = with_baselines
    saes = load_saes(run, lm)
    tokens = pd.DataFrame({"token_id": range(64), "count": 1})
    write_rows(run, "first_token", tokens)
    seed_comparison(run, saes, lm)
    fake_features(run, saes, lm)
    fidelity_matrix(run, saes, lm)
    probe_tasks(run, saes, lm)
    for rows, column in (("sfr", "corpus"), ("ffr", "corpus"), ("fidelity", "trained_on")):
        assert {*BASELINES} <= {*read_rows(run, rows)[column]}, rows
    assert {*BASELINES} <= {*read_rows(run, "probing").corpus.dropna()}
    sfr = read_rows(run, "sfr").set_index("corpus")
    assert sfr.sfr[RANDOM] == sfr.sfr[FROZEN]
    assert sfr.mean_cosine[RANDOM] == sfr.mean_cosine[FROZEN]


@pytest.mark.parametrize(
    "changes",
    [
        {"sae.baselines": "nothing"},
        {"sae.baselines": "text", "sae.train_on": ["faithful"]},
    ],
)
def test_they_need_a_corpus_that_is_trained_on(make_run, changes):
    with pytest.raises(ParamsError, match="sae.baselines = '.*' must be a corpus of sae.train_on"):
        make_run(changes)


@pytest.mark.parametrize("name", BASELINES)
def test_no_corpus_is_called_like_one(make_run, name):
    with pytest.raises(ParamsError, match=f"corpora are folder names too: {name!r} may hold"):
        make_run({f"corpora.{name}": {"path": "text.jsonl", "text_key": "text"}})


# --- tables ---------------------------------------------------------------------------------------

KEYS = {"fidelity": "trained_on", "fidelity_rows": "trained_on"}


@pytest.fixture
def pair(make_measured_run):
    """(a run, the same with baselines that measure as its Pile does, but better)."""
    means = {"faithful": 0.5, "pile": 0.4, "fineweb": 0.45, "alpaca": 0.3}
    run = make_measured_run(
        "a",
        {role: [mean, mean + 0.004, mean - 0.004] for role, mean in means.items()},
        ffr={role: [mean, mean + 0.01, mean] for role, mean in means.items()},
        probing={"sst2": {role: [mean + 0.3] * 3 for role, mean in means.items()}},
        ce={role: [mean, mean, mean + 0.01] for role, mean in means.items()},
        corpus_ce={role: 4 - mean for role, mean in means.items()},
    )
    more = run.changed(sae=run.sae.changed(baselines="my-pile"))
    names = ("sfr", "ffr", "probing", "probing_texts", "fidelity", "fidelity_rows", "saes")
    kept = {name: read_rows(run, name) for name in (*names, "corpus_ce", "dataset")}
    outcome = claims([run]), tables.mechanism([run]), figure_data.mechanism([run])
    for name, rows in kept.items():
        if name in names:
            key = KEYS.get(name, "corpus")
            of_pile = rows.loc[rows[key] == "my-pile"]
            raised = {"sfr": 0.9, "ffr": 0.1, "accuracy": 0.95}
            better = {column: v for column, v in raised.items() if column in rows}
            parts = [of_pile.assign(**{key: kind}, **better) for kind in BASELINES]
            rows = pd.concat([rows, *parts], ignore_index=True)
        write_rows(more, name, rows)
    return outcome, more


def test_no_claim_notices_them(pair):
    (verdicts, mechanism, points), more = pair
    pd.testing.assert_frame_equal(claims([more]), verdicts)
    pd.testing.assert_frame_equal(tables.mechanism([more]), mechanism)
    pd.testing.assert_frame_equal(figure_data.mechanism([more]), points)
    assert (verdicts.verdict != "not testable").any()


@pytest.mark.parametrize(
    "table_id, roles", [("table2", tables.INSTRUCTION), ("table4", tables.WEB)]
)
def test_sfr_of_tables_2_and_4(pair, table_id, roles):
    _, run = pair
    table = tables.sfr_table([run], table_id, roles)
    here = table[table.source == "here"].iloc[0]
    for kind in BASELINES:
        assert here[kind] == 0.9
        assert here[f"{kind}{HALF}"] == 0
    long = figure_data.bars([run], table, roles)
    assert long.corpus.tolist().count(RANDOM) == 1
    assert list(dict.fromkeys(long.corpus))[-2:] == [RANDOM, FROZEN]
    plots.bars(long)


def test_the_other_tables(pair):
    _, run = pair
    table6, table7 = tables.table6([run]), tables.table7([run])
    assert all(table.columns[-1].startswith(FROZEN) for table in (table6, table7))
    accuracy = table6.loc[table6.source == "here", RANDOM].item()
    assert accuracy == pytest.approx(0.95)
    assert table7.loc[table7.source == "here", FROZEN].item() == pytest.approx(0.1)
    shared = tables.shared_features([run]).set_index("corpus")
    assert shared.index.tolist()[-2:] == [RANDOM, FROZEN]
    assert shared.SFR[RANDOM] == 0.9
    assert {*BASELINES} <= {*figure_data.probing([run]).corpus.dropna()}


def test_the_matrix_of_fidelity_has_them_last_and_outside_its_colours(pair):
    _, run = pair
    data = figure_data.fidelity(run)
    assert list(dict.fromkeys(data.trained_on))[-2:] == [RANDOM, FROZEN]
    data.loc[data.trained_on == RANDOM, "ce_diff"] = 1000.0
    among = data.loc[~data.trained_on.isin(BASELINES), "ce_diff"]
    (image,) = plots.matrix(data, "ce_diff", "").axes[0].images
    assert image.get_clim() == (among.min(), among.max())


def test_their_colours_are_grey():
    looks = corpus_looks(["faithful", RANDOM, "pile", FROZEN])
    assert (looks[RANDOM].colour, looks[FROZEN].colour) == GREYS
    without = corpus_looks(["faithful", "pile"])
    assert without == {name: looks[name] for name in without}
