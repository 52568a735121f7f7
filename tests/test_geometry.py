"""Feature geometry: against cosines worked by hand and by scipy."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist

from faithful_sae.metrics import geometry as module
from faithful_sae.metrics.geometry import geometry, nearest
from faithful_sae.paper import latent_data
from faithful_sae.runs.rows import read_rows
from faithful_sae.stages.s13_geometry import decoder_geometry


def test_an_orthogonal_decoder_has_geometry_0():
    found, cosine = geometry(torch.eye(6))
    assert found.mean == 0
    assert found.duplicates == 0
    assert (cosine == 0).all()


def test_three_rows_by_hand():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    cosine = nearest(rows)
    torch.testing.assert_close(cosine, torch.tensor([1.0, 1.0, 0.5**0.5]))
    found, _ = geometry(rows, duplicate=0.9)
    assert found.duplicates == pytest.approx(2 / 3)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_blocks_are_what_scipy_computes_at_once(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    rows = np.random.default_rng(0).normal(size=(50, 9))
    cosine = 1 - cdist(rows, rows, "cosine")
    np.fill_diagonal(cosine, -1)
    np.testing.assert_allclose(nearest(torch.from_numpy(rows)), cosine.max(1), atol=1e-6)


def test_random_directions_are_as_near_as_they_are_known_to_be():
    # 512 rows in 96 dimensions: .305, in 64: .369 (measured apart, with another generator)
    for width, known in ((96, 0.305), (64, 0.369)):
        assert geometry(torch.eye(512, width))[0].random == pytest.approx(known, abs=0.005)


def test_one_row_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        nearest(torch.ones(1, 4))


def test_curve_of_nearest_neighbours_by_hand():
    latents = pd.DataFrame({"corpus": "a", "nearest": [0.5, 1 + 1e-7, 0.25, 0.5], "random": 0.3})
    curve = latent_data.nearest(latents).set_index("cosine")
    assert curve.share[[0.0, 0.25, 0.4, 0.5, 1.0]].tolist() == [0, 0.25, 0.25, 0.75, 1]
    assert (curve.random == 0.3).all()


def test_rows_of_a_run(make_run, sae_pair):
    run = make_run()
    table, latents = decoder_geometry(run, sae_pair)
    assert list(table.seed) == [42, 49]
    assert len(latents) == 2 * 24
    written = read_rows(run, "geometry")
    assert written["mean"].tolist() == table["mean"].tolist()
    assert latents.groupby("seed").nearest.mean().tolist() == pytest.approx(table["mean"].tolist())


@pytest.fixture
def sae_pair():
    from faithful_sae import TopKSAE

    return {("text", seed): TopKSAE(16, 24, 4, seed) for seed in (42, 49)}
