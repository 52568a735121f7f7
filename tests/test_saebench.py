"""SAEBench's result files: names as its published schema has them, files that come back as they
were written, and damaged ones.
"""

import json
import math

import numpy as np
import pytest
import torch

from faithful_sae.files import write_json
from faithful_sae.metrics.saebench import (
    FAULTS,
    NAMES,
    OURS,
    beside,
    envelope,
    named,
    read_envelope,
)

# of the json schemas that SAEBench 0.6.0 publishes
TOP_LEVEL = {
    *("eval_type_id", "eval_config", "eval_id", "datetime_epoch_millis", "eval_result_metrics"),
    *("eval_result_details", "sae_bench_commit_hash", "sae_lens_id", "sae_lens_release_id"),
    *("sae_lens_version", "sae_cfg_dict"),
}
SCHEMA = {
    "core": {
        "model_behavior_preservation": "kl_div_score kl_div_with_ablation kl_div_with_sae",
        "model_performance_preservation": "ce_loss_score ce_loss_with_ablation ce_loss_with_sae "
        "ce_loss_without_sae",
        "reconstruction_quality": "explained_variance explained_variance_legacy mse cossim",
        "shrinkage": "l2_norm_in l2_norm_out l2_ratio relative_reconstruction_bias",
        "sparsity": "l0 l1",
        "token_stats": "total_tokens_eval_reconstruction total_tokens_eval_sparsity_variance",
        "misc_metrics": "freq_over_1_percent freq_over_10_percent normalized_freq_over_1_percent "
        "normalized_freq_over_10_percent average_max_encoder_cosine_sim "
        "average_max_decoder_cosine_sim frac_alive",
    },
    "sparse_probing": {
        "llm": "llm_test_accuracy llm_top_1_test_accuracy llm_top_2_test_accuracy "
        "llm_top_5_test_accuracy llm_top_10_test_accuracy llm_top_20_test_accuracy "
        "llm_top_50_test_accuracy llm_top_100_test_accuracy",
        "sae": "sae_test_accuracy sae_top_1_test_accuracy sae_top_2_test_accuracy "
        "sae_top_5_test_accuracy sae_top_10_test_accuracy sae_top_20_test_accuracy "
        "sae_top_50_test_accuracy sae_top_100_test_accuracy",
    },
}
ITS_OWN = {
    *("core", "sparse_probing", "sparse_probing_sae_probes", "tpp", "scr", "ravel", "unlearning"),
    *("absorption_first_letter", "autointerp", "meta_structure_decoder_variance", "mdl"),
}
# as structural measures have them
FIELDS = {"mse": 0.5, "cosine": 0.9, "explained_variance": 0.8, "ev_legacy": 0.7, "l0": 8.0}
FIELDS |= {"ce": 3.0, "ce_sae": 3.5, "ce_zero": 8.0, "ce_score": 0.9, "kl": math.nan}


@pytest.fixture
def ours(tmp_path):
    """A file of ours, written and read."""
    file = tmp_path / "ours.json"
    write_json(file, envelope("core", named("core", FIELDS), {"d_sae": 24}, {"seed": 1}))
    return read_envelope(file)


def published(tmp_path, metrics, **more):
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps({"eval_result_metrics": metrics, "sae_cfg_dict": {}} | more))
    return file


@pytest.mark.parametrize("kind", SCHEMA)
def test_names_are_those_of_the_published_schema(kind):
    found = envelope(kind, named(kind, {}), {}, {})
    assert set(found) == TOP_LEVEL
    metrics = {key: {*numbers} for key, numbers in found["eval_result_metrics"].items()}
    assert metrics == {key: {*names.split()} for key, names in SCHEMA[kind].items()}


def test_our_ids_are_not_saebenchs():
    assert not set(OURS) & ITS_OWN
    assert {theirs for theirs, _ in OURS.values()} <= {*ITS_OWN, None}
    assert set(NAMES) <= ITS_OWN


