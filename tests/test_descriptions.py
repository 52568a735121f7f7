"""Tests of descriptions by input and output: on a model of one token at a time, where all is known,
and by chance levels.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import BOS, VOCABULARY
from faithful_sae import TopKSAE, load_model
from faithful_sae.features.descriptions import (
    INPUT_CHANCE,
    NEAREST,
    OUTPUT_CHANCE,
    rivals_of,
    score_descriptions,
    token_descriptions,
)
from faithful_sae.features.index import FeatureError

D = VOCABULARY
TOKENS = range(2, VOCABULARY)


class OneToken:
    """x is the one-hot vector of the token; logits are x rotated: each token has an orthogonal row
    of the unembedding.
    """

    bos_id, d_model, vocab_size, device = BOS, D, VOCABULARY, torch.device("cpu")

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.unembedding = 3 * torch.linalg.qr(torch.randn(D, VOCABULARY, generator=g)).Q

    def activations(self, ids):
        return torch.eye(D)[ids]

    def spliced_logits(self, ids, x):
        return x @ self.unembedding


@pytest.fixture
def one():
    return OneToken()


@pytest.fixture
def written():
    """Which token each latent writes: int [F], none its own."""
    return np.roll(np.arange(VOCABULARY), 7)


@pytest.fixture
def sae(one, written):
    """Latent f fires on token f alone, at 1, and writes the unembedding's row of another token."""
    sae = TopKSAE(D, D, None, 0)
    sae.W_enc = torch.eye(D)
    sae.threshold = torch.full((D,), 0.5)
    sae.W_dec = torch.nn.functional.normalize(one.unembedding.T[written], dim=-1)
    return sae


@pytest.fixture
def many_rows():
    rows = np.random.default_rng(0).integers(2, VOCABULARY, (60, 20))
    rows[:, 0] = BOS
    return rows


def score(sae, lm, rows, descriptions, **more):
    given = {"maxima": np.ones(sae.d_sae), "length": 12, "steered_rows": 3} | more
    return score_descriptions(sae, lm, rows, descriptions, **given)


def test_the_token_that_it_fires_on_is_success_by_input(one, sae, many_rows):
    table = score(sae, one, many_rows, {f: [f] for f in TOKENS})
    assert table.latent.tolist() == [*TOKENS]
    assert (table.input == 1).all()
    assert (table.input_choice == 1).all()
    assert (table.activation == 1).all()
    # a rival's token is another one
    assert (table.input_rival == 0).all()


def test_the_row_that_it_writes_is_success_by_output(one, sae, written, many_rows):
    table = score(sae, one, many_rows, {f: [int(written[f])] for f in range(VOCABULARY)})
    assert (table.output == 1).all()
    assert (table.gain > 0).all()
    # and says nothing of what goes in
    assert (table.input == 0).all()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_row_of_the_unembedding_succeeds_at_the_last_layer(architecture, model_folders, rows):
    lm = load_model(model_folders[architecture], 2, "cpu", "float32")
    sae = TopKSAE(lm.d_model, 16, 4, 0)
    tokens = torch.arange(10, 25)
    with torch.no_grad():
        # orthogonal to each other and, for LayerNorm, to the mean
        basis = torch.linalg.qr(torch.cat([torch.ones(16, 1), torch.eye(16)[:, :15]], 1)).Q
        lm.model.get_output_embeddings().weight[tokens] = basis.T[1:]
        sae.W_dec[:15] = basis.T[1:]
    descriptions = {f: [10 + f] for f in range(15)}
    table = score(sae, lm, rows, descriptions, dose=1000.0, maxima=np.ones(16))
    assert (table.output == 1).all()


def test_gains_by_hand(one, sae, many_rows):
    descriptions = {f: [f, (f + 20) % VOCABULARY] for f in range(0, VOCABULARY, 3)}
    table = score(sae, one, many_rows, descriptions, dose=2.0, maxima=np.full(D, 1.5))
    text = many_rows[:3, 1:12]
    x = np.eye(D)[text.ravel()]
    unembedding = one.unembedding.double().numpy()
    for found in table.itertuples():
        moved = x + 2.0 * 1.5 * sae.W_dec[found.latent].double().numpy()
        log_p, log_q = (
            logits - np.log(np.exp(logits).sum(1, keepdims=True))
            for logits in (x @ unembedding, moved @ unembedding)
        )
        gain = (log_q - log_p)[:, descriptions[found.latent]].mean()
        assert found.gain == pytest.approx(gain, abs=1e-5)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
def test_a_dose_of_zero_is_a_third(lm, rows, normalisation):
    sae = TopKSAE(16, 24, 4, 0)
    sae.normalisation = normalisation
    table = score(sae, lm, rows, {f: [f + 2, f + 30] for f in range(24)}, dose=0.0)
    assert (table.output == OUTPUT_CHANCE).all()
    assert (table.gain == 0).all()


