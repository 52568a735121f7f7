"""SAEBench's result file: ours written in its form, published ones read, and the two side by side
(Karvonen et al. 2025, arXiv 2503.09532; layout of its version 0.6.0).

A file is one evaluation of one SAE: `eval_type_id` says which, `eval_result_metrics` holds
{category: {metric: number}}, null or -1 where a metric was not computed.

    same definition     its id, its names (NAMES). Numbers may be compared where text, tokens, and
                        what is done at special tokens are the same, too: see eval_config
    other definition    an id of our own (OURS), so that no number can be taken for SAEBench's

Some of SAEBench's numbers have faults (FAULTS), which nobody should repeat: under them we write -1,
and ours under the category `faithful_sae`. Others have our formulas, but not our positions:

    kl_div_*            theirs are of every position, ours of all but the last of a row
    special tokens      theirs measures neither BOS nor EOS nor padding, yet replaces all of them,
                        which ours without BOS keeps; so does theirs where
                        exclude_special_tokens_from_reconstruction is set
    *_with_ablation     theirs ablates special tokens, too, whatever is excluded, and ours without
                        BOS does not: so both scores are others as well
    total_tokens_*      theirs counts special tokens, ours what was measured
    explained_variance_legacy, relative_reconstruction_bias
                        means over its batches of what we take over all tokens
    sparse_probing      of texts without the label, theirs draws as many from each other label, with
                        torch's global generator, and ours from the rest at large; its texts begin
                        with BOS only where the tokenizer puts it there

On the same token rows in one batch, with every position measured (its ignore_tokens empty), all of
`core` but kl_div_* and FAULTS is the same number.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from faithful_sae.files import digest, read_json

Metrics = Mapping[str, Mapping[str, float]]

TOP = (1, 2, 5, 10, 20, 50, 100)
# id: {category: {metric: our name of it, or None where the definition has a fault}}
NAMES: dict[str, dict[str, dict[str, str | None]]] = {
    "core": {
        "model_behavior_preservation": {
            "kl_div_score": "kl_score",
            "kl_div_with_ablation": "kl_zero",
            "kl_div_with_sae": "kl",
        },
        "model_performance_preservation": {
            "ce_loss_score": "ce_score",
            "ce_loss_with_ablation": "ce_zero",
            "ce_loss_with_sae": "ce_sae",
            "ce_loss_without_sae": "ce",
        },
        "reconstruction_quality": {
            "explained_variance": None,
            "explained_variance_legacy": "ev_legacy",
            "mse": None,
            "cossim": "cosine",
        },
        "shrinkage": {
            "l2_norm_in": "l2_in",
            "l2_norm_out": "l2_out",
            "l2_ratio": "l2_ratio",
            "relative_reconstruction_bias": "relative_reconstruction_bias",
        },
        "sparsity": {"l0": "l0", "l1": "l1"},
        "token_stats": {
            "total_tokens_eval_reconstruction": "positions",
            "total_tokens_eval_sparsity_variance": "positions",
        },
        "misc_metrics": {
            "freq_over_1_percent": "over_1_percent",
            "freq_over_10_percent": "over_10_percent",
            "normalized_freq_over_1_percent": "over_1_percent_normalised",
            "normalized_freq_over_10_percent": "over_10_percent_normalised",
            "average_max_encoder_cosine_sim": "encoder_nearest",
            "average_max_decoder_cosine_sim": "decoder_nearest",
            "frac_alive": "frac_alive",
        },
    },
    "sparse_probing": {
        part: {f"{part}_test_accuracy": None}
        | {f"{part}_top_{k}_test_accuracy": f"{part}_top_{k}_test_accuracy" for k in TOP}
        for part in ("llm", "sae")
    },
}
BEST_EPOCH = "SAEBench keeps the epoch whose accuracy is best on the test set"
FAULTS = {
    "explained_variance": "three formulas had this name; the last squares a mean of squares",
    "mse": "SAEBench divides by the tokens of a batch, not by the width",
    "llm_test_accuracy": BEST_EPOCH,
    "sae_test_accuracy": BEST_EPOCH,
}
# our ids: SAEBench's evaluation of the kind, and how ours is another one
OURS: dict[str, tuple[str | None, str]] = {
    "sparse_probing_documentation": ("sparse_probing", "latents are chosen by training folds"),
    "tpp_closed_form": ("tpp", "other probes, whose training sets the bias of the number"),
    "scr_crossed": ("scr", "other probes, whose training sets the bias of the number"),
    "absorption_planted": ("absorption_first_letter", "a planted world, where the truth is known"),
    "absorption_token_classes": ("absorption_first_letter", "classes of tokens, not first letters"),
    "ravel_world": ("ravel", "a world with two readouts, not a language model's facts"),
    "ravel_cities": ("ravel", "a list of cities, and swaps at the last token of their names"),
    "unlearning_ce": ("unlearning", "cross-entropy on a forgotten package, not exam questions"),
    "autointerp_tokens": ("autointerp", "lists of tokens judge, not a language model"),
    "autointerp_ngram": ("autointerp", "n-grams judge, not a language model"),
    "autointerp_text": ("autointerp", "a sentence encoder judges, not a language model"),
    "autointerp_llm": ("autointerp", "another language model judges, by balanced accuracy"),
    "descriptions": (None, "SAEBench has no such evaluation"),
    "generalisation": (None, "SAEBench has no such evaluation"),
}
# what earlier versions of SAEBench called them, evaluations and categories
EARLIER = {"RAVEL": "ravel", "meta_sae_decoder_variance": "meta_structure_decoder_variance"}
OWN = "faithful_sae"
NOT_COMPUTED = -1.0


@dataclass(frozen=True)
class Result:
    """What is read of a file.

    Attributes:
        eval_type_id: by its present name; "" if the file does not say.
        metrics: {category: {metric: number}}; NaN: not computed, which -1 says in files.
        sae_cfg_dict: the SAE's configuration, as its library writes it.
    """

    eval_type_id: str
    metrics: dict[str, dict[str, float]]
    sae_cfg_dict: dict[str, Any]


def named(eval_type_id: str, fields: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Our numbers under SAEBench's names, all that its file has: -1 where ours are not computed or
    its definition has a fault. What it has no name for is under `faithful_sae`.

    Args:
        eval_type_id: one of NAMES.
        fields: by our names.

    Raises:
        ValueError: not one of NAMES.
    """
    if eval_type_id not in NAMES:
        raise ValueError(
            f"{eval_type_id!r} must be one of {', '.join(NAMES)}: others have no names"
        )
    found = {
        category: {
            theirs: NOT_COMPUTED if ours is None else fields.get(ours, NOT_COMPUTED)
            for theirs, ours in names.items()
        }
        for category, names in NAMES[eval_type_id].items()
    }
    known = {ours for names in NAMES[eval_type_id].values() for ours in names.values()}
    rest = {name: value for name, value in fields.items() if name not in known}
    return found | ({OWN: rest} if rest else {})


