"""Groups of layers: distances by hand, grouping against scipy, the mixed stream, and the study."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from conftest import BOS, make_model, make_tokenizer
from faithful_sae import fidelity, load_model, load_sae
from faithful_sae.engine.problems import problems
from faithful_sae.metrics.layers import amad, angular_distances, groups_of
from faithful_sae.metrics.sfr import shared_feature_ratio
from faithful_sae.paper import layers as shown
from faithful_sae.runs.schema import ParamsError
from faithful_sae.sae.activations import ActivationStream, norm_limit
from faithful_sae.sae.layers import LayerGroup, Streams, spreads, streams
from faithful_sae.stages.corpus import corpus
from faithful_sae.stages.model import open_model
from faithful_sae.stages.s11_layer_groups import (
    called,
    folder,
    group_layers,
    measure_layers,
    train_layers,
)

# --- streams and distances ------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_streams_are_what_enters_each_block(model_folders, rows, architecture):
    lm = load_model(model_folders[architecture], 1, "cpu", "float32")
    ids = torch.from_numpy(rows)
    found = streams(lm, ids, [0, 1, 2])
    for layer in range(3):
        expected = dataclasses.replace(lm, layer=layer).activations(ids)
        assert torch.equal(found[layer], expected), layer
    assert torch.equal(streams(lm, ids, [2])[0], found[2])


def test_angles_by_hand():
    """Two tokens: layer 1 as layer 0 but longer, 2 orthogonal, 3 opposite for one of them, 4 at 60
    degrees.
    """
    x, y, z = torch.eye(3)
    sixty = x / 2 + y * 3**0.5 / 2
    given = [[x, x], [3 * x, x / 2], [y, z], [-x, x], [sixty, sixty]]
    streams = torch.stack([torch.stack(layer) for layer in given])
    found = angular_distances([streams])
    assert found[0] == pytest.approx([0, 0, 0.5, 0.5, 1 / 3], abs=1e-7)
    assert (found == found.T).all()
    assert angular_distances(streams.split(1, 1)) == pytest.approx(found)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.2])
def test_groups_are_scipys_complete_linkage_where_that_joins_neighbours(limit):
    """Layers on a line: complete linkage joins neighbours alone."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        place = np.sort(rng.uniform(0, 0.5, 9))
        distances = np.abs(place[:, None] - place)
        tree = linkage(squareform(distances), "complete")
        for n in range(1, 10):
            clusters = fcluster(tree, n, "maxclust")
            groups = [[*map(int, np.flatnonzero(clusters == c))] for c in dict.fromkeys(clusters)]
            if np.mean([np.ptp(place[group]) for group in groups]) <= limit:
                break
        assert groups_of(distances, limit) == groups


def test_amad_that_falls_again_stops_no_joining():
    """Two close pairs, then both together, beside two layers far away."""
    distances = np.full((6, 6), 0.5)
    distances[:4, :4] = 0.101
    distances[0, 1] = distances[1, 0] = distances[2, 3] = distances[3, 2] = 0.1
    np.fill_diagonal(distances, 0)
    assert amad(distances, [[0, 1], [2, 3], [4], [5]]) > 0.04
    assert groups_of(distances, 0.04) == [[0, 1, 2, 3], [4], [5]]


def test_amad_is_the_mean_of_the_largest_distances():
    distances = np.array([[0, 0.1, 0.4], [0.1, 0, 0.2], [0.4, 0.2, 0]])
    assert amad(distances, [[0, 1], [2]]) == pytest.approx(0.05)
    assert groups_of(distances, 0.04) == [[0], [1], [2]]
    assert groups_of(distances, 0.06) == [[0, 1], [2]]
    assert groups_of(distances, 0.4) == [[0, 1, 2]]


def test_spreads_are_numpys_of_moderate_tokens(lm, rows):
    ids = torch.from_numpy(rows)
    x = streams(lm, ids, [0, 2]).numpy()[:, rows != BOS]
    found = spreads(Streams(lm, rows, 3, [0, 2]))
    assert found == pytest.approx(np.sqrt(x.var(1).sum(1)), rel=1e-5)
    norms = np.linalg.norm(x, axis=-1)
    limits = np.array([norm_limit(torch.tensor(n), 1.1) for n in norms])
    moderate = x[:, (norms <= limits[:, None]).all(0)]
    assert 0 < moderate.shape[1] < x.shape[1]
    found = spreads(Streams(lm, rows, 3, [0, 2], 1.1))
    assert found == pytest.approx(np.sqrt(moderate.var(1).sum(1)), rel=1e-5)


# --- the mixed stream -----------------------------------------------------------------------------


def test_each_token_is_one_layers_in_its_units(lm, rows):
    ids = torch.from_numpy(rows)
    mixed = LayerGroup(lm, [0, 1, 2], [1.0, 2.0, 4.0], 3)
    x = mixed.activations(ids)
    scaled = streams(lm, ids, [0, 1, 2]) / torch.tensor([1.0, 2, 4])[:, None, None, None]
    is_layer = (scaled == x).all(-1)
    assert (is_layer.sum(0) == 1).all()
    shares = is_layer.double().mean((1, 2))
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.15)
    assert torch.equal(mixed.activations(ids), x)
    assert not torch.equal(dataclasses.replace(mixed, seed=4).activations(ids), x)


