"""Curves over training and SAEs with something in common: measures by hand and by scipy, planted
worlds for the verdicts, and the study on a tiny model.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist, cosine

from conftest import TEXT
from faithful_sae import TopKSAE, match_features, train_saes
from faithful_sae.engine.problems import problems
from faithful_sae.metrics.learning import agreement, cosines_by_number, difference_at_equal
from faithful_sae.metrics.sfr import shared_feature_ratio
from faithful_sae.metrics.uncertainty import mean_within
from faithful_sae.paper import learning as shown
from faithful_sae.paper.verdicts import AGREES, DISAGREES, NO_DIFFERENCE, NOT_TESTABLE
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.activations import ActivationStream
from faithful_sae.sae.remembered import remembered
from faithful_sae.stages import training
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s16_learning import (
    FACTORS,
    Draw,
    folder,
    measure_budgets,
    measure_shared,
    shared_folder,
    train_budgets,
    untrained,
)
from faithful_sae.stages.training import activation_stream, train_all

# --- measures -------------------------------------------------------------------------------------


def test_cosines_by_number_are_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 5))
    found = cosines_by_number(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx([1 - cosine(x, y) for x, y in zip(a, b, strict=True)])


def test_a_row_of_zeros_is_like_nothing():
    assert cosines_by_number(torch.zeros(1, 3), torch.ones(1, 3)) == 0


def test_dictionaries_of_two_sizes_have_no_numbers_in_common():
    with pytest.raises(ValueError, match="have other rows"):
        cosines_by_number(torch.eye(3), torch.eye(4))


def test_agreement_of_the_same_rows_in_another_order():
    """Of four rows two have changed places: by number they have nothing."""
    a = torch.eye(4)
    b = a[[1, 0, 2, 3]]
    found = agreement(a, b, match_features(a, b), 0.7)
    assert (found.sfr, found.cosine) == (1, 1)
    assert (found.sfr_by_number, found.cosine_by_number, found.kept) == (0.5, 0.5, 0.5)


def test_agreement_is_what_scipys_assignment_gives():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(30, 6))
    b = a[rng.permutation(30)] + rng.normal(size=(30, 6))
    similarity = 1 - cdist(a, b, "cosine")
    rows, columns = linear_sum_assignment(similarity, maximize=True)
    matched = similarity[rows, columns]
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    found = agreement(a, b, match_features(a, b), 0.7)
    assert found.sfr == (matched >= 0.7).mean()
    assert found.cosine == pytest.approx(matched.mean())
    assert found.kept == (rows == columns).mean()


def test_difference_at_equal_by_hand():
    """One goes on to x = 1, the other to 2: there the one is midway between .4 and .8."""
    end, throughout = difference_at_equal([5, 3, 1], [0, 0.4, 0.8], [4, 2], [0.2, 0.4])
    assert end == pytest.approx(0.6 - 0.4)
    # from 4 on: 0 above at 4, .4 - .3 at 3, .2 at 2
    assert throughout == pytest.approx((0.0 + 0.1) / 4 + (0.1 + 0.2) / 4)


def test_difference_throughout_is_that_on_a_fine_grid():
    rng = np.random.default_rng(2)
    for _ in range(20):
        x, other_x = -np.sort(-rng.uniform(size=(2, 6)), axis=1)
        y, other_y = rng.normal(size=(2, 6))
        low, high = max(x[-1], other_x[-1]), min(x[0], other_x[0])
        end, throughout = difference_at_equal(x, y, other_x, other_y)
        grid = np.linspace(low, high, 200_001)
        above = np.interp(grid, x[::-1], y[::-1]) - np.interp(grid, other_x[::-1], other_y[::-1])
        assert end == pytest.approx(above[0])
        assert throughout == pytest.approx(above.mean(), abs=1e-4)


def test_curves_of_one_course_differ_nowhere_however_far_each_comes():
    def sfr(x):
        return 1 - 2 * np.asarray(x)

    slow, fast = [0.5, 0.4, 0.3], [0.45, 0.3, 0.1]
    found = difference_at_equal(slow, sfr(slow), fast, sfr(fast))
    assert found == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("x", "other_x"),
    [([3, 2], [1, 0.5]), ([3, 3], [3, 1]), ([2, 3], [3, 1]), ([3], [3, 1])],
    ids=["nowhere as far", "level", "rising", "a point"],
)
def test_curves_that_cannot_be_compared(x, other_x):
    found = difference_at_equal(x, [0.1, 0.2][: len(x)], other_x, [0.1, 0.2])
    assert np.isnan(found).all()


def test_a_mean_within_some_seeds_counts_pairs_of_these_alone():
    values = {(1, 2): 1.0, (1, 3): 2.0, (2, 3): 6.0}
    assert mean_within(values, [1, 2, 3]) == 3
    assert mean_within(values, [1, 3]) == 2
    assert np.isnan(mean_within(values, [1]))


# --- a model that is read once --------------------------------------------------------------------


def test_what_is_remembered_is_what_the_model_says(lm, rows):
    read = remembered(lm, rows, 3)
    chosen = torch.from_numpy(rows[[7, 2]])
    torch.testing.assert_close(read.activations(chosen), lm.activations(chosen))
    assert read.bos_id == lm.bos_id


def test_the_stream_of_a_remembered_model_reads_no_more(lm, rows, monkeypatch):
    read = remembered(lm, np.concatenate([rows, rows[:2]]), 4)
    monkeypatch.setattr(type(lm), "activations", None)
    sizes = {"n_tokens": 150, "batch_tokens": 40, "buffer_tokens": 80, "lm_batch_rows": 3}
    batches = [*ActivationStream(read, rows[:5], **sizes, include_bos=False, seed=1)]
    assert sum(map(len, batches)) == 150


def test_a_row_that_was_not_read_is_not_known(lm, rows):
    read = remembered(lm, rows[:2], 2)
    with pytest.raises(KeyError):
        read.activations(torch.from_numpy(rows[2:3]))


# --- verdicts on planted worlds -------------------------------------------------------------------

SEEDS = (42, 49, 1, 2, 3, 4)
LEARNING = {
    "corpora": ["faithful", "text"],
    "text": "other",
    "tokens": [100, 200],
    "rows": 6,
    "replicates": 2,
    "sample": 200,
    "passes": [1, 2],
}
CHANGES = {"corpora.other": TEXT, "learning": LEARNING}


def over_training(speed, gift=0.0):
    """Rows of two corpora. FVU falls with speed x tokens, SFR is a line in FVU, and the model's own
    text shares more by a gift; with some noise over seeds.
    """
    rng = np.random.default_rng(0)
    saes, pairs = [], []
    for name, tokens in itertools.product(speed, (1, 2, 3, 4)):
        come = speed[name] * tokens
        for seed in SEEDS:
            noise = rng.normal(0, 0.001, 3)
            which = {"corpus": name, "tokens": 100 * tokens, "seed": seed}
            fvu = 0.5 - 0.05 * come
            saes.append(
                which
                | {"fvu_own": fvu + noise[0], "fvu_text": fvu + noise[1], "start": fvu + noise[2]}
            )
        for a, b in itertools.combinations(SEEDS, 2):
            sfr = 0.1 * come + gift * (name == "faithful") + rng.normal(0, 0.002)
            which = {"corpus": name, "tokens": 100 * tokens, "seed_a": a, "seed_b": b}
            pairs.append(which | {"sfr": sfr, "cosine": sfr})
    return {"learning_saes": pd.DataFrame(saes), "learning_pairs": pd.DataFrame(pairs)}


def pairs_with(worth):
    """Rows of replicates: SFR is what each thing in common is worth, by passes."""
    rng = np.random.default_rng(1)
    table = []
    for seed, passes, flags in itertools.product(
        SEEDS, worth, itertools.product((True, False), repeat=3)
    ):
        alike = dict(zip(FACTORS, flags, strict=True))
        if not all(flags):
            base, *each = worth[passes]
            sfr = base + np.dot(each, flags) + rng.normal(0, 0.003)
            measured = dict.fromkeys(shown.SHARED, sfr)
            table.append({"seed": seed, "passes": passes, **alike, **measured})
    return {"learning_shared": pd.DataFrame(table)}


# nothing in common; then what initialisation, order and sample add
CONVERGING = {0: (0.2, 0.8, 0, 0), 1: (0.3, 0.5, 0, 0), 4: (0.4, 0.2, 0.0, 0.05)}
STUCK = {0: (0.2, 0.8, 0, 0), 1: (0.2, 0.7, 0, 0), 4: (0.2, 0.7, 0.0, 0.0)}


@pytest.fixture
def run(make_run):
    return make_run(CHANGES | {"sae.seeds": [*SEEDS]})


def verdicts(run, speed, gift=0.0, worth=CONVERGING):
    table = shown.findings(run, over_training(speed, gift) | pairs_with(worth))
    return dict(zip(table.question, table.verdict, strict=True))


def at_equal(found):
    return [verdict for question, verdict in found.items() if question.startswith("At equal")]


def test_a_corpus_that_is_merely_learnt_faster_is_not_called_more_stable(run):
    found = verdicts(run, {"faithful": 1.5, "text": 1.0})
    (faster,) = (verdict for question, verdict in found.items() if "learnt faster" in question)
    assert faster == AGREES
    assert at_equal(found) == [AGREES, *[NO_DIFFERENCE] * 3]


def test_a_corpus_that_is_learnt_slower_may_be_more_stable(run):
    found = verdicts(run, {"faithful": 1.0, "text": 1.5}, gift=0.06)
    assert at_equal(found) == [DISAGREES, *[AGREES] * 3]


def test_trainings_that_come_nowhere_as_far_are_not_judged(run):
    found = verdicts(run, {"faithful": 1.0, "text": 9.0})
    assert at_equal(found)[1:] == [NOT_TESTABLE] * 3


def test_the_planted_difference_is_in_the_table(run):
    rows = over_training({"faithful": 1.0, "text": 1.5}, gift=0.06)
    made = shown.equal(run, rows).set_index("at equal")
    assert made["at the end"]["training tokens"] == pytest.approx(0.06 - 0.2, abs=0.005)
    assert made["at the end"]["FVU on own text"] == pytest.approx(0.06, abs=0.005)
    assert made["throughout"]["distance from the start"] == pytest.approx(0.06, abs=0.005)
    assert (made["at the end ±"] < 0.01).all()


def test_what_is_in_common_is_told_apart(run):
    found = verdicts(run, {"faithful": 1.0, "text": 1.0})
    said = "costs more shared features than another"
    assert found[f"Another initialisation {said} sample"] == AGREES
    assert found[f"Another initialisation {said} order"] == AGREES
    assert found[f"Another sample {said} order"] == AGREES
    assert found["What a common start adds fades with training"] == AGREES


def test_saes_that_stay_where_they_began_do_not_converge(run):
    found = verdicts(run, {"faithful": 1.0, "text": 1.0}, worth=STUCK)
    assert found["What a common start adds fades with training"] == NO_DIFFERENCE
    (converge,) = (verdict for question, verdict in found.items() if "converge" in question)
    assert converge == NO_DIFFERENCE


def test_kinds_of_pairs_are_in_order_and_have_their_means():
    made = shown.in_common(pairs_with(CONVERGING))
    last = made.loc[made.passes == 4]
    assert last["in common"].tolist() == [
        "nothing",
        "initialisation",
        "order",
        "sample",
        "initialisation + order",
        "initialisation + sample",
        "order + sample",
    ]
    wanted = [0.4, 0.6, 0.4, 0.45, 0.6, 0.65, 0.45]
    assert last.SFR.to_numpy() == pytest.approx(wanted, abs=0.005)


# --- the study ------------------------------------------------------------------------------------


@pytest.fixture
def study(make_run):
    run = make_run(CHANGES)
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    return run, lm


def test_saes_with_fewer_tokens_are_those_of_the_beginning_of_the_stream(study):
    run, lm = study
    s = run.sae
    saes = train_budgets(run, lm)
    assert {*saes} == {*itertools.product(LEARNING["corpora"], (100, 200, 400), (42, 49))}
    batches = [*activation_stream(run, "text", corpus(run, "text", lm), lm, 100)]
    (alone,) = train_saes(batches, 16, s.d_sae, s.k, [49], s.lr, 100, s.batch_tokens)
    assert torch.equal(saes["text", 100, 49].W_dec, alone.W_dec)
    stamp = (folder(run, "text") / "provenance.json").stat().st_mtime_ns
    train_budgets(run, lm)
    assert (folder(run, "text") / "provenance.json").stat().st_mtime_ns == stamp


def test_curves_are_of_these_saes(study):
    run, lm = study
    saes = train_budgets(run, lm)
    measured, pairs = measure_budgets(run, lm, saes)
    sae = saes["text", 200, 42]
    ids = torch.from_numpy(np.array(corpus(run, "text", lm).heldout[:6], np.int64))
    x = lm.activations(ids)[ids != lm.bos_id].double().numpy()
    error = np.square(x - sae.reconstruct(torch.from_numpy(x).float()).double().numpy()).sum()
    row = measured.set_index(["corpus", "tokens", "seed"]).loc["text", 200, 42]
    assert row.fvu_own == pytest.approx(error / np.square(x - x.mean(0)).sum(), rel=1e-5)
    assert row.fvu_own == pytest.approx(row.fvu_text, rel=0.5)
    pair = pairs.set_index(["corpus", "tokens"]).loc["faithful", 100]
    two = [saes["faithful", 100, seed] for seed in (42, 49)]
    assert pair.sfr == shared_feature_ratio(*two)
    made = shown.curves(run, {"learning_saes": measured, "learning_pairs": pairs})
    assert made.tokens.tolist() == [100, 200, 400] * 2
    assert made.sfr.iloc[0] == pair.sfr


@pytest.mark.parametrize("recipe", ["default", "authors"])
def test_untrained_is_what_a_training_starts_from(make_run, lm, recipe):
    """A step so small that no row moves."""
    run = make_run({"sae.recipe": recipe})
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    s = run.sae
    (still,) = train_saes([x], 16, s.d_sae, s.k, [42], 1e-12, 64, 64, recipe)
    begun = untrained(run, lm, 42).W_dec
    torch.testing.assert_close(torch.nn.functional.normalize(begun, dim=-1), still.W_dec)


def test_before_training_only_the_initialisation_counts(study):
    run, lm = study
    table = measure_shared(run, lm)
    assert len(table) == 2 * 3 * 28
    before = table.loc[table.passes == 0]
    assert before.loc[before.initialisation, [*shown.SHARED]].to_numpy() == pytest.approx(1)
    assert before.loc[~before.initialisation].cosine.max() < 0.9
    assert table.groupby(["seed", "passes"])[[*FACTORS]].sum().eq(12).all(axis=None)
    stamp = (shared_folder(run, 42, 1, 1) / "provenance.json").stat().st_mtime_ns
    assert measure_shared(run, lm).equals(table)
    assert (shared_folder(run, 42, 1, 1) / "provenance.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("factor", FACTORS)
def test_what_two_saes_have_in_common_is_said(study, monkeypatch, factor):
    """SAEs that hang on one of the three alone are the same where it is in common."""
    run, lm = study

    def trained(at, name, lm, rows, folder, parameters, wanted):
        drawn = {"order": at.sae.data_seed, "sample": int(np.asarray(rows.train).sum())}
        return {
            entry["name"]: TopKSAE(16, 24, 4, (drawn | {"initialisation": entry["seed"]})[factor])
            for entry in wanted
        }

    monkeypatch.setattr(training, "trained_stream", trained)
    table = measure_shared(run, lm)
    after = table.loc[table.passes > 0]
    assert after.loc[after[factor], "cosine"].to_numpy() == pytest.approx(1)
    assert after.loc[~after[factor], "cosine"].max() < 0.9


def test_a_replicate_has_two_of_each_and_samples_are_disjoint(study, monkeypatch):
    run, lm = study
    seen = []

    def trained(at, name, lm, rows, folder, parameters, wanted):
        seen.append((at.sae.data_seed, rows.train, wanted))
        return {
            entry["name"]: TopKSAE(16, run.sae.d_sae, run.sae.k, entry["seed"]) for entry in wanted
        }

    monkeypatch.setattr(training, "trained_stream", trained)
    measure_shared(run, lm)
    first = seen[:4]
    assert [order for order, *_ in first] == [o for o in Draw.of(42).orders for _ in range(2)]
    a, b, again, _ = (rows for _, rows, _ in first)
    assert np.array_equal(a, again)
    together = {row.tobytes() for row in a} | {row.tobytes() for row in b}
    # the text itself repeats no row
    assert len(together) == len(a) + len(b) == 2 * (200 // 12)
    tokens = [entry["tokens"] for entry in first[0][2]]
    content = int((a != lm.bos_id).sum())
    assert tokens == [content, content, 2 * content, 2 * content]
    assert {entry["seed"] for *_, wanted in first for entry in wanted} == {
        *Draw.of(42).initialisations
    }
    assert Draw.of(42) != Draw.of(49)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning.corpora": ["faithful"]}, "must name two corpora or more"),
        ({"learning.corpora": ["faithful", "other"]}, "'other', which is not in sae.train_on"),
        ({"learning.text": "text"}, "SAEs that are measured on it are trained on it"),
        ({"learning.text": "elsewhere"}, "which is not under `corpora`"),
        ({"learning.tokens": [200, 100]}, r"learning\.tokens = \[200, 100\] must rise"),
        ({"learning.tokens": [10]}, "from sae.batch_tokens = 64 on"),
        ({"learning.tokens": [400]}, "below sae.tokens = 400"),
        ({"learning.tokens": []}, r"learning\.tokens = \[\] must rise"),
        ({"learning.seeds": [7]}, "must list some of sae.seeds"),
        ({"sae.seeds": [42]}, "there is one: add another, or write null"),
        ({"learning.replicates": 3}, "between 1 and the number of seeds, 2"),
        ({"learning.sample": 100}, "must hold a row and two batches, 128 tokens"),
        ({"learning.sample": 250}, "at most half of what a corpus has to train on, 240"),
        ({"learning.passes": [2]}, "must be two numbers or more"),
        ({"learning.passes": [1, 3]}, "at most sae.max_epochs = 2"),
        ({"sae.variant": {"name": "end_to_end"}}, "trained on whole rows"),
        (
            {"sae.published": {"text": {"path": "some/seed{seed}"}}},
            "which is in sae.published: its SAEs have no training to follow",
        ),
    ],
)
def test_a_study_that_cannot_be_made(make_run, changes, said):
    with pytest.raises(ParamsError, match=said):
        make_run(CHANGES | changes)


def test_a_study_that_can_be_made_has_no_problems(make_run):
    assert [*problems([make_run(CHANGES)])] == []
