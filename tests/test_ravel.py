"""RAVEL: SAEs made by hand in a world of entities, where cause and isolation are known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from faithful_sae import TopKSAE
from faithful_sae.metrics.ravel import Pairs, disentanglement, entities, ravel, select, swapped

D, ANSWERS = 16, (3, 4)
FIRST, SECOND = tuple(range(3)), tuple(range(3, 7))


@pytest.fixture
def world():
    return entities(D, ANSWERS, 0)


@pytest.fixture
def pairs(world):
    return world.pairs(600, 1)


def made(rows, above=0.5):
    """An SAE with these rows as encoder and decoder."""
    sae = TopKSAE(D, len(rows), None, 0)
    sae.W_dec, sae.W_enc = rows, rows.T.contiguous()
    sae.above(above)
    return sae


def separate(world):
    """A latent per answer, and some that never fire."""
    silent = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(9))).Q
    known = torch.cat(world.directions)
    return made(torch.cat([known, silent[:5] - silent[:5] @ known.T @ known]))


def joint(world):
    """A latent per pair of answers: one for both attributes."""
    first, second = world.directions
    rows = torch.stack([a + b for a, b in itertools.product(first, second)])
    # the right one has 2, one with half of the answers 1
    sae = made(rows, 1.5)
    sae.W_dec = rows / 2
    return sae


def test_the_world_reads_as_it_was_made(world, pairs):
    for a, readout in enumerate(world.readouts):
        rows = torch.arange(len(pairs.base))
        assert torch.equal(readout(pairs.base, rows).argmax(-1), pairs.base_answers[:, a])
        assert torch.equal(readout(pairs.source, rows).argmax(-1), pairs.source_answers[:, a])
    assert (pairs.base.norm(dim=1) - 2**0.5).abs().max() < 1e-5
    again = world.pairs(600, 1)
    assert torch.equal(again.base, pairs.base)
    assert pairs.n_train == 420


def test_one_latent_per_answer_is_disentangled(world, pairs):
    found = disentanglement(separate(world), pairs, world.readouts, (FIRST, SECOND))
    assert found.cause == 1
    assert found.isolation == 1
    assert found.disentanglement == 1


def test_one_latent_for_both_causes_and_does_not_isolate(world, pairs):
    both = tuple(range(12))
    found = disentanglement(joint(world), pairs, world.readouts, (both, both))
    assert found.cause == 1
    assert found.isolation == 0
    assert found.disentanglement == 0.5


@pytest.mark.parametrize("kind", [separate, joint])
def test_no_latents_isolate_and_cause_nothing(world, pairs, kind):
    found = disentanglement(kind(world), pairs, world.readouts, ((), ()))
    assert found.cause == 0
    assert found.isolation == 1


def test_attributes_count_by_themselves(world, pairs):
    """All latents of the first, none of the second."""
    everything = FIRST + SECOND
    found = disentanglement(separate(world), pairs, world.readouts, (everything, ()))
    assert found.causes.tolist() == [1, 0]
    assert found.isolations.tolist() == [0, 1]


def test_an_sae_that_reconstructs_nothing_isolates_no_better_than_chance(world, pairs):
    sae = separate(world)
    sae.W_dec = torch.zeros_like(sae.W_dec)
    found = disentanglement(sae, pairs, world.readouts, ((), ()))
    # every answer is the first one
    rows = slice(pairs.n_train, None)
    differ = pairs.base_answers[rows] != pairs.source_answers[rows]
    expected = [
        (pairs.base_answers[rows, j][differ[:, j]] == 0).double().mean().item() for j in (1, 0)
    ]
    np.testing.assert_allclose(found.isolations, expected)


def test_masks_find_the_latents_of_each_attribute(world, pairs):
    found = ravel(separate(world), pairs, world.readouts)
    assert found.latents == (FIRST, SECOND)
    assert found.disentanglement == 1
    again = ravel(separate(world), pairs, world.readouts)
    assert again.latents == found.latents


def test_no_mask_disentangles_what_one_latent_has(world, pairs):
    found = ravel(joint(world), pairs, world.readouts)
    # half of the pairs, whichever latents: what is caused is not isolated
    assert found.disentanglement < 0.75
    assert found.disentanglement == (found.cause + found.isolation) / 2


def test_three_attributes():
    world = entities(D, (2, 3, 4), 0)
    pairs = world.pairs(900, 1)
    sae = made(torch.cat(world.directions))
    found = ravel(sae, pairs, world.readouts)
    assert found.latents == ((0, 1), (2, 3, 4), (5, 6, 7, 8))
    assert found.cause == 1
    assert found.isolation == 1
    # the second and third of the first's latents: of two others one stays
    mixed = disentanglement(sae, pairs, world.readouts, ((0, 1, 2, 3, 4), (), ()))
    assert mixed.isolations[0] == 0.5


def test_pairs_that_measure_select_nothing(world, pairs):
    """Their answers are wrong, and the mask stays."""
    n = pairs.n_train
    turned = replace(
        pairs,
        source=torch.cat([pairs.source[:n], pairs.source[n:].flip(0)]),
        base_answers=torch.cat([pairs.base_answers[:n], 0 * pairs.base_answers[n:]]),
    )
    assert select(separate(world), turned, world.readouts, 0) == FIRST
    assert disentanglement(separate(world), turned, world.readouts, (FIRST, SECOND)).cause < 1


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("threshold", [None, 0.3])
def test_a_swap_is_that_of_dense_latents(normalisation, threshold):
    g = torch.Generator().manual_seed(0)
    sae = TopKSAE(6, 20, 3, 0)
    sae.normalisation = normalisation
    sae.b_dec = torch.randn(6, generator=g)
    if threshold is not None:
        sae.k, sae.threshold = None, torch.full((20,), threshold)
    base, source = (3 * torch.randn(9, 6, generator=g) + 1 for _ in range(2))
    torch.testing.assert_close(
        swapped(sae, base, source, torch.zeros(20)), sae.reconstruct(base), atol=1e-5, rtol=1e-5
    )
    share = (torch.rand(20, generator=g) < 0.5).float()
    z = torch.where(share > 0, sae.encode(source), sae.encode(base))
    expected = z.double() @ sae.W_dec.double() + sae.b_dec
    if normalisation != "none":
        shift, scale = sae.frame(base)
        expected = expected * scale + shift
    got = swapped(sae, base, source, share)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


def test_pairs_that_agree_do_not_count(world):
    pairs = world.pairs(50, 3)
    same = Pairs(pairs.base, pairs.base, pairs.base_answers, pairs.base_answers, 20)
    found = disentanglement(separate(world), same, world.readouts, (FIRST, SECOND))
    assert np.isnan(found.disentanglement)


def test_what_cannot_be_measured_is_refused(world, pairs):
    sae = separate(world)
    with pytest.raises(ValueError, match="1 readouts and answers to 2"):
        ravel(sae, pairs, world.readouts[:1])
    with pytest.raises(ValueError, match="1 sets of latents for 2"):
        disentanglement(sae, pairs, world.readouts, (FIRST,))
    with pytest.raises(ValueError, match="n_train = 600 of 600"):
        disentanglement(sae, replace(pairs, n_train=600), world.readouts, (FIRST, SECOND))
    with pytest.raises(ValueError, match="7 answers do not fit 6"):
        entities(6, ANSWERS, 0)
