"""FFR of a hand-made SAE on a language model whose activations say which token was read, so that
every firing is known.
"""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel

from conftest import BOS, CONTEXT, make_tokenizer
from faithful_sae import TopKSAE, fake_feature_ratio
from faithful_sae.lm.model import LanguageModel
from faithful_sae.metrics.ffr import fake_ratio, firing_frequency, random_batches

V, T, N = (
    20,
    9,
    4_003,
)  # vocabulary, sequence length, random tokens (which fill 500 rows and 3 places of another)


@pytest.fixture
def lm():
    """GPT-2 hooked at block 0: dimension i of the activation is 1 where token i was read, dimension
    20 at position 0.
    """
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=V,
            n_positions=CONTEXT,
            n_embd=24,
            n_layer=1,
            n_head=1,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()
    with torch.no_grad():
        model.transformer.wte.weight.copy_(torch.eye(V, 24))
        model.transformer.wpe.weight.zero_()
        model.transformer.wpe.weight[0, V] = 1
    lm: Any = LanguageModel(model, make_tokenizer(V), 0, BOS)
    lm.seen = []
    forward = lm.activations

    def watch(ids, *rest):
        lm.seen.append(ids.clone())
        return forward(ids, *rest)

    lm.activations = watch
    return lm


# which tokens each latent fires on, and how strongly
FIRES = [
    ({0, 5, 6, 7}, 0.5),
    ({2}, 3.0),
    ({2, 3}, 0.5),
    ({2, 3, 4}, 2.0),
    (set(range(V)), 1.0),
    ({V}, 5.0),
    (set(), 1.0),
    ({8, 9, 10}, 1.5),
]


@pytest.fixture
def sae():
    sae = TopKSAE(24, len(FIRES), len(FIRES), 0)
    sae.W_enc = torch.zeros(24, len(FIRES))
    for latent, (tokens, strength) in enumerate(FIRES):
        sae.W_enc[list(tokens), latent] = strength
    return sae


def test_ratio_is_exact_and_in_percent(lm, sae):
    """Expected frequencies 0.2, 0.05, 0.1, 0.15, 1, 0 (position 0 only), 0, 0.15: tau = 0.12 is 5
    s.e. from the nearest.
    """
    assert fake_feature_ratio(sae, lm, N, frequency=0.12, seed=3, sequence_length=T) == 100 * 4 / 8
    assert (
        fake_feature_ratio(sae, lm, N, frequency=0.12, activation=1.0, seed=3, sequence_length=T)
        == 100 * 2 / 8
    )
    assert fake_feature_ratio(sae, lm, N, frequency=0.0, seed=3, sequence_length=T) == 100 * 6 / 8


def test_frequencies_are_counts_of_the_tokens_read(lm, sae):
    other = TopKSAE(24, len(FIRES), 1, 0)
    other.W_enc = sae.W_enc
    (got, authors), (cut, _) = firing_frequency(
        [sae, other], lm, N, T, seed=3, activations=(0.0, 1.0)
    )
    tokens = torch.cat([ids[:, 1:].flatten() for ids in lm.seen])
    assert len(tokens) == N
    assert all((ids[:, 0] == BOS).all() for ids in lm.seen)
    share = [sum((tokens == t).sum().item() for t in on if t < V) / N for on, _ in FIRES]
    assert got.tolist() == share  # equal counts, BOS positions left out
    assert authors.tolist() == [
        s if strength > 1.0 else 0 for s, (_, strength) in zip(share, FIRES, strict=True)
    ]
    # k = 1: of the latents that a token could fire only the strongest does
    strongest = [
        max(range(len(FIRES)), key=lambda f: FIRES[f][1] if t in FIRES[f][0] else -1)
        for t in tokens.tolist()
    ]
    assert cut.tolist() == (np.bincount(strongest, minlength=len(FIRES)) / N).tolist()


def test_tau_itself_is_not_fake():
    assert fake_ratio([0.1, 0.1000001, 0.5, 0.0], 0.1) == 50.0


@pytest.mark.parametrize("n_tokens", [1, 7, 8, 9, 800, N])
@pytest.mark.parametrize("batch_rows", [1, 32])
def test_exactly_n_tokens(n_tokens, batch_rows):
    batches = list(random_batches(n_tokens, T, torch.arange(V), BOS, 0, batch_rows))
    assert sum(b[:, 1:].numel() for b in batches) == n_tokens
    assert all(len(b) <= batch_rows and b.shape[1] <= T for b in batches)


def test_tokens_are_uniform_and_repeat_with_their_seed():
    def draw(seed):
        batches = random_batches(40_000, T, torch.arange(50), BOS, seed, 16)
        return torch.cat([b[:, 1:].flatten() for b in batches])

    counts = np.bincount(draw(0), minlength=50)
    assert len(counts) == 50
    assert chisquare(counts).pvalue > 1e-4
    pairs = draw(0).reshape(-1, 2) % 10
    assert (
        chisquare(np.bincount(pairs[:, 0] * 10 + pairs[:, 1], minlength=100)).pvalue > 1e-4
    )  # neighbours are independent
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(0), draw(1))


def test_only_the_given_ids_are_drawn():
    ids = torch.tensor([3, 7, 11])
    drawn = torch.cat([b[:, 1:].flatten() for b in random_batches(9000, T, ids, BOS, 0, 16)])
    assert set(drawn.tolist()) == {3, 7, 11}
    assert chisquare(np.unique(drawn, return_counts=True)[1]).pvalue > 1e-4


def test_firing_on_some_ids_is_that_of_these_tokens_alone(lm, sae):
    (one,) = firing_frequency([sae], lm, 400, T, ids=[5])
    rows = torch.cat([torch.tensor([BOS]), torch.full((T - 1,), 5)])[None]
    x = lm.activations(rows)[0, 1:]
    # 400 tokens are whole rows of the same token: each position counts alike
    assert one[0].tolist() == pytest.approx((sae.encode(x) > 0).float().mean(0).tolist(), abs=0.01)


def test_no_ids(lm, sae):
    with pytest.raises(ValueError, match="ids is empty"):
        firing_frequency([sae], lm, 400, T, ids=[])


def test_no_tokens(lm, sae):
    with pytest.raises(ValueError, match="n_tokens = 0"):
        fake_feature_ratio(sae, lm, 0)