def envelope(
    eval_type_id: str,
    metrics: Metrics,
    sae_cfg_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    details: Sequence[Mapping[str, Any]] = (),
    sae_lens_id: str | None = None,
    sae_lens_release_id: str | None = None,
    datetime_epoch_millis: int = 0,
) -> dict[str, Any]:
    """A result in SAEBench's form, for files.write_json. It names no machine and no time of
    itself, and its eval_id is a hash of the rest: the same result has the same bytes.

    Args:
        eval_type_id: one of NAMES, with metrics from `named`; or one of OURS.
        metrics: {category: {metric: number}}; NaN becomes null.
        sae_cfg_dict: the SAE's configuration.
        config: how it was measured: model, text, rows, seeds.
        details: a dict per latent, class or letter.
        sae_lens_id, sae_lens_release_id: of a published SAE.
        datetime_epoch_millis: when, in ms since 1970; 0: not said.

    Raises:
        ValueError: an id that is not ours to use, or metrics that are not its own; what JSON cannot
            hold, such as infinity.
    """
    if eval_type_id not in NAMES and eval_type_id not in OURS:
        raise ValueError(
            f"eval_type_id {eval_type_id!r} must be one of {', '.join([*NAMES, *OURS])}: other "
            "ids of SAEBench would claim its definitions"
        )
    keys = {
        (category, name)
        for category, names in NAMES.get(eval_type_id, {}).items()
        for name in names
    }
    given = {key for key, _ in _numbers(metrics) if key[0] != OWN}
    if keys and given != keys:
        category, name = min(given ^ keys)
        raise ValueError(
            f"metrics of {eval_type_id} have SAEBench's names and no others, which {category}/"
            f"{name} breaks: make them with named()"
        )
    record = {
        "eval_type_id": eval_type_id,
        "eval_config": config,
        "datetime_epoch_millis": datetime_epoch_millis,
        "eval_result_metrics": metrics,
        "eval_result_details": details,
        "sae_bench_commit_hash": "not SAEBench, but faithful_sae",
        "sae_lens_id": sae_lens_id,
        "sae_lens_release_id": sae_lens_release_id,
        "sae_lens_version": None,
        "sae_cfg_dict": sae_cfg_dict,
    }
    plain = _plain(record, "")
    return {**plain, "eval_id": digest(plain)}


