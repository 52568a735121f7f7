"""Unlearning: a model of pairs of tokens, in which it is known what each latent is worth."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from faithful_sae import TopKSAE, fidelity
from faithful_sae.features.steering import edited
from faithful_sae.metrics.unlearning import clamped, unlearning

BOS, V = 0, 31
RETAIN, FORGET = np.arange(1, 16), np.arange(16, 31)
# the last coordinate says that a token is of the text to forget
PACKAGE = V


class Pairs:
    """x is the token's axis, and the package's if it is of the text to forget; a token predicts the
    next of its kind, and the package all tokens to forget.
    """

    bos_id, d_model, vocab_size, device = BOS, V + 1, V, torch.device("cpu")

    def __init__(self):
        self.shape = self
        self.W = torch.zeros(V + 1, V)
        for kind in (RETAIN, FORGET):
            self.W[kind, np.roll(kind, -1)] = 4.0
        self.W[PACKAGE, FORGET] = 3.0
        self.at_bos = []

    def activations(self, ids):
        x = F.one_hot(ids, V + 1).float()
        x[..., PACKAGE] = torch.isin(ids, torch.from_numpy(FORGET)).float()
        return x

    def logits(self, ids):
        x = self.activations(ids)
        return x @ self.W, x

    def spliced_logits(self, ids, x):
        self.at_bos.append(x[ids == BOS])
        return x @ self.W


def text(kind, n_rows=60, seed=0):
    """Rows of pairs of a kind, most of them as the model expects, BOS first and somewhere else."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((n_rows, 20), int)
    token = rng.integers(0, len(kind), n_rows)
    for t in range(1, 20):
        rows[:, t] = kind[token]
        step = np.where(rng.random(n_rows) < 0.7, 1, rng.integers(0, len(kind), n_rows))
        token = (token + step) % len(kind)
    rows[rng.random(n_rows) < 0.3, 9] = BOS
    return rows


def axes(width=V + 1):
    """An SAE with a latent per axis."""
    sae = TopKSAE(width, width, None, 0)
    sae.W_dec, sae.W_enc = torch.eye(width), torch.eye(width)
    sae.above(0.5)
    return sae


def begun(rows):
    """Where predictions are made in documents that begin in these rows, one token after another."""
    where, inside = np.zeros(rows.shape, bool), False
    for row, t in np.ndindex(rows.shape):
        inside |= t > 0 and rows[row, t] == BOS
        where[row, t] = inside and rows[row, t] != BOS
    return where[:, :-1]


def cross_entropy(lm, rows, x, where=None):
    """Of all predictions but those made from BOS, or of those `where`, from activations given."""
    ids = torch.from_numpy(rows)
    log_p = (x @ lm.W).double().log_softmax(-1)[:, :-1]
    nats = -log_p.gather(-1, ids[:, 1:, None])[..., 0].numpy()
    return nats[rows[:, :-1] != BOS if where is None else where].mean()


def without(lm, rows, latents):
    x = lm.activations(torch.from_numpy(rows))
    x[..., latents] = 0
    return x


def test_a_planted_package_latent_reaches_the_ablation_value():
    lm, forget, retain = Pairs(), text(FORGET), text(RETAIN)
    found, table = unlearning(
        axes(), lm, forget, retain, densities=(0.01,), sizes=(1,), multiples=(0.0,)
    )
    test = forget[30:]
    before, after = (
        cross_entropy(lm, test, without(lm, test, gone), begun(test)) for gone in ([], [PACKAGE])
    )
    assert found.latents == (PACKAGE,)
    assert found.ce == pytest.approx(before, rel=1e-6)
    assert found.unlearned == pytest.approx(
        (after - before) / (found.ce_unigram - before), rel=1e-5
    )
    assert found.unlearned > 0.05
    assert found.retain_cost == 1
    assert len(table) == 1


def test_unigram_is_the_frequencies_of_the_rows_that_choose():
    """15 + 15 tokens and BOS, all seen hundreds of times: smoothing moves next to nothing."""
    forget, retain = text(FORGET, 200), text(RETAIN, 200)
    found, _ = unlearning(axes(), Pairs(), forget, retain, multiples=(0.0,))
    known = np.concatenate([forget[:100], retain[:100]])[:, 1:]
    log_p = np.log(np.bincount(known.ravel(), minlength=V) / known.size)
    scored = forget[100:, 1:][begun(forget[100:])]
    assert found.ce_unigram == pytest.approx(-log_p[scored].mean(), rel=1e-3)


