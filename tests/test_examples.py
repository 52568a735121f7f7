"""Features to look at: names, counted once more from the pages of an index."""

from collections import Counter

import pandas as pd
import pytest

from faithful_sae.features.examples import ENOUGH, examples, names
from faithful_sae.features.index import FeatureIndex
from feature_folders import write_index


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return FeatureIndex(write_index(tmp_path_factory.mktemp("artifacts")))


def peaks(page):
    """The strongest token of each sampled context of a page."""
    return [c["tokens"][c["position"]] for c in page["contexts"] if c["kind"] == "sample"]


def of_tokens(tokens):
    """An index of latents with these sampled tokens, {latent: tokens}, that all fire alike."""
    rows = [(latent, "sample", token) for latent, own in tokens.items() for token in own]
    # contexts of the top are none that a name is counted on
    rows += [(latent, "top", "x") for latent in tokens for _ in range(50)]

    class Known:
        latents = pd.DataFrame({"latent": [*tokens], "dead": False, "fake": False})
        latents["frequency"] = 0.01

        def strongest_tokens(self):
            return pd.DataFrame(rows, columns=["latent", "kind", "token"])

    return Known()


def test_tokens_are_those_of_the_pages(index):
    found = index.strongest_tokens()
    own = found.loc[found.kind == "sample"].groupby("latent").token.apply(list)
    pages = {i: peaks(index.page(i)) for i in range(96)}
    assert own.to_dict() == {i: tokens for i, tokens in pages.items() if tokens}


def test_a_name_is_the_commonest_token_without_blanks_and_capitals():
    known = of_tokens({0: [" The", "the", "THE ", "a"], 1: ["b", "a"], 2: ["\n"] * 3})
    assert names(known).to_dict("list") == {
        "latent": [0, 1, 2],
        "name": ["the", "a", "\n"],
        "share": [0.75, 0.5, 1.0],
        "contexts": [4, 2, 3],
    }


def test_names_of_an_index(index):
    for row in names(index).to_dict("records"):
        tokens = [token.strip().casefold() or token for token in peaks(index.page(row["latent"]))]
        times = Counter(tokens)
        assert times[row["name"]] == max(times.values())
        assert row["share"] == pytest.approx(max(times.values()) / len(tokens))


def test_the_clearest_have_one_name_each():
    tokens = {
        0: ["a"] * 7 + ["b"],
        1: ["a"] * 8,
        2: ["c"] * 6 + ["d"] * 2,
        3: ["e"] * (ENOUGH - 1),
    }
    found = examples(of_tokens(tokens))
    named = found.loc[found.group == "named"]
    assert list(zip(named.latent, named.name, named.share, strict=True)) == [
        (1, "a", 1.0),
        (2, "c", 0.75),
    ]


def test_fake_dense_and_dead_latents_have_no_name(index):
    named = examples(index, n=96).query("group == 'named'")
    assert not named.fake.any()
    assert named.frequency.max() <= 0.1


def test_of_all_that_fire_some_are_drawn(index):
    found = examples(index).query("group == 'random'")
    assert len(found) == found.latent.nunique() == 20
    assert not found.dead.any()
    assert found.equals(examples(index).query("group == 'random'"))


def test_every_one_is_drawn_where_there_are_few(index):
    alive = index.latents.loc[~index.latents.dead, "latent"]
    assert examples(index, n=1000).query("group == 'random'").latent.tolist() == alive.tolist()
