"""What is printed of a csv: how many columns, which digits, what is bold, and that Markdown, LaTeX
and HTML say the same whatever the text.
"""

import re
import shutil
import subprocess
from dataclasses import replace

import pandas as pd
import pytest

from faithful_sae.files import ROOT, read_csv
from faithful_sae.paper.exhibits import table_texts
from faithful_sae.paper.layout import MOST, latex, lay_out, markdown, row_names, tex
from faithful_sae.runs.catalogue import HALF, Layout, exhibits
from faithful_sae.runs.params import load_profile

SIGNS = r"a_b > c < d & 5 % # $x$ ~ ^ \ {e} | ` -- ± “q” ␣⏎ 中"
COMPILERS = [name for name in ("pdflatex", "tectonic") if shutil.which(name)]
TABLES = [exhibit for exhibit in exhibits().values() if exhibit.kind == "table"]
COMMITTED = [(profile, e) for profile in ("laptop", "smollm2") for e in TABLES]


def printed(table, views, titles=None, **keys):
    return lay_out(pd.DataFrame(table), Layout.of({"views": views, **keys}), titles or {})


def column(table, view=None, **keys):
    """The cells of column x."""
    (found,) = printed(table, [{"rows": [], "columns": ["x"], **(view or {})}], **keys)
    return list(found.cells.x)


def bold(table, best, rows=(), **keys):
    """{column: which rows are bold}"""
    views = [{"rows": list(rows), "columns": ["*"], "best": [best]}]
    (found,) = printed(table, views, **keys)
    return {name: list(found.best[name]) for name in found.best}


def test_a_wide_table_goes_on_with_the_names_of_its_rows():
    table = {"model": ["m"]} | {f"c{i}": [i] for i in range(17)}
    found = printed(table, [{"rows": ["model"], "columns": ["*"]}])
    assert [next(iter(part.cells)) for part in found] == ["model"] * 3
    assert [len(part.cells.columns) for part in found] == [MOST, MOST, 4]
    shown = [name for part in found for name in list(part.cells)[1:]]
    assert shown == [f"c{i}" for i in range(17)]


@pytest.mark.parametrize(
    "value, keys, said",
    [
        (730517, {}, "730,517"),
        (151586.0, {"digits": {"x": 0}}, "151,586"),
        (0.12349, {}, "0.123"),
        (84.24999, {"digits": {"x": "1 %"}}, "84.2 %"),
        (0.1953125, {"digits": {"*": "3 %"}}, "0.195 %"),
        (1234.5, {"digits": {"*": 2}}, "1,234.50"),
        (-0.0001, {}, "0.000"),
        (6e-05, {"digits": {"x": "plain"}}, "6e-05"),
        (1234, {"digits": {"x": "plain"}}, "1234"),
        (1e-9, {"digits": {"x": "p"}}, "< 0.001"),
        (0.0314, {"digits": {"x": "p"}}, "0.031"),
        (float("nan"), {}, ""),
        (True, {}, "True"),
    ],
)
def test_digits(value, keys, said):
    table = {"x": [value], "y": [1]}
    (found,) = printed(table, [{"rows": [], "columns": ["x", "y"]}], **keys)
    assert found.cells.x[0] == said


def test_the_papers_numbers_are_as_it_prints_them():
    table = {"source": ["here", "paper"], "x": [0.22104, 0.2210]}
    assert column(table, printed={"x": 4}) == ["0.221", "0.2210"]


def test_an_interval_stands_behind_its_number():
    table = {"x": [0.5471, 0.5, 20.0], f"x{HALF}": [0.0101, None, 12.0]}
    assert column(table) == ["0.547 ± .010", "0.500", "20.000 ± 12.000"]
    assert column(table, digits={"x": "1 %"}) == ["0.5 ± .0 %", "0.5 %", "20.0 ± 12.0 %"]
    ends = {"x": [-0.5, None], "low": [-1.0, None], "high": [0.25, None], "other": [1, 1]}
    (found,) = printed(
        ends, [{"rows": ["other"], "columns": ["x"]}], between={"x": ["low", "high"]}
    )
    assert list(found.cells.x) == ["-0.500 [-1.000, 0.250]"]


def test_numbers_stand_to_the_right_and_names_to_the_left():
    table = {"layer": ["1", "2"], "x": [0.5, None], "word": ["a", "b"]}
    (found,) = printed(table, [{"rows": ["layer"], "columns": ["x", "word"]}])
    ruler = markdown(found).splitlines()[1]
    assert [cell[0] + cell[-1] for cell in ruler.strip("|").split("|")] == [":-", "-:", ":-"]
    assert r"\begin{tabular}{lrl}" in latex(found, "", "tab:x")


