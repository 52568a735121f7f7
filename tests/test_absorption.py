"""Absorption: SAEs made by hand, whose shares are known, and trees whose truth is known."""

import numpy as np
import pytest
import torch

from faithful_sae import TopKSAE
from faithful_sae.metrics import absorption as module
from faithful_sae.metrics.absorption import (
    Absorption,
    absorbed,
    absorption,
    absorption_of_all,
    planted_absorption,
)
from faithful_sae.metrics.planted import World, planted
from faithful_sae.metrics.token_classes import class_samples, token_classes

D = 12
PARENT, CHILDREN, OTHERS = 0, (1, 2, 3), slice(4, 8)
AXES = torch.eye(D)


def made(rows, encoder, bias=None):
    """An SAE with these rows of W_dec [F, D] and of W_enc's transpose, which keeps what is positive
    but for rounding.
    """
    sae = TopKSAE(D, len(rows), None, 0)
    sae.W_dec, sae.W_enc = torch.as_tensor(rows).float(), torch.as_tensor(encoder).float().T
    if bias is not None:
        sae.b_enc = bias
    sae.above(0.01)
    return sae


def perfect():
    """A latent per axis."""
    return made(AXES, AXES)


def absorbing(children=CHILDREN):
    """The parent's latent is silent where one of some children is, whose rows hold it."""
    rows, encoder = AXES.clone(), AXES.clone()
    for child in children:
        rows[child] = AXES[PARENT] + AXES[child]
        encoder[PARENT, child] = -9
    return made(rows, encoder)


def tokens(n=3000, seed=0):
    """(x [N, D], holds [N], child [N]): half have the parent and one of three children, or, as
    often as each of them, none; all have one of four other features.
    """
    rng = np.random.default_rng(seed)
    holds = rng.random(n) < 0.5
    child = rng.integers(0, 4, n)
    x = AXES[torch.from_numpy(rng.integers(4, 8, n))].clone()
    x[holds, PARENT] = 1
    with_child = holds & (child > 0)
    x[with_child, child[with_child]] = 1
    return x, holds, np.where(holds, child, 0)


def test_a_child_that_holds_the_parents_direction_absorbs_it():
    x, _, child = tokens()
    fraction, full = absorbed(absorbing(), x[child > 0], AXES[PARENT], (PARENT,))
    assert (fraction == 1).all()
    assert full.all()


def test_a_perfect_dictionary_absorbs_nothing():
    x, holds, _ = tokens()
    fraction, full = absorbed(perfect(), x[holds], AXES[PARENT], (PARENT,))
    assert (fraction == 0).all()
    assert not full.any()


@pytest.mark.parametrize(("explains", "expected"), [(0.399, 0.0), (0.401, 1.0)])
def test_what_explains_less_than_two_fifths_does_not_count(explains, expected):
    """The absorber fires with 1, and its row has so much of the direction."""
    rows = AXES.clone()
    rows[1] = explains * AXES[0] + AXES[1]
    encoder = AXES.clone()
    encoder[0, 1] = -9
    x = AXES[:1] + AXES[1:2]
    fraction, full = absorbed(made(rows, encoder), x, AXES[0], (0,))
    assert fraction.item() == expected
    assert full.item() == (expected == 1)


def by_hand(z, rows, x, w, main):
    """The formulas, one token and one latent at a time."""
    a = float(x @ w)
    g = [float(f) * float(d @ w) for f, d in zip(z, rows, strict=True)]
    c = [float(d @ w / d.norm()) for d in rows]
    m = sum(g[f] for f in main)
    absorbers = sorted((g[f] for f in range(len(g)) if f not in main and c[f] >= 0.1), reverse=True)
    q = sum(absorbers[:3])
    if m >= a or q / a < 0.4:
        fraction = 0.0
    elif m <= 0:
        fraction = 1.0
    else:
        r = min(q, a - m)
        fraction = r / (r + m)
    top = max(range(len(g)), key=g.__getitem__)
    silent = all(z[f] == 0 for f in main)
    return fraction, silent and c[top] >= 0.025 and g[top] >= 0.4 * a