def read_envelope(path: str | Path) -> Result:
    """Read a result file of SAEBench, of any version, or of ours.

    Args:
        path: a JSON file. Of what it holds, eval_result_metrics must be there; early versions of
            some evaluations lack sae_cfg_dict.

    Raises:
        ValueError: the file is no JSON, or no such result; names file and key.
    """
    try:
        record = read_json(Path(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable JSON file ({error}): fetch it again") from error
    if not isinstance(record, dict) or "eval_result_metrics" not in record:
        raise ValueError(f"{path}: has no eval_result_metrics: is it a result of SAEBench?")
    categories = _dict(record["eval_result_metrics"], path, "eval_result_metrics")
    metrics: dict[str, dict[str, float]] = {}
    for category, numbers in categories.items():
        key = f"eval_result_metrics.{category}"
        metrics[EARLIER.get(category, category)] = {
            name: _number(value, path, f"{key}.{name}")
            for name, value in _dict(numbers, path, key).items()
        }
    name = record.get("eval_type_id") or ""
    if not isinstance(name, str):
        raise ValueError(f"{path}: eval_type_id is {name!r}, and must be text")
    configuration = _dict(record.get("sae_cfg_dict") or {}, path, "sae_cfg_dict")
    return Result(EARLIER.get(name, name), metrics, configuration)


def beside(ours: Result, theirs: Result) -> pd.DataFrame:
    """Our numbers beside SAEBench's, metric by metric.

    Args:
        ours, theirs: as read_envelope gives them.

    Returns:
        a row per metric that either has: category, metric, ours, theirs (NaN: not there);
        difference, ours less theirs; and why there is none, "" where there is.
    """
    left, right = dict(_numbers(ours.metrics)), dict(_numbers(theirs.metrics))
    rows = []
    for category, metric in dict.fromkeys([*left, *right]):
        a, b = (side.get((category, metric), math.nan) for side in (left, right))
        why = _incomparable(ours, theirs, category, metric, a, b)
        rows.append((category, metric, a, b, math.nan if why else a - b, why))
    return pd.DataFrame(rows, columns=["category", "metric", "ours", "theirs", "difference", "why"])


def _incomparable(ours, theirs, category, metric, a, b):
    """Why two numbers are not of one definition, or "" """
    kind, their_kind = ours.eval_type_id, theirs.eval_type_id
    if kind in OURS:
        return OURS[kind][1]
    if their_kind not in ("", kind):
        return f"{kind} and {their_kind} are different evaluations"
    if category == OWN:
        return "a definition of our own"
    names = NAMES.get(kind, {}).get(category, {})
    if metric not in names:
        return "not known here"
    if names[metric] is None:
        return FAULTS[metric]
    if math.isnan(a):
        return "not computed by us"
    return "not computed by SAEBench" if math.isnan(b) else ""


def _numbers(metrics: Metrics) -> Iterator[tuple[tuple[str, str], float]]:
    """((category, metric), number) of all."""
    for category, numbers in metrics.items():
        for name, value in numbers.items():
            yield (category, name), value


def _dict(value: Any, path: str | Path, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key} is {value!r:.40}, and must be names with values")
    return value


def _number(value, path, key):
    """NaN where it was not computed."""
    if value is None or value == NOT_COMPUTED:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{path}: {key} is {value!r:.40}, and must be a number or null")
    return float(value)


def _plain(value: Any, key: str) -> Any:
    """As JSON can hold it: NaN is null. key: where it stands, for the message."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): _plain(part, f"{key}/{name}") for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, f"{key}/{i}") for i, part in enumerate(value)]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, float) and math.isinf(value):
        raise ValueError(f"{key[1:]} is {value}, which JSON cannot hold: leave it out")
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{key[1:]} is of type {type(value).__name__}: give text, numbers or lists")
