"""The stage behind notebook 09 on a tiny model: what it takes from other notebooks, what it
chooses, and when it is run.
"""

import numpy as np
import pandas as pd
import pytest
import torch.nn.functional as F

from conftest import FEATURES
from faithful_sae.engine import plan
from faithful_sae.engine.problems import _forget_damaged
from faithful_sae.features import explain
from faithful_sae.features.index import FeatureError
from faithful_sae.features.steering import dose_response
from faithful_sae.features.vocabulary import visible
from faithful_sae.files import MissingInputError, remove
from faithful_sae.matching import match_features
from faithful_sae.paper.exhibits import notebook_exhibits
from faithful_sae.paper.plots import features as feature_plots
from faithful_sae.runs.rows import rows_file, write_rows
from faithful_sae.stages import s09_explore_features as explore
from faithful_sae.stages.corpus import corpus, make_faithful
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s03_sfr import seed_comparison
from faithful_sae.stages.s04_ffr import fake_features
from faithful_sae.stages.saes import load_saes
from faithful_sae.stages.training import train_all


@pytest.fixture
def explored(make_run):
    both = FEATURES | {"corpora": ["text", "faithful"]}
    run = make_run({"features": both, "sfr.threshold": 0.3})
    lm = open_model(run)
    make_faithful(run, lm)
    train_all(run, lm)
    saes = load_saes(run, lm)
    with pytest.raises(MissingInputError, match="04_ffr"):
        explore.index_features(run, saes, lm)
    every = pd.DataFrame({"token_id": range(lm.vocab_size), "count": 1})
    write_rows(run, "first_token", every)
    fake_features(run, saes, lm)
    seed_comparison(run, saes, lm)
    return run, lm, saes, explore.index_features(run, saes, lm)


def test_fakes_and_twins_are_those_of_other_notebooks(explored):
    run, lm, saes, indexes = explored
    a, b = saes["text", 42], saes["text", 49]
    matching = match_features(a.W_dec, b.W_dec)
    firing = pd.read_csv(run.artifacts / "rows" / "firing.csv").query("corpus == 'text'")
    for seed, twin, cosine in (
        (42, matching.permutation, matching.cosine),
        (49, np.argsort(matching.permutation), matching.cosine[np.argsort(matching.permutation)]),
    ):
        latents = indexes["text", seed].latents
        np.testing.assert_array_equal(latents.twin, twin)
        np.testing.assert_array_equal(latents.shared, cosine >= 0.3)
        np.testing.assert_array_equal(latents.twin_cosine, cosine.astype(np.float32))
        np.testing.assert_array_equal(latents.fake, firing[firing.seed == seed].frequency > 0.1)
    assert 0 < indexes["text", 42].latents.shared.mean() < 1
    meta = indexes["text", 49].meta
    assert [meta[name] for name in ("label", "run", "profile", "corpus", "seed", "other_seed")] == [
        "Tiny",
        "tiny",
        "handmade",
        "text",
        49,
        42,
    ]
    rows = corpus(run, "text", lm).train[:25]
    assert meta["tokens"] == (rows != lm.bos_id).sum()
    assert explore.twins_agree(indexes, run)
    other = pd.read_csv(run.artifacts / "rows" / "sfr.csv")
    other.assign(sfr=other.sfr + 0.01).to_csv(run.artifacts / "rows" / "sfr.csv", index=False)
    assert not explore.twins_agree(indexes, run)


def test_each_corpus_has_indexes_on_its_own_text(explored):
    """In whose pages the other's nearest latents stand, by name."""
    run, lm, saes, indexes = explored
    assert [*indexes] == [("text", 42), ("text", 49), ("faithful", 42), ("faithful", 49)]
    index = indexes["faithful", 49]
    assert index.meta["corpus"] == "faithful"
    rows = corpus(run, "faithful", lm).train[:25]
    assert index.meta["tokens"] == (rows != lm.bos_id).sum()
    a, b = (F.normalize(saes[name, 49].W_dec, dim=1) for name in ("faithful", "text"))
    cosine = a @ b.T
    ((sae, other, value),) = index.page(5)["related"]["elsewhere"]
    assert sae == "tiny/text/seed49"
    assert other == cosine[5].argmax()
    assert value == pytest.approx(cosine[5].max().item(), rel=1e-5)
    table = pd.read_csv(run.artifacts / "rows" / "features.csv")
    assert table.groupby(["corpus", "seed"]).size().to_dict() == dict.fromkeys(indexes, 24)
    shown = explore.judged_indexes(run)
    assert [one.folder for one in shown] == [one.folder for one in indexes.values()]


class Hand:
    """Rates worked by hand."""

    def read_token(self):
        return 1.0

    def encode_token(self):
        return 2.0

    def once(self, name, measure):
        return {"ablation": 100.0}[name]


