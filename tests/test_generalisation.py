"""Numbers by position against loops and metrics/fidelity.py, and the fine-tuned model against an
optimiser's step worked by hand.
"""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score

from conftest import BOS, CONTEXT, VOCABULARY
from faithful_sae import TopKSAE, load_model
from faithful_sae.metrics.fidelity import fidelity_of_all
from faithful_sae.metrics.generalisation import by_position, fine_tuned, ratios
from faithful_sae.metrics.uncertainty import bootstrap_error

D = 16
NUMBERS = ["l0", "explained_variance", "explained_variance_pooled", "ce", "ce_diff"]


class PositionFree:
    """A language model that looks at one token alone: x is its embedding."""

    bos_id, d_model, device = BOS, D, torch.device("cpu")
    context = CONTEXT
    shape = SimpleNamespace(vocab_size=VOCABULARY)

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(VOCABULARY, D, generator=g) + 1
        self.unembedding = torch.randn(D, VOCABULARY, generator=g)

    def activations(self, ids):
        return self.embedding[ids]

    def logits(self, ids):
        x = self.activations(ids)
        return x @ self.unembedding, x

    def spliced_logits(self, ids, x):
        return x @ self.unembedding


@pytest.fixture
def free():
    return PositionFree()


@pytest.fixture
def sae():
    sae = TopKSAE(D, 24, 4, 3)
    sae.b_dec = torch.randn(D, generator=torch.Generator().manual_seed(4))
    return sae


def identity():
    """x = relu(x) - relu(-x), whatever x is."""
    sae = TopKSAE(D, 2 * D, None, 0)
    sae.W_dec = torch.cat([torch.eye(D), -torch.eye(D)])
    sae.W_enc = sae.W_dec.T.contiguous()
    return sae


def test_a_model_without_positions_has_equal_buckets(free, sae):
    # a cycle of 9 tokens, on and on: 9 positions anywhere hold the same tokens and what follows
    cycles = [np.random.default_rng(i).choice(np.arange(2, VOCABULARY), 9) for i in range(5)]
    rows = np.array([[BOS, *np.resize(cycle, 30)] for cycle in cycles])
    table = by_position({"a": sae}, free, rows, [2, 11, 20, 29], batch_rows=2)
    assert table.tokens.tolist() == [45] * 3
    for name in NUMBERS:
        np.testing.assert_allclose(table[name], table[name][0], rtol=1e-6, err_msg=name)
    assert table.explained_variance[0] != table.l0[0]


def test_buckets_by_hand(free, sae, rows):
    edges = (0, 3, 8, 12)
    table = by_position({"a": sae}, free, rows, edges, batch_rows=3)
    for p, (start, stop) in enumerate(itertools.pairwise(edges)):
        kept, ce, ce_sae, active = [], [], [], []
        for row in rows:
            for t in range(start, stop):
                if row[t] == BOS:
                    continue
                x = free.embedding[row[t]]
                x_hat = sae.decode(sae.encode(x))
                kept.append(torch.stack([x, x_hat]).numpy())
                active.append((sae.encode(x) > 0).sum().item())
                if t + 1 < len(row):
                    for losses, y in ((ce, x), (ce_sae, x_hat)):
                        log_p = (y @ free.unembedding).double().log_softmax(-1)
                        losses.append(-log_p[row[t + 1]].item())
        x, x_hat = np.stack(kept, 1).astype(float)
        found = table.iloc[p]
        assert found.tokens == len(x)
        assert found.predictions == len(ce)
        assert found.l0 == pytest.approx(np.mean(active))
        explained = r2_score(x, x_hat, multioutput="variance_weighted")
        assert found.explained_variance == pytest.approx(explained, abs=1e-6)
        assert found.ce == pytest.approx(np.mean(ce), rel=1e-6)
        assert found.ce_diff == pytest.approx(np.mean(ce_sae) - np.mean(ce), abs=1e-5)


@pytest.mark.parametrize("include_bos", [True, False])
def test_one_bucket_is_fidelity(lm, rows, include_bos):
    saes = {("text", seed): TopKSAE(D, 24, 4, seed) for seed in (1, 2)}
    table = by_position(saes, lm, rows, [0, 12], include_bos, batch_rows=4)
    records, of_rows = fidelity_of_all(saes, lm, rows, modes=(include_bos,))
    assert [*table.sae] == [*saes]
    for i, name in enumerate(saes):
        known, sums = records[name, include_bos], of_rows[name, include_bos]
        found = table.iloc[i]
        assert found.tokens == known.tokens
        assert found.ce == pytest.approx(known.ce, rel=1e-6)
        assert found.ce_diff == pytest.approx(known.ce_diff, abs=1e-5)
        for part in ("explained_variance", "explained_variance_pooled"):
            assert found[part] == pytest.approx(known.explained_variance, abs=1e-6)
        error = bootstrap_error(sums.error, sums.variance)
        assert found.explained_variance_error == pytest.approx(error, rel=1e-4)
        error = bootstrap_error(sums.ce_sae - sums.ce, sums.scored)
        assert found.ce_diff_error == pytest.approx(error, rel=1e-4)


