"""A domain with little text: what own text is worth by hand, which text each SAE reads, the study,
and verdicts on planted numbers.
"""

import math

import numpy as np
import pandas as pd
import pytest

from faithful_sae import fidelity
from faithful_sae.metrics.domain import worth
from faithful_sae.paper import domain as shown
from faithful_sae.paper.estimates import weighted_sum
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s19_domain import (
    Arm,
    arm_text,
    arms,
    folder,
    measure_arms,
    train_arms,
)
from faithful_sae.stages.training import train_all

SECTION = {
    "corpus": "text",
    "own": "faithful",
    "text": "text",
    "shares": [0.25, 1.0],
    "seeds": None,
    "tokens": 300,
    "budgets": [0.25, 1.0],
    "rows": 6,
}
CHANGES = {"domain": SECTION, "generate.tokens": 600, "corpus_tokens": 900}

# --- what another text is worth -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "expected"),
    [(-1, 0), (0, 0), (0.5, 10**-1.5), (1, 0.1), (1.5, 10**-0.5), (2, 1), (2.1, math.inf)],
)
def test_worth_by_hand(level, expected):
    assert worth([0.01, 0.1, 1], [0, 1, 2], level) == pytest.approx(expected)


def test_worth_is_where_numpy_interpolates_to_the_level():
    rng = np.random.default_rng(0)
    for _ in range(50):
        shares = np.sort(rng.uniform(0.01, 1, 5))
        curve = np.sort(rng.normal(size=5))
        level = rng.uniform(curve[0], curve[-1])
        found = np.interp(np.log(worth(shares, curve, level)), np.log(shares), curve)
        assert found == pytest.approx(level)


def test_of_a_curve_that_falls_again_the_first_share_counts():
    assert worth([0.01, 0.1, 1], [0, 2, 0], 1) == pytest.approx(10**-1.5)


@pytest.mark.parametrize(("shares", "curve"), [([], []), ([0.1, 1], [0.5])])
def test_worth_without_a_measure_of_each_share(shares, curve):
    with pytest.raises(ValueError, match="one for each"):
        worth(shares, curve, 0)


# --- which text -----------------------------------------------------------------------------------


@pytest.fixture
def texts(make_run):
    run = make_run(CHANGES | {"sae.seeds": [42, 49, 1, 2]})
    lm = open_model(run)
    make_faithful(run, lm)
    return run, lm


def as_set(rows):
    return {row.tobytes() for row in np.asarray(rows)}


