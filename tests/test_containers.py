"""What starts the project elsewhere (Docker, the devcontainer, Binder, GitHub's runners): checked
by the linters of `make test-image`, and built where Docker runs.
"""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from faithful_sae.files import ROOT

DOCKERFILE = ROOT / "Dockerfile"
DEVCONTAINER = ROOT / ".devcontainer" / "devcontainer.json"
WORKFLOW = ROOT / ".github" / "workflows" / "test.yml"
STARTS = (DOCKERFILE, DEVCONTAINER, WORKFLOW)


def run(program, *arguments, timeout=120):
    """What a program prints; a skip without it."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: make test-image")
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("file", STARTS, ids=lambda file: file.name)
def test_versions_stand_in_environment_yml_alone(file):
    assert not re.findall(r"\w==\d", file.read_text(encoding="utf-8"))


def test_python_is_the_one_of_environment_yml():
    (pinned,) = re.findall(r"- python=([\d.]+)", (ROOT / "environment.yml").read_text("utf-8"))
    assert f"FROM python:{pinned}-slim" in DOCKERFILE.read_text(encoding="utf-8")
    jobs = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]
    used = [step["with"]["python-version"] for step in jobs["test"]["steps"] if "with" in step]
    assert used == [pinned]


def test_the_devcontainer_uses_a_stage_and_a_target_that_are_there():
    config = json.loads(DEVCONTAINER.read_text(encoding="utf-8"))
    built = (DEVCONTAINER.parent / config["build"]["dockerfile"]).read_text(encoding="utf-8")
    assert re.search(rf"^FROM .* AS {config['build']['target']}$", built, re.M)
    assert re.search(rf"^ARG NB_USER={config['remoteUser']}$", built, re.M)
    assert config["updateContentCommand"] == "make ready"


def test_hadolint_has_nothing_to_say():
    assert run("hadolint", DOCKERFILE) == ""


def test_the_workflow_fits_github_s_schema():
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", WORKFLOW)


def test_each_job_has_a_time_limit():
    run(
        *("check-jsonschema", "--builtin-schema"),
        *("custom.github-workflows-require-timeout", WORKFLOW),
    )


def test_binder_builds_the_dockerfile():
    said = run("repo2docker", "--no-build", "--debug", ROOT)
    assert DOCKERFILE.read_text(encoding="utf-8").strip() in said


def test_the_image_checks_the_smoke_profile():
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True).returncode
    ):
        pytest.skip("no Docker engine on this machine")
    run("docker", "build", "--tag", "faithful-sae-test", ROOT, timeout=1800)
    command = ("make", "check", "PROFILE=smoke", "PROBE=0")
    assert "0 problems" in run("docker", "run", "--rm", "faithful-sae-test", *command, timeout=300)