def test_a_group_of_one_layer_is_that_layer(lm, rows):
    def batches(model):
        sizes = {"n_tokens": 200, "batch_tokens": 40, "buffer_tokens": 80, "lm_batch_rows": 3}
        return torch.cat([*ActivationStream(model, rows, **sizes, include_bos=False, seed=1)])

    assert torch.equal(batches(LayerGroup(lm, [1], [1.0], 0)), batches(lm))


# --- the study ------------------------------------------------------------------------------------

CHANGES = {
    "layer_groups": {"corpus": "text", "within": 0.6, "seeds": [42, 49], "tokens": 400, "rows": 6}
}


@pytest.fixture
def study(make_run):
    run = make_run(CHANGES)
    lm = open_model(run)
    table, _ = group_layers(run, lm)
    groups = [(0,), (1, 2)]
    saes = train_layers(run, lm, groups)
    return run, lm, table, groups, saes


def test_the_study(study):
    run, lm, table, groups, saes = study
    assert {*saes} == {*itertools.product(("own", "group"), range(3), (42, 49))}
    assert saes["own", 0, 42] is saes["group", 0, 42]
    assert len(table) == 9
    # one decoder at both layers
    a, b = saes["group", 1, 42], saes["group", 2, 42]
    assert torch.equal(a.W_dec, b.W_dec)
    rows = measure_layers(run, lm, groups, saes)
    made = shown.table(run, rows).set_index("layer")
    assert made.group.tolist() == ["0", "1-2", "1-2"]
    heldout = corpus(run, "text", lm).heldout[:6]
    at = dataclasses.replace(lm, layer=2)
    for kind in ("own", "group"):
        measured = [fidelity(saes[kind, 2, s], at, heldout, False) for s in (42, 49)]
        expected = np.mean([record.explained_variance for record in measured])
        assert made[f"EV, {shown.SHOWN[kind]}"][2] == pytest.approx(expected, rel=1e-6)
        pair = [saes[kind, 2, seed] for seed in (42, 49)]
        assert made[f"SFR, {shown.SHOWN[kind]}"][2] == shared_feature_ratio(*pair)
    # made once
    stamp = (folder(run, "group", (1, 2)) / "provenance.json").stat().st_mtime_ns
    train_layers(run, lm, groups)
    assert (folder(run, "group", (1, 2)) / "provenance.json").stat().st_mtime_ns == stamp


def test_massive_activations_are_told_apart_in_the_table(make_run):
    run = make_run(CHANGES | {"sae.max_norm": 1.2})
    lm = open_model(run)
    groups = [(0, 1), (2,)]
    rows = measure_layers(run, lm, groups, train_layers(run, lm, groups))
    made = shown.table(run, rows)
    assert (made["EV, moderate, own SAE"] != made["EV, own SAE"]).all()


def test_a_block_that_the_model_has_not_is_found_before_any_work(make_run):
    run = make_run(CHANGES | {"layer_groups.layers": [0, 9]})
    said = [*problems([run])]
    assert any("layer_groups.layers = 9" in line for line in said), said


def test_a_groups_sae_reconstructs_a_layer_as_it_does_the_scaled_one(study):
    run, *_, saes = study
    stored = load_sae(folder(run, "group", (1, 2)) / "seed42")
    scale = stored.metadata["scales"][1]
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * scale
    found = saes["group", 2, 42].reconstruct(x)
    torch.testing.assert_close(found, stored.reconstruct(x / scale) * scale, rtol=0, atol=1e-5)
    assert stored.metadata["layers"] == [1, 2]


def test_one_sae_serves_two_layers_that_are_alike(tmp_path, make_run):
    """Blocks that add next to nothing: the group's SAE explains each layer as well as its own."""
    model = make_model("llama")
    for block in model.model.layers:
        for part in (block.self_attn.o_proj, block.mlp.down_proj):
            part.weight.data *= 1e-3
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    run = make_run(CHANGES | {"model": str(tmp_path / "model"), "layer_groups.within": 0.01})
    lm = open_model(run)
    table, groups = group_layers(run, lm)
    assert table.distance.max() < 0.01
    assert groups == [(0, 1, 2)]
    assert called(groups[0]) == "0-2"
    saes = train_layers(run, lm, groups)
    rows = measure_layers(run, lm, groups, saes)
    made = shown.table(run, rows)
    difference = made["EV, own SAE"] - made["EV, group's SAE"]
    assert difference.abs().max() < 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_groups.corpus": "elsewhere"}, "'elsewhere' is not in sae.train_on"),
        ({"layer_groups.layers": [2, 1]}, r"layer_groups\.layers = \[2, 1\] must name blocks"),
        ({"layer_groups.layers": []}, r"layer_groups\.layers = \[\] must name blocks"),
        ({"sae.variant": {"name": "relu"}}, r"sae\.variant = relu: layers are compared at one L0"),
        ({"layer_groups.tokens": 10}, r"layer_groups\.tokens = 10 must be at least"),
        ({"layer_groups.seeds": [7]}, r"layer_groups\.seeds = \[7\] must list some of sae\.seeds"),
        ({"hook": "mlp"}, "hook = mlp: layers are grouped by their residual streams"),
        ({"sae.variant": {"name": "switch", "experts": 2}}, r"sae\.variant = switch"),
    ],
)
def test_a_study_that_cannot_be_made(make_run, changes, said):
    with pytest.raises(ParamsError, match=said):
        make_run(CHANGES | changes)
