"""Latents near a latent, and what ablating one does to the loss of each token, against NumPy and
an explicit forward pass; and the index that holds them.
"""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import BOS, VOCABULARY, packed_rows
from faithful_sae.features import relations
from faithful_sae.features.ablation import loss_changes
from faithful_sae.features.build import build_index, loss_change_column, spread_rows
from faithful_sae.features.codes import Codes, sparse_codes
from faithful_sae.features.collect import Kept
from faithful_sae.features.index import FeatureError, FeatureIndex
from faithful_sae.features.relations import (
    correlated_table,
    nearest_rows,
    related_table,
    relation_bytes,
)
from faithful_sae.files import read_json
from faithful_sae.sae.sae import TopKSAE
from faithful_sae.text.documents import document_numbers

D_SAE = 24
KEPT = Kept(top=4, samples=2, strata=3, left=5, right=3)


@pytest.fixture
def tokens():
    return packed_rows(40)


@pytest.fixture
def sae():
    sae = TopKSAE(16, D_SAE, 3, seed=3)
    # these never fire
    sae.b_enc[20:] = -1e4
    return sae


@pytest.fixture
def other():
    return TopKSAE(16, 40, 3, seed=5)


@pytest.fixture
def index(tmp_path, lm, sae, other, tokens):
    documents = document_numbers(tokens, BOS)
    others = {"run/web/seed5": other}
    return build_index(tmp_path / "i", lm, sae, tokens, KEPT, others=others, documents=documents)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(relations, "BLOCK", 7)


def cosines(a, b):
    a, b = (x.numpy().astype(np.float64) for x in (a, b))
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return a @ b.T / norms


def test_nearest_rows_are_those_of_all_cosines(sae, small_blocks):
    expected = cosines(sae.W_dec, sae.W_dec)
    np.fill_diagonal(expected, -2)
    value, place = nearest_rows(3 * sae.W_dec, sae.W_dec, 5, itself=False)
    np.testing.assert_array_equal(place, (-expected).argsort(1)[:, :5])
    np.testing.assert_allclose(value, -np.sort(-expected)[:, :5], atol=1e-6)


def test_as_many_neighbours_as_there_are():
    rows = torch.eye(3)
    assert nearest_rows(rows, rows, 8, itself=False)[1].shape == (3, 2)
    assert nearest_rows(rows, rows, 8)[1].shape == (3, 3)


def test_correlations_are_numpys(lm, sae, tokens, small_blocks):
    z = sae.encode(lm.activations(torch.from_numpy(tokens))).numpy()[tokens != BOS]
    with np.errstate(invalid="ignore"):
        expected = np.corrcoef(z.astype(np.float64), rowvar=False)
    np.fill_diagonal(expected, 0)
    found = correlated_table(sparse_codes({0: sae}, lm, tokens)[0], n=6)
    fires = z > 0
    assert set(found.latent) <= set(range(20)), "what never fires correlates with nothing"
    for latent in range(20):
        own = found[found.latent == latent]
        of_all = np.nan_to_num(expected[latent])
        wanted = np.argsort(-of_all, kind="stable")[:6]
        wanted = wanted[of_all[wanted] > 0]
        np.testing.assert_array_equal(own.other, wanted)
        np.testing.assert_array_equal(own["rank"], np.arange(len(wanted)))
        np.testing.assert_allclose(own.value, of_all[wanted], atol=1e-6)
        both = (fires[:, [latent]] & fires[:, wanted]).sum(0)
        np.testing.assert_array_equal(own.together.to_numpy(int), both)


def by_hand(lm, sae, ids, latent):
    """Change of each token's loss, by a forward pass of the model with a hook of its own."""
    ids = torch.as_tensor(ids)[None]
    block = lm.model.model.layers[lm.layer]

    def losses(removed):
        def hook(module, args, kwargs):
            return (args[0] - removed, *args[1:]), kwargs

        handle = block.register_forward_pre_hook(hook, with_kwargs=True)
        with torch.no_grad():
            logits = lm.model(input_ids=ids).logits[0, :-1, :VOCABULARY].double()
        handle.remove()
        return -torch.log_softmax(logits, -1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]

    z = sae.encode(lm.activations(ids))[..., latent] * (ids != BOS)
    change = losses(z[..., None] * sae.W_dec[latent]) - losses(torch.zeros(1))
    return np.concatenate([[0], change.numpy()])


def test_an_ablation_is_a_forward_pass_without_the_latent(lm, sae, tokens, monkeypatch):
    monkeypatch.setattr("faithful_sae.features.ablation.LOGITS_AT_ONCE", 2 * 12 * VOCABULARY)
    latents = np.array([0, 3, 7, 21, 0])
    rows = tokens[[0, 7, 3, 4, 20]]
    ends = np.array([12, 5, 12, 9, 7])
    found = loss_changes(lm, sae, rows, latents, ends)
    for row, latent, end, change in zip(rows, latents, ends, found, strict=True):
        expected = by_hand(lm, sae, row, latent)
        np.testing.assert_allclose(change[:end], expected[:end], atol=2e-5)
    assert abs(found).max() > 0.01
    assert not found[3].any(), "a latent that never fires"


