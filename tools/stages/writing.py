"""Writes the stages of a View as files: an image for each, and one page that explains them in order."""

from pathlib import Path

from tools.stages.canvas import sheet
from tools.stages.lesson import PAPERS, Lesson, lessons_for
from tools.stages.stage import Facts, Panel, where
from tools.stages.view import View
from train_utils.io.files import atomic_file
from train_utils.show import pages

PAGE = "stages.html"
SIDE = 640  # pixels of an image in the page; the files have more
WIDE = 512  # most that it takes of the page's width, so that two fit side by side
WITHOUT = (
    "This image came alone, without objects, so the stages that teach the network are left out (RPN targets, "
    "box targets, mask targets), and so are overlaps with objects. They are shown for an image of a data set: "
    "--data-path DATA --index 0 in place of --img-path."
)
STYLE = """
.stage figure { flex: 0 1 auto; }
.facts .number { text-align: left; }
.scroll + .scroll { margin-top: .8rem; }
"""


def write_stages(view: View, folder: Path, title: str, lead: list[str]) -> list[Path]:
    """Writes 01_sample.png, 02_batch.png, ... and stages.html into a folder; returns their paths, the page last.

    title: of the page; lead: sentences under it.
    """
    paths, sections = [], []
    for number, lesson in enumerate(lessons_for(view), 1):
        panels, facts = lesson.show(view)
        if panels:
            paths.append(folder / f"{number:02}_{lesson.name}.png")
            with atomic_file(paths[-1]) as file:
                sheet(panels).save(file, "PNG")
        sections.append(_section(lesson, f"{number}. {lesson.heading}", lesson.text_for(view), panels, facts))
    sentences = [*lead, *([] if view.target is not None else [WITHOUT])]
    lead = pages.joined(*(pages.tag("p", sentence) for sentence in sentences))
    paths.append(folder / PAGE)
    pages.write_page(paths[-1], pages.page(title, lead, sections, style=STYLE))
    return paths


def _section(lesson: Lesson, heading: str, text: str, panels: list[Panel], facts: Facts) -> pages.Section:
    code = pages.joined(*(pages.tag("div", pages.tag("code", where(function))) for function in lesson.code))
    papers = [pages.tag("a", f"{paper}, section {section}", href=PAPERS[paper]) for paper, section in lesson.papers]
    read = pages.joined(*(pages.tag("div", paper) for paper in papers))
    return pages.section(
        lesson.name,
        heading,
        pages.tag("p", text),
        "" if panels or not lesson.empty else pages.tag("p", lesson.empty),
        pages.tag("div", *(_figure(lesson, panel) for panel in panels), class_="plots stage"),
        pages.table(("what", "value"), facts, class_="facts"),
        pages.table(("in the code", "in the papers"), [(code, read)]),
    )


def _figure(lesson: Lesson, panel: Panel) -> pages.Html:
    """Returns an image with a caption no wider than itself, so that small ones share a row."""
    image = pages.img_tag(panel.image, f"{lesson.heading}: {panel.caption}", SIDE)
    width = min(panel.image.width, WIDE)
    return pages.tag("figure", image, pages.tag("figcaption", panel.caption), style=f"max-width: {width}px")