def test_x_is_replaced_in_all_positions_whatever_the_bucket(lm, rows, sae):
    whole = by_position({"a": sae}, lm, rows, [0, 4, 12])
    part = by_position({"a": sae}, lm, rows, [4, 12])
    assert part.ce_diff[0] == whole.ce_diff[1]


def test_an_identity_explains_all_and_costs_nothing(lm, rows):
    table = by_position({"a": identity()}, lm, rows, [0, 6, 12])
    np.testing.assert_allclose(table.explained_variance, 1, atol=1e-6)
    np.testing.assert_allclose(table.ce_diff, 0, atol=1e-5)
    assert (table.l0 == D).all()


def test_the_constant_mean_explains_nothing_of_the_pooled_variance(free, rows):
    constant = TopKSAE(D, 24, 4, 0)
    constant.W_dec = torch.zeros(24, D)
    measured = torch.from_numpy(rows[rows != BOS])
    constant.b_dec = free.embedding[measured].mean(0)
    table = by_position({"a": constant}, free, rows, [0, 5, 12])
    np.testing.assert_allclose(table.explained_variance_pooled, 0, atol=1e-6)
    # a bucket's own mean is nearer to it
    assert (table.explained_variance < 0).all()


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_batches_change_nothing(lm, rows, sae, batch_rows):
    whole, parts = (
        by_position({"a": sae}, lm, rows, [0, 5, 12], batch_rows=b) for b in (99, batch_rows)
    )
    np.testing.assert_allclose(parts[NUMBERS], whole[NUMBERS], rtol=1e-5)


def test_a_threshold_leaves_each_token_a_number_of_its_own(free, rows):
    sae = identity()
    sae.threshold = torch.full((2 * D,), 0.5)
    x = free.embedding[torch.from_numpy(rows[:, 1:5])]
    content = rows[:, 1:5] != BOS
    known = (x.abs() > 0.5).sum(-1).numpy()[content].mean()
    assert by_position({"a": sae}, free, rows, [1, 5]).l0[0] == pytest.approx(known)


def test_a_bucket_of_bos_alone_is_nan(free, rows, sae):
    table = by_position({"a": sae}, free, rows, [0, 1, 12])
    assert table.tokens[0] == 0
    assert table.loc[0, [*NUMBERS, "l0_error", "ce_diff_error"]].isna().all()
    assert table.loc[1, NUMBERS].notna().all()


def test_the_last_position_predicts_nothing(free, rows, sae):
    table = by_position({"a": sae}, free, rows, [11, 12])
    assert table.tokens[0] == len(rows)
    assert table.predictions[0] == 0
    assert np.isnan(table.ce_diff[0])


def test_ratios_by_hand():
    table = pd.DataFrame({"sae": [("a", 1), ("a", 1), "b"], "start": [0, 4, 0], "stop": [4, 8, 4]})
    names = ["l0", "explained_variance", "explained_variance_pooled", "ce_diff"]
    table[names] = [[8, 0.8, 0.8, 0.1], [12, 0.4, 0.2, 0.4], [5, 0.5, 0.5, 0.5]]
    found = ratios(table, table[table.start == 0])
    np.testing.assert_allclose(found[names], [[1] * 4, [1.5, 0.5, 0.25, 4], [1] * 4])
    for reference in (table, table[:1]):
        with pytest.raises(ValueError, match="one of each"):
            ratios(table, reference)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.zeros((0, 5), int)}, r"shape \[0, 5\]"),
        ({"rows": np.zeros((3, 1), int)}, r"shape \[3, 1\]"),
        ({"rows": np.zeros((3, CONTEXT + 1), int)}, f"2 to {CONTEXT} tokens"),
        ({"rows": np.zeros((3, 8), int), "edges": [0, 8]}, "no token to measure"),
        ({"rows": np.full((3, 12), VOCABULARY)}, f"ids {VOCABULARY} to"),
        ({"edges": [4]}, r"edges \[4\] must"),
        ({"edges": [0, 4, 4]}, "that rise"),
        ({"edges": [0, 13]}, "length 12"),
        ({"edges": [-1, 4]}, "from 0"),
        ({"saes": {"b": TopKSAE(8, 24, 4, 0)}}, "SAE b takes activations of width 8"),
    ],
)
def test_bad_input(free, rows, sae, change, message):
    given = {"saes": {"a": sae}, "lm": free, "rows": rows, "edges": [0, 12]} | change
    with pytest.raises(ValueError, match=message):
        by_position(**given)


