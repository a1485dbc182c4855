"""COCO jsons -> corrected copies, and a list of every change.

Nothing is guessed: what can't be meant otherwise is corrected, what the loader would skip is taken out, and all else
stays as it is and is listed as left to you.

Law: corrected data is not changed by a second run, and has none of the finds that were corrected.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from backbone.errors import InputError
from network_files import MaskRCNNConfig
from tools.doctor.corrections import Change, Corrector
from tools.doctor.finds import ERROR, Finds
from tools.doctor.looks import SHARES, look_at_all
from tools.doctor.opening import NO_TRAINING, Opened, open_all
from tools.doctor.table import in_tiles, table_of
from train_utils.data.formats import coco
from train_utils.data.formats.coco.checks import coco_lists, named
from train_utils.data.formats.coco.file_names import image_folder
from train_utils.data.formats.coco.layout import listed_names
from train_utils.data.labels import read_json
from train_utils.data.options import DataOptions
from train_utils.data.tiles.tiling import TrainingTiles
from train_utils.io.files import new_folder, write_text
from train_utils.io.json_stream import no_collection
from train_utils.io.plain_text import brief, counted, one_line, pasted, visible


def write(
    opened: Opened, options: DataOptions, target: Path, config: MaskRCNNConfig, finds: Finds, of_images: Finds
) -> None:
    """Writes TARGET/instances_train.json and so on, changes.json and changes.txt.

    options: the doctor's, of tiles too; config: of the model to be trained; finds: all there are; of_images: those
    that opening the images showed, which no json can correct. A split that would lose all its objects stays as it is.
    Raises InputError where the data is no COCO json that can be read.
    """
    if opened.layout != "coco":
        raise InputError(
            f"--fix: {opened.path} is {opened.layout} data; only COCO jsons are corrected, so correct the "
            "files that are named by hand"
        )
    places = coco.find_splits(opened.path, options, None)
    jsons = {split: place.json for split, place in places.items()}
    changes: list[Change] = []
    remarks: list[str] = []
    spared: list[str] = []  # splits that stay as they are
    fixed, folders = {}, {}
    for split, path in jsons.items():
        raw, notes = coco_lists(read_json(path), path)
        images = list(map(named, raw["images"]))
        if images != raw["images"]:
            remarks.append(f"{path}: each image has a file_name in the copy, which is the end of its coco_url")
        raw = {**raw, "images": images}
        remarks += [f"{path}: {note}; the copy has a list" for note in notes]
        folders[split], bounds = image_folder(places[split].root, path, options.image_dir, listed_names(raw["images"]))
        own: list[Change] = []
        with no_collection():  # of what a large json is made of
            uncrowd = options.crowd_as_objects or all_crowds(raw["annotations"])
            fixed[split] = Corrector(path, folders[split], bounds, own, uncrowd).correct(raw)
        if _objects(raw) and not _objects(fixed[split]):
            whys = Counter(c.why for c in own if c.about == "annotation" and c.what == "entry")
            reasons = "; ".join(f"{why} ({count:,})" for why, count in whys.most_common(3))
            objects = counted(_objects(raw), "object")
            remarks.append(f"{path}: left as it is, as it would lose all its {objects}: {reasons}")
            spared.append(split)
            fixed[split], own = raw, []
        changes += own
    image_dir = Path(os.path.commonpath([folder.resolve() for folder in folders.values()]))
    for split, folder in folders.items():
        _move_names(fixed[split], jsons[split], Path(os.path.relpath(folder.resolve(), image_dir)), remarks)
    with new_folder(target) as out:
        for split, content in fixed.items():
            write_text(out / f"instances{'' if split == 'all' else f'_{split}'}.json", json.dumps(content))
        corrected = DataOptions(out, dataset="coco", image_dir=str(image_dir), follow_links=options.follow_links)
        left, verdict = _left(corrected, options, target, config, of_images)
        before = dict(finds.counts())
        more = {kind: (before.get(kind, 0), n) for kind, n in left.counts() if n > before.get(kind, 0)}
        remarks += [f"more than before: {kind.title}: {old:,} -> {new:,}" for kind, (old, new) in more.items()]
        listed = [{**change._asdict(), "before": _plain(change.before)} for change in changes]
        whole = {
            "data": str(opened.path),
            "image_dir": str(image_dir),
            "changes": listed,
            "remarks": remarks,
            "left_to_you": left.to_list(),
        }
        write_text(out / "changes.json", json.dumps(whole, indent=1) + "\n")
        write_text(out / "changes.txt", "".join(f"{change}\n" for change in changes))
    is_better = not (more or spared or left[NO_TRAINING] or left[SHARES])
    _show(changes, remarks, left, verdict, target, str(image_dir) if is_better else "")


def all_crowds(annotations: list) -> bool:
    """Returns whether every annotation is a crowd region, as a tool leaves them that writes iscrowd 1 for each RLE."""
    return all(isinstance(annotation, dict) and annotation.get("iscrowd") in (1, "1") for annotation in annotations)


def _move_names(content: dict, path: Path, prefix: Path, remarks: list[str]) -> None:
    """Lets file names begin at the folder that the images of all splits lie in."""
    if prefix == Path("."):
        return
    for i, image in enumerate(content["images"]):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            content["images"][i] = {**image, "file_name": f"{prefix.as_posix()}/{image['file_name']}"}
    remarks.append(
        f"{path}: each file_name now begins with {prefix.as_posix()}/, so that one --image-dir serves all splits"
    )


def _left(
    corrected: DataOptions, tiles: TrainingTiles, target: Path, config: MaskRCNNConfig, of_images: Finds
) -> tuple[Finds, str | None]:
    """Returns (errors and warnings that the corrected data has, what train.py would stop at or None)."""
    finds, left = Finds(), Finds()
    opened = open_all(corrected, finds)
    whole, seen = (
        {split: table_of(part) for split, part in splits.items()}
        for splits in (opened.splits, in_tiles(opened.splits, tiles))
    )
    look_at_all(whole, seen, config, finds)

    def placed(text: str) -> str:  # the folder has its name only when it is whole
        return text.replace(str(corrected.data_path), str(target))

    left.take(finds, placed)
    left.take(of_images)
    verdict = opened.verdict or next(iter(left.texts(ERROR)), None)
    return left, verdict and placed(verdict)


def _show(
    changes: list[Change], remarks: list[str], left: Finds, verdict: str | None, target: Path, image_dir: str
) -> None:
    """Prints all of it; image_dir: where the images lie, "" where the corrected data is not to be trained on."""
    counts = Counter((change.about, change.what, change.why) for change in changes)
    for (about, what, why), count in counts.most_common():
        print(one_line(f"fixed: {about}: {'taken out' if what == 'entry' else what}: {why}: {count:,}"))
    if not changes:
        print("nothing to correct")
    for remark in remarks:
        print(one_line(remark))
    for kind, count in left.counts():
        print(one_line(f"left to you: {kind.severity}: {kind.title}: {count:,}"))
    listed = f" with {counted(len(changes), 'change')}, all in changes.txt and changes.json" if changes else ""
    print(f"written: {visible(str(target))}{listed}")
    if verdict:
        print(one_line(f"training would still stop: {verdict}; left to you: {counted(left.total(ERROR), 'error')}"))
    elif image_dir:
        print(f"train on it: python train.py --data-path {pasted(target)} --image-dir {pasted(image_dir)}")


def _objects(content: dict) -> int:
    """Returns how many annotations of a json are not crowd regions."""
    return sum(isinstance(a, dict) and a.get("iscrowd") not in (1, "1", True) for a in content["annotations"])


def _plain(value: Any) -> Any:
    """Returns what identifies an entry that was taken out: long segmentations are cut."""
    if isinstance(value, dict):
        return {key: brief(part) if key == "segmentation" else part for key, part in value.items()}
    return value