@pytest.mark.parametrize("at_once", [1, 2**22])
def test_every_case_is_that_of_the_formulas(monkeypatch, at_once):
    """Rows of any norm, several main latents, four absorbers, some that are too far from w."""
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    g = torch.Generator().manual_seed(0)
    sae = TopKSAE(D, 30, 6, 0)
    sae.W_dec = torch.randn(30, D, generator=g) * torch.rand(30, 1, generator=g) * 2
    w = AXES[0]
    x = torch.randn(400, D, generator=g) + 2 * w
    x = x[x @ w > 0.1]
    z = sae.encode(x)
    main = (4, 7)
    expected = [by_hand(f, sae.W_dec, one, w, main) for f, one in zip(z, x.unbind(), strict=True)]
    fraction, full = absorbed(sae, x, 3 * w, main)
    np.testing.assert_allclose(fraction, [one for one, _ in expected], rtol=1e-4, atol=1e-6)
    assert full.tolist() == [one for _, one in expected]
    assert len({*fraction.tolist()}) > 10
    assert 0 < full.float().mean() < 1


def test_the_bias_of_the_decoder_and_a_normalisation_are_no_ones_contribution():
    """x / 2 + b is what the plain SAE sees as x."""
    x, _, child = tokens()
    x = x[child > 0]
    sae = absorbing()
    sae.b_dec = 5 * AXES[PARENT]
    fraction, full = absorbed(sae, x + sae.b_dec, AXES[PARENT], (PARENT,))
    assert (fraction == 1).all()
    assert full.all()
    scaled = absorbing()
    scaled.normalisation = "constant_norm_rescale"
    # each has norm sqrt(3), and is seen with norm sqrt(12)
    fraction, full = absorbed(scaled, x, AXES[PARENT], (PARENT,))
    assert (fraction == 1).all()
    assert full.all()


def test_the_direction_is_found_and_so_are_the_main_latents():
    x, holds, _ = tokens()
    found = absorption(perfect(), x, holds)
    assert found.latents == (PARENT,)
    assert found.probe_f1 == 1
    assert found.latent_f1 == 1
    assert found.fraction == 0
    assert found.full == 0
    # a fifth of the tokens measure
    assert found.positives == pytest.approx(holds.sum() / 5, abs=1)
    assert found.passes


