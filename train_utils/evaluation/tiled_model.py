"""A large image -> tiles at a size that a network knows -> one set of detections, whose masks join over the tiles.

T tiles of an image of H x W pixels, D detections of all tiles. Neighbours overlap: what lies in the shared strip is
seen by both. A detection is cut where its box ends at a border of its tile that is none of the image.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from network_files import MaskRCNN, MaskRCNNConfig
from network_files.heads.detections import NeedsMask
from network_files.operators.cropped_masks import CroppedMasks
from network_files.operators.instance_masks import mask_probs_to_bool
from train_utils.data.tiles.cutting import cut_target
from train_utils.data.tiles.tiling import Size, Tiling
from train_utils.evaluation.compact_masks import CompactMasks, code_of
from train_utils.evaluation.limits import Limit, full_images, scale_of
from train_utils.evaluation.mirrored_model import MirroredModel
from train_utils.io.memory import give_back_freed_memory
from train_utils.io.plain_text import counted

AT_BORDER = 2.0  # pixels: a box that ends so near to a tile's border may go on beyond it
SAME = 0.5  # IoU in the shared strip, from which on two masks are one object
TILES_AT_ONCE = 8  # on a GPU
GIVEN_BACK = 16  # tiles, after which freed memory is given back: what is kept of each lies between what is freed
SHOWN_AFTER = 3.0  # seconds, from which on a bar says how many tiles are done
PROPOSALS = ("rpn_pre_nms_top_n_test", "rpn_post_nms_top_n_test")
MOST_PROPOSALS = 10_000  # of a tile
AT_HAND = 8  # tiles whose masks are decoded at a time: each meets those beside it and of the next row


class Keeper(Protocol):
    """Keeps what the tiles of an image show, so that an image that takes long goes on where it was cut."""

    def before(self) -> list[dict | None]:
        """Returns what the first tiles show, as far as it is known."""
        ...

    def keep(self, shown: Sequence[dict | None]) -> None:
        """Is told what all tiles so far show."""
        ...


class TiledModel(nn.Module):
    """A model that looks at images in tiles; it is called as the model is.

    Detections have `masks` (CompactMasks), those of an image that is seen whole the model's own mask_probs; and
    `tiles`, int64 [3]: how many tiles there are, have as many detections as the model may find, are left out as empty.
    mask_threshold: a mask's pixels are those with a probability above it; losses: give the mean of the tiles' losses,
    too, where there are targets. counted: the sum of `tiles` so far.
    """

    detections_per_image = None  # has no limit
    bar = False  # whether a terminal is shown how many tiles of an image are done, where that takes long
    keeper: Keeper | None = None  # of the image that it is called with next

    def __init__(self, model: nn.Module, tiling: Tiling, mask_threshold: float = 0.5, losses: bool = False) -> None:
        super().__init__()
        self.whole = model  # for images that it does not shrink below the scale
        if not isinstance(model, MaskRCNN | MirroredModel):  # an exported file's is what it is
            tiling = replace(tiling, scale=None)
        if tiling.scale is not None:
            model = roomier(model, (tiling.side * tiling.scale) ** 2)
        self.model, self.tiling, self.mask_threshold, self.losses = model, tiling, mask_threshold, losses
        self.counted = torch.zeros(3, dtype=torch.int64)

    @property
    def config(self) -> MaskRCNNConfig:
        """The model's."""
        return self.model.config

    def forward(
        self,
        images: list[Tensor],
        targets: list[dict] | None = None,
        paste_masks: bool = False,
        needs: Sequence[NeedsMask] | None = None,
    ) -> list[dict] | tuple[dict, list[dict]]:
        """Returns the detections of images [C, H, W], or Windows, with targets (losses, detections).

        needs: of each image, which of its joined detections need a mask.
        """
        if paste_masks:
            raise ValueError("a model of tiles gives masks cropped: paste_masks=False")
        sums: dict[str, Tensor] = {}
        found = []
        for i, image in enumerate(images):
            target = targets[i] if targets is not None and self.losses else None
            losses, one = self._detect(image, target, all_need if needs is None else needs[i])
            found.append(one)
            self.counted += one["tiles"]
            if int(one["tiles"][0]) > GIVEN_BACK:  # of the joining, before it is drawn by another thread
                give_back_freed_memory()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value / len(images)
        return found if targets is None else (sums, found)

    def _detect(self, image: Tensor, target: dict | None, need: NeedsMask) -> tuple[dict[str, Tensor], dict]:
        """Returns the mean losses of an image's tiles, none without a target, and its detections."""
        size, limit = tuple(image.shape[-2:]), self.config.box_detections_per_img
        tiles = self.tiling.boxes(size)
        if len(tiles) == 1 and scale_of(size, self.whole.config) >= (self.tiling.scale or 0):
            given = None if target is None else [target]
            losses, (found,) = looked_at(self.whole, [image[:, :, :]], given, [need])
            full = len(found["scores"]) >= self.whole.config.box_detections_per_img
            return losses, {**found, "tiles": torch.tensor([1, int(full), 0])}
        if self.tiling.scale is not None:
            sides = [math.ceil(side * self.tiling.scale) for side in self.tiling.tile_size(size)]
            room = room_for(self.whole.config, math.prod(sides), PROPOSALS)
            self.model.shared.set(min_size=(min(sides),), max_size=max(sides), **room)
        at_once, waiting = 1 if image.device.type == "cpu" else TILES_AT_ONCE, []
        shown = [] if self.keeper is None else self.keeper.before()  # by each tile so far; None: it is empty
        sums: dict[str, Tensor] = {}
        hidden = None if self.bar else True  # None: where it is no terminal
        bar = {"unit": "tile", "leave": False, "delay": SHOWN_AFTER, "disable": hidden, "initial": len(shown)}
        for t, window in enumerate(tqdm(tiles[len(shown) :].tolist(), total=len(tiles), **bar), len(shown)):
            x1, y1, x2, y2 = window
            view = image[:, y1:y2, x1:x2]  # of a large file read here
            shown.append(None)
            if not self.tiling.is_empty(view):
                waiting.append((t, window, view))
            if waiting and (len(waiting) == at_once or t == len(tiles) - 1):
                places, windows, views = zip(*waiting, strict=True)
                cut = target and [cut_target(target, tuple(window)) for window in windows]
                needs = [partial(needed_in, need, tiles, place) for place in places]
                losses, some = looked_at(self.model, list(views), cut, needs)
                for place, one in zip(places, some, strict=True):
                    shown[place] = self._masked(one, self.tiling.tile_size(size))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0) + value * len(waiting)
                waiting = []
            if (t + 1) % GIVEN_BACK == 0:
                give_back_freed_memory()
            if self.keeper is not None and not waiting:
                self.keeper.keep(shown)
        seen = [t for t, one in enumerate(shown) if one is not None]
        found = [shown[t] for t in seen]
        sums = {name: value / len(seen) for name, value in sums.items()}
        counts = [len(tiles), sum(len(one["scores"]) >= limit for one in found), len(tiles) - len(seen)]
        if not found:
            nothing = torch.zeros(0)
            found, seen = [{"boxes": torch.zeros(0, 4), "labels": nothing.long(), "scores": nothing,
                            "masks": CroppedMasks.empty(self.tiling.tile_size(size))}], [0]  # fmt: skip
        return sums, {**joined(found, tiles[seen], size), "tiles": torch.tensor(counts)}

    def limits(self, sums: Sequence[int]) -> list[Limit]:
        """Returns what cut the detections; sums: the sum of `tiles`, over all processes."""
        tiles, full, empty = sums
        line = f"left out: {empty:,} of {counted(tiles, 'tile')}, of one colour (--tile-empty {self.tiling.empty:g})"
        left_out = [Limit("empty_tiles", empty, 0, line)] if empty else []
        return [*full_images(full, self.config.box_detections_per_img, "tile"), *left_out]

    def _masked(self, found: dict[str, Tensor], size: Size) -> dict:
        """Returns a tile's detections on the CPU, with masks in place of their probabilities."""
        where = found["boxes"], size, self.config.geometry, self.mask_threshold
        masks = CompactMasks.of(mask_probs_to_bool(found["mask_probs"], *where))
        return {**{key: found[key].cpu() for key in ("boxes", "labels", "scores")}, "masks": masks}