def test_rows_are_put_together_by_groups_that_are_named_once():
    table = {"source": ["here", "paper", "here"], "model": ["a", "b", "c"], "x": [1, 2, 3]}
    view = {"rows": ["source", "model"], "columns": ["x"], "group": "source"}
    (found,) = printed(table, [view])
    assert found.cells.model.tolist() == ["a", "c", "b"]
    assert found.cells.source.tolist() == ["here", "", "paper"]
    assert latex(found, "", "tab:x").count(r"\midrule") == 2


def test_rows_that_have_nothing_to_show_are_left_out():
    table = {"model": ["a", "b"], "x": [1.0, None], "y": [None, 2.0]}
    views = [{"rows": ["model"], "columns": [name]} for name in "xy"]
    assert [part.cells.model.tolist() for part in printed(table, views)] == [["a"], ["b"]]


def test_a_table_behind_the_first_that_has_nothing_to_show_is_left_out():
    table = {"model": ["m"], "a": [1.0], "b": [None]}
    views = [{"rows": ["model"], "columns": [name]} for name in ("a", "b")]
    (found,) = printed(table, views)
    assert [*found.cells] == ["model", "a"]


def test_the_best_of_a_row_is_bold_in_its_direction():
    table = {"a": [0.5, 0.2], "b": [0.4, 0.3], "c": [None, 0.1]}
    assert bold(table, {"highest": ["*"]}) == {
        "a": [True, False],
        "b": [False, True],
        "c": [False, False],
    }
    assert bold(table, {"lowest": ["*"]})["c"] == [False, True]
    assert bold(table, {"lowest": ["*"]})["b"] == [True, False]


def test_what_looks_equal_to_the_best_is_bold_and_what_stands_alone_is_not():
    tied = {"a": [0.50004, 0.5], "b": [0.50001, None], "c": [0.499, None]}
    assert bold(tied, {"highest": ["*"]}) == {
        "a": [True, False],
        "b": [True, False],
        "c": [False, False],
    }


def test_the_best_of_a_column_is_among_rows_that_agree():
    table = {"world": ["u", "u", "v", "v", "w"], "x": [0.1, 0.3, 0.9, 0.9001, 0.5]}
    best = {"highest": ["x"], "within": ["world"]}
    assert bold(table, best, rows=["world"])["x"] == [False, True, True, True, False]
    best = {"lowest": ["x"], "within": ["world"]}
    assert bold(table, best, rows=["world"])["x"] == [True, False, True, True, False]


def test_bold_takes_the_interval_with_it_and_the_caption_says_what_is_bold():
    table = {"a": [0.5], f"a{HALF}": [0.01], "b": [0.4]}
    view = {"rows": [], "columns": ["*"], "best": [{"highest": ["*"]}]}
    (found,) = printed(table, [view])
    assert "**0.500 ± .010**" in markdown(found)
    assert r"\textbf{0.500 $\pm$ .010}" in latex(found, "", "tab:x")
    assert found.title == "Bold: highest of its row."


def test_a_star_is_what_no_view_names_and_a_suffix_is_not_repeated():
    table = {"m": ["r"], "web": [0.1], "own": [0.2], "base": [0.3], "web, AUC": [0.4]}
    views = [
        {"rows": ["m"], "columns": ["own", "*"]},
        {"rows": ["m"], "columns": ["base"]},
        {"rows": ["m"], "columns": ["*"], "suffix": ", AUC"},
    ]
    first, _, last = printed(table, views, {"web": "Pile (here web)"})
    assert list(first.cells) == ["m", "own", "Pile (here web)"]
    assert list(last.cells) == ["m", "Pile (here web)"]
    assert list(last.cells["Pile (here web)"]) == ["0.400"]


@pytest.mark.parametrize(
    "sign, said",
    [
        (">", r"\textgreater{}"),
        ("%", r"\%"),
        ("_", r"\_"),
        ("&", r"\&"),
        ("#", r"\#"),
        ("$", r"\$"),
        ("~", r"\textasciitilde{}"),
        ("^", r"\textasciicircum{}"),
        ("\\", r"\textbackslash{}"),
        ("{}", r"\{\}"),
        ("---", "-{}-{}-"),
        ("中", r"\texttt{U+4E2D}"),
    ],
)
def test_no_sign_is_taken_for_latex(sign, said):
    assert tex(f"a{sign}b") == f"a{said}b"
    (found,) = printed({f"a{sign}b": ["x"]}, [{"rows": [f"a{sign}b"], "columns": []}])
    assert latex(found, sign, "tab:x").count(tex(sign)) > 1 - (sign == "_"), "in a header"


