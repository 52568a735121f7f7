"""Everything that would fail in a profile, and what it would take, before any of it runs: `python
-m faithful_sae.engine.check PROFILE`

Reads the parameter files, the local texts and what the Hub says of models and datasets (held to the
commits found, as `make paper` holds them); computes memory and disk of every stage, and measures
for some seconds how fast this machine is. Exits with 1 and a list of all problems where there is
one.
"""

import argparse
import shutil
import sys
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants
from transformers.utils import logging

from faithful_sae.engine import plan
from faithful_sae.engine.timing import estimate, on_this_machine
from faithful_sae.files import ROOT, is_current
from faithful_sae.lm.architectures import Shape, shape_of, weights
from faithful_sae.lm.decoding import Decoder
from faithful_sae.lm.model import ModelError
from faithful_sae.runs.needs import needs
from faithful_sae.runs.params import read_profile
from faithful_sae.runs.schema import ParamsError, model_stages
from faithful_sae.stages.corpus import hub_of
from faithful_sae.stages.faithful import faithful_key
from faithful_sae.stages.model import model_commit, model_key, unloaded_model
from faithful_sae.stages.training import corpus_is_trained
from faithful_sae.text import hub

DEVICE_REMEDY = {  # keys that a stage's memory grows with
    "01_generate_faithful": "generate.batch_rows",
    "02_train_sae": "sae.buffer_tokens or sae.lm_batch_rows",
    "03_sfr": "sae.d_sae",
    "04_ffr": "sae.d_sae",
    "05_fidelity_matrix": "fidelity.batch_rows",
    "06_probing": "probing.batch_rows",
    "08_seed_dependence": "sae.buffer_tokens or the number of seed_dependence.seeds",
    "09_explore_features": "features.batch_rows",
}
RAM_REMEDY = DEVICE_REMEDY | {
    "02_train_sae": "corpus_tokens",
    "06_probing": "probing.max_train and max_test",
}
PROBE_SHARE = 0.5  # of the free memory, that a model with random weights may take


def check(profile, probe=True, show=print) -> list[str]:
    """Check a profile (a folder or the name of one in params/), telling on the way.

    Returns:
        all problems found, a line each: what is wrong, and the parameter files it is wrong in.
    """
    try:
        runs, problems = read_profile(profile)
    except ParamsError as error:
        return [str(error)]
    if runs:
        show(f"{len(runs)} language models: texts, models and datasets ...")
        problems += [*plan.problems(runs), *plan.hub_problems(runs)]
        for note in hub_of(runs[0]).moved():
            show(note)
    hours = []
    disk = {}
    for run in map(on_this_machine, runs):
        found, total, needed = _check_run(
            run, probe and not any(line.startswith(f"{run.file}: ") for line in problems), show
        )
        problems += found
        hours.append(total)
        for folder, size in needed.items():
            disk[folder] = disk.get(folder, 0) + size
    problems += _disk_problems(disk, show)
    if runs and None not in hours:
        show(f"\nall models, one after the other: {_time(sum(hours))}")
    _show_pins(runs, show)
    return _once_each(problems, runs)


def _once_each(problems, runs):
    """One line for what is wrong alike in several files, in the order in which it was found."""
    found = {}
    for line in dict.fromkeys(problems):
        file = next((run.file for run in runs if line.startswith(f"{run.file}: ")), None)
        found.setdefault(line.removeprefix(f"{file}: "), []).append(file)
    return [
        text
        if files == [None]
        else f"{', '.join(map(str, files[:1] + [file.name for file in files[1:]]))}: {text}"
        for text, files in found.items()
    ]


def _check_run(run, probe, show):
    """(problems, seconds or None, {folder: bytes}) of one run, after its table."""
    show(f"\n{run.label}  ({run.file.name}, {run.device})")
    try:
        shape, problems = _sizes(run)
    except (hub.HubError, ModelError) as error:
        show(f"  its sizes are not known: {error}")
        return [f"{run.file}: model: {error}", *_device_problems(run, {})], None, {}
    wanted = {stage: needs(run, shape, stage) for stage in model_stages(run)}
    problems += [*_device_problems(run, wanted), *_memory_problems(run, wanted)]
    seconds, how = _times(run, shape, probe and not problems, show)
    disk = {
        stage: max(need.disk - there, 0) if (there := _there(run, stage)) is not None else 0
        for stage, need in wanted.items()
    }
    show(f"  {'stage':<22}{'tokens':>10}{'GPU':>10}{'RAM':>10}{'disk':>10}{'time':>10}")
    for stage, need in wanted.items():
        show(
            "  "
            f"{stage:<22}{_count(need.tokens):>10}{_size(need.device_memory):>10}{_size(need.memory):>10}{_size(disk[stage]):>10}"
            f"{_time(seconds.get(stage)):>10}"
        )
    show(f"  time: {how}")
    total = {ROOT: sum(disk.values())}
    if (at := model_commit(run)) and not hub.has_weights(run.model, at):
        total[Path(constants.HF_HUB_CACHE)] = weights(shape)
    return problems, sum(seconds.values()) if seconds else None, total


def _sizes(run) -> tuple[Shape, list[str]]:
    with torch.device("meta"):
        model = unloaded_model(run)
    problems = []
    try:
        Decoder(model, 1, 1)
    except ModelError as error:
        problems.append(f"{run.file}: model: {error}")
    return shape_of(model), problems