def test_all_tokens_without_their_latents_are_a_coin_of_so_many_sides():
    """The text to forget is predicted from nothing; n = 20 takes the 16 candidates there are."""
    lm, forget, retain = Pairs(), text(FORGET), text(RETAIN)
    found, table = unlearning(axes(), lm, forget, retain, multiples=(0.0,))
    assert sorted(found.latents) == [*FORGET, PACKAGE]
    test = forget[30:]
    before = cross_entropy(lm, test, without(lm, test, []), begun(test))
    expected = (math.log(V) - before) / (found.ce_unigram - before)
    assert found.unlearned == pytest.approx(expected, rel=1e-5)
    # both densities have the same candidates, which are measured once
    assert table["size"].tolist() == [10, 20]
    assert table.density.tolist() == [0.001, 0.001]


def test_latents_are_sorted_by_how_often_they_fire_on_the_text_to_forget():
    forget, retain = text(FORGET), text(RETAIN)
    _, table = unlearning(axes(), Pairs(), forget, retain, sizes=(16,), multiples=(0.0,))
    counts = np.bincount(forget[:30].ravel(), minlength=V + 1)
    counts[PACKAGE] = (forget[:30] != BOS).sum()
    (latents,) = table.latents
    assert latents == tuple(sorted([*FORGET, PACKAGE], key=lambda f: (-counts[f], f)))


def test_what_costs_the_other_text_more_than_a_hundredth_is_not_allowed():
    """Some of the text to forget is of the other kind: what that needs may be taken as well."""
    lm, forget, retain = Pairs(), text(FORGET), text(RETAIN)
    forget[::3] = text(RETAIN, 20, 5)
    found, table = unlearning(
        axes(), lm, forget, retain, densities=(0.01, 2.0), sizes=(1, 40), multiples=(0.0,)
    )
    table = table.set_index(table.latents.map(len))
    assert table.allowed.to_dict() == {1: True, 16: True, 31: False}
    chosen = retain[:30]
    after = cross_entropy(lm, chosen, without(lm, chosen, slice(None)))
    assert table.ce_retain[31] == pytest.approx(after, rel=1e-6)
    assert len(found.latents) == 16


def test_latents_that_are_silent_on_the_rows_that_measure_unlearn_nothing():
    """What was chosen on tokens that do not come again is worth nothing."""
    forget = np.concatenate([text(FORGET[:7], 30), text(FORGET[7:], 30)])
    # the package's latent is not there
    sae = axes()
    sae.W_enc[PACKAGE, PACKAGE] = 0
    found, _ = unlearning(sae, Pairs(), forget, text(RETAIN), multiples=(0.0,))
    assert set(found.latents) == {*FORGET[:7]}
    assert found.chosen > 0.2
    assert found.unlearned == 0


def test_a_document_that_chose_does_not_measure():
    """One lies on the border and fills most of the second half: whatever stands there, nothing that
    is measured changes.
    """
    measured = []
    for seed in (5, 6):
        kinds = []
        for kind in (FORGET, RETAIN):
            rows = text(kind)
            rows[28:50] = text(kind, 22, seed)
            rows[28:50, 9] = kind[0]
            rows[50, :9] = [BOS, *text(kind, 1, seed)[0, 1:9]]
            rows[50, 9] = BOS
            # what chooses is the same
            rows[28:30] = text(kind)[28:30]
            kinds.append(rows)
        # clamped are latents that the border document has, too
        measured.append(unlearning(axes(), Pairs(), *kinds, densities=(2.0,), sizes=(4,))[0])
    assert measured[0] == measured[1]
    assert measured[0].unlearned > 0.05


def test_random_latents_on_text_of_one_kind_stay_below_what_the_constraint_allows():
    """What makes one text harder makes the other as hard, and 1.01 CE is the most that is allowed:
    U <= 0.01 CE / (CE_unigram - CE), but for the noise of the rows.
    """
    sae = TopKSAE(V + 1, 64, 4, 3)
    forget, retain = text(RETAIN, 200, 1), text(RETAIN, 200, 2)
    found, _ = unlearning(sae, Pairs(), forget, retain, densities=(0.02, 2.0), sizes=(1, 3, 10))
    floor = 0.01 * found.ce / (found.ce_unigram - found.ce)
    assert abs(found.unlearned) < 3 * floor
    assert floor < 0.02


def test_where_nothing_helps_nothing_is_done():
    """No latent is rare enough on the text to retain."""
    forget = text(RETAIN, seed=1)
    found, table = unlearning(axes(), Pairs(), forget, text(RETAIN))
    assert found.latents == ()
    assert found.unlearned == 0
    assert found.retain_cost == 1
    assert len(table) == 0


