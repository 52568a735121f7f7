"""Ways to make faithful text: documents after starts of their own, n-grams by brute force, sums
over texts by hand, verdicts on planted numbers, and the study.
"""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import rankdata

from conftest import BOS, EOS, TEXT, make_model, make_tokenizer
from faithful_sae.lm.continuing import continue_each
from faithful_sae.lm.model import LanguageModel
from faithful_sae.lm.sampling import sample
from faithful_sae.metrics.diversity import distinct_ngrams, repeated_documents
from faithful_sae.metrics.sfr import shared_feature_ratio
from faithful_sae.metrics.uncertainty import mean_over_seeds
from faithful_sae.paper import text_choice as shown
from faithful_sae.paper.estimates import (
    cells_by,
    values_by,
    weighted_sum,
    weighted_values,
)
from faithful_sae.runs.schema import ParamsError
from faithful_sae.stages.corpus import corpus, make_faithful, read_shards
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s18_text_choice import (
    folder,
    make_texts,
    measure_saes,
    measure_texts,
    shares,
    text_rows,
    train_texts,
)

# --- documents after starts of their own ----------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    return LanguageModel(
        make_model("llama", 12, seed=1, spread=0.4).eval(), make_tokenizer(12), 1, BOS
    )


def test_after_one_start_it_is_what_sample_writes(small):
    start = [BOS, 5, 7]
    expected = sample(small, 40, 9, torch.Generator().manual_seed(3), start=start)
    found = continue_each(small, np.array([start] * 40), 9, torch.Generator().manual_seed(3))
    assert [d.tolist() for d in found] == [d.tolist() for d in expected]
    # the comparison has documents that ended, and some that did not
    assert len({len(d) for d in found}) > 1


def test_each_document_follows_its_own_start(small):
    """Nearly at temperature 0 it is the likeliest token, of a plain forward pass."""
    starts = np.array([[BOS, a, b] for a, b in itertools.product(range(2, 12, 3), range(2, 12, 4))])
    found = continue_each(small, starts, 6, torch.Generator().manual_seed(0), temperature=1e-4)
    for start, document in zip(starts.tolist(), found, strict=True):
        ids = list(start)
        while len(ids) < len(start) + 6 and ids[-1] not in (BOS, EOS):
            ids.append(int(small.next_distribution(ids).argmax()))
        assert document.tolist() == ids[len(start) :]
    assert len({tuple(d.tolist()) for d in found}) > 1


# --- how varied a text is -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_distinct_ngrams_by_brute_force(n):
    rng = np.random.default_rng(n)
    documents = [rng.integers(0, 4, length) for length in (0, 1, 2, 7, 30)]
    ngrams = [tuple(d[i : i + n].tolist()) for d in documents for i in range(len(d) - n + 1)]
    assert distinct_ngrams(documents, n) == len(set(ngrams)) / len(ngrams)


def test_of_documents_that_are_too_short_there_are_no_ngrams():
    assert np.isnan(distinct_ngrams([np.array([1, 2])], 3))


def test_repeated_documents_by_hand():
    """Of the second half the first is a copy, the second is new."""
    words = [" ".join(f"w{10 * i + j}" for j in range(10)) for i in range(3)]
    assert repeated_documents([words[0], words[1], words[1], words[2]]) == 0.5
    assert repeated_documents([words[0], words[1], words[2]]) == 0
    assert np.isnan(repeated_documents(words[:1]))


# --- sums over texts ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fidelity():
    """(table, rows): three texts, four seeds, eleven token rows of ten tokens each."""
    rng = np.random.default_rng(0)
    at = pd.DataFrame(
        itertools.product("abc", range(4), range(11)), columns=["text", "seed", "row"]
    )
    rows = at.assign(ce=20.0, ce_sae=20 + rng.random(len(at)), scored=10)
    sums = rows.groupby(["text", "seed"], sort=False)[["ce", "ce_sae", "scored"]].sum()
    table = ((sums.ce_sae - sums.ce) / sums.scored).rename("ce_diff").reset_index()
    return table, rows


def test_a_cell_by_itself_is_the_cell(fidelity):
    table, rows = fidelity
    cell = cells_by(table, rows, ["text"], ["ce_diff"])["ce_diff"]["b"]
    found = weighted_sum(table, rows, "text", {"b": 1.0})
    assert found.value == pytest.approx(cell.value)
    assert found.error == pytest.approx(cell.error)