def test_one_absorbed_child_of_three():
    """The parent's latent fires on three of four tokens with the property, and is the main one; on
    the fourth the child does all.
    """
    x, holds, child = tokens(6000)
    found = absorption(absorbing((1,)), x, holds)
    assert PARENT in found.latents
    # the child alone is no split: with it F1 rises from 6/7 to 1
    assert found.latents == (PARENT, 1)
    assert found.fraction == 0
    # a rarer one is: it adds less than 0.03
    rare = np.flatnonzero(child != 1)
    few = np.concatenate([rare, np.flatnonzero(child == 1)[: len(rare) // 60]])
    found = absorption(absorbing((1,)), x[few], holds[few])
    assert found.latents == (PARENT,)
    share = (child[few] == 1).sum() / holds[few].sum()
    assert found.full == pytest.approx(share, abs=3 * (share / found.positives) ** 0.5)
    assert found.fraction == pytest.approx(found.full, abs=1e-6)
    assert found.full > 0


def test_scales_of_latents_change_nothing():
    x, holds, _ = tokens()
    sae = absorbing((1, 2))
    before = absorption(sae, x, holds)
    scale = torch.linspace(0.5, 3, D)
    sae.W_enc, sae.W_dec = sae.W_enc * scale, sae.W_dec / scale[:, None]
    after = absorption(sae, x, holds)
    assert after.latents == before.latents
    assert after.fraction == pytest.approx(before.fraction, abs=1e-5)
    assert after.full == before.full


def test_labels_that_mean_nothing_pass_no_gate_and_what_no_latent_has_is_nan():
    x, _, _ = tokens()
    labels = np.random.default_rng(1).random(len(x)) < 0.1
    found = absorption(perfect(), x, labels)
    assert found.probe_f1 < 0.3
    assert not found.passes
    blind = made(AXES[8:], AXES[8:])
    x, holds, _ = tokens()
    found = absorption(blind, x, holds)
    assert found.latents == ()
    assert np.isnan(found.fraction)
    assert np.isnan(found.full)


def test_too_few_tokens_are_refused():
    x, holds, _ = tokens(50)
    holds[:] = False
    holds[:4] = True
    with pytest.raises(ValueError, match="4 tokens with the property are too few"):
        absorption(perfect(), x, holds)
    with pytest.raises(ValueError, match="49 activations and 50 labels"):
        absorption(perfect(), x[1:], holds)


@pytest.mark.parametrize(
    ("f1", "positives", "passes"), [(0.61, 20, True), (0.6, 20, False), (0.61, 19, False)]
)
def test_a_property_that_the_probe_hardly_reads_or_finds_does_not_pass(f1, positives, passes):
    found = Absorption(0.5, 0.5, (1,), 0.9, f1, positives)
    assert found.passes == passes


def test_the_mean_is_over_properties_that_pass():
    x, holds, child = tokens()
    noise = np.random.default_rng(1).random(len(x)) < 0.1
    samples = {"parent": (x, holds), "child": (x, child == 1), "noise": (x, noise)}
    mean, table = absorption_of_all(absorbing(), samples)
    table = table.set_index("name")
    assert (mean.passed, mean.properties) == (2, 3)
    assert table.passes.tolist() == [True, True, False]
    assert mean.fraction == pytest.approx(table.fraction[["parent", "child"]].mean())
    assert mean.splits == pytest.approx(table.latents[["parent", "child"]].map(len).mean())
    empty, _ = absorption_of_all(absorbing(), {"noise": (x, noise)})
    assert np.isnan(empty.fraction)
    assert empty.passed == 0


def test_tokens_that_measure_neither_fit_nor_choose(monkeypatch):
    """Their labels are turned round: what is fitted and chosen stays, and all that is measured
    falls.
    """
    x, holds, _ = tokens()
    parts = module._parts(holds, 0)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(x)))
    monkeypatch.setattr(module, "_parts", lambda *_: parts)
    turned = holds.copy()
    turned[parts[2]] = ~turned[parts[2]]
    found = absorption(perfect(), x, turned)
    assert found.latents == (PARENT,)
    assert found.latent_f1 == 0
    assert found.probe_f1 == 0
    assert found.positives == 0
    assert np.isnan(found.fraction)
    # what chooses is turned as well: no latent helps
    turned[parts[1]] = ~turned[parts[1]]
    assert absorption(perfect(), x, turned).latents == ()


def tree():
    """Feature 0 always fires, and its child on half of the tokens."""
    return World(torch.eye(3), torch.tensor([1.0, 0.5, 0.5]), torch.tensor([-1, 0, -1]))


def test_a_planted_tree_whose_truth_is_known():
    sae = TopKSAE(3, 3, None, 0)
    sae.W_dec, sae.W_enc = torch.eye(3), torch.eye(3)
    sae.above(0.25)
    whole = planted_absorption(sae, tree(), 2000, 0)
    assert whole.parents.tolist() == [0]
    assert whole.absorbed.tolist() == [0]
    sae.W_enc = torch.tensor([[1.0, 0, 0], [-9, 1, 0], [0, 0, 1]])
    _, a = tree().sample(2000, 0)
    found = planted_absorption(sae, tree(), 2000, 0)
    assert found.mean == pytest.approx((a[:, 1] > 0).double().mean().item())
    # a latent that is silent without a child's in its place is a miss, and no absorption
    sae.W_enc = torch.tensor([[1.0, 0, -9], [0, 1, 0], [0, 0, 1]])
    sae.W_enc[:, 0] = -1
    half = planted_absorption(sae, tree(), 2000, 0)
    assert half.mean == pytest.approx((a[:, 1] > 0).double().mean().item())
    sae.W_enc[:, 1] = -1
    assert planted_absorption(sae, tree(), 2000, 0).mean == 0


def test_a_parent_without_a_latent_is_nan_and_a_world_without_parents_is_refused():
    sae = TopKSAE(3, 1, 1, 0)
    sae.W_dec = torch.eye(3)[1:2]
    found = planted_absorption(sae, tree(), 100, 0)
    assert np.isnan(found.absorbed).all()
    assert np.isnan(found.mean)
    with pytest.raises(ValueError, match="no feature of this world has a child"):
        planted_absorption(sae, planted("orthogonal", 3, 0), 100, 0)


def test_classes_by_hand():
    vocabulary = ["7", " 12", ".", "(", " numpy", "Array", " ABC", "a_b", "\n", "", "if", "1a", "_"]
    classes = token_classes(vocabulary)
    members = {
        name: [vocabulary[i] for i in np.flatnonzero(which)] for name, which in classes.items()
    }
    assert members["number"] == ["7", " 12"]
    assert members["digit"] == ["7"]
    assert members["punctuation"] == [".", "("]
    assert members["bracket"] == ["("]
    assert members["full stop"] == ["."]
    assert members["alphabetic"] == [" numpy", "Array", " ABC", "if"]
    assert members["capitalised"] == ["Array", " ABC"]
    assert members["upper case"] == [" ABC"]
    assert members["identifier"] == [" numpy", "Array", " ABC", "a_b", "if", "_"]
    assert members["snake case"] == ["a_b"]
    assert members["keyword"] == ["if"]
    assert members["package"] == [" numpy"]
    assert members["white space"] == ["\n"]
    assert members["begins a word"] == [" 12", " numpy", " ABC"]


def test_classes_of_the_same_tokens_are_one_and_empty_ones_none():
    classes = token_classes(["7", "8", ".", "a"])
    assert [*classes] == ["number", "punctuation", "alphabetic"]
    assert classes["number"].tolist() == [True, True, False, False]


class Stub:
    """A model whose activation is its token's id and its place."""

    bos_id, d_model, device = 0, 2, torch.device("cpu")

    def activations(self, ids):
        place = torch.arange(ids.shape[1]).expand(ids.shape)
        return torch.stack([ids, place], -1).float()


@pytest.mark.parametrize("batch_rows", [1, 7, 100])
def test_samples_are_the_tokens_they_say(batch_rows):
    rows = np.random.default_rng(0).integers(0, 30, (40, 25))
    rows[:, 0] = 0
    ids = np.arange(30)
    classes = {"low": ids < 10, "rare": ids == 29, "all": ids >= 0}
    lm = Stub()
    samples = class_samples(lm, rows, classes, 150, batch_rows)
    assert [*samples] == ["low"]
    x, holds = samples["low"]
    assert holds.sum() == 150
    assert len(holds) == 300
    assert np.array_equal(x[:, 0].numpy() < 10, holds)
    assert (x[:, 0] != 0).all()
    there = {(int(t), p) for row in rows for p, t in enumerate(row)}
    assert {(int(t), int(p)) for t, p in x} <= there
    again, _ = class_samples(lm, rows, classes, 150, 3)["low"]
    assert torch.equal(again, x)


def test_ids_that_no_class_knows_are_refused():
    with pytest.raises(ValueError, match="the classes are of 0 to 4"):
        class_samples(Stub(), np.full((2, 3), 5), {"low": np.ones(5, bool)})
