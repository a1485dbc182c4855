"""A corrected copy of COCO jsons, with a list of every change. Nothing is guessed: what can't be meant otherwise is
corrected, what the loader would skip is taken out, and all else stays as it is and is listed as left to you.

Law: corrected data is not changed by a second run, and has none of the finds that were corrected.
"""

import json
import os
from argparse import Namespace
from collections import Counter
from pathlib import Path

from backbone.errors import InputError
from tools.conversion import new_folder
from tools.doctor import looks
from tools.doctor.corrections import Change, Corrector
from tools.doctor.finds import ERROR, WARNING, Finds
from tools.doctor.opening import Opened, open_all
from tools.doctor.table import outlines, table_of
from train_utils.coco_checks import check_is_coco
from train_utils.coco_layout import find_image_dir
from train_utils.data_sets import coco_files
from train_utils.files import user_path, write_text
from train_utils.json_stream import no_collection
from train_utils.label_map import read_json
from train_utils.plain_text import brief, one_line


def write(opened: Opened, args: Namespace) -> Path:
    """Write OUT/instances_train.json and so on, changes.json and changes.txt; returns OUT.

    InputError where the data is no COCO json that can be read.
    """
    if opened.layout != "coco":
        raise InputError(f"--fix: {opened.path} is {opened.layout} data; only COCO jsons are corrected, so correct the "
                         "files that are named by hand")
    root, jsons = coco_files(opened.path, args.year)
    changes: list[Change] = []
    fixed, folders = {}, {}
    for split, path in jsons.items():
        raw = read_json(path)
        check_is_coco(raw, path)
        names = [image.get("file_name") for image in raw["images"] if isinstance(image, dict)]
        names = [name for name in names if isinstance(name, str) and name]
        given = user_path(args.image_dir) if args.image_dir else None
        folders[split] = given or find_image_dir(root, path, names or [""])
        with no_collection():  # of what a large json is made of
            fixed[split] = Corrector(path, folders[split], given or root, changes).correct(raw)
    image_dir = Path(os.path.commonpath([folder.resolve() for folder in folders.values()]))
    for split, folder in folders.items():
        _move_names(fixed[split], jsons[split], Path(os.path.relpath(folder.resolve(), image_dir)), changes)
    with new_folder(args.fix) as out:
        for split, content in fixed.items():
            write_text(out / f"instances{'' if split == 'all' else f'_{split}'}.json", json.dumps(content))
        left = _left(out, image_dir, args)
        listed = [{**change._asdict(), "before": _plain(change.before)} for change in changes]
        whole = {"data": str(opened.path), "image_dir": str(image_dir), "changes": listed,
                 "left_to_you": left.to_list()}
        write_text(out / "changes.json", json.dumps(whole, indent=1) + "\n")
        write_text(out / "changes.txt", "".join(f"{change}\n" for change in changes))
    _show(changes, left, args, image_dir)
    return user_path(args.fix)


def _move_names(content: dict, path, prefix: Path, changes: list[Change]) -> None:
    """File names that begin at the folder that the pictures of all splits lie in."""
    if prefix == Path("."):
        return
    for i, image in enumerate(content["images"]):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str):
            content["images"][i] = {**image, "file_name": f"{prefix.as_posix()}/{image['file_name']}"}
    changes.append(Change(str(path), "all images", "", "file_name", "NAME", f"{prefix.as_posix()}/NAME",
                          "one --image-dir serves all splits"))


def _left(out: Path, image_dir: Path, args: Namespace) -> Finds:
    """What is still found in the corrected jsons, but for notes and what only pictures tell."""
    finds = Finds()
    opened = open_all(out, finds, "coco", str(image_dir), follow_links=args.follow_links)
    for split, part in opened.splits.items():
        table = table_of(part)
        looks.look_at_objects(table, outlines(table), split, finds)
    return finds


def _show(changes: list[Change], left: Finds, args: Namespace, image_dir: Path) -> None:
    counts = Counter((change.about, change.what, change.why) for change in changes)
    for (about, what, why), count in counts.most_common():
        print(one_line(f"fixed: {about}: {'taken out' if what == 'entry' else what}: {why}: {count:,}"))
    for severity in (ERROR, WARNING):
        for kind, count in left.counts():
            if kind.severity == severity:
                print(one_line(f"left to you: {severity}: {kind.title}: {count:,}"))
    print(f"written: {args.fix} with {len(changes):,} changes, all in changes.txt and changes.json")
    print(f"train on it: python train.py --data-path {args.fix} --image-dir {image_dir}")


def _plain(value):
    """Of an entry that was taken out, what tells it: long segmentations are cut."""
    if isinstance(value, dict):
        return {key: brief(part) if key == "segmentation" else part for key, part in value.items()}
    return value
