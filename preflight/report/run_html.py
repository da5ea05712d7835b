"""HTML from text that is not to be trusted: names, prompts and messages of a run are shown, never obeyed."""

from __future__ import annotations

import html
from collections.abc import Iterable

from preflight.report.plain import printable
from preflight.report.run_numbers import THIN


def esc(text: object) -> str:
    """A text as HTML, in elements and in quoted attributes alike; what a browser would act on is made visible."""
    return html.escape(THIN.join(printable(part) for part in str(text).split(THIN)), quote=True)


def tag(name: str, content: str = "", class_: str | None = None, **attributes: str) -> str:
    """An element around HTML that is ready."""
    given = ({"class": class_} if class_ else {}) | attributes
    said = "".join(' {}="{}"'.format(key.replace("_", "-"), esc(value)) for key, value in given.items())
    return f"<{name}{said}>{content}</{name}>"


def section(title: str, content: str, lead: str = "", id_: str | None = None) -> str:
    """A section with its heading; `lead` is plain text, `content` ready HTML; nothing where that is empty."""
    if not content:
        return ""
    head = tag("h2", esc(title)) + (tag("p", esc(lead), "lead") if lead else "")
    return "\n" + (tag("section", head + content, id=id_) if id_ else tag("section", head + content))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], class_: str = "") -> str:
    """A table in a box of its own to scroll in, for narrow screens; cells are ready HTML, the first heads its row.

    Roles are said since narrow screens lay rows out as blocks, which would make a reader forget that it is a table.
    """
    heads = list(heads)
    top = "".join(tag("th", esc(head), scope="col", role="columnheader") for head in heads)
    body = ""
    for first, *others in rows:
        cells = tag("th", first, scope="row", role="rowheader")
        for head, cell in zip(heads[1:], others, strict=True):
            cells += tag("td", cell, role="cell", data_label=head)
        body += tag("tr", cells, role="row")
    inner = tag("thead", tag("tr", top, role="row"), role="rowgroup") + tag("tbody", body, role="rowgroup")
    return tag("div", tag("table", inner, class_, role="table"), "scroll", tabindex="0")