def test_bos_stays_as_it_is():
    lm = Pairs()
    sae = axes()
    # a latent for BOS that would be a candidate
    sae.b_enc = F.one_hot(torch.tensor(PACKAGE), V + 1).float()
    unlearning(sae, lm, text(FORGET), text(RETAIN), densities=(2.0,), sizes=(40,))
    expected = F.one_hot(torch.tensor(BOS), V + 1).float()
    assert all((x == expected).all() for x in lm.at_bos)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_a_clamp_is_that_of_dense_latents(normalisation, threshold):
    g = torch.Generator().manual_seed(0)
    sae = TopKSAE(6, 20, 3, 0)
    sae.normalisation = normalisation
    sae.b_dec = torch.randn(6, generator=g)
    if threshold is not None:
        sae.k, sae.threshold = None, torch.full((20,), threshold)
    x = 3 * torch.randn(4, 5, 6, generator=g) + 1
    targets = torch.full((20,), torch.nan)
    targets[[2, 3, 5, 7, 11, 13]] = torch.tensor([0.0, -1, -2, -3, -4, -5])
    z = sae.encode(x)
    goal = torch.where((z > 0) & ~targets.isnan(), targets, z)
    scale = 1.0 if normalisation == "none" else sae.frame(x)[1]
    expected = x.double() + scale * ((goal - z) @ sae.W_dec)
    got = clamped(sae, x, targets, *sae.encode_topk(x))
    torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=2e-5)
    assert (goal != z).any()


def test_a_clamp_of_silent_latents_changes_no_bit():
    sae = TopKSAE(6, 20, 3, 0)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    fires = (sae.encode(x) > 0).any(0)
    sae.W_enc[:, 0] = 0
    targets = torch.full((20,), torch.nan)
    targets[0] = -5
    targets[~fires] = -5
    assert torch.equal(clamped(sae, x, targets, *sae.encode_topk(x)), x)


def test_a_language_model_is_measured_as_by_fidelity_and_steering(lm, rows):
    sae = TopKSAE(lm.d_model, 24, 4, 1)
    # the second half begins with a document of its own
    rows[5, 1] = BOS
    found, table = unlearning(
        sae, lm, rows, rows[::-1].copy(), densities=(2.0,), sizes=(1,), multiples=(0.0,)
    )
    expected = fidelity(sae, lm, rows[5:], include_bos=False).ce
    assert found.ce == pytest.approx(expected, rel=1e-6)
    ((latent,),) = table.latents
    ids = torch.from_numpy(rows[:5])
    x = lm.activations(ids)
    x = torch.where(ids[..., None] == lm.bos_id, x, edited(sae, x, latent, "ablate"))
    log_p = lm.spliced_logits(ids, x).log_softmax(-1)
    nats = -log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    after = nats[ids[:, :-1] != lm.bos_id].mean().item()
    assert table.ce_forget[0] == pytest.approx(after, rel=1e-6)


@pytest.mark.parametrize("batch_rows", [1, 7])
def test_batches_change_nothing(batch_rows):
    forget, retain = text(FORGET), text(RETAIN)
    sae = TopKSAE(V + 1, 64, 4, 3)
    one, table = unlearning(sae, Pairs(), forget, retain, densities=(0.2,))
    other, again = unlearning(sae, Pairs(), forget, retain, (0.2,), batch_rows=batch_rows)
    assert other.latents == one.latents
    assert other.unlearned == pytest.approx(one.unlearned, rel=1e-6)
    np.testing.assert_allclose(again.ce_forget, table.ce_forget, rtol=1e-6)


def test_what_cannot_be_measured_is_refused():
    lm, rows = Pairs(), text(FORGET)
    with pytest.raises(ValueError, match="1 rows to retain"):
        unlearning(axes(), lm, rows, rows[:1])
    with pytest.raises(ValueError, match="pack both alike"):
        unlearning(axes(), lm, rows, rows[:, 1:])
    with pytest.raises(ValueError, match="first half of the 60 rows to forget has nothing to"):
        unlearning(axes(), lm, np.zeros_like(rows), rows)
    endless = np.where(rows == BOS, FORGET[0], rows)
    endless[:, 0] = BOS
    with pytest.raises(ValueError, match="second half of the 60 rows to retain has nothing to"):
        unlearning(axes(), lm, rows, endless)
    with pytest.raises(ValueError, match=r"token ids must be in 0\.\.30"):
        unlearning(axes(), lm, np.where(rows == BOS, BOS, rows + 1), rows)
    with pytest.raises(ValueError, match="width 5"):
        unlearning(axes(5), lm, rows, rows)
