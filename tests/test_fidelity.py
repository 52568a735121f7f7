"""Fidelity against numpy on hidden states that transformers gives out, and against splices made
with hooks of our own.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import ARCHITECTURES, BOS
from faithful_sae import TopKSAE, fidelity, load_model
from faithful_sae.metrics.fidelity import Fidelity, cross_entropy_of_rows, fidelity_of_all


def stand_in(lm, function) -> Any:
    """An SAE-like object that reconstructs by `function`."""
    return SimpleNamespace(d_model=lm.d_model, reconstruct=function)


def hidden(lm, rows):
    with torch.no_grad():
        return lm.model(
            torch.tensor(rows), output_hidden_states=True, use_cache=False
        ).hidden_states[lm.layer]


def log_probabilities(lm, rows, replacement=None):
    """float64 [R, T, V]; with `replacement`, block `layer` reads that instead. All blocks run."""

    def replace(module, args, kwargs):
        return (
            ((replacement, *args[1:]), kwargs)
            if args
            else (args, kwargs | {"hidden_states": replacement})
        )

    handle = (
        lm.blocks[lm.layer].register_forward_pre_hook(replace, with_kwargs=True)
        if replacement is not None
        else None
    )
    with torch.no_grad():
        logits = lm.model(torch.tensor(rows), use_cache=False).logits.double().numpy()
    if handle:
        handle.remove()
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def blur(x):
    """A reconstruction with errors of every kind: scale, offset, and one dimension lost."""
    out = 0.8 * x + 0.1
    out[..., 3] = 0
    return out


@pytest.fixture(params=ARCHITECTURES)
def any_lm(request, model_folders):
    return load_model(model_folders[request.param], 1, "cpu", "float32")


@pytest.mark.parametrize("include_bos", [True, False])
def test_x_itself_costs_nothing(any_lm, rows, include_bos):
    got = fidelity(stand_in(any_lm, lambda x: x), any_lm, rows, include_bos)
    assert got.ce_diff == 0.0
    assert got.kl == 0.0
    assert got.l2 == 0.0
    assert got.ce == got.ce_sae
    assert got.explained_variance == got.ev_legacy == got.ev_authors == got.ce_recovered == 1.0
    assert got.tokens == (rows.size if include_bos else (rows != BOS).sum())


def test_the_mean_explains_nothing(lm, rows):
    mean = hidden(lm, rows).double().flatten(0, 1).mean(0).float()
    got = fidelity(stand_in(lm, lambda x: mean.expand_as(x)), lm, rows)
    assert abs(got.ce_sae - got.ce_mean) < 1e-6
    assert abs(got.explained_variance) < 1e-6
    assert abs(got.ev_legacy) < 1e-4
    zero = fidelity(stand_in(lm, torch.zeros_like), lm, rows)
    assert zero.ce_sae == zero.ce_zero
    assert zero.ce_recovered == 0.0


@pytest.mark.parametrize("include_bos", [True, False])
def test_every_field_by_hand(any_lm, rows, include_bos):
    lm = any_lm
    x = hidden(any_lm, rows)
    keep = np.ones(rows.shape, bool) if include_bos else rows != BOS
    x_hat = torch.where(torch.tensor(keep)[..., None], blur(x), x)  # BOS positions keep their x
    p, q = log_probabilities(lm, rows), log_probabilities(lm, rows, x_hat)
    a = x.double().numpy()
    b = x_hat.double().numpy()
    mean = a[keep].mean(0)
    with_zero = log_probabilities(
        lm, rows, torch.where(torch.tensor(keep)[..., None], torch.zeros_like(x), x)
    )
    with_mean = log_probabilities(
        lm, rows, torch.where(torch.tensor(keep)[..., None], torch.tensor(mean).float(), x)
    )

    def cross_entropy(log_p):
        return np.mean(
            [
                -log_p[r, t, rows[r, t + 1]]
                for r in range(len(rows))
                for t in range(rows.shape[1] - 1)
                if keep[r, t]
            ]
        )

    error = ((a - b) ** 2).sum(-1)[keep]
    spread = ((a - mean) ** 2).sum(-1)[keep]
    ce, ce_sae, ce_zero = cross_entropy(p), cross_entropy(q), cross_entropy(with_zero)
    fields: dict[str, Any] = dict(
        tokens=keep.sum(),
        ce=ce,
        ce_sae=ce_sae,
        ce_diff=ce_sae - ce,
        l2=((a - b) ** 2)[keep].mean(),
        kl=(np.exp(p) * (p - q)).sum(-1)[:, :-1][keep[:, :-1]].mean(),
        explained_variance=1 - error.sum() / spread.sum(),
        ev_authors=np.mean(
            [1 - (a - b)[r][keep[r]].var() / a[r][keep[r]].var() for r in range(len(rows))]
        ),
        ev_legacy=np.mean(1 - error / spread),
        ce_zero=ce_zero,
        ce_mean=cross_entropy(with_mean),
        ce_recovered=(ce_zero - ce_sae) / (ce_zero - ce),
    )
    got = fidelity(stand_in(lm, blur), lm, rows, include_bos, batch_rows=4)
    for name, value in vars(Fidelity(**fields)).items():
        # float32 logits carry errors of some 1e-6; differences of CE keep them in absolute terms
        assert getattr(got, name) == pytest.approx(value, rel=2e-5, abs=5e-6), name
    assert abs(got.ce_diff) > 1e-3
    assert 0 < got.explained_variance < 1
    if not include_bos:  # the case tells the two modes apart
        assert (
            abs(
                got.explained_variance
                - fidelity(stand_in(lm, blur), lm, rows, True).explained_variance
            )
            > 1e-4
        )


def test_explained_variances_worked_by_hand():
    """Two rows of two tokens in one dimension, x = (1, 3), (5, 7); x_hat = (1, 3), (4, 8). Mean 4,
    sums 0+0+1+1 = 2 of 20.

    explained_variance = 1 - 2/20; ev_legacy = mean(1, 1, 1 - 1/1, 1 - 1/9); row 1: errors 0; row 2:
    errors (1, -1) have variance 2 and x has 2: ev_authors = (1 + 0) / 2; l2 = 2/4.
    """
    values = {0: 1.0, 1: 3.0, 2: 5.0, 3: 7.0}
    x = torch.tensor([[[values[i + 2 * r]] for i in range(2)] for r in range(2)])
    lm: Any = SimpleNamespace(
        d_model=1,
        shape=SimpleNamespace(vocab_size=5),
        device=torch.device("cpu"),
        bos_id=99,
        activations=lambda ids: x,
        logits=lambda ids: (x * torch.arange(5.0), x),
        spliced_logits=lambda ids, x: x * torch.arange(5.0),
    )
    x_hat = torch.tensor([[[1.0], [3.0]], [[4.0], [8.0]]])
    records, _ = fidelity_of_all(
        {"sae": stand_in(lm, lambda _: x_hat)}, lm, np.array([[0, 1], [2, 3]]), modes=(True,)
    )
    got = records["sae", True]
    assert got.explained_variance == pytest.approx(0.9)
    assert got.ev_legacy == pytest.approx((1 + 1 + 0 + 8 / 9) / 4)
    assert got.ev_authors == pytest.approx(0.5)
    assert got.l2 == pytest.approx(0.5)
    assert got.ce_zero == pytest.approx(np.log(5))


def test_ce_is_the_loss_of_transformers(any_lm, rows):
    ids = torch.tensor(rows)
    with torch.no_grad():
        loss = any_lm.model(ids, labels=ids).loss.item()
    assert fidelity(stand_in(any_lm, blur), any_lm, rows).ce == pytest.approx(loss, rel=1e-6)


def test_batch_size_does_not_matter(lm, rows):
    """float32 products over other batch shapes may round otherwise: 1e-6 of each value, where a
    lost row would show as 1e-2.
    """
    sae = TopKSAE(lm.d_model, 32, 4, 0)
    for include_bos in (True, False):
        a, b, c = (vars(fidelity(sae, lm, rows, include_bos, batch_rows=n)) for n in (1, 3, 10))
        assert a == pytest.approx(b, rel=1e-6, abs=1e-7)
        assert a == pytest.approx(c, rel=1e-6, abs=1e-7)


def test_several_saes_at_once_equal_each_alone(lm, rows):
    saes = {seed: TopKSAE(lm.d_model, 32, 4, seed) for seed in (1, 2)}
    together, _ = fidelity_of_all(saes, lm, rows)
    assert set(together) == {(s, m) for s in (1, 2) for m in (True, False)}
    assert together[1, True] != together[2, True]
    for (seed, include_bos), got in together.items():
        assert got == fidelity(saes[seed], lm, rows, include_bos)


@pytest.mark.parametrize("mode", [True, False])
def test_rows_are_measured_as_if_each_were_alone(lm, rows, mode):
    saes = {"sae": TopKSAE(lm.d_model, 24, 4, 0)}
    records, by_row = fidelity_of_all(saes, lm, rows, batch_rows=3, modes=(mode,))
    whole, table = records["sae", mode], by_row["sae", mode]
    assert len(table) == len(rows)
    for number, row in enumerate(rows):
        alone = fidelity(saes["sae"], lm, row[None], mode)
        one = table.iloc[number]
        assert one.measured == alone.tokens
        assert one.ce_sae / one.scored == pytest.approx(alone.ce_sae, rel=1e-5)
        assert one.kl / one.scored == pytest.approx(alone.kl, rel=1e-3, abs=1e-8)
        assert one.error / one.measured / lm.d_model == pytest.approx(alone.l2, rel=1e-5)
        assert one.ce_zero / one.scored == pytest.approx(alone.ce_zero, rel=1e-5)
        assert one.ev_authors == pytest.approx(alone.ev_authors, rel=1e-5)
    assert table.ev_legacy.sum() / table.measured.sum() == pytest.approx(whole.ev_legacy)
    assert 1 - table.error.sum() / table.variance.sum() == pytest.approx(whole.explained_variance)
    assert (table.ce_sae - table.ce).sum() / table.scored.sum() == pytest.approx(whole.ce_diff)


@pytest.mark.parametrize("include_bos", [True, False])
def test_cross_entropy_of_documents_is_that_of_each_alone(lm, include_bos):
    documents = [[0, 5, 9, 3], [0, 7], [0, 2, 2, 8, 11, 4, 1]]
    sums, counts = cross_entropy_of_rows(lm, documents, 2, include_bos)
    for document, total, count in zip(documents, sums, counts, strict=True):
        with torch.no_grad():
            logits = lm.model(torch.tensor([document])).logits[0, :-1]
        losses = F.cross_entropy(logits, torch.tensor(document[1:]), reduction="none")
        losses = losses if include_bos else losses[1:]
        assert count == len(losses)
        assert total == pytest.approx(losses.sum().item(), abs=1e-4)


def test_errors(lm, rows):
    with pytest.raises(ValueError, match="at least two tokens"):
        fidelity(TopKSAE(lm.d_model, 8, 2, 0), lm, rows[:0])
    with pytest.raises(ValueError, match="at least two tokens"):
        fidelity(TopKSAE(lm.d_model, 8, 2, 0), lm, rows[:, :1])
    with pytest.raises(ValueError, match=r"width 5.*16 wide"):
        fidelity(TopKSAE(5, 8, 2, 0), lm, rows)


# --- massive activations --------------------------------------------------------------------------


def with_outlier(lm, token, size):
    """The model whose activation at every such token is so many times as large."""
    seen = []
    lm.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True
    )
    lm.blocks[0].register_forward_hook(
        lambda _, args, x: torch.where((seen[-1] == token)[..., None], x * size, x)
    )
    return lm


def test_a_planted_outlier_changes_explained_variance_and_not_the_moderate_one(lm, rows):
    plain_rows = rows.copy()
    plain_rows[plain_rows == 33] = 34
    planted = plain_rows.copy()
    planted[7, 11] = 33  # the last of its row: no other position sees it
    sae = stand_in(lm, blur)
    before = fidelity(sae, lm, planted, include_bos=False, max_norm=10.0)
    after = fidelity(sae, with_outlier(lm, 33, 500.0), planted, include_bos=False, max_norm=10.0)
    assert vars(before)["massive"] == 0
    assert vars(after)["massive"] == 1
    activations = lm.activations(torch.tensor(planted))
    x = activations.double().numpy()[planted != BOS]
    x_hat = blur(activations).double().numpy()[planted != BOS]
    norms = np.linalg.norm(x, axis=-1)
    moderate = norms <= 10 * np.sort(norms)[(len(norms) - 1) // 2]
    assert moderate.sum() == len(x) - 1

    def explained(a, b):
        return 1 - ((a - b) ** 2).sum() / ((a - a.mean(0)) ** 2).sum()

    assert after.explained_variance == pytest.approx(explained(x, x_hat), rel=1e-5)
    found = vars(after)["explained_variance_moderate"]
    assert found == pytest.approx(explained(x[moderate], x_hat[moderate]), rel=1e-5)
    assert vars(after)["l2_moderate"] == pytest.approx(
        ((x[moderate] - x_hat[moderate]) ** 2).mean(), rel=1e-5
    )
    assert abs(after.explained_variance - before.explained_variance) > 0.05
    assert abs(found - vars(before)["explained_variance_moderate"]) < 0.01


def test_moderate_ce_difference_keeps_massive_positions(lm, rows):
    """Against a splice by hand: massive positions keep their x and predict nothing."""
    planted = rows.copy()
    planted[planted == 33] = 34
    planted[7, 5] = 33
    lm = with_outlier(lm, 33, 500.0)
    got = vars(fidelity(stand_in(lm, blur), lm, planted, include_bos=True, max_norm=10.0))
    x = lm.activations(torch.tensor(planted))
    keep = (planted != BOS) & (planted != 33)
    x_hat = torch.where(torch.tensor(keep)[..., None], blur(x), x)
    losses = [
        -np.take_along_axis(log_p[:, :-1], planted[:, 1:, None], -1)[..., 0][keep[:, :-1]].mean()
        for log_p in (log_probabilities(lm, planted), log_probabilities(lm, planted, x_hat))
    ]
    assert got["ce_diff_moderate"] == pytest.approx(losses[1] - losses[0], rel=1e-4, abs=5e-6)
    assert got["massive"] == 1


def test_rows_of_moderate_positions_give_the_same_means(lm, rows):
    measured, by_row = fidelity_of_all({"a": stand_in(lm, blur)}, lm, rows, 4, max_norm=1.2)
    for key, record in measured.items():
        got = vars(record)
        sums = by_row[key].sum()
        assert got["massive"] == (rows != BOS).sum() - sums.measured_moderate > 0
        assert got["explained_variance_moderate"] == pytest.approx(
            1 - sums.error_moderate / sums.variance_moderate
        )
        assert got["ce_diff_moderate"] == pytest.approx(
            (sums.ce_sae_moderate - sums.ce_moderate) / sums.scored_moderate
        )


def test_without_max_norm_the_names_are_as_they_were(lm, rows):
    measured, by_row = fidelity_of_all({"a": stand_in(lm, blur)}, lm, rows, 4)
    assert not [name for name in vars(measured["a", True]) if "moderate" in name]
    assert not [name for name in by_row["a", True] if "moderate" in name]
