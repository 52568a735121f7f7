"""SAEBench itself, on a model, an SAE and token rows that both have: its numbers are ours where we
say that they are, and where they are not, what we say about it holds.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sae_bench", reason="make test-interop")

from pydantic import TypeAdapter
from sae_bench.evals.core import main as core
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.core.eval_output import CoreEvalOutput
from sae_bench.evals.sparse_probing import probe_training
from sae_bench.evals.sparse_probing.eval_output import SparseProbingEvalOutput
from sae_bench.sae_bench_utils import activation_collection
from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
from sae_lens import SAE
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import convert_hf_model_config
from transformer_lens.pretrained.weight_conversions import convert_neox_weights

from conftest import BOS
from faithful_sae import TopKSAE, load_model
from faithful_sae.files import write_json
from faithful_sae.metrics.probing import pooled_representations
from faithful_sae.metrics.saebench import Result, beside, envelope, named, read_envelope
from faithful_sae.metrics.sparse_probing import balanced, sparse_probe
from faithful_sae.metrics.structural import structural

LAYER, LATENTS, K = 1, 48, 4
ROWS, LENGTH = 24, 16
# float32 rounds a cross-entropy by 1e-7 of it, and a difference of two, a tenth as large, by 1e-6
CLOSE = {"rtol": 1e-5, "atol": 0}


class Both:
    """One model and one SAE, in our hands (lm, sae) and in theirs (model, peer), with token rows.

    Every third row has a second BOS, as packed ones do.
    """

    def __init__(self, folder, sae_folder):
        self.lm = load_model(folder, LAYER, "cpu", "float32")
        generator = torch.Generator().manual_seed(0)
        sae = TopKSAE(self.lm.d_model, LATENTS, K, seed=3)
        # halved, for latents overlap
        sae.W_enc = 0.5 * sae.W_enc + 0.05 * torch.randn(sae.W_enc.shape, generator=generator)
        sae.b_enc = 0.1 * torch.randn(LATENTS, generator=generator)
        sae.b_dec = 0.1 * torch.randn(self.lm.d_model, generator=generator)
        sae.metadata |= {"model": "gpt_neox", "layer": LAYER, "sequence_length": LENGTH}
        sae.save(sae_folder)
        self.sae = sae
        _, self.peer, _ = load_and_format_sae("ours", SAE.load_from_disk(sae_folder), "cpu")
        config = HookedTransformerConfig.from_dict(convert_hf_model_config(str(folder)))
        self.model = HookedTransformer(config, self.lm.tokenizer)
        weights = convert_neox_weights(self.lm.model, config)
        # masks and rotations are no weights
        self.model.load_state_dict(weights, strict=False)
        ids = torch.randint(2, 64, (ROWS, LENGTH), generator=generator)
        ids[:, 0] = BOS
        ids[::3, 9] = BOS
        self.ids, self.tokens = ids, ids.numpy()

    def measured(self, **options):
        """(record, table of latents) of ours."""
        records, latents = structural({"sae": self.sae}, self.lm, self.tokens, **options)
        return records["sae"], latents["sae"]

    def ce(self, x, where):
        """Cross-entropy with x in the stream, of predictions made from positions `where`."""
        logits = self.lm.spliced_logits(self.ids, x)[:, :-1]
        return F.cross_entropy(logits[where[:, :-1]], self.ids[:, 1:][where[:, :-1]]).item()


class Store:
    """Gives the same rows, batch after batch, where theirs would fetch a text."""

    context_size = LENGTH

    def __init__(self, ids):
        self.ids = ids
        self.reset_input_dataset()

    def reset_input_dataset(self):
        self.at = 0

    def get_batch_tokens(self, n):
        self.at += n
        return self.ids[self.at - n : self.at]


@pytest.fixture(scope="module")
def both(model_folders, tmp_path_factory):
    return Both(model_folders["gpt_neox"], tmp_path_factory.mktemp("sae"))


def theirs(both, ignored=(), batches=1, spare_special=False):
    """(metrics by category, per-latent lists) as their evaluation has them before it writes."""
    n = {"n_eval_reconstruction_batches": batches, "n_eval_sparsity_variance_batches": batches}
    parts = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics")
    parts += ("featurewise_density_statistics", "featurewise_weight_based_metrics")
    config = CoreEvalConfig(
        batch_size_prompts=ROWS // batches,
        exclude_special_tokens_from_reconstruction=spare_special,
        **n,
        **{f"compute_{part}": True for part in parts},
    )
    metrics, latents = core.run_evals(
        both.peer, Store(both.ids), both.model, config, ignore_tokens=set(ignored)
    )
    return metrics | {"misc_metrics": core.calculate_misc_metrics(latents)}, latents


def differing(record, metrics):
    """The metrics of one definition whose numbers are not the same."""
    ours = Result("core", named("core", vars(record)), {})
    table = beside(ours, Result("core", metrics, {}))
    table = table[table["why"] == ""]
    assert len(table) == 24
    apart = ~np.isclose(table["ours"], table["theirs"], **CLOSE)
    return {*table["metric"][apart]}


# --- core -----------------------------------------------------------------------------------------

# theirs has the last position of each row, too
KL = {"kl_div_score", "kl_div_with_ablation", "kl_div_with_sae"}
COUNTS = {"total_tokens_eval_reconstruction", "total_tokens_eval_sparsity_variance"}
ABLATED = {"ce_loss_with_ablation", "ce_loss_score"}


@torch.no_grad()
def test_model_and_sae_are_the_same(both):
    logits, x = both.lm.logits(both.ids)
    torch.testing.assert_close(both.model(both.ids), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.peer(x), both.sae.reconstruct(x), atol=1e-5, rtol=1e-5)


def test_core_at_every_position(both):
    record, _ = both.measured(include_bos=True)
    assert differing(record, theirs(both)[0]) == KL


def test_core_where_bos_is_left_out_and_kept(both):
    record, _ = both.measured()
    metrics, _ = theirs(both, {BOS}, spare_special=True)
    assert differing(record, metrics) == KL | COUNTS | ABLATED


def test_core_as_it_is_by_default(both):
    """BOS is not measured, but replaced."""
    record, _ = both.measured()
    metrics, _ = theirs(both, {BOS})
    assert differing(record, metrics) == KL | COUNTS | ABLATED | {"ce_loss_with_sae"}


def test_their_replacement_and_ablation_reach_bos(both):
    x = both.lm.activations(both.ids)
    found = theirs(both, {BOS})[0]["model_performance_preservation"]
    spared = theirs(both, {BOS}, spare_special=True)[0]["model_performance_preservation"]
    where = both.ids != BOS
    ablated = pytest.approx(both.ce(torch.zeros_like(x), where), rel=1e-4)
    assert found["ce_loss_with_sae"] == pytest.approx(
        both.ce(both.sae.reconstruct(x), where), rel=1e-4
    )
    assert found["ce_loss_with_ablation"] == ablated
    assert spared["ce_loss_with_ablation"] == ablated


def test_they_count_all_tokens(both):
    record, _ = both.measured()
    found = theirs(both, {BOS})[0]["token_stats"]
    assert {*found.values()} == {ROWS * LENGTH}
    assert record.positions == (both.tokens != BOS).sum()


@pytest.mark.parametrize("name, ours", [("sae", "kl"), ("ablation", "kl_zero")])
def test_kl_without_the_last_position(both, name, ours):
    record, _ = both.measured(include_bos=True)
    found = core.get_recons_loss(both.peer, both.model, both.ids, Store(both.ids), True, False)
    kl = found[f"kl_div_with_{name}"]
    assert kl[:, :-1].mean().item() == pytest.approx(getattr(record, ours), rel=1e-4)
    overall = theirs(both)[0]["model_behavior_preservation"][f"kl_div_with_{name}"]
    assert overall == pytest.approx(kl.mean().item(), rel=1e-4)


def test_their_mse_is_divided_by_the_tokens_of_a_batch(both):
    record, _ = both.measured(include_bos=True)
    for batches in (1, 3):
        found = theirs(both, batches=batches)[0]["reconstruction_quality"]["mse"]
        tokens = ROWS * LENGTH // batches
        assert found == pytest.approx(record.mse * both.lm.d_model / tokens, rel=1e-4)


def test_their_explained_variance_squares_a_mean_of_squares(both):
    record, _ = both.measured(include_bos=True)
    x = both.lm.activations(both.ids).double()
    square = x.square().sum(-1).mean().item()
    wrong = 1 - record.mse * both.lm.d_model / (square - (square / both.lm.d_model) ** 2)
    found = theirs(both)[0]["reconstruction_quality"]["explained_variance"]
    assert found == pytest.approx(wrong, rel=1e-4)
    assert found != pytest.approx(record.explained_variance, rel=1e-2)


@pytest.mark.parametrize(
    "category, metric, field",
    [
        ("reconstruction_quality", "explained_variance_legacy", "ev_legacy"),
        ("shrinkage", "relative_reconstruction_bias", "relative_reconstruction_bias"),
    ],
)
def test_means_over_batches(both, category, metric, field):
    """Theirs of three batches is the mean of ours of each, and not ours of all."""
    found = theirs(both, batches=3)[0][category][metric]
    parts = [
        structural({"sae": both.sae}, both.lm, part, include_bos=True)[0]["sae"]
        for part in np.split(both.tokens, 3)
    ]
    overall, _ = both.measured(include_bos=True)
    # rounding is far below what tells the two apart
    assert found == pytest.approx(np.mean([getattr(part, field) for part in parts]), rel=2e-6)
    assert found != pytest.approx(getattr(overall, field), rel=2e-5)


@pytest.mark.parametrize(
    "column, name",
    [
        ("density", "feature_density"),
        ("consistent_activation_heuristic",) * 2,
        ("encoder_bias",) * 2,
        ("encoder_norm",) * 2,
        ("encoder_decoder_cosine", "encoder_decoder_cosine_sim"),
        ("decoder_nearest", "max_decoder_cosine_sim"),
        ("encoder_nearest", "max_encoder_cosine_sim"),
    ],
)
def test_core_of_single_latents(both, column, name):
    _, table = both.measured()
    _, latents = theirs(both, {BOS})
    np.testing.assert_allclose(table[column], latents[name], rtol=1e-4, atol=1e-5)


# --- files ----------------------------------------------------------------------------------------


def test_we_read_what_they_write(both, tmp_path):
    metrics, latents = theirs(both, {BOS})
    result = {"eval_cfg": CoreEvalConfig(), "metrics": metrics, "feature_metrics": latents}
    result |= {"sae_id": "custom_sae", "sae_set": "ours"}
    result = core.replace_nans_with_negative_one(result)
    core.save_single_eval_result(result, "id", "6", "0", str(tmp_path / "theirs.json"), both.peer)
    found = read_envelope(tmp_path / "theirs.json")
    assert found.eval_type_id == "core"
    assert found.metrics == metrics


@pytest.mark.parametrize(
    "kind, output", [("core", CoreEvalOutput), ("sparse_probing", SparseProbingEvalOutput)]
)
def test_they_read_what_we_write(both, tmp_path, kind, output):
    fields = vars(both.measured()[0]) if kind == "core" else {"sae_top_1_test_accuracy": 0.5}
    metrics = named(kind, fields)
    write_json(tmp_path / "ours.json", envelope(kind, metrics, {"d_sae": LATENTS}, {}))
    found = TypeAdapter(output).validate_json((tmp_path / "ours.json").read_text())
    for category, numbers in metrics.items():
        if category != "faithful_sae":
            assert vars(getattr(found.eval_result_metrics, category)) == numbers


# --- sparse probing -------------------------------------------------------------------------------

KS = (1, 2, 5)


def text_matrices(n, labels, seed):
    """Sparse latents of n texts of each label, float32, of which a few tell the label somewhat."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(labels), n)
    x = rng.exponential(size=(len(y), 30)) * (rng.random((len(y), 30)) < 0.4)
    for label in range(labels):
        x[y == label, 5 * label : 5 * label + 5] += rng.random(5) * 0.8
    return x.astype("float32"), y


