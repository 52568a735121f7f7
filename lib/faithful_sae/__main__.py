"""The command line: `python -m faithful_sae COMMAND ...`. `make` calls it; `--help` lists all."""

import argparse
import sys
from pathlib import Path
from typing import Any

from faithful_sae.files import DiskFullError, ReadOnlyError, speak_anywhere

PROFILE = "a folder of parameter files, or the name of one in params/"
# what each command needs is imported when it runs: some of it takes seconds


def check(args: argparse.Namespace) -> None:
    from faithful_sae.engine.board import tell
    from faithful_sae.engine.problems import first_problems

    found = []
    # at once: what follows takes seconds to import
    for line in first_problems(args.profile):
        tell(f"  {line}")
        found.append(line)

    from faithful_sae.engine.check import check

    problems = check(args.profile, not args.no_probe, tell, args.cores, found)
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    print("\n  ".join([f"\n{count}{':' if problems else ''}", *problems]))
    sys.exit(bool(problems))


def notebook(args: argparse.Namespace) -> None:
    from faithful_sae.engine.notebook import run_notebook

    run_notebook(args.notebook, args.output, dict(word.split("=", 1) for word in args.parameters))


def train_corpus(args: argparse.Namespace) -> None:
    from faithful_sae.engine.steps import train_corpus

    train_corpus(args.params, args.corpus, args.output)


def share(args: argparse.Namespace) -> None:
    from faithful_sae.engine.steps import compute_share

    worker, of = map(int, args.share.split("/"))
    compute_share(args.what, args.params, worker, of, args.output)


def documentation(args: argparse.Namespace) -> None:
    from faithful_sae.engine.plan import make_documentation

    make_documentation(args.source, args.output)


def estimate(args: argparse.Namespace) -> None:
    from faithful_sae.engine.timing import job_seconds
    from faithful_sae.files import write_json
    from faithful_sae.runs.params import load_params

    write_json(
        args.output, job_seconds(map(load_params, args.params), args.apart, args.studies.split())
    )


def with_gpus(args: argparse.Namespace) -> None:
    from faithful_sae.engine.gpus import run_with_gpus

    run_with_gpus(args.params, args.command)


def paper(args: argparse.Namespace) -> None:
    _workflow(args).paper()


def tables(args: argparse.Namespace) -> None:
    _workflow(args).tables()


def dry(args: argparse.Namespace) -> None:
    _workflow(args).dry()


def _workflow(args: argparse.Namespace) -> Any:
    from faithful_sae.engine.workflow import workflow

    return workflow(**{name: value for name, value in vars(args).items() if name != "run"})


def stop(args: argparse.Namespace) -> None:
    from faithful_sae.engine.cluster import stop
    from faithful_sae.engine.workflow import GOES_ON
    from faithful_sae.runs.params import profile_folder

    profile = profile_folder(args.profile).name
    ended = stop(profile)
    print(f"stopped: {GOES_ON}" if ended else f"nothing of profile {profile} is running")


def clean(args: argparse.Namespace) -> None:
    from faithful_sae.engine.cluster import claim
    from faithful_sae.engine.problems import owner_problems, refuse
    from faithful_sae.files import ROOT, remove
    from faithful_sae.runs.params import profile_folder

    folder = profile_folder(args.profile)
    refuse(owner_problems(folder))
    results = ROOT / "artifacts" / folder.name
    if not results.exists():
        print(f"there is nothing in {results}")
        return
    lock = claim(folder.name, "local")
    remove(results)
    lock.close()
    print(f"deleted: {results}; its figures stay")


def publish(args: argparse.Namespace) -> None:
    from faithful_sae.paper.publish import FAILURES, publish

    try:
        publish(args.profile, args.namespace, args.push, args.public)
    except FAILURES as error:
        sys.exit(f"\n  {error}\n")


def explorer(args: argparse.Namespace) -> None:
    from faithful_sae.engine.explorer import write
    from faithful_sae.features.index import FeatureError

    try:
        write(args.profile)
    except FeatureError as error:
        sys.exit(f"\n  {error}\n")
    # which links to it
    site(args)


def site(args: argparse.Namespace) -> None:
    from faithful_sae.paper.executed import write_executed
    from faithful_sae.paper.site import write_site

    write_executed(args.profile)
    print(f"written: {write_site(args.profile)}")


def evaluate(args: argparse.Namespace) -> None:
    from faithful_sae.engine.evaluate import ResultError, evaluate
    from faithful_sae.features.index import FeatureError
    from faithful_sae.lm.architectures import ModelError
    from faithful_sae.sae.sae import SAEError
    from faithful_sae.text.hub import HubError
    from faithful_sae.text.read import CorpusError

    try:
        evaluate(**{name: value for name, value in vars(args).items() if name != "run"})
    except (SAEError, ModelError, HubError, CorpusError, FeatureError, ResultError) as error:
        sys.exit(f"\n  {error}\n")


