"""Everything that would fail in a profile, and what it would take, before any of it runs.

Reads the parameter files, the local texts and what the Hub says of models and datasets (held to the
commits found, as `make paper` holds them); computes memory and disk of every stage, and measures
for some seconds how fast this machine is.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants
from transformers.utils import logging

from faithful_sae.engine.problems import first_problems, hub_problems
from faithful_sae.engine.timing import PROBE_SHARE, estimate, free_memory, on_this_machine
from faithful_sae.files import ROOT, is_current, read_json
from faithful_sae.lm.architectures import ModelError, Shape, weights
from faithful_sae.runs.needs import Needs, needs
from faithful_sae.runs.params import read_profile
from faithful_sae.runs.registry import model_stages, studies
from faithful_sae.runs.schema import ParamsError, Run
from faithful_sae.runs.stage import Stage
from faithful_sae.stages.model import model_shape
from faithful_sae.text import hub

CORES = os.cpu_count() or 1  # of this machine
Show = Callable[[str], Any]


def check(
    profile: str,
    probe: bool = True,
    show: Show = print,
    cores: int | None = None,
    found: list[str] | None = None,
) -> list[str]:
    """Check a profile, telling on the way.

    Args:
        profile: a folder, or the name of one in params/.
        probe: whether to measure how long it takes.
        show: is given the lines that are told.
        cores: that jobs would share; by default those of this machine.
        found: what first_problems has said, so that texts are not read again.

    Returns:
        all problems found, a line each: what is wrong, and the parameter files it is wrong in.
    """
    logging.set_verbosity_error()
    problems = list(first_problems(profile) if found is None else found)
    try:
        runs, _ = read_profile(profile)
    except ParamsError:
        return problems
    if runs:
        show(f"{len(runs)} language models: texts, models and datasets ...")
        problems += hub_problems(runs)
        for note in runs[0].hub.moved():
            show(note)
        _show_crowded(runs, cores or CORES, show)
        _show_single(runs, show)
    hours = []
    disk: dict[Path, int] = {}
    for run in map(on_this_machine, runs):
        well = not any(line.startswith(f"{run.file}: ") for line in problems)
        named = any(
            line.startswith((f"{run.file}: model = ", f"{run.file}: model: ")) for line in problems
        )
        more, total, needed = _check_run(run, probe and well, show, named)
        problems += [
            line for line in more if not named or not line.startswith(f"{run.file}: model: ")
        ]
        hours.append(total)
        for folder, size in needed.items():
            disk[folder] = disk.get(folder, 0) + size
    problems += _disk_problems(disk, show)
    if runs and None not in hours:
        show(f"\nall models, one after the other: {_time(sum(hours))}")
    _show_pins(runs, show)
    return _once_each(problems, runs)


def _once_each(problems: list[str], runs: list[Run]) -> list[str]:
    """One line for what is wrong alike in several files, in the order in which it was found."""
    found: dict[str, list[Path | None]] = {}
    for line in dict.fromkeys(problems):
        file = next((run.file for run in runs if line.startswith(f"{run.file}: ")), None)
        found.setdefault(line.removeprefix(f"{file}: "), []).append(file)
    lines = []
    for text, files in found.items():
        first, *others = files
        named = ", ".join([str(first), *(file.name for file in others if file)])
        lines.append(f"{named}: {text}" if first else text)
    return lines


def _check_run(
    run: Run, probe: bool, show: Show, named: bool
) -> tuple[list[str], float | None, dict[Path, int]]:
    """(problems, seconds or None, {folder: bytes}) of one run, after its table; `named`: whether it
    is known what is wrong with its model.
    """
    show(f"\n{run.label}  ({run.file.name}, {run.device})")
    try:
        shape = model_shape(run)
    except (hub.HubError, ModelError) as error:
        show("  its sizes are not known" + ("" if named else f": {error}"))
        return [f"{run.file}: model: {error}", *_device_problems(run, {})], None, {}
    wanted = {stage: needs(run, shape, stage) for stage in model_stages(run)}
    problems = [*_device_problems(run, wanted), *_memory_problems(run, wanted)]
    seconds, how = _times(run, shape, probe and not problems, show)
    disk = {stage: _to_write(run, stage, need.disk) for stage, need in wanted.items()}
    show(f"  {'stage':<22}{'tokens':>10}{'GPU':>10}{'RAM':>10}{'disk':>10}{'time':>10}")
    for stage, need in wanted.items():
        sizes = map(_size, (need.device_memory, need.memory, disk[stage]))
        cells = (_count(need.tokens), *sizes, _time(seconds.get(stage.name)))
        show(f"  {stage.name:<22}" + "".join(f"{cell:>10}" for cell in cells))
    show(f"  time: {how}")
    total = {ROOT: sum(disk.values())}
    if not run.embedded and not run.model_folder:
        at = run.hub.commit("model", run.model_name, run.revision)
        if not hub.has_weights(run.model_name, at):
            total[Path(constants.HF_HUB_CACHE)] = weights(shape)
    whole = [seconds.get(stage.name, 0.0) for stage in wanted if not stage.study]
    for study in studies([run]):
        show(f"  not in the sums: what is made only with STUDIES={study}")
    return problems, sum(whole) if seconds else None, total


def _device_problems(run: Run, wanted: dict[Stage, Needs]) -> Iterator[str]:
    if run.device != "cuda":
        return
    if not torch.cuda.is_available():
        largest = max((need.device_memory for need in wanted.values()), default=0)
        size = f" of {_gib(largest)} GB or more" if largest else ""
        yield (
            f"{run.file}: device = 'cuda', and there is no GPU here that PyTorch can use: run it "
            f"where there is one{size}, or write auto"
        )
        return
    there = torch.cuda.device_count()
    if there < run.gpus:
        yield f"{run.file}: gpus = {run.gpus}, and there are {there} here: take more, or lower gpus"
    for stage, need in wanted.items():
        if need.device_memory > card_memory():
            yield (
                f"{run.file}: {stage.name} needs {_size(need.device_memory)} of GPU memory, and "
                f"there are {_size(card_memory())}: lower {stage.lower}, or take a card of "
                f"{_gib(need.device_memory)} GB"
            )


def card_memory() -> int:
    """Bytes of GPU memory that one run can use: those of the first card; `needs` are of the one
    that holds most.
    """
    return torch.cuda.get_device_properties(0).total_memory


def _memory_problems(run: Run, wanted: dict[Stage, Needs]) -> Iterator[str]:
    there = psutil.virtual_memory().total
    for stage, need in wanted.items():
        beside_gpu = run.device == "cuda" and stage.lower_ram
        if need.memory > there:
            yield (
                f"{run.file}: {stage.name} needs {_size(need.memory)} of RAM, and this machine has "
                f"{_size(there)}: lower {stage.lower_ram if beside_gpu else stage.lower}"
            )


def _times(run: Run, shape: Shape, probe: bool, show: Show) -> tuple[dict[str, float], str]:
    """({name of a stage: seconds}, how they were estimated or why not)."""
    if not probe:
        return {}, "not measured"
    free = free_memory(run)
    if weights(shape) > PROBE_SHARE * free:
        sizes = f"{_size(weights(shape))} leave too little of the {_size(free)} that are free"
        return {}, f"not measured: the model's {sizes}"
    found = estimate(run, lambda what: show(f"  measuring: {what} ..."))
    without = "without 03, tokenising, probes' regressions and starting notebooks"
    return found.seconds, f"measured for some seconds on {found.how}; {without}"


def _to_write(run, stage, needed):
    """Bytes of a stage's disk that are not there yet."""
    artefacts = {artefact.folder: artefact for artefact in stage.artefacts(run)}
    there = [folder for folder, artefact in artefacts.items() if _is_there(artefact)]
    if there and len(there) == len(artefacts):
        return 0
    files = [file for folder in there for file in folder.rglob("*") if file.is_file()]
    return max(needed - sum(file.stat().st_size for file in files), 0)


