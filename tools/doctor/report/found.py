"""Data and flags -> all that is found out about the data, before anything of it is told."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from tools.doctor import advice, duplicates, images, looks, statistics
from tools.doctor.finds import ERROR, Finds
from tools.doctor.opening import Opened, open_all
from tools.doctor.report.model import model_config
from tools.doctor.report.options import Options
from tools.doctor.table import Table, in_tiles, table_of
from train_utils.data.dataset import ImageDataset
from train_utils.data.objects import anchors
from train_utils.data.objects.fitting import asks_for_fit
from train_utils.data.opening import split_positions
from train_utils.data.options import DataOptions
from train_utils.data.tiles.cutting import in_parts
from train_utils.evaluation.advice import Sizing, sizing

SMALL = 2000  # images up to which all are opened unless --quick says otherwise


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
        """Looks at everything but the images; a terminal says what at, as much data takes long."""
        options = self.options
        with tqdm(disable=None, leave=False, bar_format="{desc} {elapsed}") as stage:
            stage.set_description_str("reading the data")
            self._open()
            stage.set_description_str("looking at the objects")
            self.classes = looks.look_at_all(self.tables, self.seen, self.config, self.finds)
            if self.tables:
                stage.set_description_str("trying anchors and masks")
                tables = list(self.seen.values())
                self.histograms = statistics.histograms(tables, self.config)
                self.sizes = statistics.image_sizes(tables)
                self.reach = anchors.reach(tables, self.config)
                self.masks = statistics.mask_reach(self.shown, self.config, options.seed)
        count = sum(map(len, self.splits.values()))
        self.full = options.full or (count <= SMALL and not options.quick)

    def _open(self) -> None:
        """Opens the data, and settles for which model they are looked at."""
        options = self.options
        self.opened = open_all(options, self.finds)
        if self.opened.splits:
            splits, self.values = images.pixel_values(self.opened.splits, self.config, self.finds)
            self.opened = self.opened._replace(splits=splits)
        self.tables = {split: table_of(part) for split, part in self.opened.splits.items()}
        self.seen = {split: table_of(part) for split, part in self.shown.items() if split in self.tables}
        if self.tables and (not options.weights_path or asks_for_fit(options.model)):
            classes = next(iter(self.opened.splits.values())).label_map.num_labels
            self.config, self.assumed, self.fitted = model_config(options, classes, self.not_held_out())

    def open_images(self) -> None:
        """Opens every image, and compares them; with --tile also those that are too large without."""
        seen = {}
        for split, part in self.splits.items():
            if self.options.tiling is not None and not isinstance(part, list):
                part = in_parts(part, part.reading)
            seen[split] = images.full_pass(part, self.options.workers, self.of_images, split)
        self.doubles = duplicates.find_doubles(seen, self.of_images)
        duplicates.report_doubles(self.doubles, self.splits, self.of_images)

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