def exhibits(args: argparse.Namespace) -> None:
    from faithful_sae.paper.exhibits import write_exhibits

    write_exhibits()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m faithful_sae", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(run, says):
        name = run.__name__.replace("_", "-")
        command = commands.add_parser(name, help=says, description=says)
        command.set_defaults(run=run)
        return command

    command = add(check, "list all that would fail in a profile, and what it needs")
    command.add_argument("profile", help=PROFILE)
    command.add_argument("--no-probe", action="store_true", help="do not measure how long it takes")
    command.add_argument("--cores", type=int, help="that jobs would share")

    command = add(notebook, "run one notebook, and keep what it printed")
    command.add_argument("notebook", type=Path, help="a text notebook (.py)")
    command.add_argument("output", type=Path, help="the executed notebook (.ipynb)")
    command.add_argument("parameters", nargs="*", metavar="NAME=VALUE")

    command = add(train_corpus, "train the SAEs of one corpus")
    command.add_argument("params", type=Path, help="the run's parameter file")
    command.add_argument("corpus", help="one of sae.train_on")
    command.add_argument("output", type=Path, help="a file for the hash of what was trained")

    command = add(share, "compute one share of a text, or of the kept activations of a corpus")
    command.add_argument("what", help="text, or `activations:` and one of sae.train_on")
    command.add_argument("params", type=Path, help="the run's parameter file")
    command.add_argument("share", help="number of this worker, from 0, and of how many: 0/4")
    command.add_argument("output", type=Path, help="an empty file that is written at the end")

    command = add(documentation, "extract one corpus or task from installed packages")
    command.add_argument("source", help="JSON list: kind, packages, size")
    command.add_argument("output", type=Path)

    command = add(estimate, "measure how long the jobs of some runs take")
    command.add_argument("output", type=Path, help="JSON, {job: seconds}")
    command.add_argument("params", type=Path, nargs="+", help="the runs' parameter files")
    command.add_argument("--apart", action="store_true", help="the SAEs of a corpus are a job")
    command.add_argument("--studies", default="", help="sections of studies that are made, too")

    command = add(with_gpus, "run a command with GPUs of its own")
    command.add_argument("params", help="the parameter file that says how many")
    command.add_argument("command", nargs=argparse.REMAINDER)

    for run, says in (
        (paper, "make all tables and figures of a profile"),
        (tables, "make the tables and figures of what there is"),
        (dry, "show what there is to do, and why"),
    ):
        command = add(run, says)
        command.add_argument("profile", help=PROFILE)
        command.add_argument("--engine", default="local", help="a folder in workflow/profiles")
        command.add_argument("--cores", default="all", help="of this machine")
        command.add_argument("--gpus", help="of this machine")
        command.add_argument("--models", help="some language models of the profile")
        command.add_argument("--studies", help="sections of studies that are made, too")
        command.add_argument("--workers", type=int, help="jobs that share the sampling of a text")
        command.add_argument("--verbose", action="store_true", help="show what Snakemake says")

    command = add(stop, "end the run of a profile, and what a killed one has left running")
    command.add_argument("profile", help=PROFILE)

    command = add(clean, "delete what a profile computed; its figures stay")
    command.add_argument("profile", help=PROFILE)

    command = add(publish, "write what would go to the Hub, and list it")
    command.add_argument("profile", help=PROFILE)
    command.add_argument("--namespace", help="user or organisation on the Hub")
    command.add_argument("--push", action="store_true", help="upload it")
    command.add_argument("--public", action="store_true", help="into public repositories")

    command = add(explorer, "write the features of a profile as a page to open in a browser")
    command.add_argument("profile", help=PROFILE)

    command = add(
        site,
        "write a profile's executed notebooks beside its figures, and the pages that show both",
    )
    command.add_argument("profile", help=PROFILE)

    command = add(evaluate, "measure an SAE of anybody's on a language model, by text alone")
    command.add_argument("place", help="a folder in any format that is read, or owner/name/folder")
    command.add_argument("--model", required=True, help="a folder, or an id of the Hub")
    command.add_argument("--layer", required=True, type=int, help="block whose input is read")
    hooks = ("residual", "mlp", "attention")
    command.add_argument("--hook", default="residual", choices=hooks, help="what is read there")
    command.add_argument("--output", type=Path, default=Path("evaluation"), help="folder")
    command.add_argument("--text", type=Path, help="jsonl, csv, parquet or txt; else documentation")
    command.add_argument("--text-key", default="text", help="field of the text")
    command.add_argument("--revision", help="of the SAE's repository")
    command.add_argument("--model-revision", help="of the model's")
    command.add_argument(
        "--beside", type=Path, nargs="+", default=(), help="SAEBench's core results of this SAE"
    )
    command.add_argument("--device", default="auto")
    command.add_argument("--dtype", default="auto")
    command.add_argument("--tokens", type=_positive, default=300_000, help="that explain latents")
    command.add_argument("--rows", type=_positive, default=64, help="held-out rows")
    command.add_argument("--batch-rows", type=_positive, default=16, help="per forward pass")

    add(exhibits, "write figures/README.md, and md and tex of the tables there from their csv")
    return top


def main() -> None:
    from faithful_sae.engine.cluster import BusyError
    from faithful_sae.runs.schema import ParamsError

    speak_anywhere()
    args = parser().parse_args()
    try:
        args.run(args)
    except (ParamsError, BusyError, DiskFullError, ReadOnlyError) as error:
        sys.exit(f"\n  {error}\n")


if __name__ == "__main__":
    main()
