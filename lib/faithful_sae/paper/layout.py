"""The csv of a table -> the tables that are printed: at most eight columns each, as the exhibit's
`layout` declares (params/exhibits.yaml), in Markdown and LaTeX.

A csv has all columns and all digits. For readers, numbers are rounded, stand to the right with
their interval behind them, and the best of those that are compared is bold, as are numbers that
look equal to it. What does not fit goes on in a further table, with the same names of rows.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

from faithful_sae.runs.catalogue import HALF, Best, Layout

MOST = 8
# rows of the longest table that fits a page; a longer one breaks in LaTeX
PAGE = 40
# characters in the width of a page, in small print
PAGE_WIDTH = 105
# characters of the longest text on one line in LaTeX
LINE = 28
HEAD = 14
SMALLEST_P = 0.001
# what LaTeX would take for its own, or lacks in the text's font
TEX = {sign: f"\\{sign}" for sign in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "‖": r"$\Vert$",
    "␣": r"\textvisiblespace{}",
    "⏎": r"$\hookleftarrow$",
}
# beyond Latin-1: quotation marks, ellipsis, dashes
MORE = "\u201c\u201d\u2018\u2019\u2026\u2013\u2014"
TEX_NEEDS = r"% needs \usepackage[T1]{fontenc} and \usepackage{array,booktabs,longtable}"


@dataclass(frozen=True)
class Printed:
    """One table for readers.

    Attributes:
        title: what it adds to the exhibit's; may be empty.
        cells: text, with titles as columns.
        best: which cells are.
        right: which columns are of numbers, in order.
        starts: whether a row begins a group.
    """

    title: str
    cells: pd.DataFrame
    best: pd.DataFrame
    right: list[bool]
    starts: list[bool]


def lay_out(table: pd.DataFrame, layout: Layout, titles: Mapping[str, str]) -> list[Printed]:
    """The tables that are printed of a csv; ours.

    Args:
        table: of the csv, with columns that name rows as text.
        titles: what columns are called, by their names up to a comma; before those of the layout.
    """
    names = {**layout.titles, **titles}
    named = {name for view in layout.views for name in view.named}
    printed = []
    for view in layout.views:
        rows = _there(view.rows, table, named)
        columns = _there(view.columns, table, named, view.suffix)
        room = MOST - len(rows)
        parts = [columns[at : at + room] for at in range(0, len(columns), room)]
        # of what is not measured yet, the names of the rows
        for part in parts or [[]] * (bool(rows) and not printed):
            if printed and not table[part].notna().to_numpy().any():
                continue
            printed.append(_print(table, layout, view, rows, part, names, named))
    return printed


def row_names(layout: Layout) -> list[str]:
    """The columns of a csv that name its rows: they stay text, though they look like numbers."""
    return list(dict.fromkeys(name for view in layout.views for name in view.rows))


def _there(
    patterns: Sequence[str], table: pd.DataFrame, named: set[str], suffix: str = ""
) -> list[str]:
    """The columns that are meant and there. `*` is any name without comma, but for those that a
    layout has by name.
    """
    found = []
    for pattern in [f"{pattern}{suffix}" for pattern in patterns]:
        shape = re.escape(pattern).replace(r"\*", "[^,]*")
        found += [
            name
            for name in map(str, table.columns)
            if name == pattern
            or ("*" in pattern and name not in named and re.fullmatch(shape, name))
        ]
    return [name for name in dict.fromkeys(found) if not name.endswith(HALF)]


def _print(table, layout, view, rows, columns, titles, named):
    if view.group in rows:
        # groups in the order in which they first appear
        order = {name: at for at, name in enumerate(dict.fromkeys(table[view.group]))}
        table = table.sort_values(view.group, key=lambda names: names.map(order), kind="stable")
    # what has nothing to show here
    if columns:
        table = table.loc[table[columns].notna().any(axis=1)]
    table = table.reset_index(drop=True)
    shown = [*rows, *columns]
    numbers = pd.DataFrame(
        {name: _numbers(table, layout, name, table[name]) for name in shown}, columns=shown
    )
    cells = pd.DataFrame(
        {name: _with_interval(table, layout, numbers[name], name) for name in shown}, columns=shown
    )
    called = {name: _title(name.removesuffix(view.suffix), titles) for name in shown}
    best = pd.DataFrame(False, index=table.index, columns=shown)
    said = [view.title]
    for one in view.best:
        # a row is compared as a whole, though its columns may stand in several tables
        among = _there(one.columns, table, named, view.suffix)
        compared = [name for name in among if name in columns]
        if compared:
            of_all = pd.DataFrame(
                {name: _numbers(table, layout, name, table[name]) for name in among}
            )
            best[compared] = _best(table, of_all, one, among)[compared]
            apart = [called[name] for name in columns if name not in among]
            said.append(_sentence(one, [called[name] for name in compared], apart))
    starts = [False] * len(table)
    if view.group in rows:
        repeated = table[view.group].eq(table[view.group].shift())
        cells[view.group] = cells[view.group].mask(repeated, "")
        starts = [not again and at > 0 for at, again in enumerate(repeated)]
    return Printed(
        " ".join(filter(None, said)),
        cells.rename(columns=called),
        best.rename(columns=called),
        [name not in rows and _is_number(table[name]) for name in shown],
        starts,
    )


def _title(name, titles):
    first, comma, rest = name.partition(",")
    return titles.get(name) or titles.get(first, first.replace("_", " ")) + comma + rest


def _is_number(values):
    return is_numeric_dtype(values) and not is_bool_dtype(values)


def _numbers(table, layout, name, values):
    """Cells in the form of a column, the paper's rows in theirs."""
    if not _is_number(values):
        return values.map(str, na_action="ignore").fillna("")
    whole = is_integer_dtype(values)
    here, papers = (layout.form(name, whole, papers) for papers in (False, True))
    of_paper = table.source.eq("paper") if "source" in table else pd.Series(False, table.index)
    forms = of_paper.map({True: papers, False: here})
    cells = [_number(value, form) for value, form in zip(values, forms, strict=True)]
    return pd.Series(cells, index=table.index, dtype=object)


