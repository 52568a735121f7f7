"""The list of exhibits is well-formed, and its numbers are those of the paper, typed here a second
time.
"""

import html
import itertools
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.text import Text

from faithful_sae.engine.plan import chosen, run_outputs
from faithful_sae.files import ROOT
from faithful_sae.paper.exhibits import (
    figures_readme,
    notebook_exhibits,
    save_figure,
    save_table,
    unmeasured,
)
from faithful_sae.paper.plots import style
from faithful_sae.paper.plots.paper import matrix
from faithful_sae.paper.plots.style import FONT, as_written, characters, fallbacks, styled
from faithful_sae.runs import catalogue, provenance
from faithful_sae.runs.catalogue import exhibits, paper_models
from faithful_sae.runs.params import load_profile
from faithful_sae.runs.registry import stages
from faithful_sae.runs.rows import rows_file, write_rows
from faithful_sae.runs.schema import ROLES, ParamsError
from faithful_sae.stages.s06_probing import ROLES as TASK_ROLES

MODELS = {
    "gpt2",
    "pythia-1.4b",
    "pythia-2.8b",
    "pythia-6.9b",
    "gemma-2b",
    "llama-1b",
    "llama-3b",
    "llama-8b",
}


def grid(text):
    """'gpt2 1 2 | llama-1b 3 4' -> {"gpt2": [1.0, 2.0], "llama-1b": [3.0, 4.0]}"""
    return {
        words[0]: [float(word) for word in words[1:]] for words in map(str.split, text.split("|"))
    }


def numbers(table, columns):
    """What the list holds, in the same shape; a column is a key of the entry."""
    return {
        model: [values[c] for c in columns] for model, values in exhibits()[table].numbers.items()
    }


def test_the_list_is_well_formed():
    entries = list(exhibits().values())
    assert len(entries) == len(catalogue.listed()["exhibits"]) == len({e.id for e in entries})
    assert set(paper_models()) == MODELS
    notebooks = {f.stem for f in (ROOT / "notebooks").glob("*.py")}
    for e in entries:
        assert (
            e.kind in ("table", "figure")
            and e.scope in ("model", "profile")
            and e.notebook in notebooks
            and e.title
            and e.paper
        ), e
        assert set(e.numbers or ()) <= MODELS
        assert not (e.numbers and e.kind == "figure")
        assert e.scope == "profile" or e.notebook != "07_paper"
    files = [f for e in entries for f in e.files("run")]
    # a figure has its caption beside it
    figures = sum(e.kind == "figure" for e in entries)
    assert len(files) == len(set(files)) == 3 * len(entries) + figures
    wanted = {f"Table {i}" for i in range(1, 8)} | {"Figure 1", "Figure 2", "Figure 3", "Figure 6"}
    assert wanted <= {e.paper for e in entries}
    assert any("Figure 5" in e.paper for e in entries)
    assert any("Appendix C" in e.paper for e in entries)


def test_columns_of_the_numbers_are_roles():
    for table in ("table2", "table3", "table4", "table7"):
        assert all(set(values) <= set(ROLES) for values in exhibits()[table].numbers.values())
    for tasks in exhibits()["table6"].numbers.values():
        assert set(tasks) <= set(TASK_ROLES)
        assert all(set(v) == {"faithful", "fineweb", "pile"} for v in tasks.values())


def test_table_1():
    assert numbers("table1", ["all_token_coverage", "first_token_coverage", "kl"]) == grid(
        "gpt2 99.80 21.49 .2631 | pythia-1.4b 99.31 5.43 1.0498 | pythia-2.8b 99.04 3.14 1.1198 | "
        "pythia-6.9b 99.41 13.38 .2893 |"
        "gemma-2b 93.44 .40 2.2392 | llama-1b 95.78 8.27 .1521 | llama-3b 96.09 9.18 .1909 | "
        "llama-8b 98.04 10.31 .1054"
    )


def test_table_2():
    assert numbers("table2", ["faithful", "alpaca", "open-instruct", "flan"]) == grid(
        "pythia-1.4b .7145 .7138 .7134 .6113 | pythia-2.8b .2911 .2231 .2210 .1283"
    )