def test_a_round_trip(ours):
    assert ours.eval_type_id == "core"
    assert ours.sae_cfg_dict == {"d_sae": 24}
    performance = ours.metrics["model_performance_preservation"]
    assert performance["ce_loss_without_sae"] == 3.0
    assert performance["ce_loss_with_sae"] == 3.5
    assert performance["ce_loss_with_ablation"] == 8.0
    quality = ours.metrics["reconstruction_quality"]
    assert quality["explained_variance_legacy"] == 0.7
    assert quality["cossim"] == 0.9
    # what has a fault there is ours, and apart
    assert math.isnan(quality["explained_variance"])
    assert math.isnan(quality["mse"])
    assert ours.metrics["faithful_sae"] == {"mse": 0.5, "explained_variance": 0.8}
    # NaN and what is not computed
    assert math.isnan(ours.metrics["model_behavior_preservation"]["kl_div_with_sae"])
    assert math.isnan(ours.metrics["sparsity"]["l1"])


def test_the_file_is_strict_json_and_the_same_bytes(tmp_path):
    texts = []
    for name in ("a", "b"):
        metrics = named("core", FIELDS | {"l1": np.float32(2.5), "positions": np.int64(7)})
        details = [{"index": 0, "feature_density": math.nan, "row": np.arange(2)}]
        write_json(tmp_path / name, envelope("core", metrics, {"k": 8}, {"rows": (1, 2)}, details))
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]

    def refuse(constant):
        raise AssertionError(constant)

    read = json.loads(texts[0], parse_constant=refuse)
    assert read["eval_result_details"] == [{"index": 0, "feature_density": None, "row": [0, 1]}]
    assert read["eval_result_metrics"]["model_behavior_preservation"]["kl_div_with_sae"] is None
    assert read["eval_result_metrics"]["sparsity"]["l1"] == 2.5
    assert read["eval_result_metrics"]["token_stats"] == {
        "total_tokens_eval_reconstruction": 7,
        "total_tokens_eval_sparsity_variance": 7,
    }
    assert read["datetime_epoch_millis"] == 0


def test_the_id_is_of_what_it_holds():
    given = ("autointerp_ngram", {"autointerp": {"balanced": 0.7}}, {}, {"seed": 1})
    first = envelope(*given)["eval_id"]
    assert envelope(*given)["eval_id"] == first
    assert envelope(*given, datetime_epoch_millis=5)["eval_id"] != first
    assert envelope(*given[:3], {"seed": 2})["eval_id"] != first


@pytest.mark.parametrize(
    ("kind", "metrics", "message"),
    [
        ("autointerp", {"autointerp": {"autointerp_score": 0.8}}, "'autointerp' must be one of"),
        ("mine", {}, "'mine' must be one of"),
        ("core", {"sparsity": {"l0": 8.0}}, "make them with named"),
        ("core", named("core", {}) | {"more": {"x": 1.0}}, "more/x breaks"),
        ("scr_crossed", {"scr": {"a": math.inf}}, "eval_result_metrics/scr/a is inf"),
        ("scr_crossed", {"scr": {"a": torch.float32}}, "scr/a is of type dtype"),
    ],
)
def test_what_cannot_be_written(kind, metrics, message):
    with pytest.raises(ValueError, match=message):
        envelope(kind, metrics, {}, {})


def test_others_have_no_names_here():
    with pytest.raises(ValueError, match="'tpp' must be one of core, sparse_probing"):
        named("tpp", {})


