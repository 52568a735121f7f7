"""The one fingerprint: which parameters, inputs and code an artefact or a row depends on.

A declaration names keys of the parameters (Stage.parameters and sections; an artefact's own keys).
`settings` looks them up, without what changes no number; everything that asks "is it current?"
compares what it returns:

    Snakemake's settings    `workflow_settings`: a stage's, and the names that exhibits show
    rows/<name>.json        `made_with`: the hash of a stage's and of all stages before it
    artefacts               `Fingerprint`: with inputs and code; its key stands in provenance.json
    loading an SAE          the parameters in that file, against those that the run has now
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from faithful_sae.files import digest
from faithful_sae.runs import registry
from faithful_sae.runs.code import code_hash
from faithful_sae.runs.params import load_params
from faithful_sae.runs.provenance import provenance
from faithful_sae.runs.schema import EVERYTHING, Run, as_before, plain
from faithful_sae.runs.stage import Stage

NUMBERS = ("numbers",)
SHOWN = ("numbers", "names")


def settings(run: Run, keys: tuple[str, ...], keep: tuple[str, ...] = NUMBERS) -> dict[str, Any]:
    """{key: value} of some parameters, as data that JSON can hold.

    Args:
        keys: names of values or sections (`sae`), of values in one (`sae.k`); with a minus in front
            (`-sae.k`) a value is left out of the section named before.
        keep: fields that change one of these stay (schema.key).
    """
    found: dict[str, Any] = {}
    for name in keys:
        if name.startswith("-"):
            section, _, left_out = name[1:].rpartition(".")
            found[section] = {k: v for k, v in (found[section] or {}).items() if k != left_out}
        else:
            value = _value(run, name)
            field = type(run).model_fields.get(name)
            if keep == EVERYTHING or field is None or not as_before(field, value):
                found[name] = plain(value, keep)
    return found


def _value(run: Run, name: str) -> Any:
    """What a run says under a key; the name of an entry may have dots itself."""
    value: Any = run
    while name:
        if isinstance(value, dict):
            return value.get(name)
        part, _, name = name.partition(".")
        value = getattr(value, part)
    return value


def stage_settings(run: Run, stage: Stage, keep: tuple[str, ...] = NUMBERS) -> dict[str, Any]:
    """The parameters that a stage itself reads, with those of its corpora."""
    corpora = [f"corpora.{name}" for name in stage.corpora(run)]
    return settings(run, (*stage.sections, *stage.parameters, *corpora), keep)


def made_with(run: Run, stage: Stage) -> str:
    """Hash of the parameters that a stage's rows depend on: its own, those of the stages before it,
    and of the runs whose text any of them uses.

    No code is in it: `make paper` compares that too, and what is left of a run of weeks is still
    worth a look when a comment has changed.
    """
    stages = [*registry.before(stage), stage]
    first = next(iter(registry.stages().values()))
    used = {run.corpora[name].faithful for s in stages for name in s.corpora(run)}
    elsewhere = sorted(name for name in used if name and name != "self")
    others = [load_params(run.file.with_name(f"{name}.yaml")) for name in elsewhere]
    own = [stage_settings(run, s) for s in stages]
    return digest([own, [stage_settings(other, first) for other in others]])


def workflow_settings(run: Run, stage: Stage) -> str:
    """The parameters that a notebook's rows and exhibits depend on, as text: Snakemake runs the
    notebook again when it changes.

    Those of earlier notebooks are among them: Snakemake does not see that a file was made with
    other parameters if it is the same.
    """
    return json.dumps([stage_settings(run, stage, SHOWN), made_with(run, stage)], sort_keys=True)


@dataclass(frozen=True)
class Fingerprint:
    """What an artefact depends on.

    Attributes:
        parameters: as `settings` returns them.
        inputs: {name: hash} of what it is made from.
        code: modules ("lm/model") that compute it.
    """

    parameters: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    code: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        """The hash of all three; what is_current compares."""
        return digest([self.parameters, self.inputs, code_hash(*self.code)])

    def record(self, commit: str | None = None, **made: Any) -> dict[str, Any]:
        """The provenance of an artefact with this fingerprint.

        Args:
            commit: of what was read from the Hub; the key knows it already.
            made: seconds and device, as provenance.
        """
        inputs = self.inputs | ({"commit": commit} if commit else {})
        return provenance(parameters=self.parameters, inputs=inputs, **made)
