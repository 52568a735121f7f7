"""What `make paper` prints of its jobs, from what Snakemake tells its logger."""

import io
import json
import logging
import threading

import pytest

from faithful_sae.engine import board as module
from faithful_sae.engine.board import Board, in_words, kept
from faithful_sae.engine.progress import EVERY, Progress
from faithful_sae.engine.steps import _Lines
from faithful_sae.files import ROOT

JOBS = [
    ("01_generate", {"run": "a"}),
    ("01_generate", {"run": "b"}),
    ("train_corpus", {"run": "a", "corpus": "web"}),
]


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to: clock(seconds)."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])

    def later(seconds):
        now[0] += seconds

    return later


@pytest.fixture
def board(tmp_path, clock):
    """A board of three jobs, two at once, and the function that tells it of an event."""

    def make(at_once=2, measure=dict):
        board = Board(lambda: JOBS, at_once, tmp_path / "jobs.json", measure)

        def tell(event=None, level=logging.INFO, **said):
            board.emit(logging.makeLogRecord({"event": event, "levelno": level, **said}))

        return tell

    return make


def begin(tell, number):
    rule, wildcards = JOBS[number]
    tell("job_info", jobid=number, rule_name=rule, wildcards=wildcards)


def estimated():
    """Wait until what was measured is known."""
    for thread in threading.enumerate():
        if thread.name == "estimate":
            thread.join(10)


def test_a_hash_in_a_name_is_not_shown(board, capsys):
    tell = board()
    job = {"jobid": 5, "rule_name": "documentation", "wildcards": {"source": f"topics-{'0a' * 8}"}}
    tell("job_info", **job)
    tell("job_finished", job_id=5)
    assert capsys.readouterr().out.splitlines() == [
        "  ▸ documentation · topics",
        "  ✓ 0 of 0  documentation · topics  0 s",
    ]


def test_jobs_done_of_all_and_the_time_left(board, clock, capsys):
    for name in ("first run", "second run"):
        tell = board()
        tell("run_info")
        begin(tell, 0)
        begin(tell, 1)
        clock(20)
        tell("job_finished", job_id=0)
        begin(tell, 2)
        clock(10)
        tell("job_finished", job_id=1)
        clock(30)
        tell("job_finished", job_id=2)
        said = capsys.readouterr().out
        known = name == "second run"
        # 20 + 30 + 40 seconds of two at once; then 10 are left of one and 40 of the other
        assert said.splitlines() == [
            f"  3 jobs{', about 45 s left' if known else ''}",
            "  ▸ 01_generate · a",
            "  ▸ 01_generate · b",
            f"  ✓ 1 of 3  01_generate · a  20 s{', about 40 s left' if known else ''}",
            "  ▸ train_corpus · a · web",
            f"  ✓ 2 of 3  01_generate · b  30 s{', about 30 s left' if known else ''}",
            "  ✓ 3 of 3  train_corpus · a · web  40 s",
        ], name


def test_nothing_is_said_of_the_time_left_where_jobs_at_once_are_not_known(board, capsys, clock):
    tell = board()
    tell("run_info")
    for number in range(3):
        begin(tell, number)
        clock(20)
        tell("job_finished", job_id=number)
    capsys.readouterr()
    board(at_once=None)("run_info")
    assert capsys.readouterr().out == "  3 jobs\n"


def test_in_a_first_run_the_time_left_is_measured_beside_the_jobs(board, clock, capsys):
    measured, asked = threading.Event(), []

    def measure():
        asked.append(measured.wait(10))
        return {"01_generate · a": 30, "01_generate · b": 30, "train_corpus · a · web": 50}

    tell = board(measure=measure)
    tell("run_info")
    begin(tell, 0)
    clock(10)
    measured.set()
    estimated()
    tell("job_finished", job_id=0)
    # 20 + 30 + 50 seconds of two at once; then it is seen that jobs take a third of that
    assert capsys.readouterr().out.splitlines() == [
        "  3 jobs",
        "  ▸ 01_generate · a",
        "  about 50 s left",
        "  ✓ 1 of 3  01_generate · a  10 s, about 17 s left",
    ]
    for number in (1, 2):
        begin(tell, number)
        tell("job_finished", job_id=number)
    board(measure=measure)("run_info")
    assert asked == [True], "a second run knows"


def test_what_cannot_be_measured_is_not_said(board, clock, capsys):
    tell = board(measure=lambda: {"01_generate · a": 30})
    tell("run_info")
    estimated()
    begin(tell, 0)
    clock(20)
    tell("job_finished", job_id=0)
    assert "about" not in capsys.readouterr().out