def test_metrics_of_one_definition_side_by_side(ours, tmp_path):
    metrics = {
        "model_performance_preservation": {"ce_loss_without_sae": 4.5, "ce_loss_score": None},
        "model_behavior_preservation": {"kl_div_with_sae": 0.25},
        "reconstruction_quality": {"mse": 2e-5, "explained_variance": 0.99, "cossim": -1.0},
        "misc_metrics": {"of a later version": 1.0},
    }
    theirs = read_envelope(published(tmp_path, metrics, eval_type_id="core"))
    table = beside(ours, theirs).set_index("metric")
    row = table.loc["ce_loss_without_sae"]
    assert (row.category, row.why) == ("model_performance_preservation", "")
    assert (row.ours, row.theirs, row.difference) == (3.0, 4.5, -1.5)
    quality = table[table.category == "reconstruction_quality"]
    for metric in ("mse", "explained_variance"):
        assert quality.why[metric] == FAULTS[metric]
        assert not math.isnan(quality.theirs[metric])
    for metric in ("ce_loss_score", "cossim", "l0"):
        assert table.why[metric] == "not computed by SAEBench"
    assert table.why["kl_div_with_sae"] == "not computed by us"
    assert table.why["of a later version"] == "not known here"
    own = table[table.category == "faithful_sae"]
    assert {*own.why} == {"a definition of our own"}
    assert table.difference.notna().sum() == 1


def test_evaluations_of_other_definitions_are_not_compared(ours, tmp_path):
    file = tmp_path / "ngram.json"
    write_json(
        file, envelope("autointerp_ngram", {"autointerp": {"autointerp_score": 0.7}}, {}, {})
    )
    theirs = {"autointerp": {"autointerp_score": 0.8}}
    theirs = read_envelope(published(tmp_path, theirs, eval_type_id="autointerp"))
    for left, why in ((read_envelope(file), "n-grams judge"), (ours, "core and autointerp are")):
        table = beside(left, theirs)
        assert table.difference.isna().all()
        assert table.why.str.contains(why).all()


def test_files_of_earlier_versions(tmp_path):
    scores = {"disentanglement_score": 0.5, "cause_score": 1, "isolation_score": None}
    found = read_envelope(published(tmp_path, {"RAVEL": scores}, eval_type_id="RAVEL"))
    assert found.eval_type_id == "ravel"
    assert found.metrics["ravel"]["cause_score"] == 1.0
    assert math.isnan(found.metrics["ravel"]["isolation_score"])
    # no id, no configuration, and NaN as Python writes it
    file = tmp_path / "bare.json"
    file.write_text('{"eval_result_metrics": {"sparsity": {"l0": NaN, "l1": 3}}}')
    bare = read_envelope(file)
    assert (bare.eval_type_id, bare.sae_cfg_dict) == ("", {})
    assert math.isnan(bare.metrics["sparsity"]["l0"])


def test_a_file_without_an_id_is_compared_by_its_names(ours, tmp_path):
    theirs = read_envelope(published(tmp_path, {"sparsity": {"l0": 6.0}}))
    table = beside(ours, theirs).set_index("metric")
    assert table.difference["l0"] == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a readable JSON file"),
        ('{"eval_result_metrics": {"a"', "not a readable JSON file"),
        ("[]", "has no eval_result_metrics"),
        ('{"sae_cfg_dict": {}}', "has no eval_result_metrics"),
        ('{"eval_result_metrics": [1]}', r"eval_result_metrics is \[1\], and must be names"),
        ('{"eval_result_metrics": {"a": 3}}', "eval_result_metrics.a is 3, and must be names"),
        ('{"eval_result_metrics": {"a": {"b": "x"}}}', "metrics.a.b is 'x', and must be a number"),
        ('{"eval_result_metrics": {"a": {"b": true}}}', "metrics.a.b is True"),
        ('{"eval_result_metrics": {}, "eval_type_id": 3}', "eval_type_id is 3"),
        ('{"eval_result_metrics": {}, "sae_cfg_dict": "x"}', "sae_cfg_dict is 'x'"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, message):
    file = tmp_path / "damaged.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_envelope(file)
    assert "damaged.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.json: not a readable"):
        read_envelope(tmp_path / "nothing.json")