def _number(value: float, form: int | str) -> str:
    """One number: `form` is how many digits, those and ` %`, `plain`, or `p`."""
    if pd.isna(value):
        return ""
    if form == "plain":
        return str(int(value)) if value == int(value) else f"{value:g}"
    if form == "p":
        return f"< {SMALLEST_P}" if value < SMALLEST_P else f"{value:.3f}"
    digits, unit = (form[:-2], " %") if isinstance(form, str) else (form, "")
    text = f"{value:,.{digits}f}"
    # no minus before what is rounded to nothing
    return (text.lstrip("-") if not float(text.replace(",", "")) else text) + unit


def _with_interval(table, layout, cells, name):
    """0.547 ± .010, of the column of halves; or 0.034 [0.008, 0.059], of the two of ends."""
    if f"{name}{HALF}" in table:
        halves = _numbers(table, layout, name, table[f"{name}{HALF}"].astype(float))
        halves = halves.str.replace(r"^0(?=\.)", "", regex=True)
        unit = cells.str.endswith(" %") & halves.ne("")
        joined = cells.mask(unit, cells.str.removesuffix(" %")) + " ± " + halves
        return cells.where(halves.eq(""), joined)
    ends = layout.between.get(name, [])
    if ends and set(ends) <= set(table.columns):
        low, high = (_numbers(table, layout, name, table[end]) for end in ends)
        return cells.where(low.eq(""), cells + " [" + low + ", " + high + "]")
    return cells


def _best(table: pd.DataFrame, numbers: pd.DataFrame, best: Best, columns: list[str]):
    """Where a number is the best of its row, or of its column among rows that agree in `within`.
    What is printed alike is as good. A number that stands alone is compared with none.
    """
    signed = table[columns].astype(float) * (1 if best.highest else -1)
    text = numbers[columns]
    if not best.within:
        several = signed.notna().sum(axis=1) > 1
        top = text.where(signed.eq(signed.max(axis=1), axis=0)).bfill(axis=1).iloc[:, 0]
        return text.eq(top, axis=0) & signed.notna() & several.to_frame().to_numpy()
    keys = [name for name in best.within if name in table]
    group = table.groupby(keys, dropna=False).ngroup() if keys else pd.Series(0, table.index)
    several = signed.groupby(group).transform("count").gt(1)
    top = text.where(signed.eq(signed.groupby(group).transform("max")))
    return text.eq(top.groupby(group).transform("first")) & signed.notna() & several