def test_each_seed_reads_another_quarter(texts):
    run, lm = texts
    real = corpus(run, "text", lm).train
    real = real[: len(real) // 4 * 4]
    found = [arm_text(run, lm, Arm(0.25, False), seed) for seed in run.sae.seeds]
    sizes = [len(text.rows.train) + len(text.rows.heldout) for text in found]
    assert sizes == [math.ceil(len(corpus(run, "text", lm).train) / 4)] * 4
    assert len({text.rows.key for text in found}) == 4
    assert np.array_equal(found[0].rows.train, real[: len(found[0].rows.train)])


def test_all_of_the_text_is_each_seeds(texts):
    run, lm = texts
    real = corpus(run, "text", lm).train
    for seed in run.sae.seeds:
        rows = arm_text(run, lm, Arm(1.0, False), seed).rows
        assert np.array_equal(np.concatenate([rows.train, rows.heldout]), real)


def test_half_of_a_mixture_is_of_each_text(texts):
    run, lm = texts
    alone = arm_text(run, lm, Arm(0.25, False), 49)
    both = arm_text(run, lm, Arm(0.25, True), 49)
    half = len(both.rows.train) // 2
    assert half == math.ceil(300 / 2 / 12)
    assert as_set(both.rows.train[:half]) == as_set(alone.rows.train[:half])
    assert as_set(both.rows.train[half:]) <= as_set(corpus(run, "faithful", lm).train)
    # chosen on the same real text
    assert np.array_equal(both.rows.heldout, alone.rows.heldout)


def test_own_text_alone_has_no_real_text(texts):
    run, lm = texts
    rows = arm_text(run, lm, Arm(0.0, True), 42).rows
    own = corpus(run, "faithful", lm).train
    assert np.array_equal(np.concatenate([rows.train, rows.heldout]), own)


# --- the study ------------------------------------------------------------------------------------


def test_the_study(make_run):
    run = make_run(CHANGES)
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    saes, trained = train_arms(run, lm)
    assert len(saes) == 2 * (len(arms(run)) + 2)
    # as the aside text says, by another measure of the same
    arm = Arm(1.0, False)
    kept = arm_text(run, lm, arm, 42).rows.heldout[:6]
    row = trained.set_index(["arm", "seed"]).loc[(arm.name, 42)]
    found = fidelity(saes[arm.name, 42], lm, kept, False).explained_variance
    assert 1 - row.fvu_aside == pytest.approx(found, abs=1e-5)
    assert row.passes == pytest.approx(row.tokens / row.distinct_tokens)
    # two passes at most elsewhere
    assert trained.passes.max() > run.sae.max_epochs
    rows = measure_arms(run, lm, saes, trained)
    made = shown.table(run, rows).set_index("trained on")
    heldout = corpus(run, "text", lm).heldout[:6]
    expected = np.mean(
        [fidelity(saes["own", s], lm, heldout, False).explained_variance for s in (42, 49)]
    )
    assert made["EV, text"]["own text"] == pytest.approx(expected, rel=1e-6)
    assert made.L0.max() <= run.sae.k
    assert len(shown.findings(run, rows)) == 5
    stamp = (folder(run, arm, 42) / "provenance.json").stat().st_mtime_ns
    again, _ = train_arms(run, lm)
    assert (folder(run, arm, 42) / "provenance.json").stat().st_mtime_ns == stamp
    assert again.keys() == saes.keys()


# --- verdicts -------------------------------------------------------------------------------------


def planted(run, level):
    """Rows of SAEs whose mean EV is level[arm], and whose CE difference is 1 less that; seeds
    differ by little, and token rows alike for all arms.
    """
    texts = np.random.default_rng(0).normal(scale=0.05, size=20)
    texts -= texts.mean()
    fidelities, by_row = [], []
    for place, arm in enumerate([*arms(run), Arm(1.0, False, True), Arm(0.0, True, True)]):
        for seed, noise in zip(run.sae.seeds, np.roll([1, -1, 3, -3], place), strict=True):
            ev = level[arm.name] + texts + 0.001 * noise
            which = {"arm": arm.name, "evaluated_on": "text", "seed": seed}
            mean = {"explained_variance": ev.mean(), "ce_diff": 1 - ev.mean()}
            fidelities.append(which | mean)
            sums = {"row": range(20), "scored": 1, "ce": 0.0, "ce_sae": 1 - ev}
            by_row.append(pd.DataFrame({**which, **sums, "error": 1 - ev, "variance": 1.0}))
    return {
        "domain_fidelity": pd.DataFrame(fidelities),
        "domain_fidelity_rows": pd.concat(by_row, ignore_index=True),
    }


LEVEL = {"real0.25": 0.5, "real1": 0.9, "own": 0.7, "real0.25-own": 0.7}
LEVEL |= {"real1-run": 0.8, "own-run": 0.8}


@pytest.fixture
def world(make_run):
    run = make_run(CHANGES | {"sae.seeds": [42, 49, 1, 2]})
    return run, planted(run, LEVEL)


def test_verdicts(world):
    found = shown.findings(*world).set_index("question").verdict
    quarter = "25 % of the real text"
    assert found.to_dict() == {
        f"Own text is better than {quarter}": "agrees",
        "Own text is better than all of the real text": "disagrees",
        f"Half {quarter}, half own text is better than {quarter}": "agrees",
        f"Half {quarter}, half own text is better than own text": "no difference",
        "Own text is better than all of the real text, 400 activations": "no difference",
    }


def test_rows_that_differ_alike_for_all_give_no_error(world):
    _, rows = world
    tables = (rows["domain_fidelity"], rows["domain_fidelity_rows"])
    weights = {"own": 1.0, "real0.25": -1.0}
    estimate = weighted_sum(*tables, "arm", weights, "explained_variance")
    assert estimate.value == pytest.approx(0.2)
    assert estimate.text_error < 1e-12
    assert 0 < estimate.seed_error < 0.005


def test_what_own_text_is_worth_in_percent(world):
    run, rows = world
    table = shown.worth_table(run, rows)
    assert table.by.tolist() == ["EV", "CE difference"]
    # half of the way from a quarter to all, in log
    assert [float(value) for value in table.middle] == pytest.approx([50, 50], abs=1)


@pytest.mark.parametrize(("own", "said"), [(0.4, "below 25"), (0.95, "above 100")])
def test_worth_beyond_what_is_measured(world, own, said):
    run, _ = world
    table = shown.worth_table(run, planted(run, LEVEL | {"own": own}))
    assert (table[["least", "middle", "most"]] == said).all().all()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"corpus": "elsewhere"}, "domain.corpus"),
        ({"corpus": "faithful"}, "domain.corpus"),
        ({"own": "text"}, "domain.own"),
        ({"text": "elsewhere"}, "domain.text"),
        ({"shares": [0.5, 0.25]}, "domain.shares"),
        ({"shares": [0.0, 1.0]}, "domain.shares"),
        ({"shares": []}, "domain.shares"),
        ({"budgets": [0.5, 1.5]}, "domain.budgets"),
        ({"budgets": [0.01, 1.0]}, "domain.budgets"),
        ({"seeds": [7]}, "domain.seeds"),
    ],
)
def test_bad_sections_are_refused(make_run, section, key):
    with pytest.raises(ParamsError, match=key.replace(".", r"\.")):
        make_run({"domain": SECTION | section})