def tensors(x, holds):
    return torch.tensor(x), torch.tensor(holds, dtype=torch.int)


def test_means_form_of_two_labels_is_their_evaluation():
    """Of two labels with equally many texts each, both have all texts."""
    (x, y), (u, v) = text_matrices(60, 2, 0), text_matrices(50, 2, 1)
    records = sparse_probe(x, y, u, v, ks=KS)
    ours = {r["k"]: r["accuracy"] for r in records if r["form"] == "means"}
    acts = [{str(i): torch.tensor(a[b == i]) for i in range(2)} for a, b in ((x, y), (u, v))]
    # without its own check of types: beartype of today counts texts of one label against all texts
    train = probe_training.train_probe_on_activations.__wrapped__
    for k in KS:
        _, accuracies = train(*acts, select_top_k=k)
        assert accuracies["1"] == pytest.approx(ours[k], abs=1e-4)
    assert 0.5 < ours[1] < ours[5] < 1


def test_means_form_of_more_labels_on_the_texts_we_drew():
    """They draw the texts without the label, with the generator that all of torch shares."""
    (x, y), (u, v) = text_matrices(60, 3, 2), text_matrices(50, 3, 3)
    for record in sparse_probe(x, y, u, v, ks=KS, seed=7):
        if record["form"] != "means":
            continue
        label, k = record["label"], record["k"]
        own, scored = balanced(y == label, 7), balanced(v == label, 7)
        a, holds = tensors(x[own], y[own] == label)
        b, holds_test = tensors(u[scored], v[scored] == label)
        left_out = probe_training.get_top_k_mean_diff_mask(a, holds, k)
        columns = [int(c) for c in record["columns"].split()]
        assert (~left_out).nonzero()[:, 0].tolist() == columns
        a, b = (probe_training.apply_topk_mask_reduce_dim(m, left_out) for m in (a, b))
        _, accuracy = probe_training.train_sklearn_probe(a, holds, b, holds_test)
        assert record["accuracy"] == pytest.approx(accuracy, abs=1e-4)


