"""VOC data, image by image: what the loader skips and decides, and every file that it stops at."""

import threading

import numpy as np

from backbone.errors import InputError
from my_dataset_voc import CLASS_DIFFERS, FROM_CLASS_MASK, NO_XML, XML_SIZE, Scan, VocDataset
from tools.doctor.coco_listing import MISSING, SKIPPED
from tools.doctor.finds import NOTE, WARNING, Finds, Kind, of_several
from train_utils.data.formats import voc as voc
from train_utils.data.links import links_out_of
from train_utils.data.opening import VOC_FOLDERS

DECIDED = "Training goes on as the title says; correct the XML or the mask where that is wrong."
FRACTIONS = Kind(NOTE, "XML files whose boxes have fractions", "The masks' own boxes are used, so nothing is lost.")
SEVERITY = {NO_XML: NOTE, XML_SIZE: WARNING, FROM_CLASS_MASK: WARNING, CLASS_DIFFERS: WARNING}


class ListingVoc(VocDataset):
    """A VocDataset that goes on where it should stop, and keeps what it found out about each image."""

    def __init__(self, *args):
        self.errors: dict[str, str] = {}
        self.scans: dict[str, Scan] = {}
        self._lock = threading.Lock()  # images are scanned by threads
        super().__init__(*args)

    def _scan(self, name):
        try:
            scan = super()._scan(name)
        except InputError as error:
            none = np.zeros(0, dtype=np.int64)
            with self._lock:
                self.errors[name] = str(error)
            return Scan((1, 1), none, none.reshape(0, 4), none, none, none, {}, {})
        with self._lock:
            self.scans[name] = scan
        return scan


def list_voc(path, year, follow_links, splits, verdict, finds: Finds) -> dict:
    """{split: data set of what is sound}."""
    try:
        folder = voc.find_voc_folder(path, year)
    except InputError:  # the verdict
        return splits
    if verdict and not follow_links:
        for error in links_out_of([folder / part for part in VOC_FOLDERS], folder):
            finds.mistake(str(error))
        if finds.total("error"):
            return {}
    found = {}
    for split in ("train", "val"):
        try:
            listing = ListingVoc(path, year, split)
        except InputError as error:  # its list or its class file
            finds.mistake(str(error), split=split)
            continue
        _tell(listing, split, finds)
        sound = [i for i, name in enumerate(listing.names) if name not in listing.errors]
        if sound:
            found[split] = splits.get(split) or listing.subset(sound)
    return found


def _tell(listing: ListingVoc, split: str, finds: Finds) -> None:
    for name in (name for name in listing.names if name in listing.errors):
        finds.mistake(listing.errors[name], split=split, image=name)
    for i in np.flatnonzero(listing.missing).tolist():
        finds.add(MISSING, f"{listing.source}: {listing.file_name(i)} is missing", split, listing.names[i])
    whole = {reason: count for reason, count in listing.skipped.items() if count}
    for name in (name for name in listing.names if name in listing.scans):
        scan, xml = listing.scans[name], listing.folder / "Annotations" / f"{name}.xml"
        for reason, count in scan.skipped.items():
            if count:
                whole.pop(reason, None)
                kind = Kind(WARNING, f"skipped: {reason}", SKIPPED.replace(", or --fix", ""))
                finds.add(kind, f"{xml}: {count} {of_several(count, reason)}", split, name, count=int(count))
        for reason, count in scan.notes.items():
            if count:
                finds.add(
                    Kind(SEVERITY[reason], reason, DECIDED),
                    f"{xml}: {count} {of_several(count, reason)}",
                    split,
                    name,
                    count=int(count),
                )
        boxes = voc.read_xml(xml, listing.class_ids).boxes
        if (boxes % 1).any():
            finds.add(
                FRACTIONS, f"{xml}: boxes with fractions, such as {boxes[(boxes % 1).any(1)][0].tolist()}", split, name
            )
    for reason, count in whole.items():  # of the list itself
        finds.add(
            Kind(WARNING, f"skipped: {reason}", SKIPPED.replace(", or --fix", "")),
            f"{listing.source}: {count} {of_several(count, reason)} (first: {listing.first_skipped[reason]})",
            split,
            count=count,
        )