def test_what_indexes_take_is_foreseen(explored, monkeypatch):
    """Four indexes of 300 tokens in 25 rows: each is gone through twice, and a latent is ablated on
    every row, as there are fewer than twice 24.
    """
    run, lm, saes, indexes = explored
    assert explore.STAGE.seconds(run, Hand()) == 4 * (2 * 300 * 3.0 + 25 * 100.0)
    assert explore.STAGE.tokens(run) == 4 * 3 * 300
    text = run.changed(features=run.features.changed(corpora=("text",)))
    assert explore.STAGE.seconds(text, Hand()) == explore.STAGE.seconds(run, Hand()) / 2
    assert explore.STAGE.disk(text, lm.shape) == explore.STAGE.disk(run, lm.shape) / 2
    # as many as the model really reads, without PruningMaxAct
    read = []
    activations = lm.activations
    monkeypatch.setattr(
        lm, "activations", lambda ids: [read.append(ids.numel()), activations(ids)][1]
    )
    monkeypatch.setattr(
        explain, "prune", lambda lm, sae, latents, *_: np.zeros((2, len(latents)), int)
    )
    for index in indexes.values():
        remove(index.folder)
    explore.index_features(run, saes, lm)
    # contexts end before their rows do
    assert 0.8 * explore.STAGE.tokens(run) < sum(read) <= explore.STAGE.tokens(run)


def test_an_index_is_made_again_when_what_it_says_changes(explored):
    run, lm, saes, _ = explored

    def stamps(changed):
        folders = {
            key: index.folder / "provenance.json"
            for key, index in explore.index_features(changed, saes, lm).items()
        }
        return {key: file.stat().st_mtime_ns for key, file in folders.items()}

    before = stamps(run)
    rows = (run.artifacts / "rows" / "features.csv").read_bytes()
    assert stamps(run.changed(features=run.features.changed(doses=(3.0,)))) == before
    alone = stamps(run.changed(features=run.features.changed(corpora=("faithful",))))
    assert alone == {key: stamp for key, stamp in before.items() if key[0] == "faithful"}
    for section, change in (
        ("features", {"listed": 3}),
        ("features", {"seed": 1}),
        ("sfr", {"threshold": 0.4}),
        ("ffr", {"frequency": 0.2}),
    ):
        changed = stamps(run.changed(**{section: getattr(run, section).changed(**change)}))
        assert all(changed[key] > before[key] for key in before), change
        before = changed
    stamps(run)
    assert (run.artifacts / "rows" / "features.csv").read_bytes() == rows


def test_features_are_chosen_by_how_often_they_fire_alone():
    latents = pd.DataFrame(
        {
            "latent": range(40),
            "frequency": np.random.default_rng(0).permutation(40) / 100,
            "dead": False,
            "shared": np.arange(40) < 20,
            "fake": np.arange(40) % 10 == 0,
        }
    )
    latents.loc[latents.frequency < 0.03, "dead"] = True
    found = explore.chosen(latents, 3)
    assert found.groupby("group").size().to_dict() == {"shared": 3, "orphan": 3, "fake": 3}
    assert not found.dead.any()
    for group, mask in (
        ("shared", latents.shared & ~latents.fake),
        ("orphan", ~latents.shared & ~latents.fake),
        ("fake", latents.fake),
    ):
        inside = latents[mask & ~latents.dead].sort_values("frequency").latent.tolist()
        parts = np.array_split(inside, 3) if len(inside) % 3 == 0 else None
        wanted = [inside[int((i + 0.5) * len(inside) / 3)] for i in range(3)]
        assert found[found.group == group].latent.tolist() == wanted
        assert parts is None or all(w in p for w, p in zip(wanted, parts, strict=True))
    alone = explore.chosen(latents.assign(shared=None), 3)
    assert alone.groupby("group").size().to_dict() == {"not fake": 3, "fake": 3}
    with pytest.raises(FeatureError, match="none of the 40 latents fires on this text"):
        explore.chosen(latents.assign(dead=True), 3)
    few = explore.chosen(latents[latents.latent.isin([1, 2, 30])], 3)
    assert few[few.group == "shared"].latent.tolist() in ([1, 2], [2, 1])
    assert few[few.group == "fake"].latent.tolist() == [30]
    assert not (few.group == "orphan").any()