def as_plain(found: dict | None) -> dict[str, Any] | None:
    """Returns the detections of a tile as values for json, from which `from_plain` makes the same again."""
    if found is None:
        return None
    values = {key: found[key].tolist() for key in ("boxes", "labels", "scores")}
    masks = {"size": found["masks"].size, "places": found["masks"].boxes.tolist()}
    return {**values, **masks, "counts": [code.decode() for code in found["masks"].counts]}


def from_plain(plain: dict[str, Any] | None) -> dict | None:
    """Returns the detections that `as_plain` was given."""
    if plain is None:
        return None
    places = torch.tensor(plain["places"], dtype=torch.int64).reshape(-1, 4)
    return {
        "boxes": torch.tensor(plain["boxes"], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(plain["labels"], dtype=torch.int64),
        "scores": torch.tensor(plain["scores"], dtype=torch.float32),
        "masks": CompactMasks([code.encode() for code in plain["counts"]], places, plain["size"]),
    }


def looked_at(
    model: nn.Module, images: list[Tensor], targets: list[dict] | None, needs: Sequence[NeedsMask]
) -> tuple[dict, list[dict]]:
    """Returns a model's losses, none without targets, and its detections; needs: of each image."""
    if targets is None:
        return {}, model(images, paste_masks=False, needs=needs)
    return model(images, targets, paste_masks=False, needs=needs)


def all_need(found: dict[str, Tensor]) -> Tensor:
    """Returns that every detection needs a mask."""
    return torch.ones_like(found["scores"], dtype=torch.bool)


def needed_in(need: NeedsMask, tiles: Tensor, t: int, found: dict[str, Tensor]) -> Tensor:
    """Returns which detections of tile t need a mask, bool [D], for `joined` to give those of the image that need one.

    need: of the image; tiles int64 [T, 4]; found: boxes [D, 4] in the tile's pixels, labels, scores. What reaches into
    another tile needs one, whatever its score and class: it may be a part of an object that another part is surer of.
    """
    boxes = found["boxes"] + tiles[t, :2].repeat(2).to(found["boxes"].device)
    others = tiles[_neighbours(tiles, t)].to(boxes.device)  # [n, 4]
    begin, end = boxes[:, None, :2] < others[:, 2:], boxes[:, None, 2:] > others[:, :2]  # [D, n, 2]
    return need({**found, "boxes": boxes}) | (begin & end).all(2).any(1)


def roomier(model: MaskRCNN | MirroredModel, area: float) -> MaskRCNN | MirroredModel:
    """Returns a model of the same weights with room for the proposals and detections of an image of so many pixels."""
    same = {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())}
    larger = copy.deepcopy(model, same)
    larger.shared.set(**room_for(model.config, area, (*PROPOSALS, "box_detections_per_img")))
    return larger