def test_table_3():
    """Own text, then the other model's."""
    assert numbers("table3", ["faithful", "faithful-other"]) == grid(
        "pythia-2.8b .2911 .2288 | pythia-1.4b .7145 .6887"
    )
    assert exhibits()["table3"].other_model == {
        "pythia-1.4b": "pythia-2.8b",
        "pythia-2.8b": "pythia-1.4b",
    }


def test_table_4():
    assert numbers("table4", ["pile", "faithful", "fineweb"]) == grid(
        "gpt2 .5405 .5258 .5209 | llama-1b .5778 .5517 .5789 | gemma-2b .3889 .3881 .4229 | "
        "llama-3b .2222 .1835 .2248 | llama-8b .1066 .0914 .0936"
    )


def test_table_5():
    assert numbers("table5", ["layer", "d_sae", "k", "lr", "sequence_length", "tokens"]) == grid(
        "gpt2 8 12288 48 2e-4 128 1e8 | llama-1b 12 14336 48 2e-4 512 1e8 |"
        "gemma-2b 20 18432 64 3e-4 1024 1e8 | llama-3b 21 18432 64 1e-4 512 1e8 |"
        "llama-8b 24 16384 80 6e-5 512 1.5e8 | pythia-1.4b 18 14336 48 2e-4 512 1e8 |"
        "pythia-2.8b 24 15360 64 1e-4 512 1e8"
    )
    assert {values["seeds"] for values in exhibits()["table5"].numbers.values()} == {"42, 49"}


def test_table_6():
    listed = {
        f"{model}/{task}": [values[c] for c in ("faithful", "fineweb", "pile")]
        for model, tasks in exhibits()["table6"].numbers.items()
        for task, values in tasks.items()
    }
    assert listed == grid(
        "gpt2/sst2 .7746 .7723 .7500 | gpt2/cola .7076 .6989 .6912 | gpt2/yelp .6532 .6502 .6444 |"
        "pythia-1.4b/sst2 .8451 .8354 .8314 | pythia-1.4b/cola .7281 .7253 .7262 | "
        "pythia-1.4b/yelp .9341 .9399 .9289 |"
        "gemma-2b/sst2 .7729 .8394 .8085 | gemma-2b/cola .7478 .7291 .7430 | gemma-2b/yelp .9536 "
        ".9495 .9440 |"
        "pythia-2.8b/sst2 .8050 .8256 .8365 | pythia-2.8b/cola .6985 .6371 .6783 | "
        "pythia-2.8b/yelp .9392 .9428 .9442 |"
        "llama-1b/sst2 .8342 .8491 .8428 | llama-1b/cola .7469 .7411 .7411 | llama-1b/yelp .9431 "
        ".9437 .9429 |"
        "llama-3b/sst2 .8532 .8423 .8497 | llama-3b/cola .6889 .6826 .6888 | llama-3b/yelp .9547 "
        ".9544 .9525"
    )
    best = [model for model, (faithful, *others) in listed.items() if faithful > max(others)]
    assert (
        len(best) == 12 and sum(m.endswith("cola") for m in best) == 6
    )  # as section 5.6 of the paper counts them


def test_table_7():
    rows = {
        "faithful": [0.1139, 0.3871, 0.5425, 0.4655, 0.0314, 0.1899, 0.4150],
        "pile": [0.1180, 0.3871, 0.5669, 0.4460, 0.0446, 0.2930, 0.5341],
        "fineweb": [0.1587, 0.3802, 0.5995, 0.4362, 0.0600, 0.2713, 0.5493],
    }
    models = ["gpt2", "pythia-1.4b", "gemma-2b", "pythia-2.8b", "llama-1b", "llama-3b", "llama-8b"]
    assert numbers("table7", list(rows)) == {
        m: [column[i] for column in rows.values()] for i, m in enumerate(models)
    }
    # percent, not fractions: GPT-2's are 14, 14.5 and 19.5 of 12288 latents
    assert [round(v * 12288 / 100, 1) for v in numbers("table7", list(rows))["gpt2"]] == [
        14.0,
        14.5,
        19.5,
    ]


