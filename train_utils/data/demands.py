"""A data set -> an error where it lacks what a command needs: image files, all annotations, objects to learn."""

import os

from backbone.errors import InputError
from train_utils.data.dataset import ImageDataset
from train_utils.data.formats.coco.file_names import nearest
from train_utils.data.problems import STOP, StopAtFirst, describe_skips, few_counts
from train_utils.io.plain_text import counted


def report_missing(data_set: ImageDataset, problems: StopAtFirst = STOP) -> None:
    """Reports the image files of a data set that are missing, if any: how many, and which is the first."""
    rows = data_set.missing.nonzero()[0].tolist()
    if not rows:
        return
    first = rows[0]
    folder, name = os.path.split(data_set.file_name(first))
    summary = (
        f"{data_set.source}: {len(rows)} of its {counted(len(data_set), 'image file', 'are')} missing, the first "
        f"is {data_set.file_name(first)} (image id {data_set.given_id(first)}){nearest(name, [folder])}; "
        "put them there, or take them out of the list"
    )
    ids = {i: data_set.given_id(i) for i in rows}
    files = ((f"{data_set.source}: image id {ids[i]}: {data_set.file_name(i)} is missing", ids[i]) for i in rows)
    problems.missing(summary, files)


def without_objects(data_set: ImageDataset) -> str:
    """Returns why a data set has no object, by counts; empty where it has one."""
    if data_set.object_counts().any():
        return ""
    crowds, elsewhere = data_set.class_counts(crowd=True), int((data_set.annotations.iscrowd == 0).sum())
    skips = describe_skips(data_set.skipped, data_set.first_skipped)
    causes = []
    if crowds:
        causes.append(
            f"{counted(sum(crowds.values()), 'crowd region')} (iscrowd 1), of {few_counts(crowds)}; "
            "--crowd-as-objects reads them as objects"
        )
    causes += [f"skipped {skips}"] if skips else []
    causes += (
        [f"{counted(elsewhere, 'object', 'are')} in the images left out of it (--val-fraction)"] if elsewhere else []
    )
    return f"no object in its {counted(len(data_set), 'image')}: {'; '.join(causes) or 'none is annotated'}"


def refuse_nothing_to_learn(data_set: ImageDataset) -> None:
    """Raises InputError, with the cause by counts, if there is no object to train on."""
    if cause := without_objects(data_set):
        raise InputError(f"{data_set.source}: nothing to learn: {cause}")


def refuse_skips(data_set: ImageDataset) -> None:
    """Raises InputError if the data set skipped annotations: what --strict asks for."""
    skips = describe_skips(data_set.skipped, data_set.first_skipped)
    if skips:
        raise InputError(f"{data_set.source}: --strict: {skips}; correct them, or leave --strict out to skip them")