def room_for(config: MaskRCNNConfig, area: float, names: Sequence[str]) -> dict[str, int]:
    """Returns these fields, larger by as much as an image of so many pixels is larger than one of training."""
    times, room = area / config.min_size[-1] ** 2, {}
    for name in names:
        own = getattr(config, name)
        room[name] = max(min(round(own * times), MOST_PROPOSALS), own)
    return room


class _Parts:
    """The D detections of all tiles, in the image's pixels, with what tells how they lie in their tiles.

    Masks stay coded; those of few tiles are decoded at a time.
    """

    def __init__(self, found: Sequence[dict], tiles: Tensor, size: Size) -> None:
        counts = torch.tensor([len(one["scores"]) for one in found], dtype=torch.int64)
        self.tiles, self.tile = tiles, torch.arange(len(tiles)).repeat_interleave(counts)  # [T, 4], [D]
        self.first = (counts.cumsum(0) - counts).tolist()  # of each tile
        corner = tiles[self.tile][:, :2]  # [D, 2]
        self.boxes = torch.cat([one["boxes"] for one in found]) + corner.repeat(1, 2)
        self.labels, self.scores = (torch.cat([one[key] for one in found]) for key in ("labels", "scores"))
        masks = [CompactMasks.of(one["masks"]) for one in found]
        self.codes = [code for of_tile in masks for code in of_tile.counts]
        places = torch.cat([of_tile.boxes for of_tile in masks])  # [D, 4]
        self.corners = (places[:, :2] + corner).tolist()  # x, y of each crop
        self.sides = (places[:, 2:] - places[:, :2]).flip(1).tolist()  # height, width of each
        self.decoded = lru_cache(AT_HAND)(lambda t: [crop.numpy() for crop in masks[t].crops()])
        margins = _margins(self.boxes, tiles[self.tile], size)  # [D]
        self.cut = margins <= AT_BORDER
        # of each detection, for loops, in which tensors of one number are slow
        columns = (self.tile, self.labels, self.scores, margins, self.cut)
        self.tile_of, self.label_of, self.score_of, self.margin_of, self.is_cut = (c.tolist() for c in columns)

    def mask_in(self, i: int, window: Sequence[int]) -> np.ndarray:
        """Returns what of mask i lies in a window x1 y1 x2 y2, uint8 of the window's shape."""
        x1, y1, x2, y2 = window
        seen, (x, y), (high, wide) = np.zeros((y2 - y1, x2 - x1), np.uint8), self.corners[i], self.sides[i]
        left, top, right, bottom = max(x, x1), max(y, y1), min(x + wide, x2), min(y + high, y2)
        if left < right and top < bottom:
            tile = self.tile_of[i]
            crop = self.decoded(tile)[i - self.first[tile]]
            seen[top - y1 : bottom - y1, left - x1 : right - x1] = crop[top - y : bottom - y, left - x : right - x]
        return seen