def test_only_what_a_newcomer_needs_is_printed(board, capsys):
    tell = board()
    tell(msg="Select jobs to execute...")
    tell("job_started", msg="Execute 2 jobs...")
    tell(level=logging.WARNING, msg="output files were not present when the DAG was created")
    tell("progress", done=1, total=3)
    assert capsys.readouterr() == ("", "")
    tell("error", level=logging.ERROR, msg="no rule makes x")
    assert capsys.readouterr().err == "no rule makes x\n"


def test_an_interrupted_run_says_nothing_of_a_failure(board, capsys):
    tell = board()
    tell(msg="Terminating processes on user request, this might take some time.")
    tell("error", level=logging.ERROR, msg="At least one job did not complete successfully.")
    assert capsys.readouterr() == ("", "")


def test_a_failed_job_names_its_notebook_and_is_kept(board, capsys, tmp_path):
    tell = board()
    tell("run_info")
    begin(tell, 0)
    (tmp_path / "01.failed.ipynb").touch()
    log = [str(tmp_path / "01.ipynb")]
    tell("error", level=logging.ERROR, msg="a screen of it", exception="RuleException")
    tell("job_error", level=logging.ERROR, jobid=0, rule_name="x", rule_msg=None, log=log)
    tell("error", level=logging.ERROR, msg="At least one job did not complete successfully.")
    said = capsys.readouterr().err
    assert said.startswith("  ✗ 01_generate · a  failed, see ")
    assert said.endswith("/01.failed.ipynb\n")
    (failed,) = kept(tmp_path / "jobs.json")["failed"]
    assert failed.startswith("01_generate · a (")
    board()
    assert kept(tmp_path / "jobs.json")["failed"] == [], "another run begins"


def test_a_failed_job_of_a_cluster_shows_what_its_cell_said_and_its_log(board, capsys, tmp_path):
    log = tmp_path / "7.log"
    log.write_text(
        "[Sat Nov 21 12:00:00 2026]\nlocalrule 03_sfr:\n  ✗ 03_sfr.py failed in cell 4:\n"
        "IndexError: 5\n[Sat Nov 21 12:00:09 2026]\nError in rule 03_sfr:\n    a screen of it\n"
    )
    tell = board(None)
    begin(tell, 0)
    tell(msg=f"Job 0 has been submitted with SLURM jobid 7 (log: {ROOT}/artifacts/x/7.log).")
    assert capsys.readouterr().out.endswith(
        "01_generate · a  Slurm job 7, log: artifacts/x/7.log\n"
    )
    reason = "SLURM-job '7' failed.For further error details"
    record = {"jobid": 0, "rule_name": "01", "rule_msg": reason, "log": ["x.ipynb", str(log)]}
    tell("job_error", level=logging.ERROR, **record)
    said = capsys.readouterr().err
    assert said.startswith("  ✗ 03_sfr.py failed in cell 4:\nIndexError: 5\n  ✗ 01_generate · a  ")
    assert "SLURM-job '7' failed., see " in said
    assert said.endswith("7.log\n")


def test_a_damaged_file_of_times_is_as_none(board, capsys, tmp_path):
    (tmp_path / "jobs.json").write_text("{")
    board()("run_info")
    assert capsys.readouterr().out == "  3 jobs\n"
    assert json.loads((tmp_path / "jobs.json").read_text()) == {"seconds": {}, "failed": []}


def test_times_in_words():
    assert [in_words(s) for s in (4.4, 89, 100, 3600, 7200)] == [
        "4 s",
        "89 s",
        "2 min",
        "60 min",
        "2.0 h",
    ]


@pytest.mark.parametrize(
    "bar",
    [
        "text:  45%|####5     | 45/100 [00:30<00:36, 1.5token/s]",
        "text: 34.5ktoken [00:05, 18.2ktoken/s]",  # of no total, or beyond it
    ],
)
def test_bars_of_a_step_are_lines_now_and_then(bar):
    out = io.StringIO()
    progress = Progress("share_of_text · a · 0", out)
    stream = _Lines(progress, out)
    stream.write(f"\r{bar}")
    assert out.getvalue() == ""
    progress.last -= EVERY + 1
    stream.write(f"\r{bar}")
    stream.write(f"\r{bar}")
    said = out.getvalue()
    assert said.count("\n") == 1
    assert said.startswith("    share_of_text · a · 0  text:")
    assert "|" not in said
    stream.write("note: something\n")
    stream.write("another line")
    assert out.getvalue() == said + "    share_of_text · a · 0  note: something\nanother line\n"