def test_they_draw_as_many_texts_of_each_other_label():
    acts = {str(i): torch.full((10, 1), float(i)) for i in range(3)}
    drawn, holds = probe_training.prepare_probe_data(acts, "0")
    assert drawn[holds == 0].unique(return_counts=True)[1].tolist() == [5, 5]


def test_the_full_probe_of_theirs_looks_at_the_test_labels():
    """Of labels and their opposites an honest probe finds 1 in sum; theirs takes the better epoch
    for each.
    """
    rng = np.random.default_rng(4)
    x, u = (rng.standard_normal((120, 20)).astype("float32") for _ in range(2))
    y, v = (rng.permutation(np.arange(120) % 2) for _ in range(2))
    found = []
    for truth in (v, 1 - v):
        torch.manual_seed(0)
        options = {"dim": 20, "batch_size": 40, "epochs": 30, "lr": 1e-2}
        _, best = probe_training.train_probe_gpu(*tensors(x, y), *tensors(u, truth), **options)
        (ours,) = [r for r in sparse_probe(x, y, u, truth, ks=(1,)) if r["form"] == "all"]
        found.append((best, ours["accuracy"]))
    best, honest = np.sum(found, 0)
    assert honest == pytest.approx(1)
    assert best > 1.02


@torch.no_grad()
def theirs_of_texts(both, rows):
    """(means of x, means of the latents) over the tokens of each row, as their evaluation has."""
    padded = torch.full((len(rows), LENGTH), both.lm.tokenizer.eos_token_id)
    for place, row in zip(padded, rows, strict=True):
        place[0], place[1 : 1 + len(row)] = BOS, row
    hook = both.peer.cfg.metadata.hook_name
    x = activation_collection.get_llm_activations(padded, both.model, 8, LAYER, hook, True)
    mean = activation_collection.create_meaned_model_activations({"x": x})["x"]
    return mean, activation_collection.get_sae_meaned_activations({"x": x}, both.peer, 8)["x"]