def joined(found: Sequence[dict], tiles: Tensor, size: Size) -> dict[str, Tensor | CompactMasks]:
    """Returns the detections of an image of `size` from those of its tiles, by falling score.

    found: per tile boxes float32 [D_t, 4], labels int64 [D_t], scores float32 [D_t], masks (CroppedMasks), all in the
    tile's pixels; tiles int64 [T, 4]. Returns the same in the image's pixels, masks as CompactMasks.

    - What is cut by its tile and lies in the inside of another is left out: the other sees it with what is around it.
    - Two detections of neighbours are one object where their masks agree in the shared strip by an IoU of SAME. Pairs
      of one class go first, then those of higher IoU; a tile has at most one part of an object; of two classes only
      parts that are cut join.
    - Of an object that is whole in several tiles, the detection farthest from its tile's borders stays as it is, if its
      tile holds what the others show: of an object in pieces a tile may have one piece, and that whole. Of
      others masks and boxes are united, with class and score of the part with the highest score.
    """
    parts = _Parts(found, tiles, size)
    keep = ~_inside_another(parts, size)
    corners, boxes, codes, places, leaders = parts.boxes.tolist(), [], [], [], []
    for members in _objects(_pairs(parts, keep), parts, keep):
        if not any(parts.is_cut[i] for i in members):
            members = _whole(parts, members, corners)
        leaders.append(max(members, key=parts.score_of.__getitem__))
        code, place = _united(parts, members)
        codes.append(code)
        places.append(place)
        x1, y1, x2, y2 = zip(*(corners[i] for i in members), strict=True)
        boxes.append([min(x1), min(y1), max(x2), max(y2)])
    order = torch.argsort(parts.scores[leaders], descending=True, stable=True)
    masks = CompactMasks(codes, torch.tensor(places, dtype=torch.int64).reshape(-1, 4), size)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)[order],
        "labels": parts.labels[leaders][order],
        "scores": parts.scores[leaders][order],
        "masks": masks[order],
    }


def _whole(parts: _Parts, members: Sequence[int], boxes: Sequence[Sequence[float]]) -> Sequence[int]:
    """Returns which of an object's parts, none of which is cut, stays; boxes: of all parts, in the image.

    It is the one farthest from its tile's borders, of those whose tiles hold what the others show: of an object in two
    pieces a tile may have one alone, and all of that. Where no tile holds all, the parts are united.
    """
    x1, y1, x2, y2 = zip(*(boxes[i] for i in members), strict=True)
    low, high = torch.tensor([min(x1), min(y1)]) + AT_BORDER, torch.tensor([max(x2), max(y2)]) - AT_BORDER
    tiles = parts.tiles[[parts.tile_of[i] for i in members]]  # [n, 4]
    holds = ((tiles[:, :2] <= low) & (tiles[:, 2:] >= high)).all(1).tolist()
    holding = [i for i, all_there in zip(members, holds, strict=True) if all_there]
    return [max(holding, key=parts.margin_of.__getitem__)] if holding else members


def _margins(boxes: Tensor, tiles: Tensor, size: Size) -> Tensor:
    """Returns how far boxes [..., 4] keep from those borders of their tiles [..., 4] that are not the image's."""
    height, width = size
    inner = torch.stack([tiles[..., 0] > 0, tiles[..., 1] > 0, tiles[..., 2] < width, tiles[..., 3] < height], -1)
    away = torch.cat((boxes[..., :2] - tiles[..., :2], tiles[..., 2:] - boxes[..., 2:]), -1)
    return torch.where(inner, away, math.inf).amin(-1)


