"""Builds self-contained HTML pages: one file without network or framework, for light and dark, desk and phone.

What a function returns is `Html`, which goes into the page as it is; any other text is escaped, so that no file or
class name can be read as a tag. Images are inside the page as data addresses, plots are inline SVG, and the style
of all pages is page.css beside this file.
"""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from train_utils.io.files import make_folder, write_text
from train_utils.io.plain_text import encodable

HERE = Path(__file__).parent
EMPTY = {"img", "input", "br", "path", "rect", "line", "circle"}  # elements that have no content
SAVED = {"JPEG": {"quality": 80}, "PNG": {"optimize": True}}  # how Pillow writes images


class Html(str):
    """Text that is HTML."""

    __slots__ = ()


class Section(NamedTuple):
    """A part of a page under a heading; id: what a link in the page's list of contents points to."""

    id: str
    heading: str
    content: Html


def escaped(text: object) -> Html:
    """Returns any text as HTML; `Html` as it is."""
    return text if isinstance(text, Html) else Html(html.escape(encodable(str(text))))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """Returns <name attributes>content</name>.

    An attribute `class_` is class, `data_id` data-id; None and False leave it out.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(encodable(str(value)))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{given}/>" if name in EMPTY else f"<{name}{given}>{joined(*content)}</{name}>")


def joined(*content: object) -> Html:
    """Returns the contents one after another."""
    return Html("".join(map(escaped, content)))


def section(id: str, heading: str, *content: object) -> Section:
    """Returns a Section of these contents."""
    return Section(id, heading, joined(*content))


def figure(content: object, caption: object) -> Html:
    """Returns a <figure> with its caption."""
    return tag("figure", content, tag("figcaption", caption))


def note(*content: object) -> Html:
    """Returns a paragraph of less weight."""
    return tag("p", *content, class_="soft")


def table(head: Sequence, rows: Sequence[Sequence], **attributes: object) -> Html:
    """Returns a table that scrolls by itself where it is too wide; numbers are aligned to the right."""
    body = [tag("tr", *(tag("td", cell, class_="number" if is_number(cell) else None) for cell in row)) for row in rows]
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    return tag("div", tag("table", top, tag("tbody", *body), **attributes), class_="scroll")


def is_number(cell: object) -> bool:
    """Returns whether a cell shows a number, a percentage or n/a."""
    text = re.sub("<[^>]*>", "", cell) if isinstance(cell, Html) else str(cell)
    try:
        float(text.replace(",", "").rstrip("%"))
    except ValueError:
        return text == "n/a"
    return True


def data_address(image: Image.Image, side: int | None = None, form: str = "JPEG", **options: object) -> str:
    """Returns the image as a data: address, at most `side` pixels a side; form, options: as Pillow saves it."""
    if side and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    content = io.BytesIO()
    (image.convert("RGB") if form == "JPEG" else image).save(content, form, **{**SAVED.get(form, {}), **options})
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def img_tag(image: Image.Image, alt: str, side: int | None = None, form: str = "JPEG", **attributes: object) -> Html:
    """Returns an <img> with the image in it; alt: what it shows, for those who do not see it."""
    scale = min(1, side / max(image.size)) if side else 1
    width, height = (max(1, round(length * scale)) for length in image.size)
    return tag("img", src=data_address(image, side, form), alt=alt, width=width, height=height, **attributes)


def json_block(id: str, data: object) -> Html:
    """Returns data for the page's script: JSON.parse(document.getElementById(id).textContent)."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Html(f'<script type="application/json" id="{id}">' + text.replace("<", "\\u003c") + "</script>")


def page(title: str, lead: object, sections: Sequence[Section], script: str = "", style: str = "") -> str:
    """Returns a whole page; lead: what is shown under the title; script, style: of this page, beside page.css."""
    # this also forbids the browser to fetch anything
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    head = joined(
        tag("title", title),
        Html(
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">'
        ),
        tag("style", Html((HERE / "page.css").read_text(encoding="utf-8") + style)),
    )
    contents = [tag("a", part.heading, href=f"#{part.id}") for part in sections]
    body = joined(
        tag("header", tag("h1", title), lead),
        tag("nav", *contents, aria_label="contents") if len(contents) > 1 else "",
        tag("main", *(tag("section", tag("h2", part.heading), part.content, id=part.id) for part in sections)),
        tag("script", Html(script)) if script else "",
    )
    return "<!doctype html>\n" + tag("html", tag("head", head), tag("body", body), lang="en") + "\n"


def write_page(path: str | Path, text: str) -> int:
    """Writes a page; returns its bytes."""
    make_folder(Path(path).parent)
    write_text(path, text)
    return len(text.encode())