@torch.no_grad()
def test_pooled_texts(both):
    """Means over the tokens that are not BOS, of texts of several lengths."""
    lengths = torch.randint(3, LENGTH, (20,), generator=torch.Generator().manual_seed(5))
    rows = [row[1:n] for row, n in zip(both.ids, lengths, strict=False)]
    rows = [row[row != BOS] for row in rows]
    texts = [" ".join(f"w{i}" for i in row.tolist()) for row in rows]
    found = pooled_representations({"sae": both.sae}, both.lm, texts, LENGTH, include_bos=False)
    mean, z = theirs_of_texts(both, rows)
    np.testing.assert_allclose(found["baseline"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["sae", "sae"], z, rtol=1e-4, atol=1e-5)


def test_sparse_probing_from_texts_to_accuracy(both):
    """Of two labels with equally many texts each, on latents and on channels of x."""
    generator = torch.Generator().manual_seed(6)
    ours, acts = [], []
    for n in (80, 60):
        labels = torch.arange(n) % 2
        rows = torch.randint(2, 64, (n, 9), generator=generator)
        # a third of the tokens say the label, most of the time
        told = torch.rand((n, 3), generator=generator) < 0.6
        rows[:, ::3] = torch.where(told, 10 + 5 * labels[:, None], rows[:, ::3])
        texts = [" ".join(f"w{i}" for i in row.tolist()) for row in rows]
        pooled = pooled_representations({"sae": both.sae}, both.lm, texts, LENGTH, False)
        ours.append((pooled, labels.numpy()))
        acts.append([(means, labels) for means in theirs_of_texts(both, rows)])
    train = probe_training.train_probe_on_activations.__wrapped__
    (fitted, y), (tested, v) = ours
    for number, at in enumerate(("baseline", ("sae", "sae"))):
        records = sparse_probe(fitted[at], y, tested[at], v, ks=KS)
        found = {r["k"]: r["accuracy"] for r in records if r["form"] == "means"}
        parts = [
            {str(i): means[labels == i] for i in range(2)}
            for means, labels in (part[number] for part in acts)
        ]
        for k in KS:
            _, accuracies = train(*parts, select_top_k=k)
            assert accuracies["1"] == pytest.approx(found[k], abs=1e-4)
        assert 0.5 < found[5] < 1