def _inside_another(parts: _Parts, size: Size) -> Tensor:
    """Returns which detections are cut by their own tile, but lie in the inside of another: bool [D]."""
    inside = torch.zeros_like(parts.cut)
    for t in range(len(parts.tiles)):
        own = torch.nonzero(parts.cut & (parts.tile == t))[:, 0]
        if not len(own):
            continue
        others = parts.tiles[_neighbours(parts.tiles, t)]
        inside[own] = (_margins(parts.boxes[own][:, None], others[None], size) > AT_BORDER).any(1)  # [own, others]
    return inside


def _neighbours(tiles: Tensor, t: int) -> Tensor:
    """Returns which tiles overlap tile t, without itself: int64."""
    overlap = (tiles[:, :2] < tiles[t, 2:]).all(1) & (tiles[:, 2:] > tiles[t, :2]).all(1)
    overlap[t] = False
    return torch.nonzero(overlap)[:, 0]


def _pairs(parts: _Parts, keep: Tensor) -> Iterator[tuple[bool, float, int, int]]:
    """Yields pairs of detections that may be one object: whether their classes are equal, their IoU, both indices."""
    of_tile = [torch.nonzero(keep & (parts.tile == t))[:, 0] for t in range(len(parts.tiles))]
    for t, tile in enumerate(parts.tiles):
        for u in (u for u in _neighbours(parts.tiles, t).tolist() if u > t):
            strip = torch.cat(
                (torch.maximum(tile[:2], parts.tiles[u, :2]), torch.minimum(tile[2:], parts.tiles[u, 2:]))
            )
            a, b = of_tile[t], of_tile[u]
            both = torch.maximum(parts.boxes[a][:, None, :2], parts.boxes[b][None, :, :2]).maximum(strip[:2])
            ends = torch.minimum(parts.boxes[a][:, None, 2:], parts.boxes[b][None, :, 2:]).minimum(strip[2:])
            for i, j in torch.nonzero((both < ends).all(-1)).tolist():
                i, j = int(a[i]), int(b[j])
                alike = parts.label_of[i] == parts.label_of[j]
                if alike or (parts.is_cut[i] and parts.is_cut[j]):
                    iou = _iou_in(parts, i, j, strip.tolist())
                    if iou >= SAME:
                        yield alike, iou, i, j


def _iou_in(parts: _Parts, i: int, j: int, strip: list[int]) -> float:
    """Returns the IoU of two masks in a strip x1 y1 x2 y2; 0 where neither has a pixel there."""
    ends = [[x + w, y + h] for (x, y), (h, w) in ((parts.corners[k], parts.sides[k]) for k in (i, j))]
    low, high = np.minimum(parts.corners[i], parts.corners[j]), np.maximum(*ends)
    window = [*np.maximum(low, strip[:2]).tolist(), *np.minimum(high, strip[2:]).tolist()]
    if window[0] >= window[2] or window[1] >= window[3]:
        return 0.0
    a, b = parts.mask_in(i, window), parts.mask_in(j, window)
    return float((a & b).sum()) / max(float((a | b).sum()), 1.0)


def _objects(pairs: Iterator[tuple[bool, float, int, int]], parts: _Parts, keep: Tensor) -> list[list[int]]:
    """Returns the detections of each object: pairs are joined as long as no tile has two parts of one."""
    members = {i: [i] for i in torch.nonzero(keep)[:, 0].tolist()}  # by detection, shared by those of one object
    for _, _, i, j in sorted(pairs, key=lambda pair: (not pair[0], -pair[1], pair[2:])):
        a, b = members[i], members[j]
        if a is not b and not {parts.tile_of[k] for k in a} & {parts.tile_of[k] for k in b}:
            a.extend(b)
            members.update(dict.fromkeys(b, a))
    return [group for i, group in members.items() if i == group[0]]


def _united(parts: _Parts, members: Sequence[int]) -> tuple[bytes, list[int]]:
    """Returns the RLE of the pixels set in any of the masks, and the box x1 y1 x2 y2 that they fill."""
    shown = [(parts.corners[i], parts.sides[i]) for i in members if parts.codes[i]]
    if not shown:
        return b"", [0, 0, 0, 0]
    window = [
        min(x for (x, _), _ in shown),
        min(y for (_, y), _ in shown),
        max(x + w for (x, _), (_, w) in shown),
        max(y + h for (_, y), (h, _) in shown),
    ]
    if len(members) == 1:
        return parts.codes[members[0]], window
    return code_of(np.maximum.reduce([parts.mask_in(i, window) for i in members])), window