def _device_problems(run, wanted):
    if run.device != "cuda":
        return
    if not torch.cuda.is_available():
        size = (
            f" of {_gib(max(need.device_memory for need in wanted.values()))} GB or more"
            if wanted
            else ""
        )
        yield f"{run.file}: device = 'cuda', and there is no GPU here that PyTorch can use: run it where there is one{size}, or write auto"
        return
    if (there := torch.cuda.device_count()) < run.gpus:
        yield f"{run.file}: gpus = {run.gpus}, and there are {there} here: take more, or lower gpus"
    for stage, need in wanted.items():
        if need.device_memory > card_memory():
            yield (
                f"{run.file}: {stage} needs {_size(need.device_memory)} of GPU memory, and there "
                f"are {_size(card_memory())}: lower "
                f"{DEVICE_REMEDY[stage]}, or take a card of {_gib(need.device_memory)} GB"
            )


def card_memory() -> int:
    """Bytes of GPU memory that one run can use: those of the first card; `needs` are of the one
    that holds most.
    """
    return torch.cuda.get_device_properties(0).total_memory


def _memory_problems(run, wanted):
    there = psutil.virtual_memory().total
    remedy = RAM_REMEDY if run.device == "cuda" else DEVICE_REMEDY
    for stage, need in wanted.items():
        if need.memory > there:
            yield f"{run.file}: {stage} needs {_size(need.memory)} of RAM, and this machine has {_size(there)}: lower {remedy[stage]}"


def _times(run, shape, probe, show):
    """({stage: seconds}, how they were estimated or why not)."""
    if not probe:
        return {}, "not measured"
    free = (
        torch.cuda.mem_get_info()[0] if run.device == "cuda" else psutil.virtual_memory().available
    )
    if weights(shape) > PROBE_SHARE * free:
        return (
            {},
            f"not measured: the model's {_size(weights(shape))} leave too little of the "
            f"{_size(free)} that are free",
        )
    found = estimate(run, lambda what: show(f"  measuring: {what} ..."))
    return (
        found.seconds,
        f"measured for some seconds on {found.how}; without 03, tokenising, probes' regressions "
        "and starting notebooks",
    )


def _there(run, stage):
    """Bytes on the disk of the artefacts of a stage that are current; None where all of them are."""
    try:
        if stage == "01_generate_faithful":
            artefacts = [
                (
                    run.artifacts / "faithful",
                    is_current(run.artifacts / "faithful", faithful_key(run)),
                )
            ]
            artefacts += (
                [(run.artifacts / "lm", is_current(run.artifacts / "lm", model_key(run)))]
                if run.embedded
                else []
            )
        elif stage == "02_train_sae":
            artefacts = [
                (run.artifacts / "saes" / name, corpus_is_trained(run, name))
                for name in run.sae.train_on
                if name not in run.published
            ]
        else:
            return 0
    except (hub.HubError, OSError):
        return 0
    sizes = [
        sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder, current in artefacts
        if current
    ]
    return None if len(sizes) == len(artefacts) else sum(sizes)


def _disk_problems(disk, show):
    """Folders on one file system share what is free there."""
    systems = {}
    for folder, needed in disk.items():
        while not folder.exists():
            folder = folder.parent
        first, total = systems.get(folder.stat().st_dev, (folder, 0))
        systems[folder.stat().st_dev] = first, total + needed
    for folder, needed in systems.values():
        free = shutil.disk_usage(folder).free
        show(f"\ndisk: {_size(needed)} to be written under {folder}, {_size(free)} free")
        if 1.1 * needed > free:  # as require_space has it
            yield f"{folder}: the profile needs {_size(needed)} of disk and a tenth to spare, and {_size(free)} are free: free some space"


def _show_pins(runs, show):
    pins = [
        name.split(" ", 2) + [at]
        for name, at in (hub_of(runs[0]).commits() if runs else {}).items()
    ]
    for kind, repository, revision, at in pins:
        if revision != at:
            show(f"pin: {kind} {repository}, {revision} now: write revision: {at}")


# --- numbers as text ------------------------------------------------------------------------------


def _size(count):
    return (
        "-"
        if not count
        else f"{count / 1e9:.1f} GB"
        if count >= 5e7
        else f"{max(count / 1e6, 0.1):.1f} MB"
    )


def _gib(count):
    """Memory as cards are sold: 24 GB are 24 x 2^30 bytes."""
    return -(-count // 2**30)


def _count(tokens):
    return "-" if not tokens else f"{tokens / 1e6:.1f} M" if tokens >= 1e5 else f"{tokens:,}"


def _time(seconds):
    if seconds is None:
        return "-"
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )


def main():
    parser = argparse.ArgumentParser(
        description="List everything that would fail in a profile, and what it needs."
    )
    parser.add_argument(
        "profile", help="a folder of parameter files, or the name of one in params/"
    )
    parser.add_argument(
        "--no-probe", action="store_true", help="do not measure how long it will take"
    )
    args = parser.parse_args()
    logging.set_verbosity_error()
    problems = check(args.profile, not args.no_probe, lambda line: print(line, flush=True))
    print(
        f"\n{len(problems)} problem{'s' if len(problems) != 1 else ''}" + (":" if problems else ""),
        *problems,
        sep="\n  ",
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
