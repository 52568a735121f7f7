"""RAVEL's pairs on a tiny language model, whose own answers are the facts."""

import pytest
import torch

from conftest import BOS
from faithful_sae import TopKSAE, load_model
from faithful_sae.metrics.ravel import disentanglement, select
from faithful_sae.metrics.ravel_prompts import CITIES, TEMPLATES, entity_pairs

SHORT = [f"w{i}" for i in range(5, 25)]
LONG = ["w30 w31", "w32 w33 w34"]
ASKED = (" w40 w41", " w42")
# the model gives each of them to about as many entities
ANSWERS = (["w47", "w51", "w53"], ["w45", "w46", "w53"])


@pytest.fixture
def first(model_folders):
    """Hooked before the first block: x is the token alone."""
    return load_model(model_folders["llama"], 0, "cpu", "float32")


def ids_of(text):
    return [int(word[1:]) for word in text.split()]


@torch.no_grad()
def logits_of(lm, entity, a):
    """Of the answers to a prompt that stands alone."""
    ids = torch.tensor([[BOS, *ids_of(entity), *ids_of(ASKED[a])]])
    return lm.model(ids).logits[0, -1, [int(answer[1:]) for answer in ANSWERS[a]]]


def distances(a, b):
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def facts_of(lm):
    return {
        entity: [ANSWERS[a][int(logits_of(lm, entity, a).argmax())] for a in (0, 1)]
        for entity in SHORT + LONG
    }


def test_only_entities_of_which_all_answers_are_right_count(lm):
    facts = facts_of(lm)
    # every answer stays somebody's
    wrong = [SHORT[3], LONG[0]]
    for entity in wrong:
        others = [answer for answer in ANSWERS[1] if answer != facts[entity][1]]
        facts[entity] = [facts[entity][0], others[0]]
    _, _, known = entity_pairs(lm, facts, ASKED, 30)
    assert known == [entity for entity in facts if entity not in wrong]


def test_pairs_are_activations_of_entities_and_no_entity_selects_and_measures(lm):
    facts = facts_of(lm)
    pairs, _, known = entity_pairs(lm, facts, ASKED, 200)
    assert pairs.n_train == 140
    x = {}
    for entity in known:
        ids = torch.tensor([[BOS, *ids_of(entity)]])
        x[entity] = lm.model(ids, output_hidden_states=True).hidden_states[1][0, -1].detach()
    every = torch.stack([*x.values()])
    found = [distances(part, every).min(1) for part in (pairs.base, pairs.source)]
    assert max(one.values.max() for one in found) < 1e-4
    base, source = (one.indices for one in found)
    assert (base != source).all()
    selecting = {*base[:140].tolist(), *source[:140].tolist()}
    assert not selecting & {*base[140:].tolist(), *source[140:].tolist()}
    for a in (0, 1):
        truth = [sorted(ANSWERS[a]).index(facts[known[e]][a]) for e in source]
        # answers that nobody gives are no choices
        given = sorted({ANSWERS[a].index(answers[a]) for answers in facts.values()})
        assert [given[i] for i in pairs.source_answers[:, a]] == truth
    again, _, _ = entity_pairs(lm, facts, ASKED, 200, batch_rows=3)
    assert torch.equal(again.base_answers, pairs.base_answers)


def test_a_readout_with_the_bases_own_activation_is_the_model(lm):
    facts = facts_of(lm)
    pairs, readouts, known = entity_pairs(lm, facts, ASKED, 40)
    rows = torch.arange(40)
    for a, readout in enumerate(readouts):
        own = readout(pairs.base, rows).detach()
        given = sorted({ANSWERS[a].index(answers[a]) for answers in facts.values()})
        alone = torch.stack([logits_of(lm, entity, a)[given] for entity in known])
        # whichever entity a base is, it is one of those
        assert distances(own, alone).min(1).values.max() < 1e-4
        assert torch.equal(own.argmax(-1), pairs.base_answers[:, a])


def test_before_the_first_block_the_sources_activation_makes_the_sources_prompt(first):
    """Of entities of one token. A latent for each side of each axis is a perfect SAE."""
    facts = {entity: answers for entity, answers in facts_of(first).items() if entity in SHORT}
    pairs, readouts, _ = entity_pairs(first, facts, ASKED, 300)
    rows = torch.arange(300)
    for a, readout in enumerate(readouts):
        assert torch.equal(readout(pairs.source, rows).argmax(-1), pairs.source_answers[:, a])
    sae = TopKSAE(16, 32, None, 0)
    sae.W_dec = torch.cat([torch.eye(16), -torch.eye(16)])
    sae.W_enc = sae.W_dec.T.contiguous()
    found = disentanglement(sae, pairs, readouts, (range(32), ()))
    assert found.causes.tolist() == [1, 0]
    assert found.isolations.tolist() == [0, 1]


def test_selecting_leaves_the_model_without_gradients(lm):
    pairs, readouts, _ = entity_pairs(lm, facts_of(lm), ASKED, 40)
    sae = TopKSAE(16, 24, 4, 0)
    chosen = select(sae, pairs, readouts, 0)
    fires = (sae.encode(torch.cat([pairs.base, pairs.source])) > 0).any(0)
    assert 0 < len(chosen) < fires.sum()
    assert fires[list(chosen)].all()
    assert all(parameter.grad is None for parameter in lm.model.parameters())


def test_what_a_model_does_not_know_is_refused(lm):
    facts = facts_of(lm)
    few = {entity: facts[entity] for entity in SHORT[:3]}
    with pytest.raises(ValueError, match="of 3 entities, and at least 4"):
        entity_pairs(lm, few, ASKED)
    with pytest.raises(ValueError, match="w5 has 1 answers to 2 templates"):
        entity_pairs(lm, {"w5": ["w50"]}, ASKED)


def test_every_city_has_an_answer_to_every_template():
    assert len(CITIES) > 35
    assert {len(answers) for answers in CITIES.values()} == {len(TEMPLATES)}