# --- writing them ---------------------------------------------------------------------------------


def test_a_table_in_three_forms(make_run, root):
    run = make_run()
    table = pd.DataFrame(
        {"model": ["a_b & c", "d"], "value": [0.123456789012345, float("nan")], "n": [1, 22]}
    )
    save_table([run], "table2", table)
    folder = root / "figures" / "handmade"
    assert {f.name for f in folder.iterdir()} == {
        "table2.csv",
        "table2.md",
        "table2.tex",
        "table2.provenance.json",
    }
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table2.csv"), table)
    markdown = (folder / "table2.md").read_text()
    tex = (folder / "table2.tex").read_text()
    assert "| a_b & c" in markdown
    assert "0.123 " in markdown
    assert "nan" not in markdown.lower()
    assert r"a\_b \& c" in tex
    assert "handmade" in markdown
    assert "handmade" in tex
    assert "Table 2" in markdown
    record = json.loads((folder / "table2.provenance.json").read_text())
    assert record["parameters"]["tiny"]["sae"]["k"] == 4


def test_a_note_about_the_numbers_stands_in_every_caption(make_run, root):
    run = make_run()
    note = "Counts are too low by 1 % of a_b. " + 12 * "And so on. "
    save_table([run], "table2", pd.DataFrame({"n": [1]}), note=note)
    figure = Figure()
    save_figure(run, "training", pd.DataFrame({"x": [1]}), lambda _: figure, note)
    folder = root / "figures" / "handmade"
    said = "Counts are too low by 1 % of a_b."
    assert said in (folder / "table2.md").read_text()
    assert r"Counts are too low by 1 \% of a\_b." in (folder / "table2.tex").read_text()
    caption = (folder / "training_tiny.md").read_text()
    assert said in caption
    assert "](training_tiny.png)" in caption
    assert [text.get_text() for text in figure.texts] == [run.label], "the rest is outside"


def test_text_of_a_corpus_stays_text_in_markdown(make_run, root):
    text = "a|b <script> &amp; __x__ *y* `z` [l](m) a_b $1$"
    save_table(make_run(), "fidelity", pd.DataFrame({"trained_on": [text]}))
    cell = (root / "figures" / "handmade" / "fidelity_tiny.md").read_text().splitlines()[-1]
    assert cell.count("|") == 2
    assert html.unescape(cell.strip("| ")) == text
    assert not set("<*`$") & set(cell)
    assert "](" not in cell
    assert "a_b" in cell


def test_titles_are_for_readers_and_names_for_programs(make_run, root):
    """A role is called by the corpus that plays it, also before a comma."""
    table = pd.DataFrame({"model": ["m"], "pile": [0.5], "pile ±": [0.1], "x_y": [1]})
    save_table(make_run(), "table7", table)
    folder = root / "figures" / "handmade"
    (head,) = re.findall(r"^\| *model.*", (folder / "table7.md").read_text(), re.M)
    titles = [title.strip() for title in head.strip("|").split("|")]
    assert titles == ["model", "Pile (here text)", "x y"]
    assert (folder / "table7.csv").read_text().startswith("model,pile,pile ±,x_y\n")


LABEL = "a $b^2$ {c} 100% x_1 & #2 ~ |d| *e*"


def test_a_label_is_shown_as_it_is_written(make_run, root):
    """In a figure no part of it is a formula, in LaTeX and Markdown none is a sign."""
    run = make_run({"label": LABEL})
    figure = matrix(
        pd.DataFrame(
            {"trained_on": ["$x"], "evaluated_on": ["^y$ $z"], "ce_diff": [0.5], "ce_diff ±": [0.1]}
        ),
        "ce_diff",
        LABEL,
    )
    shown = {text.get_text(): text.get_parse_math() for text in figure.findobj(Text)}
    title = f"{LABEL}; lower is better"
    assert [shown[name] for name in ("$x", "^y$ $z", title)] == [False] * 3
    save_figure(run, "fidelity_ce", pd.DataFrame({"x": [1]}), lambda frame: figure)
    save_table(run, "fidelity", pd.DataFrame({"trained_on": ["x"], "kl": [1]}))
    folder = root / "figures" / "handmade"
    assert LABEL in html.unescape((folder / "fidelity_tiny.md").read_text())
    assert r"a \$b\textasciicircum{}2\$ \{c\} 100\% x\_1 \& \#2 \textasciitilde{} \textbar{}d" in (
        folder / "fidelity_tiny.tex"
    ).read_text().replace("\n", " ")


