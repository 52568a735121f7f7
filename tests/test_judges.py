"""Judges without a language model and the scores of explanations: planted latents, scikit-learn,
and judges whose answers are known.
"""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score, mutual_info_score, roc_auc_score

from faithful_sae.features.codes import Codes
from faithful_sae.features.index import FeatureError
from faithful_sae.features.interpretation import SCORES, interpret, interpret_all, permuted, score
from faithful_sae.features.judges import NgramJudge, TokensJudge
from faithful_sae.features.judging import Explanation, Windows
from faithful_sae.features.windows import LatentWindows, cut
from faithful_sae.text.packing import pack

V, W = 60, 12
PAREN, DEF = 5, 7
VOCABULARY = ["<bos>", *(f" w{i}" for i in range(1, V))]
VOCABULARY[PAREN], VOCABULARY[DEF] = "(", " def"
JUDGES = {judge.kind: judge for judge in (TokensJudge(VOCABULARY), NgramJudge(VOCABULARY))}


def text(rng, n, width=W):
    """Windows of words, among them "(" and "def" here and there, and "def (" as often."""
    ids = rng.integers(10, V, (n, width)).astype(np.int32)
    ids[rng.random(ids.shape) < 0.03] = PAREN
    ids[rng.random(ids.shape) < 0.03] = DEF
    if width > 1:
        rows = np.flatnonzero(rng.random(n) < 0.3)
        places = rng.integers(0, width - 1, len(rows))
        ids[rows, places], ids[rows, places + 1] = DEF, PAREN
    return ids


def windows_where(fires, rng, n=40, width=W):
    """Windows of a latent that is a function of a window's ids, not of where it was cut."""

    def side():
        ids = text(rng, 3000, width)
        activations = fires(ids).astype(np.float32)
        active = (activations > 0).any(1)
        top = np.bincount(ids[activations > 0]).argmax()
        kinds = active, ~active, ~active & (ids == top).any(1)
        return [Windows(ids[k][:n], activations[k][:n]) for k in kinds], top

    shown, top = side()
    tested, _ = side()
    explanation = Windows(
        np.concatenate([part.ids for part in shown]),
        np.concatenate([part.activations for part in shown]),
    )
    return LatentWindows(0, 0.03, int(top), explanation, *tested)


def on_paren(ids):
    return 2 * (ids == PAREN)


def on_paren_after_def(ids):
    before = np.pad(ids[:, :-1], ((0, 0), (1, 0)))
    return (ids == PAREN) & (before == DEF)


def scores_of(found):
    return np.array([getattr(found, name) for name in SCORES])


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_a_token_is_told_without_fail(judge):
    found = interpret(judge, windows_where(on_paren, np.random.default_rng(0)))
    assert (found.detection_random, found.fuzz_random, found.fuzz_wrong) == (1, 1, 1)
    assert (found.detection_random_auc, found.fuzz_random_auc, found.fuzz_wrong_auc) == (1, 1, 1)
    # "(" is in no silent window
    assert (found.n_active, found.n_random, found.n_hard) == (40, 40, 0)
    assert np.isnan([found.detection_hard, found.detection_hard_auc]).all()
    assert found.failed == 0
    assert "on “(” (" in found.text


