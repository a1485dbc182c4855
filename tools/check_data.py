"""What training would make of a data set, before it starts: mistakes, oddities, sizes, anchors, doubles.

    python -m tools.check_data D                       any data that train.py reads; a json; a folder of images
    python -m tools.check_data D --min-size 512        as the model would see it: its flags are train.py's
    python -m tools.check_data D --weights-path W      as the model of a checkpoint would see it
    python -m tools.check_data D --full                also open every image (by itself up to 2,000 images)
    python -m tools.check_data D --fix OUT             write corrected copies of COCO jsons, and a list of changes

Writes check_data.html (a page to look at) and check_data.json (every find, for programs) to --output-dir. What
the loader refuses or skips is reported in its own words: every annotation, not only the first. The data is never
changed. Exit status: 0 nothing to complain of; 1 warnings; 2 errors, at which training would stop.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from backbone.errors import InputError
from backbone.settings import setting
from network_files import MaskRCNNConfig
from network_files.transform import resized_size
from network_files.weight_files.architecture import infer_architecture
from tools.doctor import advice, duplicates, fix, images, looks, page, statistics
from tools.doctor.finds import ERROR, NOTE, SEVERITIES, WARNING, Finds
from tools.doctor.opening import Opened, open_all
from tools.doctor.table import Table, in_tiles, table_of
from train_utils.checkpoints.checkpoint import fitting_settings, is_checkpoint, load_file
from train_utils.checkpoints.weights_source import weights_file
from train_utils.cli.command import EXIT_OK, EXIT_SOME_UNUSABLE, EXIT_WRONG_INPUT, run_command
from train_utils.cli.console import start_of
from train_utils.cli.flags import add_flags, add_model_flags, given_model, given_settings, settings_of
from train_utils.cli.parser import Parser
from train_utils.data.augmentations.options import Augmentation, with_preset
from train_utils.data.dataset import ImageDataset
from train_utils.data.loaders import image_factors
from train_utils.data.objects import anchors
from train_utils.data.objects.balance import samples_per_epoch
from train_utils.data.objects.fitting import FITTED, asks_for_fit, fitted
from train_utils.data.opening import split_positions
from train_utils.data.options import BELOW_SEED, OF_PLACE, SHAPES_FOLDER, DataOptions, LoaderOptions
from train_utils.data.tiles.cutting import Tiles
from train_utils.data.tiles.tiling import TrainingTiles
from train_utils.evaluation.advice import Sizing, sizing
from train_utils.io.files import folder_to_write, user_path, write_text
from train_utils.io.plain_text import counted, one_line, pasted, visible
from train_utils.logs.console import duration
from train_utils.run.defaults import BUILT_IN_MODEL, USUAL, default_geometry, default_weights, is_auto
from train_utils.show.pages import write_page

USED_MOST = (
    "data_path", "output_dir", "full", "workers", "weights_path", "min_size", "max_size", "anchor_sizes", "fix"
)  # fmt: skip
SMALL = 2000  # images up to which all are opened unless --quick says otherwise
SHOWN = 6  # finds of a kind on the console


@dataclass(frozen=True)
class Options(TrainingTiles, DataOptions):
    """Checks: how much is looked at, for which model, and what is written."""

    data_path: str | None = setting(
        None, "a data set as train.py's --data-path, a json, or a folder of images", positional=True, metavar="data"
    )
    seed: int = setting(0, "of the choice of --samples", least=0, below=BELOW_SEED)
    full: bool = setting(False, "open every image")
    quick: bool = setting(False, "open only those of the contact sheet")
    workers: int = setting(0, "processes that open images; 0: this one", least=0, short="-j")
    weights_path: str | None = setting(
        None, "a checkpoint, a run folder, coco or coco_v2: sizes and anchors are looked at for its model", metavar="W"
    )
    samples: int = setting(18, "images of the contact sheet", least=0)
    output_dir: str = setting("check_data", "where page and json go")
    fix: str | None = setting(None, "a new folder for corrected annotations (COCO)", metavar="OUT")
    model: dict[str, Any] = field(default_factory=dict)  # fields of MaskRCNNConfig
    augmentation: Augmentation = Augmentation()  # of the training images on the contact sheet


def parse() -> Options:
    """Returns the options that the command names."""
    parser = Parser(description=__doc__, first=USED_MOST)
    add_flags(parser, Options, leave_out=("val_fraction", "drop_empty", "strict"))
    add_flags(parser, Augmentation, leave_out=("mini_mask",))
    add_model_flags(parser, training=False, may_be_auto=FITTED)
    given = parser.given()
    augmentation = Augmentation(**given_settings(Augmentation, with_preset(given)))
    options = Options(**given_settings(Options, given), model=given_model(given), augmentation=augmentation)
    if options.full and options.quick:
        parser.error("argument --quick: not allowed with argument --full")
    return options


class Report:
    """All that was found out; `look` fills it."""

    def __init__(self, options: Options) -> None:
        self.options, self.finds = options, Finds()
        self.of_images = Finds(self.finds)  # what only opened images show
        self.config, self.assumed, self.fitted = model_config(options)
        self.tables: dict = {}
        self.seen: dict = {}  # tables of what the model sees: of tiles, where --tile cuts the images
        self.classes: dict = {}
        self.histograms: dict = {}
        self.values: images.PixelValues | None = None
        self.sizes: dict = {}
        self.reach: list = []
        self.masks: list = []
        self.doubles: list = []
        self.opened: Opened | None = None
        self.full = False

    @property
    def splits(self) -> dict[str, ImageDataset | list[Path]]:
        """What can be looked at: data sets, or {"": images}."""
        return self.opened.splits or ({"": self.opened.images} if self.opened.images else {})

    @cached_property
    def shown(self) -> dict[str, ImageDataset | list[Path]]:
        """What the model sees of `splits`: tiles, where --tile cuts the images."""
        return in_tiles(self.opened.splits, self.options) or self.splits

    @property
    def verdict(self) -> str | None:
        """What train.py would stop at: when it opens the data, or at an image."""
        return self.opened.verdict or next(iter(self.finds.texts(ERROR)), None)

    def look(self) -> None:
        """Looks at everything but the images."""
        options, finds = self.options, self.finds
        self.opened = open_all(options, finds)
        if self.opened.splits:
            splits, self.values = images.pixel_values(self.opened.splits, self.config, finds)
            self.opened = self.opened._replace(splits=splits)
        self.tables = {split: table_of(part) for split, part in self.opened.splits.items()}
        self.seen = {split: table_of(part) for split, part in self.shown.items() if split in self.tables}
        if self.tables and (not options.weights_path or asks_for_fit(options.model)):
            classes = next(iter(self.opened.splits.values())).label_map.num_labels
            self.config, self.assumed, self.fitted = model_config(options, classes, self.not_held_out())
        self.classes = looks.look_at_all(self.tables, self.seen, self.config, finds)
        if self.tables:
            tables = list(self.seen.values())
            self.histograms = statistics.histograms(tables, self.config)
            self.sizes = statistics.image_sizes(tables)
            self.reach = anchors.reach(tables, self.config)
            self.masks = statistics.mask_reach(self.shown, self.config, options.seed)
        count = sum(map(len, self.splits.values()))
        self.full = options.full or (count <= SMALL and not options.quick)

    def open_images(self) -> None:
        """Opens every image, and compares them."""
        seen = {
            split: images.full_pass(part, self.options.workers, self.of_images, split)
            for split, part in self.splits.items()
        }
        self.doubles = duplicates.find_doubles(seen)
        duplicates.report_doubles(self.doubles, self.splits, self.of_images)

    def lines(self) -> list[str]:
        """Returns what the data is, a line a split."""
        lines = []
        for split, table in self.tables.items():
            counts, data_set = table.counts(), table.data_set
            known, used = len(data_set.label_map), len(np.unique(table.labels[~table.crowd]))
            of_classes = counted(known, "class") + (f" ({used} of them with objects)" if used < known else "")
            lines.append(
                f"{split}: {counted(len(counts), 'image')} ({int((counts == 0).sum()):,} without objects), "
                f"{counted(int(counts.sum()), 'object')} of {of_classes}, "
                f"{counted(int(table.crowd.sum()), 'crowd region')}"
            )
            if isinstance(self.shown[split], Tiles):
                lines.append(f"{split}: {self.shown[split].describe_cut()}")
        return [*lines, *self.fitted] or [f"{counted(len(self.opened.images), 'image')} without annotations"] * bool(
            self.opened.images
        )

    @property
    def sizing(self) -> str:
        """The flags that resize images."""
        config = self.config
        if config.fixed_size:
            return "--fixed-size {} {}".format(*config.fixed_size)
        return f"--min-size {config.min_size[-1]} --max-size {config.max_size}"

    def anchor_lines(self) -> list[str]:
        """Returns what share of the objects anchors reach, a line a set of anchors."""
        lines = []
        for i, reach in enumerate(self.reach):
            of = f"anchors of {self.assumed} ({self.sizing} {reach.flags()})" if i == 0 else reach.flags()
            lines.append(f"{of}: {reach.share(0.5):.1%} of the objects at IoU 0.5, {reach.share(0.7):.1%} at 0.7")
        return lines

    def mask_lines(self) -> list[str]:
        """Returns what a perfect mask head reaches, a line a kind of mask; of the finest, where it gains."""
        lines = []
        for i, reach in enumerate(self.masks):
            if i == 0:
                left_out = f"; {counted(reach.unreadable, 'image')} left out, whose masks cannot be read"
                of_objects = f"on {counted(len(reach.ious), 'object')}" + left_out * bool(reach.unreadable)
                of = f"masks of {self.assumed} ({reach.flags()}: {reach.cells()}): a perfect mask head reaches"
                lines.append(f"{of} {reach.numbers()} {of_objects}")
            elif i + 1 < len(self.masks) or reach.gains(self.masks[i - 1]):
                lines.append(f"{reach.flags()}: {reach.numbers()}")
        return lines

    @property
    def trained(self) -> Table | None:
        """The objects that training sees; None where there are none to train on."""
        return self.seen.get("train", self.seen.get("all"))

    def not_held_out(self) -> ImageDataset | None:
        """Returns the images that training has, or None: of undivided data its share; tiles, where --tile cuts them."""
        part, whole, usual = self.opened.splits.get("train"), self.opened.splits.get("all"), DataOptions()
        if whole is not None:
            part = whole.subset(split_positions(whole, usual.val_fraction, usual.seed)[0])
        return in_tiles({"train": part}, self.options)["train"] if part is not None and len(part) else None

    @cached_property
    def typical(self) -> Sizing:
        """How the model resizes the typical training image."""
        return sizing(self.trained.sizes, self.config)

    @cached_property
    def choices(self) -> list[advice.Choice]:
        """Sizes of images and anchors to choose from; none where nothing is trained on."""
        trained = self.trained
        if trained is None or not len(trained.sizes):
            return []
        return advice.choices(list(self.seen.values()), trained, self.config, self.typical, self.reach)

    @cached_property
    def advice(self) -> list[str]:
        """Lines that say how train.py fits the data best, its command last; none where it would not open it."""
        trained = self.trained
        if self.verdict or trained is None or not len(trained.sizes) or self.options.weights_path or self.built_in:
            return []
        config, counts = self.config, np.concatenate([table.counts() for table in self.seen.values()])
        lines, flags = advice.on_size(self.choices, trained, config, self.typical)
        of_limit = advice.on_limit(counts, config)
        lines, flags = lines + of_limit[0], flags + of_limit[1]
        count = samples_per_epoch(image_factors(trained.data_set, LoaderOptions()))
        if "all" in self.tables:  # training holds a share out
            count -= round(count * DataOptions().val_fraction)
        chosen = self.choices[-1].config
        resized = resized_size(*self.typical.size, chosen.min_size[-1], chosen.max_size, chosen.fixed_size)
        lines += advice.on_length(count, resized, config.backbone)
        out = ["--output-dir", f"runs/{self.opened.path.resolve().stem}"]
        command = pasted(
            "--data-path", self.options.data_path, *self.data_flags(), *self.given_flags(flags), *flags, *out
        )
        return [*filter(None, lines), f"train with: {start_of('train')} {command}"]

    @property
    def built_in(self) -> bool:
        """Whether the data are the built-in shapes, which have a model of their own."""
        return user_path(self.options.data_path).resolve() == Path(SHAPES_FOLDER).resolve()

    def data_flags(self) -> list[str]:
        """Returns the flags that say how the data is read, as train.py has them, too."""
        words = []
        for name in ("dataset", *OF_PLACE[2:], "label_json_path", "crowd_as_objects", "follow_links"):
            value = getattr(self.options, name)
            if value != getattr(DataOptions(), name):
                words += ["--" + name.replace("_", "-"), str(value)]
        for name in settings_of(TrainingTiles):
            value = getattr(self.options, name)
            words += [] if value == getattr(TrainingTiles(), name) else ["--" + name.replace("_", "-"), str(value)]
        return words

    def given_flags(self, instead: Collection[str]) -> list[str]:
        """Returns the flags of the model that were given, but those that are among others which take their place."""
        words = []
        for name, value in self.options.model.items():
            values, flag = value if isinstance(value, tuple) else (value,), "--" + name.replace("_", "-")
            words += [] if flag in instead else [flag, *("none" if v is None else str(v) for v in values)]
        return words

    def to_dict(self) -> dict:
        """Returns the content of check_data.json."""
        return {
            "data": str(self.opened.path),
            "layout": self.opened.layout,
            "error": self.verdict,
            "full_pass": self.full,
            "counts": {severity: self.finds.total(severity) for severity in SEVERITIES},
            "splits": {
                split: {
                    "source": str(table.data_set.source),
                    "images": len(table.sizes),
                    "objects": int(table.counts().sum()),
                    "crowd_regions": int(table.crowd.sum()),
                }
                for split, table in self.tables.items()
            },
            "classes": self.classes,
            "histograms": self.histograms,
            "image_sizes": self.sizes,
            "values": self.values._asdict() if self.values else None,
            "anchors": [
                {
                    "anchor_sizes": list(reach.sizes),
                    "aspect_ratios": list(reach.ratios),
                    "share_at_0.5": reach.share(0.5),
                    "share_at_0.7": reach.share(0.7),
                }
                for reach in self.reach
            ],
            "masks": [
                {
                    "geometry": reach.geometry,
                    "mask_roi_size": reach.roi_size,
                    "objects": len(reach.ious),
                    "mean_iou": float(reach.ious.mean()),
                    "share_above_0.5": reach.share(0.5),
                    "share_above_0.9": reach.share(0.9),
                }
                for reach in self.masks
            ],
            "doubles": [
                {
                    "first": duplicates.path_of(self.splits, double.first),
                    "same_pixels": double.same,
                    "second": duplicates.path_of(self.splits, double.second),
                    "correlation": round(double.correlation, 4),
                }
                for double in self.doubles
            ],
            "advice": self.advice,
            "finds": self.finds.to_list(),
        }

    def write(self, folder: Path) -> Path:
        """Writes the json and the page; returns the page's path."""
        folder_to_write(folder)
        options = self.options
        shown = options.samples, options.seed, self.of_images, options.augmentation
        sheet, seconds = page.contact_sheet(self.shown, *shown)
        left = what_is_left(self, seconds)
        sections = [page.finds_section(self.finds)]
        if self.splits and self.options.samples:
            sections.append(
                page.section("sheet", "Samples, as training gets them" if self.tables else "Some of the images", sheet)
            )
        if self.tables:
            sections.append(page.classes_section(self.classes))
            sections.append(page.histograms_section(self.histograms, self.sizes))
        if self.values:
            sections.append(page.values_section(*self.values[:3]))
        if self.reach:
            sizing_of = f"after resizing with {self.sizing} ({self.assumed}), or as a row says"
            others = [each for each in self.choices[1:] if each.reach and each.config != self.config]
            sections.append(page.anchors_section(self.reach, sizing_of, others))
            if self.masks:
                sections.append(page.masks_section(self.masks))
        if self.full and self.splits:
            sections.append(page.doubles_section(self.doubles, self.splits))
        lead = page.summary([*self.lines(), left, *self.advice], self.verdict, self.finds)
        title = f"{self.opened.path.resolve().name}: the data, checked"
        write_page(folder / "check_data.html", page.whole_page(title, lead, sections))
        write_text(folder / "check_data.json", json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return folder / "check_data.html"


def model_config(
    options: Options, classes: int | None = None, data_set: ImageDataset | None = None
) -> tuple[MaskRCNNConfig, str, list[str]]:
    """Returns (the model that sizes and anchors are looked at for, where it is from, lines on what `auto` chose).

    It is that of --weights-path, else train.py's for this data; flags that are given precede it. classes: of the data,
    background counted; data_set: that `auto` fits; None: it is not known yet, and the usual sizes stand for it.
    """
    about: list[str] = []

    def sized(fields: dict[str, Any]) -> dict[str, Any]:
        asked = asks_for_fit(fields)
        if data_set is None or not asked:
            return {name: value for name, value in fields.items() if name not in asked}
        fields, about[:] = fitted(fields, data_set)
        return fields

    given = {name: value for name, value in options.model.items() if name != "value_range" or not is_auto(value)}
    if options.weights_path:
        path = weights_file(options.weights_path)
        content = load_file(path)
        own, state = (
            (content["config"], content["model"])
            if is_checkpoint(content)
            else (infer_architecture(content, str(path), given.get("backbone")), content)
        )
        config, source = MaskRCNNConfig(**fitting_settings(path, own, sized(given), state)), f"the model of {path}"
    elif user_path(options.data_path).resolve() == Path(SHAPES_FOLDER).resolve():
        fields = sized({**BUILT_IN_MODEL, "geometry": default_geometry("none", {}), **given})
        config, source = MaskRCNNConfig(**fields), "train.py's model for these shapes"
    else:
        weights = default_weights(given.get("backbone", USUAL["backbone"]), given.get("variant"))
        fields = sized({"geometry": default_geometry(weights, {}, classes), **given})
        config, source = MaskRCNNConfig(**fields), "train.py's usual model"
    return config, source + (", and the flags given" if given else ""), about


def what_is_left(report: Report, seconds: list[float]) -> str:
    """Returns what the full pass adds, and how long it would take, as far as the contact sheet shows."""
    count = sum(map(len, report.splits.values()))
    if report.full:
        return "Every image was opened." * bool(count)
    left = (
        "Only the contact sheet's images were opened. --full opens all: unreadable ones, sizes that the "
        "annotations contradict, EXIF orientations, blank ones, and doubles within and across the splits"
    )
    if seconds and count:
        total = sum(seconds) / len(seconds) * count / max(report.options.workers, 1)
        left += f"; about {duration(total)} with --workers {report.options.workers}, as the contact sheet's took"
    return left + "."


def show(report: Report) -> None:
    """Prints the summary: errors first."""
    print(one_line(f"{report.opened.path} ({report.opened.layout})"))
    for line in (
        *report.lines(),
        *(report.values.lines if report.values else ()),
        *report.anchor_lines(),
        *report.mask_lines(),
    ):
        print(f"  {visible(line)}")
    verdict = page.brief_verdict(report.verdict, report.finds)
    print(one_line(f"train.py would stop: {verdict}") if verdict else "train.py would open this data")
    for kind, count in report.finds.counts():
        print(one_line(f"{kind.severity}: {kind.title}: {count:,}"))
        listed = report.finds[kind]
        few = listed[: 0 if kind.severity == NOTE else SHOWN if kind.severity == ERROR else 2]
        for find in few:
            print(f"    {visible(find.text)}")
        if few and len(listed) > len(few):
            print(f"    and {count - len(few):,} more")


def output_folder(options: Options) -> Path:
    """Returns --output-dir. Raises InputError if it lies in the data."""
    folder, data = user_path(options.output_dir), user_path(options.data_path)
    root = data.resolve() if data.is_dir() else data.resolve().parent
    if folder.resolve() == root or (data.is_dir() and root in folder.resolve().parents):
        raise InputError(f"--output-dir {folder}: lies in the data; give a folder outside of it")
    return folder


def main() -> int:
    """Runs the command; returns its exit status."""
    options = parse()
    start = time.monotonic()
    folder = output_folder(options)
    if options.fix and os.path.lexists(user_path(options.fix)):
        raise InputError(f"--fix {options.fix}: exists already; give a new folder")
    report = Report(options)
    report.look()
    if report.full:
        report.open_images()
    path = report.write(folder)
    show(report)
    for line in report.advice:
        print(visible(line))
    print(visible(f"written: {path}, {folder / 'check_data.json'} ({time.monotonic() - start:.1f} s)"))
    if options.fix:
        fix.write(report.opened, options, user_path(options.fix), report.config, report.finds, report.of_images)
    if report.finds.total(ERROR):
        return EXIT_WRONG_INPUT
    return EXIT_SOME_UNUSABLE if report.finds.total(WARNING) else EXIT_OK


if __name__ == "__main__":
    sys.exit(run_command(main))