def test_numbers_on_a_logarithmic_axis_stay_formulas():
    @styled
    def draw():
        figure = Figure()
        figure.subplots().plot([1, 10_000])
        figure.axes[0].set_yscale("log")
        return figure

    labels = draw().axes[0].get_yticklabels()
    assert all(label.get_parse_math() for label in labels)
    assert any("10^{3}" in label.get_text() for label in labels)


def test_characters_that_the_font_lacks_come_from_another_or_a_note_names_them(monkeypatch, capsys):
    figure = Figure()
    text = figure.text(0, 0, "a\u4e2d")
    plain = figure.text(0, 0, "é\n±")
    family = plain.get_fontfamily()
    other = SimpleNamespace(name="Other", fname="other.ttf")
    own = characters(findfont(FONT))
    monkeypatch.setattr(style.font_manager.fontManager, "ttflist", [other])
    monkeypatch.setattr(
        style, "characters", lambda file: {"\u4e2d"} if file == "other.ttf" else own
    )
    fallbacks.cache_clear()
    as_written([text, plain])
    assert text.get_fontfamily() == [FONT, "Other"]
    assert plain.get_fontfamily() == family
    assert not capsys.readouterr().out
    for _ in range(2):
        as_written([figure.text(0, 0, "\u4e2d\u4e8c")])
    assert capsys.readouterr().out.count("no font here has \u4e8c") == 1
    fallbacks.cache_clear()


def test_a_figure_is_drawn_from_its_csv_and_repeats(make_run, root):
    run = make_run()
    drawn = []

    def draw(frame):
        drawn.append(frame)
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot(frame.x, frame.y)
        return figure

    data = pd.DataFrame({"x": [1, 2], "y": [0.1, 1 / 3], "name": ["NA", ""]})
    contents = []
    for _ in range(2):
        save_figure(run, "training", data, draw)
        contents.append(
            {
                f.name: f.read_bytes()
                for f in (root / "figures" / "handmade").glob("training*.*")
                if f.suffix != ".json"
            }
        )
    assert contents[0] == contents[1]
    assert set(contents[0]) == {f"training_tiny.{s}" for s in ("csv", "md", "pdf", "png")}
    assert drawn[0] is not data
    assert drawn[0].y.tolist() == data.y.tolist()
    assert drawn[0].name[0] == "NA"


def test_another_run_writes_the_same_provenance(make_measured_run, root, monkeypatch):
    """What is committed changes with the result alone: not with the time, the commit, or what other
    notebooks happen to have run.
    """
    run = make_measured_run("tiny", {"faithful": [0.5]})
    file = root / "figures" / "handmade" / "training_tiny.provenance.json"
    aside = root / "artifacts" / "handmade" / "exhibits" / "training_tiny.json"
    written = []
    for commit in ("first", "second"):
        monkeypatch.setattr(provenance, "git_commit", lambda commit=commit: commit)
        data = pd.DataFrame({"x": [1.0], "y": [2.0]})
        save_figure(run, "training", data, lambda _: Figure())
        written.append((file.read_bytes(), json.loads(aside.read_text())["git_commit"]))
        rows_file(run, "sfr").unlink(missing_ok=True)
        write_rows(run, "saes", pd.DataFrame({"corpus": ["another"]}))
        write_rows(run, "probing", pd.DataFrame({"task": ["another"]}))
    (first, a), (second, b) = written
    assert (a, b) == ("first", "second")
    assert first == second
    inputs = json.loads(first)["inputs"]
    assert set(inputs) == {"tiny/dataset.csv"}
    write_rows(run, "dataset", pd.DataFrame({"documents": [1]}))
    save_figure(run, "training", data, lambda _: Figure())
    assert file.read_bytes() != second