def test_a_difference_is_taken_seed_by_seed_and_row_by_row(fidelity):
    table, rows = fidelity
    values = values_by(table, ["text"], "ce_diff")
    found = weighted_sum(table, rows, "text", {"a": 1.0, "c": -1.0})
    assert found.seed_error == pytest.approx(mean_over_seeds(values["a"], values["c"]).error)
    # a text that costs each row the same more differs in nothing that rows would tell
    more = rows.loc[rows.text == "a"].assign(text="d")
    more = more.assign(ce_sae=more.ce_sae + 0.5)
    both = pd.concat([rows, more])
    costs = table.loc[table.text == "a"].assign(text="d", ce_diff=lambda t: t.ce_diff + 0.05)
    found = weighted_sum(pd.concat([table, costs]), both, "text", {"d": 1.0, "a": -1.0})
    assert found.value == pytest.approx(0.05)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_weighted_values_by_hand():
    cells = {"a": {(1, 2): 0.5, (1, 3): 0.25}, "b": {(1, 2): 0.1, (1, 3): 0.2}}
    assert weighted_values(cells, {"a": 2.0, "b": -1.0}) == pytest.approx(
        {(1, 2): 0.9, (1, 3): 0.3}
    )


# --- the study ------------------------------------------------------------------------------------

STUDY = {
    "texts": {
        "flat": {"first_token": "flat"},
        "cold": {"temperature": 0.5},
        "hot": {"temperature": 2.0},
        "snippets": {"snippets": {"corpus": "other", "tokens": 3}},
    },
    "sampled": 240,
    "sizes": [0.5, 2.0],
    "tokens": 400,
    "on": "text",
    "rows": 6,
    "task": "parity",
    "probed": 20,
}
CHANGES = {"corpora.other": TEXT, "generate.tokens": 600, "sae.seeds": [42, 49, 1]}


@pytest.fixture
def study(make_run):
    run = make_run(CHANGES | {"text_choice": STUDY})
    lm = open_model(run)
    make_faithful(run, lm)
    texts = make_texts(run, lm)
    saes = train_texts(run, lm, texts)
    rows = {"texts": measure_texts(run, lm, texts)} | measure_saes(run, lm, saes)
    return run, lm, texts, saes, rows


def test_the_study(study):
    run, _, _, saes, rows = study
    assert list(shares(run)) == ["plain", "flat", "cold", "hot", "snippets", "plain-0.5", "plain-2"]
    assert {*saes} == set(itertools.product(shares(run), (42, 49, 1)))
    pairs = rows["text_pairs"].set_index(["text", "seed_a", "seed_b"]).sfr
    expected = shared_feature_ratio(saes["hot", 42], saes["hot", 1], run.sfr.threshold)
    assert pairs["hot", 42, 1] == expected
    table = shown.table(run, rows).set_index("text")
    assert list(table.index)[-2:] == ["plain x 1/2", "plain x 2"]
    assert table.SFR["hot"] == pytest.approx(pairs["hot"].mean())
    assert len(shown.findings(run, rows)) == 11
    # a higher temperature gives more varied text
    distinct = rows["texts"].set_index("text").distinct_2
    assert distinct["cold"] < distinct["hot"]


def test_plain_text_is_the_beginning_of_the_runs_own(study):
    run, lm, texts, *_ = study
    own = [ids.tolist() for ids in read_shards(run)]
    for name in ("plain", "plain-0.5", "plain-2"):
        found = [ids.tolist() for ids in texts[name]]
        wanted = shares(run)[name] * run.text_choice.sampled
        assert found == own[: len(found)]
        assert sum(map(len, found[:-1])) < wanted <= sum(map(len, found))
        rows = text_rows(run, lm, name, texts[name]).train
        assert wanted - run.sequence_length < rows.size <= wanted


def test_snippets_are_the_beginnings_of_rows_and_no_part_of_the_text(study, monkeypatch):
    run, lm, *_ = study
    seen = []

    def noted(lm, starts, *rest):
        seen.append(starts)
        return continue_each(lm, starts, *rest)

    monkeypatch.setattr("faithful_sae.lm.continuing.continue_each", noted)
    place = folder(run, "texts", "snippets")
    (place / "provenance.json").unlink()
    again = make_texts(run, lm)["snippets"]
    begun = {tuple(row[:4].tolist()) for row in corpus(run, "other", lm).train}
    starts = np.concatenate(seen)
    assert {tuple(start) for start in starts.tolist()} <= begun
    assert (starts[:, 0] == BOS).all()
    assert len({tuple(start) for start in starts.tolist()}) > 10
    # as long as is asked for, without the three tokens before them
    assert max(map(len, again)) == run.generate.max_new_tokens


