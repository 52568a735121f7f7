"""Markdown and the HTML of notebooks -> HTML as the site has it: one set of rules for all pages.

Formulas become MathML, which browsers draw by themselves: nothing is loaded from a network.
"""

import itertools
from collections.abc import Callable

from bs4 import BeautifulSoup, Tag
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from markupsafe import Markup, escape
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


class _Renderer(IPythonRenderer):
    """nbconvert's, but for formulas."""

    def block_math(self, body: str) -> str:
        return f"<p>{_formula(body, True)}</p>"

    def inline_math(self, body: str) -> str:
        return _formula(body, False)


def _formula(tex, as_block):
    try:
        return tex2mathml(tex.strip(), as_block=as_block)
    except MathError:  # a command that docutils does not know
        return f"<code>{escape(tex.strip())}</code>"


def markdown(text: str) -> Markup:
    """Markdown as notebooks and tables have it, formulas and HTML included."""
    return Markup(MarkdownWithMath(_Renderer(escape=False, exclude_anchor_links=True)).render(text))


def tidy(html: str, level: int, leads: Callable[[str], bool], of: str) -> Markup:
    """HTML that was written elsewhere, as every page has it.

    No heading skips a level. Headers of tables say what they head, and a table scrolls in a box of
    its own. An id stands once. A link that leads nowhere becomes its text.

    Args:
        level: of the heading that it stands below.
        leads: whether a link, as seen from the page, leads somewhere.
        of: what it belongs to, for the name of a table without a caption.
    """
    soup = BeautifulSoup(html, "html.parser")
    # an output may hold text of a corpus: nothing in it is run
    for tag in soup(("script", "iframe", "object", "embed")):
        tag.decompose()
    for tag in soup(True):
        tag.attrs = {name: value for name, value in tag.attrs.items() if not name.startswith("on")}
    for heading in soup(HEADINGS):
        level = min(int(heading.name[1]), level + 1)
        heading.name = f"h{level}"
    # what scrolls must be within reach of the keyboard
    for formula in soup("math", display="block"):
        formula["tabindex"] = "0"
    numbers = itertools.count(1)
    for table in soup("table"):
        _tidy_table(soup, table, f"Table {next(numbers)} of {of}")
    ids: set[str] = set()
    for tag in soup(id=True):
        if tag["id"] in ids:
            del tag["id"]
        else:
            ids.add(str(tag["id"]))
    for link in soup("a", href=True):
        if not leads(str(link["href"])):
            link.unwrap()
    return Markup(soup)


def _tidy_table(soup: BeautifulSoup, table: Tag, name: str) -> None:
    for cell in table("th"):
        if not cell.get_text(strip=True):
            cell.name = "td"
        elif not cell.get("scope"):
            cell["scope"] = "col" if cell.find_parent("thead") else "row"
    heads = [cell.get_text(strip=True) for cell in table("th", scope="col")]
    if "source" in heads:
        _mark_papers(table, heads.index("source"))
    caption = table.caption.get_text(" ", strip=True) if table.caption else ""
    label = caption or name
    box = soup.new_tag("div", attrs={"class": "scroll", "role": "group", "aria-label": label})
    box["tabindex"] = "0"
    table.wrap(box)


def _mark_papers(table: Tag, column: int) -> None:
    """Rows with the paper's own numbers."""
    for row in table("tr"):
        cells = row("td")
        if len(cells) > column and cells[column].get_text(strip=True) == "paper":
            row["class"] = "paper"