def test_random_descriptions_are_at_chance(one, many_rows):
    """Of many latents of random SAEs, within four standard errors."""
    tables = []
    for seed in range(6):
        sae = TopKSAE(D, 48, 4, seed)
        rng = np.random.default_rng(seed)
        descriptions = {f: rng.choice(TOKENS, 3, replace=False).tolist() for f in range(48)}
        tables.append(score(sae, one, many_rows, descriptions, seed=seed))
    table = pd.concat(tables)
    for column, chance in (("input_choice", INPUT_CHANCE), ("output", OUTPUT_CHANCE)):
        values = table[column].dropna()
        assert len(values) > 250, column
        error = (chance * (1 - chance) / len(values)) ** 0.5
        assert values.mean() == pytest.approx(chance, abs=4 * error), column
    # what a rival's tokens do is what a random description does; each has a variance of 1/4
    error = (0.5 / len(table)) ** 0.5
    assert table.input.mean() == pytest.approx(table.input_rival.mean(), abs=4 * error)


def test_contexts_are_silent_before(one, sae, many_rows):
    # latent 5 fires wherever it can, and is described by a token on which it is silent
    sae.W_enc[:, 5] = 1.0
    sae.W_enc[9, 5] = 0.0
    rows = many_rows.copy()
    rows[:7, 1:] = 9
    table = score(sae, one, rows, {5: [9], 20: [20], 21: [21], 22: [22]})
    assert table.input[0] == 0
    assert table.input_rival[0] == 1
    assert table.input_choice[0] == 0
    # fewer than five silent contexts
    table = score(sae, one, rows[3:], {5: [9], 20: [20], 21: [21], 22: [22]})
    assert table.loc[0, ["input", "input_rival", "input_choice", "activation"]].isna().all()
    assert table.loc[0, ["output", "gain"]].notna().all()


def test_a_context_has_no_second_bos(one, sae, many_rows):
    many_rows[4:, 6] = BOS
    table = score(sae, one, many_rows, {f: [f] for f in TOKENS})
    assert table.input.isna().all()
    assert table.output.notna().all()


def test_rivals_share_no_token_and_are_the_nearest():
    rng = np.random.default_rng(0)
    descriptions = {f: [*map(int, rng.choice(200, 4, replace=False))] for f in range(60)}
    counts = rng.integers(0, 1000, 200)
    level = {f: np.log(counts[tokens] + 1).mean() for f, tokens in descriptions.items()}
    found = rivals_of(descriptions, [*descriptions], counts, 0)
    for f, pair in found.items():
        disjoint = [i for i in descriptions if not {*descriptions[i]} & {*descriptions[f]}]
        near = sorted(disjoint, key=lambda i: abs(level[i] - level[f]))[:NEAREST]
        assert len({*pair}) == 2
        assert {*pair} <= {*near}
    assert [*found] == [*descriptions]
    assert rivals_of(descriptions, [7], counts, 0) == {7: found[7]}
    assert rivals_of(descriptions, [*descriptions], counts, 1) != found


def test_without_rivals_nothing_is_tested(one, sae, many_rows):
    table = score(sae, one, many_rows, {5: [5], 6: [5, 6], 7: [7, 5]})
    assert table.drop(columns=["latent", "input_chance", "output_chance"]).isna().all(axis=None)


@pytest.mark.parametrize("batch_rows", [1, 7])
def test_batches_and_samples_change_nothing(lm, rows, batch_rows):
    sae = TopKSAE(16, 24, 4, 0)
    descriptions = {f: [f + 2, f + 30] for f in range(24)}
    whole = score(sae, lm, rows, descriptions)
    part = score(sae, lm, rows, descriptions, latents=[20, 3], batch_rows=batch_rows)
    known = whole.set_index("latent").loc[[20, 3]].reset_index()
    pd.testing.assert_frame_equal(part, known, rtol=1e-4, atol=1e-6)


def test_nothing_to_test_is_an_empty_table(one, sae, many_rows):
    table = score(sae, one, many_rows, {5: [5]}, latents=[])
    assert len(table) == 0
    assert "input_choice" in table


def test_descriptions_of_an_index():
    explanations = pd.DataFrame(
        [
            (3, "MutInfo", 1, "b"),
            (3, "MutInfo", 0, "c"),
            (3, "MutInfo", 2, "a"),
            (5, "MutInfo", 0, "a"),
            (3, "VocabProj", 0, "a"),
            (3, "MaxAct", 0, "a b"),
        ],
        columns=["latent", "method", "rank", "text"],
    )
    assert token_descriptions(explanations, ["a", "b", "c", "a"], "MutInfo", 2) == {
        3: [2, 1],
        5: [0],
    }
    for method in ("MaxAct", "other"):
        with pytest.raises(FeatureError, match=f"{method} lists no tokens"):
            token_descriptions(explanations, ["a", "b", "c"], method, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"descriptions": {D: [3]}}, f"no latent {D}"),
        ({"descriptions": {4: []}}, "description of latent 4, "),
        ({"descriptions": {4: [VOCABULARY]}}, f"from 0 to {VOCABULARY - 1}"),
        ({"latents": [9]}, "latent 9 is to be tested"),
        ({"maxima": np.ones(D - 1)}, f"maxima of {D - 1} latents"),
        ({"length": 21}, "contexts of 21 tokens"),
        ({"length": 1}, "from 2 on"),
        ({"rows": np.zeros((0, 20), int)}, r"shape \[0, 20\]"),
        ({"rows": np.zeros((9, 20), int)}, "first 3 rows hold nothing"),
        ({"steered_rows": 0}, "first 0 rows hold nothing"),
    ],
)
def test_bad_input(one, sae, many_rows, change, message):
    given = {"rows": many_rows, "descriptions": {5: [5]}} | change
    with pytest.raises(FeatureError, match=message):
        score(sae, one, **given)
