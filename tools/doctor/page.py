"""Builds the doctor's page: what was found, and what the data is like. One file, without a script."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from backbone.errors import InputError
from tools.doctor import images
from tools.doctor.advice import Choice
from tools.doctor.duplicates import Double, path_of
from tools.doctor.finds import ERROR, NOTE, SEVERITIES, WARNING, Finds
from tools.doctor.statistics import MaskReach
from train_utils.data.dataset import ImageDataset
from train_utils.data.images import read_image
from train_utils.data.images.reading import AS_STORED
from train_utils.data.images.shown import shown
from train_utils.data.loaders import AUGMENTATION, sample_of, sample_rng
from train_utils.data.objects.anchors import Reach
from train_utils.io.plain_text import counted, of_several, one_line
from train_utils.show.drawing import Style, draw_detections, fitting_size, resized_to_draw
from train_utils.show.pages import Html, Section, figure, img_tag, joined, note, page, section, table, tag
from train_utils.show.pages.plots import bars, curves
from transforms import Augmentation, augmentation_of

LISTED = 50  # finds of a kind on the page; check_data.json has all
BARS = 25  # classes that are shown at once
PAIRS = 12  # doubles that are shown
THUMB = 360  # pixels a side
CLASS = {ERROR: "bad", WARNING: "warn", NOTE: "soft"}
STYLE = """
.sheet, .two { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem; }
.two { grid-template-columns: repeat(auto-fill, minmax(min(28rem, 100%), 1fr)); } .two figure { margin: 0; }
.sheet figure { margin: 0; } .sheet img { width: 100%; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; max-width: 40rem; margin: 1rem 0; }
.pair figure { margin: 0; } .pair img { width: 100%; }
.pair p { grid-column: 1 / -1; margin: 0; }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; } summary { cursor: pointer; }
details li { font-size: .9rem; overflow-wrap: anywhere; } details ul { padding-left: 1.2rem; }
.count { display: block; background: var(--c0); height: .7rem; min-width: 1px; margin-top: .45rem; }
.classes td:last-child { width: 60%; min-width: 8rem; } .classes table { width: 100%; max-width: 46rem; }
.verdict { border-left: 4px solid; padding-left: .7rem; max-width: none; }
"""


def contact_sheet(
    splits: dict, count: int, seed: int, finds: Finds, settings: Augmentation
) -> tuple[Html, list[float]]:
    """Returns images chosen by chance with their objects as training gets them, and the seconds that each took to read.

    Those of training are augmented as train.py does it with these settings, in epoch 0.
    """
    chosen = augmentation_of(settings, splits.get("train", splits.get("all", ())))

    def augment(image: Tensor, target: dict, i: int) -> tuple[Tensor, dict]:
        return chosen(image, target, sample_rng(seed, 0, i, AUGMENTATION))

    places = [
        (split, i)
        for split, part in splits.items()
        for i in range(len(part))
        if isinstance(part, list) or not part.missing[i]
    ]
    order = np.random.default_rng(seed).permutation(len(places))
    cards, seconds = [], []
    for k in tqdm(order[:count].tolist(), desc="contact sheet", unit="image", disable=None, leave=False):
        split, i = places[k]
        part = splits[split]
        seen = images.Reader(part)[i]
        if seen.error is not None:
            known = seen.error[0] in finds.texts(ERROR) + finds.texts(WARNING)
            if not known:
                images.report(seen, part, split, finds)
            cards.append(tag("figure", tag("p", "cannot be read", class_="bad"), tag("figcaption", seen.error[0])))
            continue
        seconds.append(seen.seconds)
        drawn, objects = _drawn(part, i, augment if split in ("train", "all") else None, seed)
        name = path_of(splits, (split, i))
        caption = f"{name.rsplit('/', 1)[-1]} ({objects}{', ' + split if split else ''})"
        cards.append(figure(img_tag(drawn, f"{name}, {objects}", THUMB, loading="lazy"), caption))
    text = tag("p", _sheet_text(splits, len(cards), len(places), settings))
    return joined(text, tag("div", *cards, class_="sheet")), seconds


def _sheet_text(splits: dict, shown: int, count: int, settings: Augmentation) -> str:
    """Returns how the images of the contact sheet were chosen and read."""
    chosen = "All images" if shown == count else f"{shown:,} of {count:,} images, chosen by chance"
    if "" in splits:
        return f"{chosen}."
    chosen += ", as they are loaded and before they are resized"
    if {"train", "all"} & splits.keys():
        how = "mirrored by chance, as train.py does it without further flags"
        if settings != Augmentation():
            how = "augmented as train.py does it with the same flags"
        chosen += f". Those for training are {how}"
        chosen += "; those of val never are" if "val" in splits else ""
    return f"{chosen}."


def _drawn(
    part: ImageDataset | list[Path], i: int, augment: Callable | None = None, seed: int = 0
) -> tuple[Image.Image, str]:
    """Returns an image with its objects, and how many; augment: (image, target, i) -> (image, target).

    seed: of training, which moves tiles.
    """
    if isinstance(part, list):
        image = shown(read_image(part[i], reading=AS_STORED))
        return Image.fromarray(image.permute(1, 2, 0).numpy()), f"{image.shape[2]}x{image.shape[1]}"
    if augment is None:
        image, target = part[i]
    else:
        image, target = augment(*sample_of(part, i, seed, 0, i), i)
    crowds = int(target["iscrowd"].sum())
    size = fitting_size(image.shape[1:], (THUMB, THUMB), enlarge=True)
    image, boxes, masks = resized_to_draw(image, target["boxes"], target["masks"], size)
    name_of = part.label_map.name if len(part.label_map) > 1 else lambda label: ""  # else all are the one class
    drawn = draw_detections(image, boxes, target["labels"], None, masks, name_of, Style(magnify=1))
    objects = counted(len(target["labels"]) - crowds, "object") + (f", {counted(crowds, 'crowd')}" if crowds else "")
    return drawn, objects


def finds_section(finds: Finds) -> Section:
    """Lists the finds by kind, errors first."""
    parts: list[Html] = []
    for severity in SEVERITIES:
        kinds = [(kind, count) for kind, count in finds.counts() if kind.severity == severity]
        if not kinds:
            continue
        parts.append(tag("h3", {ERROR: "Errors: training stops", WARNING: "Warnings", NOTE: "Notes"}[severity]))
        for kind, count in kinds:
            listed = finds[kind]
            more = len(listed) - LISTED
            content = [
                tag("summary", tag("b", f"{count:,} ", class_=CLASS[severity]), of_several(count, kind.title)),
                tag("p", finds.advice(kind)) if kind.advice else "",
                tag("ul", *(tag("li", find.text) for find in listed[:LISTED])),
                note(f"and {more:,} more: check_data.json lists them") if more > 0 else "",
            ]
            parts.append(tag("details", *content, open=severity == ERROR))
    return section("finds", "Finds", *(parts or [tag("p", "Nothing was found.", class_="good")]))


def classes_section(classes: dict[str, dict[str, int]]) -> Section:
    """Shows the number of objects of each class."""
    total = {name: sum(each.values()) for name, each in classes.items()}
    names = sorted(total, key=lambda name: -total[name])
    splits = list(next(iter(classes.values()), {}))
    most = max([*total.values(), 1])
    rows = [
        [
            name,
            *(f"{classes[name][split]:,}" for split in splits),
            tag("span", class_="count", style=f"width:{100 * total[name] / most:.1f}%") if total[name] else "",
        ]
        for name in names
    ]
    head = ["class", *splits, "objects, crowds apart"]
    shown, others = (tag("div", table(head, part), class_="classes") for part in (rows[:BARS], rows[BARS:]))
    if len(rows) > BARS:
        others = tag("details", tag("summary", f"The other {len(rows) - BARS} of {len(rows)} classes"), others)
    return section("classes", "Classes", shown, others if len(rows) > BARS else "")


def histograms_section(histograms: dict, sizes: dict[str, int]) -> Section:
    """Shows histograms of the objects and images, and the commonest image sizes."""
    what = {
        "objects by size": ("root of the box's area in pixels, after resizing", "objects"),
        "objects by width : height": ("width : height", "objects"),
        "images by objects": ("objects in an image, crowds apart", "images"),
        "images by width : height": ("width : height", "images"),
    }
    plots = [
        figure(bars(list(found.values()), list(found), *what[title]), title.capitalize())
        for title, found in histograms.items()
    ]
    rows = [[size, f"{count:,}"] for size, count in sizes.items()]
    of_sizes = tag("h3", "Commonest image sizes (width x height)"), table(["pixels", "images"], rows)
    return section("shapes", "Sizes and shapes", tag("div", *plots, class_="two"), *of_sizes)


def values_section(histograms: Sequence[dict[str, int]], levels: int, images: int) -> Section:
    """Shows how often the values of each channel are."""
    plots = [
        figure(bars(list(found.values()), list(found), "value in the files", "pixels of the sample"), f"Channel {k}")
        for k, found in enumerate(histograms, 1)
    ]
    said = tag("p", f"{levels:,} different values in {counted(images, 'image')}; the outer bars hold what lies beyond.")
    return section("values", "Values of the pixels", said, tag("div", *plots, class_="two"))


def anchors_section(found: Sequence[Reach], sizing: str, others: Sequence[Choice] = ()) -> Section:
    """Shows how many objects the anchors reach, flags that reach more, and other sizes of images with their anchors."""
    names = [
        "configured",
        *("better sizes" if reach.ratios == found[0].ratios else "with more ratios" for reach in found[1:]),
    ]
    rows, lines, least = [], {}, np.linspace(0.2, 1, 33)
    for name, reach in zip(names, found, strict=True):
        sizes, ratios = " ".join(map(str, reach.sizes)), " ".join(f"{r:g}" for r in reach.ratios)
        rows.append([name, sizes, ratios, f"{reach.share(0.5):.1%}", f"{reach.share(0.7):.1%}"])
        lines[name] = least.tolist(), [100 * reach.share(x) for x in least]
    for other in others:
        ratios, reach = " ".join(f"{r:g}" for r in other.reach.ratios), other.reach
        rows.append([other.name, other.sizes(), ratios, f"{reach.share(0.5):.1%}", f"{reach.share(0.7):.1%}"])
        lines[other.name] = least.tolist(), [100 * reach.share(x) for x in least]
    share = (
        f"The share of the objects that have an anchor of at least that IoU, {sizing}. Every object is given its best "
    )
    text = [tag("p", share + "anchor, but one that overlaps more is easier to refine.")]
    for reach in found[1:]:
        more = len(reach.ratios) / len(found[0].ratios)
        cost = f" ({more:.2g} times as many anchors)" if more > 1 else ""
        text.append(tag("p", f"This would reach {reach.share(0.5):.1%} at IoU 0.5{cost}:"))
        text.append(tag("pre", reach.flags()))
    if len(found) == 1 and found[0].share(0.5) < 0.9:
        text.append(note("No other anchor sizes and no more ratios reach noticeably more."))
    plot = figure(curves(lines, "IoU", "% of objects", (0.2, 1), (0, 100)), "Objects by the IoU of their best anchor")
    head = ["anchors", "sizes", "ratios (height / width)", "IoU 0.5", "IoU 0.7"]
    return section("anchors", "Anchors", *text, table(head, rows), plot)


def masks_section(found: Sequence[MaskReach]) -> Section:
    """Shows what a perfect mask head would reach, and flags that reach more."""
    first, best = found[0], found[0]
    rows, advice = [], []
    for reach in found:
        shares = f"{reach.share(0.5):.1%}", f"{reach.share(0.9):.1%}"
        rows.append([reach.geometry, reach.cells(), f"{reach.ious.mean():.3f}", *shares])
        if reach.gains(best):
            finer = (reach.roi_size // first.roi_size) ** 2
            cost = f" ({finer} times the mask head's work)" if finer > 1 else ""
            advice += [tag("p", f"This would reach {reach.numbers()}{cost}:"), tag("pre", reach.flags())]
            best = reach
    text = (
        f"What a perfect mask head would reach: the targets of {counted(len(first.ious), 'object')}, pasted back into "
        "their exact boxes and compared with their masks. Training aims at no more than this."
    )
    head = ["geometry", "mask", "mean IoU", "above IoU 0.5", "above IoU 0.9"]
    less = note("Neither another geometry nor finer masks reach noticeably more.") if len(advice) == 0 else ""
    return section("masks", "Masks", tag("p", text), *advice, less, table(head, rows))


def doubles_section(doubles: list[Double], splits: dict) -> Section:
    """Shows pairs of images that are the same or nearly the same."""
    parts: list[Html] = []
    cards: dict[tuple, Html] = {}  # an image may have several doubles

    def card(place: tuple[str, int]) -> Html:
        name = path_of(splits, place)
        try:
            drawn, _ = _drawn(splits[place[0]], place[1])
        except InputError as error:  # it has changed since it was read
            return tag("figure", tag("figcaption", str(error)))
        caption = f"{name.rsplit('/', 1)[-1]}{f' ({place[0]})' if place[0] else ''}"
        return figure(img_tag(drawn, name, THUMB, loading="lazy"), caption)

    for double in doubles[:PAIRS]:
        places = double.first, double.second
        cards |= {place: card(place) for place in places if place not in cards}
        text = "the same in every pixel" if double.same else f"nearly the same (correlation {double.correlation:.4f})"
        across = double.first[0] != double.second[0]
        text = tag("p", ("In both splits: " if across else "") + text, class_="warn" if across else "soft")
        parts.append(tag("div", text, *(cards[place] for place in places), class_="pair"))
    if len(doubles) > PAIRS:
        parts.append(note(f"and {len(doubles) - PAIRS:,} more: check_data.json lists them"))
    return section("doubles", "Images that show the same", *(parts or [tag("p", "None were found.", class_="good")]))


def summary(lines: Sequence[str], verdict: str | None, finds: Finds) -> Html:
    """Returns what is shown under the title."""
    verdict = brief_verdict(verdict, finds)
    outcome = f"train.py would stop: {verdict}" if verdict else "train.py would open this data."
    counts = [counted(finds.total(severity), severity) for severity in SEVERITIES]
    return joined(
        *(tag("p", line) for line in lines if line),
        tag("p", outcome, class_=f"verdict {'bad' if verdict else 'good'}"),
        tag("p", tag("b", ", ".join(counts))),
    )


def brief_verdict(verdict: str | None, finds: Finds) -> str | None:
    """Returns the verdict without its advice, where a find gives that."""
    return verdict.split("; ")[0] if verdict and one_line(verdict) in finds.texts(ERROR) else verdict


def whole_page(title: str, lead: Html, sections: Sequence[Section]) -> str:
    """Returns the page of these sections."""
    return page(title, lead, sections, style=STYLE)
