"""What --img-path and --output-dir name -> the images, and where their drawings go; no image is overwritten."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from backbone.errors import InputError
from train_utils.data.images import read_image, refuse
from train_utils.data.images.reading import AS_STORED
from train_utils.io import files, unfinished
from train_utils.prediction.data_sets import check_place
from train_utils.prediction.jobs.options import DATA_SET, RESULT_NAME, PredictOptions
from train_utils.prediction.jobs.videos import check_video
from train_utils.show import video
from train_utils.show.image_lists import drawn_suffix, find_images, output_names, pages_of


def images_of(options: PredictOptions) -> list[Path]:
    """Returns the images and videos; what ends the command does so before anything is drawn."""
    images = find_images(options.img_path, options.follow_links)
    for path in tqdm(images, desc="checking", unit="image", disable=None, leave=False):
        if video.is_video(path):
            check_video(path, options.strict)
        else:
            tiled = options.tile is not None
            read_image(path, reading=AS_STORED) if options.strict and not tiled else refuse(path, guarded=not tiled)
    if options.write:
        if any(map(video.is_video, images)):
            raise InputError("--write: a video has no image files to make a data set of; leave it out")
        check_place(options.write, options.folder / DATA_SET, images)
    return images


def all_pages(options: PredictOptions, images: list[Path]) -> list[Path]:
    """Returns the images with the pages of each file that has several in its place."""
    pages = [page for path in images for page in pages_of(path)]
    if options.write and pages != images:
        raise InputError("--write: pages have no image files of their own; leave it out, or --pages each")
    return pages


def places_of(options: PredictOptions, images: list[Path]) -> tuple[Path, list[str]]:
    """Returns folder and file names of the drawn images; the folders are there then."""
    folder, names = drawn_places(options, images)
    refuse_to_overwrite(images, [folder / name for name in names])
    make_places(options.folder, folder)
    return folder, names


def drawn_places(options: PredictOptions, images: list[Path]) -> tuple[Path, list[str]]:
    """Returns folder and file names of the drawn images. InputError if a folder's were to be drawn into that folder."""
    output_dir = options.folder
    first, *more = map(files.user_path, options.img_path)
    if not more and images == [first]:
        return output_dir, [RESULT_NAME + drawn_suffix(first)]
    if more or not first.is_dir() or options.output_dir is None:
        return output_dir / RESULT_NAME, output_names(images)
    if output_dir.resolve() == first.resolve():
        raise InputError(f"--output-dir {output_dir}: is the folder of the images; give another for the drawn ones")
    return output_dir, output_names(images)


def refuse_to_overwrite(images: list[Path], drawn: list[Path]) -> None:
    """Raises InputError if a drawn image would take the place of one of the images."""
    own = {path.resolve() for path in images}
    for path in drawn:
        if path.resolve() in own:
            raise InputError(f"{path}: is one of the images, and would be overwritten; give an --output-dir")


def make_places(output_dir: Path, drawn: Path) -> None:
    """Creates --output-dir, and in it the folder of the drawn images."""
    files.folder_to_write(output_dir)
    if drawn != output_dir:
        unfinished.clear_leftovers(files.inner_folder(output_dir, drawn.name))