def test_a_token_in_its_context_takes_the_one_before_it():
    windows = windows_where(on_paren_after_def, np.random.default_rng(0))
    assert windows.top_token == PAREN
    tokens, ngram = (interpret(judge, windows) for judge in JUDGES.values())
    assert (scores_of(ngram) == 1).all()
    assert ngram.text.startswith("fires more on “(” after “␣def” (+")
    assert tokens.detection_random < 1
    # all of both have "("
    assert tokens.detection_hard == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_what_text_does_not_say_scores_as_a_single_token_does(judge):
    """Twenty latents that fire anywhere: 80 windows each, a standard error of 0.056 for each."""
    own, single = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        windows = windows_where(lambda ids, rng=rng: rng.random(ids.shape) < 0.05, rng)
        own.append(scores_of(interpret(judge, windows)))
        single.append(scores_of(interpret(JUDGES["tokens"], windows, 1)))
    error = 0.056 / 20**0.5
    assert np.mean(own, 0) == pytest.approx(np.full(4, 0.5), abs=4 * error)
    assert np.mean(single, 0) == pytest.approx(np.full(4, 0.5), abs=4 * error)


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_fuzzing_is_detection_where_a_window_has_one_token(judge):
    weak = np.random.default_rng(3)

    def fires(ids):
        return (weak.random(ids.shape) < 0.8) & (ids == PAREN) | (weak.random(ids.shape) < 0.005)

    windows = windows_where(fires, np.random.default_rng(0), width=1)
    found = interpret(judge, windows)
    assert found.fuzz_random == found.detection_random
    assert found.fuzz_random_auc == found.detection_random_auc
    assert 0.5 < found.detection_random < 1
    # no window has a silent token beside an active one
    assert np.isnan(found.fuzz_wrong)


def test_tokens_are_those_of_the_largest_information():
    rng = np.random.default_rng(0)

    def fires(ids):
        return rng.random(ids.shape) < np.where(ids % 9 == 2, ids / V, 0.02)

    shown = windows_where(fires, rng).explanation
    active = (shown.activations > 0).ravel()
    ids = shown.ids.ravel()
    information = {
        w: mutual_info_score(ids == w, active)
        for w in np.unique(ids)
        if active[ids == w].mean() > active.mean()
    }
    found = JUDGES["tokens"].explain(shown, 5)
    assert {*found.weights} == {*sorted(information, key=information.get)[-5:]}
    for w, p in found.weights.items():
        assert p == (active[ids == w].sum() + 0.5) / ((ids == w).sum() + 1)
    assert len(JUDGES["tokens"].explain(shown, 1).weights) == 1


def test_ngram_is_the_best_penalised_regression():
    """Of an L1 penalty's optimum the gradient of the likelihood is as large for all weights that
    are not 0, with their signs, and no larger for others; of the constant, a tenth.
    """
    rng = np.random.default_rng(0)

    def fires(ids):
        odds = 0.5 * on_paren_after_def(ids) + 0.3 * (ids == 20) + 0.4 * (ids == 31)
        return rng.random(ids.shape) < 0.02 + odds

    shown = windows_where(fires, rng).explanation
    judge = JUDGES["ngram"]
    found = judge.explain(shown, 6)
    assert 3 < len(found.weights) <= 6
    rest = (shown.activations > 0) - judge.probabilities(found, shown.ids)
    before = np.pad(shown.ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)

    def gradient(kind, *parts):
        here = {
            "always": lambda: np.ones(rest.shape, bool),
            "token": lambda w: shown.ids == w,
            "before": lambda v: before == v,
            "pair": lambda v, w: (before == v) & (shown.ids == w),
        }
        return rest[here[kind](*parts)].sum()

    penalties = [
        gradient(*name) * np.sign(w) for name, w in found.weights.items() if name != ("always",)
    ]
    penalty = np.mean(penalties)
    assert penalties == pytest.approx(np.full(len(penalties), penalty), rel=0.02)
    assert abs(gradient("always")) == pytest.approx(penalty / 10, rel=0.1)
    singles = [(kind, w) for kind in ("token", "before") for w in range(1, V)]
    others = [("pair", v, w) for v in range(1, V) for w in range(1, V)]
    assert max(abs(gradient(*name)) for name in singles + others) <= 1.02 * penalty


def test_judges_keep_to_their_budget_and_refuse():
    rng = np.random.default_rng(0)
    shown = windows_where(lambda ids: rng.random(ids.shape) < 0.2, rng).explanation
    for budget in (2, 7):
        for judge in JUDGES.values():
            assert len(judge.explain(shown, budget).weights) <= budget
    with pytest.raises(FeatureError, match="budget = 0 must be at least 1"):
        JUDGES["tokens"].explain(shown, 0)
    with pytest.raises(FeatureError, match="budget = 1 must be at least 2"):
        JUDGES["ngram"].explain(shown, 1)
    silent = Windows(shown.ids, np.zeros_like(shown.activations))
    assert JUDGES["ngram"].explain(silent, 5) is None
    once = Windows(np.array([[10, 11]], np.int32), np.array([[1, 0]], np.float32))
    assert JUDGES["ngram"].explain(once, 5) is None
    assert JUDGES["tokens"].explain(silent, 5).text == "fires on no token"
    marks = np.zeros(shown.ids.shape, bool)
    marks[1:, 0] = True
    answers = JUDGES["tokens"].fuzz(Explanation("", {}), shown, marks)
    assert answers[:2] == [None, 0]