def _sentence(best, called, apart):
    which = "highest" if best.highest else "lowest"
    if not best.within:
        names = {name.partition(",")[0] for name in called}
        what = f"{names.pop()} " if len(names) == 1 else ""
        but = f", without {' and '.join(apart)}" if apart else ""
        return f"Bold: {which} {what}of its row{but}."
    same = " and ".join(_title(name, {}) for name in best.within)
    return f"Bold: {which} {', '.join(called)} of one {same}."


def markdown(printed: Printed) -> str:
    """A table in Markdown, without its title."""
    cells = printed.cells.map(literal)
    cells = cells.where(~printed.best, "**" + cells + "**").rename(columns=literal)
    sides = ["right" if right else "left" for right in printed.right]
    return cells.to_markdown(index=False, disable_numparse=True, colalign=sides)


def literal(text: str) -> str:
    """A cell may hold text of a corpus: what Markdown would take for its own, or for HTML, is
    written as an entity. a_b may stay.
    """
    return re.sub(
        r"[<|*`~$\\\n]|&(?=#?\w+;)|\((?<=\]\()|(?<!\w)_|_(?!\w)",
        lambda found: f"&#{ord(found[0])};",
        text,
    )


def latex(printed: Printed, caption: str, label: str) -> str:
    """A table in LaTeX, with its caption: a float, or a longtable where a page is too short."""
    cells = printed.cells.map(tex)
    cells = cells.where(~printed.best, r"\textbf{" + cells + "}")
    cells.columns = [_head(*head) for head in zip(cells.columns, printed.right, strict=True)]
    first = cells.columns[0]
    cells[first] = [
        f"\\midrule\n{text}" if start else text
        for text, start in zip(cells[first], printed.starts, strict=True)
    ]
    # characters of the longest line in each column; long texts share what is left of the page
    lines = [
        max([*texts.str.len(), min(HEAD, len(str(head)))]) for head, texts in printed.cells.items()
    ]
    long = [length > LINE for length in lines]
    used = sum(length + 1 for length, wide in zip(lines, long, strict=True) if not wide)
    width = max(0.15, (1 - used / PAGE_WIDTH) / max(1, sum(long)))
    sides = "".join(
        rf">{{\raggedright\arraybackslash}}p{{{width:.2f}\linewidth}}" if wide else "lr"[right]
        for wide, right in zip(long, printed.right, strict=True)
    )
    paged = len(cells) > PAGE
    text = cells.to_latex(
        index=False,
        escape=False,
        column_format=sides,
        longtable=paged,
        caption=tex(caption),
        label=label,
    )
    size = "footnotesize" if used < PAGE_WIDTH else "scriptsize"
    small = rf"\{size}\setlength{{\tabcolsep}}{{3pt}}"
    if paged:
        return f"{{{small}\n{text}}}\n"
    # a float begins with the usual size
    return text.replace(r"\begin{tabular}", f"\\centering{small}\n\\begin{{tabular}}", 1)


def _head(title, right):
    """A title on several lines, none longer than numbers with their intervals are."""
    lines = textwrap.wrap(title, HEAD, break_long_words=False) or [""]
    said = r"\\".join(map(tex, lines))
    return rf"\shortstack[{'r' if right else 'l'}]{{{said}}}" if len(lines) > 1 else said


def tex(text: str) -> str:
    """Text as LaTeX prints it. Of a character that its fonts may lack, the number."""
    signs = (
        TEX.get(sign)
        or (sign if ord(sign) < 0x100 or sign in MORE else rf"\texttt{{U+{ord(sign):04X}}}")
        for sign in text
    )
    # two hyphens would be one dash
    return re.sub("-(?=-)", "-{}", "".join(signs))