def _is_there(artefact):
    """Whether an artefact is whole, and made with the parameters that it has now."""
    try:
        made_with = read_json(artefact.folder / "provenance.json")["parameters"]
        same = made_with | artefact.parameters == made_with
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and is_current(artefact.folder)


def _disk_problems(disk: dict[Path, int], show: Show) -> Iterator[str]:
    """Folders on one file system share what is free there."""
    systems: dict[int, tuple[Path, int]] = {}
    for folder, needed in disk.items():
        while not folder.exists():
            folder = folder.parent
        first, total = systems.get(folder.stat().st_dev, (folder, 0))
        systems[folder.stat().st_dev] = first, total + needed
    for folder, needed in systems.values():
        free = shutil.disk_usage(folder).free
        show(f"\ndisk: {_size(needed)} to be written under {folder}, {_size(free)} free")
        if 1.1 * needed > free:  # as require_space has it
            yield (
                f"{folder}: the profile needs {_size(needed)} of disk and a tenth to spare, and "
                f"{_size(free)} are free: free some space"
            )


def _show_crowded(runs: list[Run], cores: int, show: Show) -> None:
    """Note runs whose jobs side by side have more threads than this machine has cores."""
    for run in runs:
        jobs = max(cores // run.threads, 1)
        if run.threads * jobs > CORES:
            show(
                f"note: {run.file.name}: {jobs} job{'s' if jobs > 1 else ''} of {run.threads} "
                f"threads wait for each other on {CORES} cores, and may take ten times as long: "
                "lower threads, or give CORES=n"
            )


def _show_single(runs: list[Run], show: Show) -> None:
    """Note runs that have no pair of SAEs to compare."""
    for run in runs:
        if run.sae and len(run.sae.seeds) == 1:
            show(f"note: {run.file.name}: one seed: SFR is not measured, nothing has an interval")


def _show_pins(runs: list[Run], show: Show) -> None:
    for name, at in (runs[0].hub.commits() if runs else {}).items():
        kind, repository, revision = name.split(" ", 2)
        if revision != at:
            show(f"pin: {kind} {repository}, {revision} now: write revision: {at}")


# --- numbers as text ------------------------------------------------------------------------------


def _size(count):
    if count >= 5e7:
        return f"{count / 1e9:.1f} GB"
    return f"{max(count / 1e6, 0.1):.1f} MB" if count else "-"


def _gib(count):
    """Memory as cards are sold: 24 GB are 24 x 2^30 bytes."""
    return -(-count // 2**30)


def _count(tokens):
    if tokens >= 1e5:
        return f"{tokens / 1e6:.1f} M"
    return f"{tokens:,}" if tokens else "-"


def _time(seconds):
    if seconds is None:
        return "-"
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"