class Known:
    """Answers by the sum of a window's ids, or of the marked ones, and keeps what it was asked."""

    def __init__(self, silent_on=None):
        self.silent_on = silent_on
        self.asked = []

    def _answer(self, sums):
        return [None if s % 7 == self.silent_on else (s % 10) / 10 for s in sums.tolist()]

    def explain(self, windows, budget):
        return Explanation(f"at most {budget}")

    def detect(self, explanation, windows):
        self.asked.append((windows, None))
        return self._answer(windows.ids.sum(1))

    def fuzz(self, explanation, windows, marks):
        self.asked.append((windows, marks))
        return self._answer((windows.ids * marks).sum(1))

    def identity(self):
        return {"kind": "known"}


def by_scikit_learn(right, wrong, threshold):
    truth = [1] * len(right) + [0] * len(wrong)
    p = np.concatenate([right, wrong])
    return balanced_accuracy_score(truth, p > threshold), roc_auc_score(truth, p)


def answers(judge, windows):
    p = np.array(judge._answer(windows.ids.sum(1)), float)
    return p[~np.isnan(p)]


@pytest.mark.parametrize("silent_on", [None, 3])
def test_scores_are_scikit_learns(silent_on):
    windows = windows_where(on_paren_after_def, np.random.default_rng(0))
    judge = Known(silent_on)
    found = interpret(judge, windows, threshold=0.45)
    active, random, hard = (
        answers(judge, part) for part in (windows.active, windows.random, windows.hard)
    )
    assert by_scikit_learn(active, random, 0.45) == pytest.approx(
        (found.detection_random, found.detection_random_auc)
    )
    assert by_scikit_learn(active, hard, 0.45) == pytest.approx(
        (found.detection_hard, found.detection_hard_auc)
    )
    assert found.text == "at most 10"
    given = [
        judge._answer(w.ids.sum(1) if marks is None else (w.ids * marks).sum(1))
        for w, marks in judge.asked
    ]
    right, elsewhere, wrong = ([p for p in part if p is not None] for part in given[-3:])
    assert by_scikit_learn(right, elsewhere, 0.45)[0] == pytest.approx(found.fuzz_random)
    assert by_scikit_learn(right, wrong, 0.45)[1] == pytest.approx(found.fuzz_wrong_auc)
    assert found.failed == sum(p is None for part in given for p in part)
    assert (found.failed > 0) == (silent_on is not None)


def test_the_threshold_is_the_best_of_the_explanation_side():
    windows = windows_where(on_paren, np.random.default_rng(1))
    judge = Known()
    shown = windows.explanation
    p = answers(judge, shown)
    cuts = np.arange(-0.05, 1, 0.1)
    on_shown = [balanced_accuracy_score(shown.active, p > cut) for cut in cuts]
    best = cuts[np.argmax(on_shown)]
    found = interpret(judge, windows)
    active, random = (answers(judge, part) for part in (windows.active, windows.random))
    assert found.detection_random == pytest.approx(by_scikit_learn(active, random, best)[0])


def test_what_is_marked():
    rng = np.random.default_rng(0)

    def fires(ids):
        return np.where(ids % 5 == 0, rng.random(ids.shape), 0)

    windows = windows_where(fires, rng)
    judge = Known()
    interpret(judge, windows, threshold=0.5)
    # a judge is not shown what it is asked
    assert not any(part.activations.any() for part, _ in judge.asked)
    (_, right), (silent, anywhere), (_, wrong) = judge.asked[-3:]
    a = windows.active.activations
    assert np.array_equal(right, a >= 0.3 * a.max(1, keepdims=True))
    assert np.array_equal(silent.ids, windows.random.ids)
    assert np.array_equal(anywhere.sum(1), right.sum(1))
    assert np.array_equal(wrong.sum(1), np.minimum(right.sum(1), (a == 0).sum(1)))
    assert not (a[wrong] > 0).any()
    # no place is a cue
    assert (anywhere.sum(0) > 0).all()