@pytest.mark.skipif(not COMPILERS, reason="neither pdflatex nor tectonic is installed")
def test_latex_compiles(tmp_path):
    """With all signs, as a float and over pages; and what is committed."""
    short = {SIGNS: [SIGNS, 3 * SIGNS], "x": [0.5, 0.4], "y": [0.25, 0.1]}
    view = {"rows": [SIGNS], "columns": ["x", "y"], "best": [{"highest": ["x", "y"]}]}
    (found,) = printed(short, [view])
    (long,) = printed({"x": list(range(90))}, [{"rows": [], "columns": ["x"]}])
    parts = [latex(found, SIGNS, "tab:a"), latex(long, SIGNS, "tab:b")]
    parts += [rf"\input{{{file}}}\clearpage" for file in sorted(ROOT.glob("figures/laptop/*.tex"))]
    needs = r"\usepackage[T1]{fontenc}\usepackage{array,booktabs,longtable}"
    document = "\n".join(
        [rf"\documentclass{{article}}{needs}\begin{{document}}", *parts, r"\end{document}"]
    )
    (tmp_path / "all.tex").write_text(document, encoding="utf-8")
    options = {"pdflatex": ["-draftmode", "-interaction=nonstopmode", "-halt-on-error"]}
    command = [COMPILERS[0], *options.get(COMPILERS[0], []), "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=120)
    assert not done.returncode, done.stdout.decode(errors="replace")[-2000:]


@pytest.mark.parametrize(
    "profile, exhibit", COMMITTED, ids=[f"{profile}-{e.id}" for profile, e in COMMITTED]
)
def test_every_column_that_is_committed_is_printed(profile, exhibit):
    """Once, in a table of its own width; seeds are in Table 5."""
    files = [
        file
        for file in (ROOT / "figures" / profile).glob(f"{exhibit.id}*.csv")
        if re.fullmatch(rf"{exhibit.id}(_neox|_llama|_smollm2)?", file.stem)
    ]
    for file in files:
        table = read_csv(file, row_names(exhibit.layout))
        # a title that tells where a column went
        names = {name: f"<{name}>" for name in table}
        plain = replace(
            exhibit.layout,
            titles=names,
            views=[replace(view, group=None) for view in exhibit.layout.views],
        )
        parts = lay_out(table, plain, {})
        assert max(len(part.cells.columns) for part in parts) <= MOST
        shown = [head.strip("<>") for part in parts for head in part.cells]
        ends = {end for pair in exhibit.layout.between.values() for end in pair}
        behind = {name for name in table if name.endswith(HALF)} | ends | {"seeds"}
        there = {name for name in table if name not in behind and table[name].notna().any()}
        suffixes = [view.suffix for view in exhibit.layout.views if view.suffix]
        lost = {n for n in there - {*shown} if not n.endswith(tuple(suffixes) or "<>")}
        assert not lost, file


def test_what_is_committed_is_printed_from_its_csv():
    runs = load_profile("smollm2")
    other = [
        f"{exhibit.stem(run.name)}.{suffix}"
        for run in runs
        for exhibit in TABLES
        # the others are long, or the same for all profiles
        if exhibit.scope == "profile" and not exhibit.of_paper
        if (run.figures / f"{exhibit.stem(run.name)}.csv").exists()
        for suffix, text in table_texts(runs, exhibit.id).items()
        if text != (run.figures / f"{exhibit.stem(run.name)}.{suffix}").read_text(encoding="utf-8")
    ]
    assert not other, "not what params/exhibits.yaml says: make sync"


def test_a_row_is_compared_as_a_whole_though_it_is_printed_in_parts():
    names = [f"c{i}" for i in range(12)]
    table = {"a": ["x"]} | {name: [float(i % 10)] for i, name in enumerate(names)}
    found = printed(table, [{"rows": ["a"], "columns": ["*"], "best": [{"highest": ["*"]}]}])
    assert [list(part.best.columns[part.best.iloc[0]]) for part in found] == [[], ["c9"]]


def test_what_is_shown_and_not_compared_is_named():
    table = {"a": ["x"], "b": [1.0], "c": [2.0], "random": [3.0]}
    view = {"rows": ["a"], "columns": ["b", "c", "random"], "best": [{"highest": ["b", "c"]}]}
    (found,) = printed(table, [view])
    assert found.title == "Bold: highest of its row, without random."


def test_the_number_of_seeds_is_no_ratio():
    table = {"source": ["here"], "model": ["x"], "faithful": [0.5], "seeds": [8]}
    shares, seeds = lay_out(pd.DataFrame(table), exhibits()["table2"].layout, {})
    assert list(shares.cells.columns) == ["source", "model", "faithful"]
    assert list(seeds.cells.seeds) == ["8"]


def test_a_backslash_hides_nothing():
    assert markdown(printed({"x": [r"\<b>"]}, [{"rows": ["x"], "columns": []}])[0]).count("<") == 0