def test_rows_and_figures_of_the_chosen(explored):
    run, lm, saes, indexes = explored
    index = indexes["text", 42]
    sae = saes["text", 42]
    latents = explore.chosen(index.latents, 2)
    table = explore.describe(index, latents)
    assert table.latent.tolist() == latents.latent.tolist()
    assert not table.isna().any(axis=None)
    assert all("[w" in text or "[<bos>]" in text for text in table["strongest context"])
    response = explore.steer_features(run, sae, lm, latents)
    assert (response[response.dose == 0].kl == 0).all()
    assert len(response) == 3 * len(latents)
    first = latents.iloc[0]
    tokens = [
        index.vocabulary.index(text)
        for text, _ in index.page(int(first.latent))["explanations"]["VocabProj"]
    ]
    by_hand = dose_response(
        lm, sae, int(first.latent), corpus(run, "text", lm).heldout[:3], [2 * first["max"]], tokens
    )
    row = response[(response.latent == first.latent) & (response.dose == 2)].iloc[0]
    assert (row.kl, row.probability) == pytest.approx(
        (by_hand.kl[0], by_hand.probability[0]), rel=1e-6
    )
    bins = explore.histogram_rows(index, latents)
    agreement = explore.agreement_rows(run, index)
    assert (
        bins.groupby("latent", sort=False).tokens.sum().tolist()
        == (latents.frequency * index.meta["tokens"]).round().tolist()
    )
    rows = (
        pd.read_csv(run.artifacts / "rows" / "features.csv")
        .query("corpus == 'text' and seed == 42")
        .set_index("latent")
    )
    assert (rows.agreement[agreement.latent].to_numpy() == agreement.agreement).all()
    for draw, data in (
        (feature_plots.histograms, bins),
        (feature_plots.agreement, agreement),
        (feature_plots.steering, response),
    ):
        assert draw(data).get_axes()


def test_a_caption_says_what_inexact_counts_lose(explored):
    index = explored[3]["text", 42]
    assert explore.mut_info_note(index) == ""
    index.meta["mut_info_lost"] = 0.0123
    assert "by at most 1.2 % of a latent's firings" in explore.mut_info_note(index)
    assert "in another order" in explore.mut_info_note(index)


def test_text_in_a_table_stays_text():
    assert [visible(text) for text in (" the", "  ", "a b", "x\n", "\t|<i>")] == [
        "␣the",
        "␣␣",
        "a b",
        "x⏎",
        "⇥|<i>",
    ]


def test_a_run_without_the_section_has_no_09(make_run):
    without, with_it = make_run(name="a"), make_run({"features": FEATURES}, name="b")
    assert plan.stages([without]) == [s for s in plan.stages([with_it]) if s != explore.STAGE]
    assert not notebook_exhibits(without, explore.STAGE.name)
    assert len(notebook_exhibits(with_it, explore.STAGE.name)) == 4
    needed = {path.rpartition("/")[2] for path in plan.stage_inputs(with_it, explore.STAGE)}
    assert needed == {"saes.csv", "sfr.csv", "matching.csv", "firing.csv", "text.jsonl"}
    waits = {path for path in plan.paper_inputs([without, with_it]) if "features" in path}
    assert waits == {str(rows_file(with_it, "features"))}  # 07 links to features that there are


def test_a_damaged_index_is_noticed(explored):
    run, _, _, indexes = explored
    file = indexes["faithful", 49].folder / "contexts.parquet"
    rows = run.artifacts / "rows" / "features.csv"
    _forget_damaged(run)
    assert rows.exists()
    file.write_bytes(file.read_bytes()[:-10])
    _forget_damaged(run)
    assert not rows.exists()


@pytest.mark.parametrize(
    "indexed, seed, other",
    [((42, 49), 42, 49), ((42, 49), 49, 42), ((2, 49, 42), 42, 2), ((49,), 49, 1), ((3,), 3, 42)],
)
def test_the_other_seed_is_the_next_that_is_indexed(make_run, indexed, seed, other):
    """Two that are indexed are each other's; one alone takes the next that is trained."""
    wide = {"sae.seeds": [42, 49, 1, 2, 3], "features": FEATURES | {"seeds": list(indexed)}}
    assert explore.other_seed(make_run(wide), seed) == other


def test_one_seed_has_no_other(make_run):
    """Neither 03's rows nor those of 08 are waited for."""
    run = make_run({"sae.seeds": [42], "features": FEATURES | {"seeds": [42]}})
    assert explore.other_seed(run, 42) is None
    needed = {path.rpartition("/")[2] for path in plan.stage_inputs(run, explore.STAGE)}
    assert needed == {"saes.csv", "firing.csv", "text.jsonl"}
    assert not {"03_sfr", "08_seed_dependence"} & {stage.name for stage in plan.stages([run])}


def test_an_sae_of_which_no_latent_fires(explored):
    """Its index can be read, and the notebook, which has nothing to show, says why."""
    run, lm, saes, indexes = explored
    remove(indexes["text", 42].folder)
    saes["text", 42].b_enc -= 1000
    index = explore.index_features(run, saes, lm)["text", 42]
    assert index.latents.dead.all()
    assert index.page(3)["contexts"] == []
    with pytest.raises(FeatureError, match="none of the 24 latents fires on this text"):
        explore.chosen(index.latents, 2)