def test_a_judge_without_answers():
    windows = windows_where(on_paren_after_def, np.random.default_rng(0))

    class Dumb(Known):
        def _answer(self, sums):
            return [None] * len(sums)

    dumb = Dumb()
    found = interpret(dumb, windows)
    assert np.isnan(scores_of(found)).all()
    assert found.failed == sum(len(part) for part, _ in dumb.asked) > 0
    unexplained = score(dumb, None, windows)
    assert unexplained.failed == 1
    assert unexplained.text == ""
    assert np.isnan(scores_of(unexplained)).all()


@pytest.fixture(scope="module")
def world():
    """Latent i fires on token i + 1 alone; the last one fires but twice."""
    rng = np.random.default_rng(0)
    texts = (rng.integers(1, V, rng.integers(5, 60)) for _ in range(900))
    rows = pack(texts, 0, 33, 30_000)
    where = [np.flatnonzero(rows.ravel() == i + 1) for i in range(30)] + [np.array([1, 2])]
    start = np.cumsum([0, *map(len, where)])
    position = np.concatenate(where).astype(np.int32)
    codes = Codes(start, position, np.ones(len(position), np.float32), int((rows > 0).sum()))
    return codes, cut(rows, 0, 8)


@pytest.mark.parametrize("kind", JUDGES)
def test_all_latents_and_their_baselines(world, kind):
    table = interpret_all(JUDGES[kind], *world, VOCABULARY, n=30)
    assert table.latent.tolist() == [*range(31)]
    assert table.scored.tolist() == [True] * 30 + [False]
    assert (table.judge == kind).all()
    told = table[table.scored]
    for name in ("detection_random", "fuzz_random", "fuzz_wrong"):
        assert (told[name] == 1).all()
        assert (told[f"{name}_token"] == 1).all()
        # 30 latents of 60 windows: an error of 0.065 each
        assert told[f"{name}_permuted"].mean() == pytest.approx(0.5, abs=4 * 0.065 / 30**0.5)
    assert (told.token.tolist() == told.text.tolist()) == (kind == "tokens")
    nothing = table[~table.scored].iloc[0]
    assert nothing[[*SCORES, "detection_random_permuted", "detection_random_token"]].isna().all()
    assert (nothing.n_active, nothing.text, nothing.failed) == (0, "", 0)
    assert nothing.density == 2 / world[0].tokens


def test_the_same_again(world):
    some = {"latents": [3, 4, 5], "n": 20}
    one, again = (interpret_all(JUDGES["ngram"], *world, VOCABULARY, **some) for _ in range(2))
    pd.testing.assert_frame_equal(one, again, check_exact=True)
    other = interpret_all(JUDGES["tokens"], *world, VOCABULARY, latents=[3], n=20)
    assert other.detection_random_permuted.isna().all()
    with pytest.raises(FeatureError, match="no latents to interpret"):
        interpret_all(JUDGES["tokens"], *world, VOCABULARY, latents=[])


@pytest.mark.parametrize("n", [2, 3, 19, 57])
def test_explanations_change_places_among_like_latents(n):
    density = np.random.default_rng(0).random(100)
    latents = np.random.default_rng(1).permutation(100)[:n].tolist()
    donors = permuted(latents, density)
    assert sorted(donors) == sorted(donors.values()) == sorted(latents)
    assert all(latent != donor for latent, donor in donors.items())
    rank = {latent: i for i, latent in enumerate(sorted(latents, key=lambda f: density[f]))}
    apart = max(abs(rank[latent] - rank[donor]) for latent, donor in donors.items())
    assert apart < max(3, -(-n // 10))
    assert permuted([7], density) == {}