# --- a language model trained further -------------------------------------------------------------


def test_no_steps_give_ratio_1(lm, rows, sae):
    base = by_position({"a": sae}, lm, rows, [0, 12])
    same = by_position({"a": sae}, fine_tuned(lm, rows, steps=0), rows, [0, 12])
    pd.testing.assert_frame_equal(same, base, check_exact=True)
    numbers = ratios(same, base).drop(columns=["sae", "start", "stop"])
    assert (numbers == 1).all(axis=None)


def test_the_first_step_is_adams(lm, rows):
    lr = 1e-3
    tuned = fine_tuned(lm, rows[:1], steps=1, lr=lr, batch_rows=1)
    ids = torch.from_numpy(rows[:1])
    # transformers' own loss
    lm.model(input_ids=ids, labels=ids).loss.backward()
    after = dict(tuned.model.named_parameters())
    for name, weight in lm.model.named_parameters():
        # both moments are the gradient's, once their bias is corrected
        step = lr * weight.grad / (weight.grad.abs() + 1e-8)
        moved = after[name] - weight
        # where a gradient is rounding itself, its sign is
        sure = weight.grad.abs() > 1e-6
        torch.testing.assert_close(moved[sure], -step[sure], atol=lr / 50, rtol=0, msg=name)


def test_it_learns_and_leaves_the_model_as_it_is(lm, rows):
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    tuned = fine_tuned(lm, rows, steps=30, lr=1e-2, batch_rows=10)
    assert all(torch.equal(before[name], t) for name, t in lm.model.state_dict().items())
    identities = {"a": identity()}
    old, new = (by_position(identities, each, rows, [0, 12]).ce[0] for each in (lm, tuned))
    assert new < old - 0.5
    assert (tuned.tokenizer, tuned.layer, tuned.hook) == (lm.tokenizer, lm.layer, lm.hook)
    assert not tuned.model.training
    assert all(weight.grad is None for weight in tuned.model.parameters())


def test_the_seed_decides(model_folders, rows):
    # GPT-2 has dropout, which nothing may draw
    lm = load_model(model_folders["gpt2"], 1, "cpu", "float32")

    def weights(seed):
        tuned = fine_tuned(lm, rows, steps=3, batch_rows=2, seed=seed)
        return torch.cat([weight.flatten() for weight in tuned.model.parameters()])

    first = weights(0)
    torch.manual_seed(99)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_a_bfloat16_model_stays_one(lm, rows):
    lm.model.to(torch.bfloat16)
    untrained = fine_tuned(lm, rows, steps=0)
    assert untrained.model.dtype == torch.bfloat16
    for a, b in zip(lm.model.parameters(), untrained.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.zeros((0, 5), int)}, r"shape \[0, 5\]"),
        ({"rows": np.zeros((2, CONTEXT + 1), int)}, f"2 to {CONTEXT} tokens"),
        ({"rows": np.full((2, 5), 999)}, "ids 999 to 999"),
        ({"steps": -1}, "steps = -1"),
        ({"batch_rows": 0}, "batch_rows = 0"),
    ],
)
def test_bad_input_of_a_fine_tuning(lm, rows, change, message):
    with pytest.raises(ValueError, match=message):
        fine_tuned(**{"lm": lm, "rows": rows} | change)


def test_massive_activations_are_neither_replaced_nor_measured(free, sae):
    rows = np.random.default_rng(0).integers(1, VOCABULARY, size=(6, 8))
    rows[:, 0] = BOS
    rows[2, 5] = 33
    moderate = np.where(rows == 33, BOS, rows)
    free.embedding[33] *= 1000
    (got,) = by_position({"a": sae}, free, rows, (0, 8), max_norm=50).to_dict("records")
    # what stands at a massive activation counts as little as BOS, which is left out too; but its
    # neighbour predicts another token, so cross-entropies differ
    (want,) = by_position({"a": sae}, free, moderate, (0, 8)).to_dict("records")
    same = ["tokens", "predictions", "l0", "explained_variance"]
    assert [got[name] for name in same] == pytest.approx([want[name] for name in same])
