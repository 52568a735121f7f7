"""Worlds whose features are known: what they are, how recovery is scored, and that every variant of
SAE finds the features of the easiest.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import r2_score

from faithful_sae import TopKSAE, train_saes
from faithful_sae.metrics.planted import L0, RUNGS, SCORED, World, ladder, planted, recovery
from faithful_sae.sae.settings import SETTINGS
from faithful_sae.sae.variants import (
    Archetypal,
    BatchTopK,
    FeatureChoice,
    Gated,
    JumpReLU,
    Matryoshka,
    MutualChoice,
    ProLU,
    ReLU,
    Switch,
    TopK,
)

D, F, K = 32, 48, 4
# tokens, in a step, and how fast: the same for all variants
TOKENS, BATCH, LR = 120_000, 256, 1e-2
VARIANTS = {
    # room for tokens with more features than the mean, which it cannot lend from others
    "topk": TopK(2 * K),
    "relu": ReLU(),
    "batch_topk": BatchTopK(K),
    "matryoshka": Matryoshka(K, (0.5, 1.0)),
    "jumprelu": JumpReLU(K),
    "gated": Gated(),
    "prolu": ProLU(),
    "mutual_choice": MutualChoice(K),
}


def oracle(world) -> TopKSAE:
    """An SAE that finds every feature of an orthogonal world."""
    sae = TopKSAE(world.directions.shape[1], len(world.directions), None, 0)
    sae.W_dec = world.directions
    sae.W_enc = world.directions.T.contiguous()
    sae.above(0.25)
    return sae


@pytest.mark.parametrize("rung", RUNGS)
def test_tokens_are_sums_of_the_features_that_fire(rung):
    world = planted(rung, D, 1)
    x, a = world.sample(20_000, 2)
    torch.testing.assert_close(x, a @ world.directions)
    torch.testing.assert_close(world.directions.norm(dim=1), torch.ones(len(world.directions)))
    assert a[a > 0].min() >= 0.5
    assert a.max() < 1.5
    again, _ = world.sample(20_000, 2)
    assert torch.equal(x, again)
    assert not torch.equal(x, world.sample(20_000, 3)[0])


def test_frequencies_are_zipfs_and_l0_is_theirs():
    _, a = planted("orthogonal", D, 1).sample(100_000, 2)
    frequency = (a > 0).double().mean(0)
    assert frequency.sum().item() == pytest.approx(L0, rel=0.02)
    slope, _ = np.polyfit(np.log(np.arange(1, D + 1)), np.log(frequency.numpy()), 1)
    assert slope == pytest.approx(-0.5, abs=0.02)


def test_the_rungs():
    orthogonal, crowded, tree, dense = (planted(rung, D, 1) for rung in RUNGS)
    gram = orthogonal.directions @ orthogonal.directions.T
    torch.testing.assert_close(gram, torch.eye(D), atol=1e-5, rtol=0)
    assert len(crowded.directions) == 2 * D
    assert (dense.sample(10_000, 0)[1][:, 0] > 0).float().mean() == pytest.approx(0.9, abs=0.02)
    fires = tree.sample(50_000, 0)[1] > 0
    for parent, child in ((0, 2), (1, 3)):
        assert not (fires[:, child] & ~fires[:, parent]).any()
        share = fires[fires[:, parent], child].float().mean()
        assert share == pytest.approx(0.5, abs=0.02)
    with pytest.raises(ValueError, match="rung 'steep' must be one of"):
        planted("steep", D, 1)


def test_recovery_of_a_perfect_sae_and_of_half_of_one():
    world = planted("orthogonal", D, 1)
    whole = recovery(oracle(world), world, 5000, 0)
    assert whole.mcc == pytest.approx(1, abs=1e-6)
    assert whole.f1 == 1
    assert whole.explained_variance == pytest.approx(1, abs=1e-9)
    assert (whole.recall == 1).all()
    half = oracle(world)
    # the first half is turned by 60 degrees, and fires half of the time at most
    turned = 0.5 * world.directions[: D // 2] + 0.75**0.5 * world.directions[D // 2 :]
    half.W_dec = torch.cat([turned, world.directions[D // 2 :]])
    half.b_enc = torch.cat([torch.full((D // 2,), -0.75), torch.zeros(D // 2)])
    scored = recovery(half, world, 100_000, 0)
    assert scored.mcc == pytest.approx(0.75, abs=1e-6)
    # above 0.25 + 0.75, which is half of 0.5 to 1.5: precision 1, recall 1/2
    assert scored.recall[: D // 2] == pytest.approx(0.5, abs=0.03)
    assert scored.f1 == pytest.approx((2 / 3 + 1) / 2, abs=0.01)


def test_mcc_is_scipys_where_there_are_fewer_latents_than_features():
    world = planted("superposition", D, 1)
    sae = TopKSAE(D, 20, 4, 3)
    cosine = (world.directions.double() @ sae.W_dec.double().T).numpy()
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    found = recovery(sae, world, 1000, 0)
    assert found.mcc == pytest.approx(cosine[rows, columns].mean(), abs=1e-6)
    alone = np.setdiff1d(np.arange(2 * D), rows)
    assert not found.recall[alone].any()


def test_a_parents_recall_says_what_its_child_absorbs():
    """Of 4 tokens the parent fires on, its latent is silent on the 2 with the child."""
    world = World(torch.eye(2), torch.tensor([1.0, 0.5]), torch.tensor([-1, 0]))
    sae = oracle(world)
    sae.W_enc = torch.tensor([[1.0, 0.0], [-9.0, 1.0]])
    assert recovery(sae, world, 20_000, 0).recall == pytest.approx([0.5, 1], abs=0.02)


def test_there_is_one_for_every_variant():
    others = {"switch", "feature_choice", "archetypal"}
    # TopK where it stands alone, and what is not trained
    others |= {"tilted", "mutual", "pca"}
    # whose loss needs a language model
    others |= {"end_to_end", "causal"}
    assert {*VARIANTS, *others} == {*SETTINGS}


def test_the_ladder_scores_saes_that_are_trained_on_every_rung():
    table = ladder({"topk": TopK(8), "gated": Gated()}, [5, 6], F, 20 * BATCH).set_index(
        ["variant", "rung", "seed"]
    )
    assert len(table) == 2 * len(RUNGS) * 2
    world = planted("hierarchy", D, 0)
    batches = world.sample(20 * BATCH, 1)[0].split(BATCH)
    (sae,) = train_saes(batches, D, F, TopK(8), [6], LR, 20 * BATCH, BATCH)
    row = table.loc["topk", "hierarchy", 6]
    assert row.mcc == recovery(sae, world, 100, 0).mcc
    x, a = world.sample(SCORED, 2)
    z = sae.encode(x)
    assert row.l0 == pytest.approx((z > 0).sum(1).double().mean().item(), rel=1e-6)
    r2 = r2_score(x.numpy(), sae.decode(z).numpy(), multioutput="variance_weighted")
    assert row.explained_variance == pytest.approx(r2, abs=1e-5)
    cosine = (world.directions @ sae.W_dec.T).numpy()
    _, latent = linear_sum_assignment(cosine, maximize=True)
    fires, found = a[:, :2] > 0, z[:, latent[:2]] > 0
    recall = (fires & found).sum(0) / fires.sum(0)
    assert row.parent_recall == pytest.approx(recall.mean().item(), abs=1e-6)
    assert table.parent_recall.drop("hierarchy", level="rung").isna().all()
    nearest = (sae.W_dec @ sae.W_dec.T).fill_diagonal_(-1).amax(1)
    assert row.duplicates == pytest.approx((nearest >= 0.7).double().mean().item())
    assert sae.firing is not None
    assert row.dead == (sae.firing == 0).double().mean()


def mcc_of(variant, world, x, d_sae=F):
    """(before training, after it)."""
    (sae,) = train_saes(x.split(BATCH), D, d_sae, variant, [5], LR, TOKENS, BATCH)
    return [recovery(one, world, 5000, 2).mcc for one in (TopKSAE(D, d_sae, K, 5), sae)]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_finds_orthogonal_features(name):
    world = planted("orthogonal", D, 0)
    x, _ = world.sample(TOKENS, 1)
    before, after = mcc_of(VARIANTS[name], world, x)
    assert before < 0.6
    assert after > 0.99


def test_feature_choice_finds_as_many_features_as_it_has_latents_where_they_are_equally_frequent():
    """What it presumes: no latent can be left over, and none fire on more tokens than others."""
    directions = planted("orthogonal", D, 0).directions
    world = World(directions, torch.full((D,), L0 / D), torch.full((D,), -1))
    x, _ = world.sample(TOKENS, 1)
    before, after = mcc_of(FeatureChoice(K), world, x, D)
    assert before < 0.6
    assert after > 0.99


def test_archetypal_finds_features_of_which_a_token_has_one():
    """What it presumes: means of tokens are in the features' directions, but for the mean of all
    that is taken off them.
    """
    directions = planted("orthogonal", D, 0).directions
    g = torch.Generator().manual_seed(1)
    world = World(directions, torch.full((D,), 1 / D), torch.full((D,), -1))
    a = torch.nn.functional.one_hot(torch.randint(D, (TOKENS,), generator=g), D)
    x = a * (0.5 + torch.rand(TOKENS, 1, generator=g)) @ directions
    before, after = mcc_of(Archetypal(1, 0.0), world, x)
    assert before < 0.6
    assert after == pytest.approx(31 / (31**2 + 31) ** 0.5, abs=2e-3)


def test_switch_finds_features_of_which_a_token_has_those_of_one_half():
    """Each half of the features is an expert's, if the router finds it; each expert has room for
    all of them.
    """
    directions = planted("orthogonal", D, 0).directions
    world = World(directions, torch.full((D,), 2 * L0 / D), torch.full((D,), -1))
    _, a = world.sample(TOKENS, 1)
    a[::2, : D // 2] = 0
    a[1::2, D // 2 :] = 0
    before, after = mcc_of(Switch(K, experts=2), world, a @ directions, 2 * D)
    assert before < 0.6
    assert after > 0.99