def test_nothing_is_made_twice(study):
    run, lm, *_ = study
    places = [folder(run, "texts", "hot"), folder(run, "saes", "hot")]
    stamps = [(place / "provenance.json").stat().st_mtime_ns for place in places]
    train_texts(run, lm, make_texts(run, lm))
    assert [(place / "provenance.json").stat().st_mtime_ns for place in places] == stamps


def test_without_a_task_nothing_is_probed(make_run, study):
    run, lm, _, saes, _ = study
    without = run.changed(text_choice=run.text_choice.changed(task=None))
    rows = measure_saes(without, lm, saes)["text_probes"]
    assert rows.empty


def test_a_start_that_the_model_has_not_names_its_text(make_run):
    texts = {"chat": {"start": "chat"}}
    run = make_run(CHANGES | {"text_choice": STUDY | {"texts": texts}})
    lm = open_model(run)
    make_faithful(run, lm)
    with pytest.raises(ValueError, match=r"text_choice\.texts\.chat: .* has no chat template"):
        make_texts(run, lm)


# --- verdicts -------------------------------------------------------------------------------------

SEEDS = (1, 2, 3, 4, 5)


def planted(run, slope, cost):
    """Rows of texts whose SFR rises with coverage by `slope`, and CE difference by `cost`."""
    rng = np.random.default_rng(0)
    covered = {name: 50 + 5 * i for i, name in enumerate(shares(run))}
    texts = pd.DataFrame(
        {
            **{"text": name, "share": share, "all_token_coverage": covered[name], "ce": 3.0},
            **{"ce_error": 0.1, "distinct_4": 0.5 - 0.01 * covered[name]},
            **{"relative_coverage": np.nan},
        }
        for name, share in shares(run).items()
    )
    noise = dict(zip(SEEDS, rng.normal(0, 0.002, len(SEEDS)), strict=True))
    pairs = [
        {
            **{"text": name, "seed_a": a, "seed_b": b, "mean_cosine": 0.5},
            "sfr": 0.5 + slope * (covered[name] - 50) + noise[a] + noise[b] + rng.normal(0, 0.001),
        }
        for name in covered
        for a, b in itertools.combinations(SEEDS, 2)
    ]
    at = list(itertools.product(covered, SEEDS))
    saes = pd.DataFrame({"text": n, "seed": s, "ffr": 1.0, "fvu": 0.2 + noise[s]} for n, s in at)
    by_row = pd.DataFrame(
        {
            **{"text": name, "seed": seed, "row": row, "ce": 10.0, "scored": 10, "measured": 10},
            **{"error": 1.0, "variance": 10.0},
            "ce_sae": 12 + 10 * cost * (covered[name] - 50) + noise[seed] + rng.normal(0, 0.01),
        }
        for (name, seed), row in itertools.product(at, range(8))
    )
    mean = pd.DataFrame(by_row.groupby(["text", "seed"], sort=False)[["ce", "ce_sae"]].mean()) / 10
    fidelity = (mean.ce_sae - mean.ce).rename("ce_diff").reset_index()
    probes = pd.DataFrame({"text": n, "seed": s, "accuracy": 0.5, "correct": "01"} for n, s in at)
    return {
        **{"texts": texts, "text_pairs": pd.DataFrame(pairs), "text_saes": saes},
        **{"text_fidelity": fidelity.assign(explained_variance=0.9)},
        **{"text_fidelity_rows": by_row, "text_probes": probes},
    }


@pytest.fixture
def run(make_run):
    return make_run(CHANGES | {"sae.seeds": list(SEEDS), "text_choice": STUDY})


def verdicts(run, rows):
    table = shown.findings(run, rows)
    return dict(zip(table.question, table.verdict, strict=True))


def test_text_that_covers_more_and_shares_more(run):
    found = verdicts(run, planted(run, slope=0.0006, cost=-0.01))
    assert found["Text that covers more of the vocabulary shares more features"] == "agrees"
    assert found["More varied text shares more features"] == "disagrees"
    # plain text covers least
    assert found["Plain sampling shares more features than every other way"] == "disagrees"
    # hot text covers more than cold text, and that more than plain text
    assert found["A higher temperature shares fewer features"] == "disagrees"
    assert found["Plain sampling has fewer fake features than every other way"] == "undecided"