def test_what_is_not_measured_is_named_in_the_notes_and_in_provenance(make_measured_run, root):
    runs = [make_measured_run(name, {"faithful": [0.5]}) for name in "ab"]
    folder = root / "figures" / "handmade"
    folder.mkdir(parents=True)
    for run in runs:
        for stage in [stage for stage in stages().values() if stage.paper]:
            for name in stage.rows_of(run):
                if not rows_file(run, name).exists():  # what the fixture leaves out
                    write_rows(run, name, pd.DataFrame({"x": [1]}))
            for exhibit in notebook_exhibits(run, stage.name):
                for file in exhibit.files(run.name):
                    (folder / file).touch()
    assert unmeasured(runs).empty

    def written():
        save_table(runs, "missing", unmeasured(runs))
        return (
            (folder / "missing.csv").read_text(),
            (folder / "missing.md").read_text(),
            json.loads((folder / "missing.provenance.json").read_text()),
        )

    csv, markdown, record = written()
    assert csv == "model,notebook,why,command\n"
    assert "Not complete" not in markdown
    assert record["missing"] == []
    assert {name.split("/")[0] for name in record["inputs"]} == {"a", "b"}
    (runs[1].artifacts / "rows" / "ffr.csv").unlink()
    (folder / "fidelity_l2_a.pdf").unlink()
    runs[0] = runs[0].changed(probing=runs[0].probing.changed(max_iter=7))
    csv, markdown, record = written()
    command = f"make paper PARAMS={runs[0].file.parent.name} MODELS="
    assert record["missing"] == [
        {"model": f"Model {n}", "notebook": stage, "why": why, "command": command + n}
        for n, stage, why in (
            ("a", "05_fidelity", "not finished"),
            ("a", "06_probing", "made with other parameters"),
            ("b", "04_ffr", "not made"),
        )
    ]
    assert "Not complete: table `missing` names 3 of its notebooks" in markdown
    assert "a/probing.csv" not in record["inputs"]
    assert "b/probing.csv" in record["inputs"]
    save_table(runs[1], "fidelity", pd.DataFrame({"x": [1]}))
    of_model = (folder / "fidelity_b.md").read_text()
    assert "Not complete" not in of_model, "a model's own exhibit is complete"


def test_some_models_of_a_profile(make_run):
    """An embedded model alone among others has the outputs that the profile's rule has, not those
    of a profile of embedded ones.
    """
    laptop = load_profile("laptop")
    runs = [make_run({"label": "One"}, name="one"), make_run({"label": "Two"}, name="two")]
    assert chosen(runs, "two") == [runs[1]]
    assert chosen(runs, None) == chosen(runs, "") == runs
    with pytest.raises(
        ParamsError, match=r"MODELS: 'three' is not in .*handmade, which has one, two"
    ):
        chosen(runs, "one three")
    mixed = [laptop[0], runs[0]]
    assert run_outputs(mixed, some=[laptop[0]]) == [
        path for path in run_outputs(mixed) if "/one/" not in path and "_one." not in path
    ]
    assert not [path for path in run_outputs(mixed, some=[laptop[0]]) if "language_model" in path]


def test_the_embedded_models_own_exhibit(make_run):
    listed = [e.id for e in notebook_exhibits(make_run(), "01_generate_faithful")]
    assert listed == ["first_token"]


@pytest.mark.parametrize("a, b", itertools.combinations(["pile", "faithful", "fineweb"], 2))
def test_table_4_and_7_have_one_set_of_models(a, b):
    four = exhibits()["table4"].numbers
    seven = exhibits()["table7"].numbers
    assert set(four) < set(seven) == MODELS - {"pythia-6.9b"}
    assert all({a, b} <= set(v) for v in [*four.values(), *seven.values()])


def test_figures_readme_is_the_list_of_exhibits():
    text = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    assert text == figures_readme(), "figures/README.md is not the list's: make sync"
    assert text.count("](laptop/") > len(exhibits())