def test_contexts_say_where_they_are_and_what_ablation_does(index, lm, sae, tokens):
    seen = 0
    for latent, contexts in index.contexts():
        for context in contexts:
            begin = context["place"] - context["position"]
            ids = tokens[context["row"]][begin : begin + len(context["tokens"])]
            assert context["tokens"] == [index.vocabulary[i] for i in ids]
            # a document begins behind each BOS inside a row
            before = tokens[: context["row"], 1:] == BOS
            here = tokens[context["row"], 1 : context["place"] + 1] == BOS
            assert context["document"] == 1 + before.sum() + here.sum()
            if context["loss_change"] is None:
                continue
            seen += 1
            assert context["kind"] == "top"
            change = by_hand(lm, sae, tokens[context["row"]], latent)[begin : begin + len(ids)]
            np.testing.assert_allclose(context["loss_change"], change, atol=2e-5)
    # two of each latent that fires: forty rows are enough for that
    assert seen == 2 * 20


def test_few_rows_ablate_some_latents_evenly(index, lm, sae, tokens):
    contexts = pd.DataFrame(
        [{"latent": latent, **context} for latent, own in index.contexts() for context in own]
    )
    column = loss_change_column(contexts, lm, sae, tokens[:40], 2)
    assert column.notna().sum() == 40
    few = contexts.assign(row=contexts.row % 5)
    measured = few[loss_change_column(few, lm, sae, tokens[:5], 2).notna()]
    assert measured.latent.tolist() == [0, 4, 9, 14, 19]
    assert set(measured["rank"]) == {0}


def test_a_page_has_what_is_near(index, sae, other):
    nearest = cosines(sae.W_dec, sae.W_dec)
    np.fill_diagonal(nearest, -2)
    web = cosines(sae.W_dec, other.W_dec)
    related = index.page(5)["related"]
    assert [latent for latent, _ in related["decoder"]] == (-nearest[5]).argsort()[:8].tolist()
    assert [entry[:2] for entry in related["elsewhere"]] == [["run/web/seed5", web[5].argmax()]]
    assert related["elsewhere"][0][2] == pytest.approx(web[5].max(), abs=1e-6)
    assert all(len(entry) == 3 for entry in related["correlated"])
    assert related["correlated"]
    assert index.page(22)["related"]["correlated"] == []


def test_the_same_bytes_again(index, tmp_path, lm, sae, other, tokens):
    again = build_index(
        tmp_path / "again",
        lm,
        sae,
        tokens,
        KEPT,
        others={"run/web/seed5": other},
        documents=document_numbers(tokens, BOS),
    )
    for name in ("related.parquet", "contexts.parquet"):
        assert (again.folder / name).read_bytes() == (index.folder / name).read_bytes()


def test_another_dictionary_elsewhere_is_another_index(index, lm, sae, other, tokens):
    key = index.meta["key"]
    without = build_index(index.folder, lm, sae, tokens, KEPT)
    assert without.meta["key"] != key
    assert without.page(5)["related"]["elsewhere"] == []
    assert without.page(5)["contexts"][0]["document"] is None


def test_rows_are_spread_evenly():
    rows = np.arange(100)[:, None].repeat(5, 1)
    assert spread_rows(rows, 20)[:, 0].tolist() == [0, 33, 66, 99]
    assert len(spread_rows(rows, 10**6)) == 100
    assert len(spread_rows(rows, 1)) == 1


def test_an_index_of_an_earlier_version_is_refused_in_one_line(index):
    meta = read_json(index.folder / "index.json")
    del meta["format"]
    (index.folder / "index.json").write_text(json.dumps(meta))
    with pytest.raises(FeatureError, match="another version of this library made: delete it"):
        FeatureIndex(index.folder)


@pytest.mark.parametrize("d_sae, k, tokens", [(1500, 4, 3000), (64, 16, 60_000)])
def test_memory_of_what_is_near(d_sae, k, tokens):
    """As numpy and scipy really take it, where latents are many and where activations are."""
    rng = np.random.default_rng(0)
    latent = rng.random((tokens, d_sae)).argpartition(k, axis=1)[:, :k].ravel()
    order = latent.argsort(kind="stable")
    start = np.append(0, np.bincount(latent, minlength=d_sae).cumsum())
    position = np.repeat(np.arange(tokens, dtype=np.int32), k)[order]
    codes = Codes(start, position, rng.random(tokens * k).astype(np.float32), tokens)
    sae = TopKSAE(8, d_sae, k, seed=0)
    tracemalloc.start()
    related_table(sae, codes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # with the codes, which are there before
    peak += 8 * tokens * k
    assert peak < relation_bytes(d_sae, tokens * k) < 3 * peak