def test_text_that_covers_more_and_shares_less(run):
    found = verdicts(run, planted(run, slope=-0.0006, cost=0.01))
    assert found["Text that covers more of the vocabulary shares more features"] == "disagrees"
    assert found["Plain sampling shares more features than every other way"] == "agrees"
    question = "Plain sampling costs less CE on text (Pile) than every other way"
    assert found[question] == "agrees"


def test_a_line_rises_by_what_lies_between_its_ends(run):
    """Of three temperatures, 0.5, 1 and 2, SFR 0.7, 0.5 and 0.6: least squares by numpy."""
    rows = planted(run, slope=0, cost=0)
    level = {"cold": 0.7, "plain": 0.5, "hot": 0.6}
    pairs = rows["text_pairs"]
    rows["text_pairs"] = pairs.assign(sfr=pairs.text.map(level).fillna(0.1))
    table = shown.findings(run, rows).set_index("question")
    fitted, _ = np.polyfit([0.5, 1, 2], [0.7, 0.5, 0.6], 1)
    effect = table.effect["A higher temperature shares fewer features"]
    assert effect == pytest.approx(-1.5 * fitted)


def test_what_a_text_is_like_counts_by_its_rank(run):
    rows = planted(run, slope=0, cost=0)
    names = ["plain", *STUDY["texts"]]
    level = dict(zip(names, (0.3, 0.2, 0.6, 0.5, 0.1), strict=True))
    covered = dict(zip(names, (80.0, 99.0, 81.0, 81.0, 40.0), strict=True))
    rows["text_pairs"] = rows["text_pairs"].assign(sfr=lambda t: t.text.map(level).fillna(0.0))
    rows["texts"] = rows["texts"].assign(all_token_coverage=lambda t: t.text.map(covered))
    table = shown.findings(run, rows).set_index("question")
    ranks = rankdata(list(covered.values()))
    fitted, _ = np.polyfit(ranks, list(level.values()), 1)
    row = table.loc["Text that covers more of the vocabulary shares more features"]
    assert row.effect == pytest.approx(4 * fitted)
    assert (
        f"rank correlation {np.corrcoef(ranks, rankdata([*level.values()]))[0, 1]:+.2f}"
        in row.measured
    )


def test_figures_data(run):
    rows = planted(run, slope=0.0006, cost=-0.01)
    curves = shown.curves_data(run, rows)
    assert curves.query("against == 'temperature' and measure == 'SFR'").x.tolist() == [0.5, 1, 2]
    assert curves.query("against == 'size' and measure == 'SFR'").x.tolist() == [0.5, 1, 2]
    assert set(shown.ways_data(run, rows).text) == {"plain", *STUDY["texts"]}
    coverage = shown.coverage_data(run, rows)
    assert set(coverage.of) == {"the vocabulary"}
    assert coverage.query("measure == 'SFR'").coverage.is_monotonic_increasing


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"texts": {}}, "text_choice.texts"),
        ({"texts": {"same": {}}}, "text_choice.texts.same says nothing"),
        ({"texts": {"plain": {"top_p": 0.5}}}, "names 'plain'"),
        ({"texts": {"a": {"start": "flat"}}}, "text_choice.texts.a.start"),
        ({"texts": {"a": {"snippets": {"corpus": "text"}}}}, "is what text_choice.on measures"),
        ({"texts": {"a": {"snippets": {"corpus": "no"}}}}, "names 'no'"),
        ({"texts": {"a": {"snippets": {"corpus": "other", "tokens": 12}}}}, "sequence_length = 12"),
        (
            {"texts": {"a": {"start": "x", "snippets": {"corpus": "other"}}}},
            "decide start and first_token",
        ),
        ({"sizes": [0.5, 1]}, "1 is always there"),
        ({"sizes": [-0.5]}, "must be positive"),
        ({"sizes": [4]}, r"generate\.tokens = 600: text_choice takes 960 tokens"),
        ({"seeds": [7]}, "text_choice.seeds"),
        ({"tokens": 10}, "text_choice.tokens = 10 must be at least"),
        ({"on": "faithful"}, "is text of a language model"),
        ({"task": "none"}, "is not one of probing.tasks"),
    ],
)
def test_a_study_that_cannot_be_made(make_run, changes, said):
    with pytest.raises(ParamsError, match=said):
        make_run(CHANGES | {"text_choice": STUDY | changes})


def test_others_are_compared_with_plain_sampling(make_run):
    with pytest.raises(ParamsError, match="generate must be plain sampling"):
        make_run(CHANGES | {"text_choice": STUDY, "generate.temperature": 0.9})
