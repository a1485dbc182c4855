"""Instance masks -> crops of their boxes: a twentieth of the memory of full-size masks, or less.

Shapes: N masks of one H x W image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class CroppedMasks:
    """N binary masks of one H x W image, each kept as the pixels inside the tight box of its set pixels.

    pixels: uint8 [T], 0 or 1: the crops one after another, each row by row.
    boxes:  int64 [N, 4], x1 y1 x2 y2 of each crop, ends exclusive; 0 0 0 0 for a mask without pixels.
    size:   (H, W).
    limit:  cells a side that a crop has at most: a longer side is kept as that many cells, each for the pixels
            that it is enlarged to by nearest neighbour; None: every pixel is kept.
    """

    def __init__(self, pixels: Tensor, boxes: Tensor, size: tuple[int, int], limit: int | None = None) -> None:
        self.pixels, self.boxes, self.size, self.limit = pixels, boxes, (int(size[0]), int(size[1])), limit

    @classmethod
    def empty(cls, size: tuple[int, int]) -> "CroppedMasks":
        """Returns no masks of an image of `size` (H, W)."""
        return cls(torch.zeros(0, dtype=torch.uint8), torch.zeros(0, 4, dtype=torch.int64), size)

    @classmethod
    def from_masks(cls, masks: Tensor) -> "CroppedMasks":
        """Crops full-size masks, [N, H, W], uint8 or bool (not 0 = set)."""
        corner = torch.zeros(len(masks), 4, dtype=torch.int64)
        return cls.from_crops(list(masks), corner, masks.shape[-2:])

    @classmethod
    def from_crops(cls, crops: list[Tensor], boxes: Tensor, size: tuple[int, int]) -> "CroppedMasks":
        """Tightens crops (each [h, w], not 0 = set) whose left upper corners are the first two of boxes [N, 4]."""
        tight, flat = [], [torch.zeros(0, dtype=torch.uint8)]
        for crop, (x, y, _, _) in zip(crops, boxes.tolist(), strict=True):
            crop = crop != 0
            rows, columns = crop.any(1).nonzero()[:, 0], crop.any(0).nonzero()[:, 0]
            if not len(rows):
                tight.append((0, 0, 0, 0))
                continue
            y1, y2, x1, x2 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
            tight.append((x + x1, y + y1, x + x2, y + y2))
            flat.append(crop[y1:y2, x1:x2].reshape(-1).to(torch.uint8))
        device = crops[0].device if crops else flat[0].device
        pixels = torch.cat([part.to(device) for part in flat])
        return cls(pixels, torch.tensor(tight, dtype=torch.int64, device=device).reshape(-1, 4), size)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        return f"CroppedMasks({len(self)} of {self.size[0]}x{self.size[1]}, {len(self.pixels)} pixels)"

    def areas(self) -> Tensor:
        """Returns the number of set pixels of each mask, int64 [N]."""
        return torch.stack([crop.sum() for crop in self.crops()]) if len(self) else self.boxes.new_zeros(0)

    def sides(self) -> Tensor:
        """Returns how many columns and rows are kept of each crop, int64 [N, 2]."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return sides if self.limit is None else sides.clamp(max=self.limit)

    def offsets(self) -> Tensor:
        """Returns where each crop begins in `pixels`, and the end, int64 [N + 1]."""
        return F.pad(self.sides().prod(1).cumsum(0), (1, 0))

    def _kept(self) -> list[Tensor]:
        """Returns what is kept of each crop, uint8 [rows, columns]: views."""
        sides = self.sides().tolist()
        parts = self.pixels.split([columns * rows for columns, rows in sides])
        return [part.view(rows, columns) for part, (columns, rows) in zip(parts, sides, strict=True)]

    def crops(self) -> list[Tensor]:
        """Returns every crop, uint8 [h, w]: views, or enlarged to its box where there is a limit."""
        kept = self._kept()
        if self.limit is None:
            return kept
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).tolist()
        return [
            part[_cell_of(height, part.shape[0])][:, _cell_of(width, part.shape[1])]
            for part, (width, height) in zip(kept, sides, strict=True)
        ]

    def crop(self, i: int) -> Tensor:
        """Returns the i-th crop, uint8 [h, w]."""
        return self.crops()[i]

    def limited(self, limit: int) -> "CroppedMasks":
        """Returns the masks with this limit: a cell is set where at least half of what it stands for is."""
        limited = CroppedMasks(self.pixels, self.boxes, self.size, limit)
        kept = [self.pixels[:0]]
        for crop, (columns, rows) in zip(self.crops(), limited.sides().tolist(), strict=True):
            if crop.shape != (rows, columns):
                crop = F.adaptive_avg_pool2d(crop[None].float(), (rows, columns)) >= 0.5
            kept.append(crop.reshape(-1).to(torch.uint8))
        limited.pixels = torch.cat(kept)
        return limited

    def __getitem__(self, index: Tensor | slice | list[int]) -> "CroppedMasks":
        """Returns the masks at these indices (or where a bool tensor is set), in that order."""
        chosen = torch.arange(len(self), device=self.boxes.device)[index].tolist()
        kept = self._kept()
        pixels = [kept[i].reshape(-1) for i in chosen]
        pixels = torch.cat(pixels) if pixels else self.pixels[:0]
        return CroppedMasks(pixels, self.boxes[chosen], self.size, self.limit)

    def to_masks(self) -> Tensor:
        """Returns full-size masks, uint8 [N, H, W]."""
        masks = torch.zeros(len(self), *self.size, dtype=torch.uint8, device=self.boxes.device)
        for mask, crop, (x1, y1, x2, y2) in zip(masks, self.crops(), self.boxes.tolist(), strict=True):
            mask[y1:y2, x1:x2] = crop
        return masks

    def _replace(self, crops: list[Tensor], boxes: Tensor) -> "CroppedMasks":
        pixels = torch.cat([crop.reshape(-1) for crop in crops]) if crops else self.pixels
        return CroppedMasks(pixels, boxes, self.size)

    def hflip(self) -> "CroppedMasks":
        """Returns the masks mirrored left to right."""
        x1, y1, x2, y2 = self.boxes.unbind(1)
        boxes = torch.stack((self.size[1] - x2, y1, self.size[1] - x1, y2), 1)
        return self._replace([crop.flip(1) for crop in self.crops()], boxes * (x2 > x1)[:, None])

    def vflip(self) -> "CroppedMasks":
        """Returns the masks mirrored top to bottom."""
        x1, y1, x2, y2 = self.boxes.unbind(1)
        boxes = torch.stack((x1, self.size[0] - y2, x2, self.size[0] - y1), 1)
        return self._replace([crop.flip(0) for crop in self.crops()], boxes * (x2 > x1)[:, None])

    def resize(self, size: tuple[int, int]) -> "CroppedMasks":
        """Resizes to (height, width): each pixel takes the one that its centre falls on, in the frame of scaled boxes.

        Equals F.interpolate(mode="nearest-exact") of full-size masks.
        """
        rows = nearest_index(self.size[0], size[0], self.boxes.device)  # [height] source row of each row
        columns = nearest_index(self.size[1], size[1], self.boxes.device)
        # the resized pixels whose source lies in a crop: a half-open range, as both maps are monotone
        x1, y1, x2, y2 = (edge.contiguous() for edge in self.boxes.unbind(1))
        lo = torch.stack((torch.searchsorted(columns, x1), torch.searchsorted(rows, y1)), 1)
        hi = torch.stack((torch.searchsorted(columns, x2), torch.searchsorted(rows, y2)), 1)
        boxes = torch.cat((lo, hi), 1)
        crops = [
            crop[rows[b[1] : b[3]] - a[1]][:, columns[b[0] : b[2]] - a[0]]
            for crop, a, b in zip(self.crops(), self.boxes.tolist(), boxes.tolist(), strict=True)
        ]
        return CroppedMasks.from_crops(crops, boxes, size)

    def window(self, x: int, y: int, width: int, height: int) -> "CroppedMasks":
        """Returns what is seen through a window of width x height whose left upper corner is at (x, y).

        The window may reach outside the image: nothing is set there.
        """
        crops, corners = [], []
        for crop, (x1, y1, x2, y2) in zip(self.crops(), self.boxes.tolist(), strict=True):
            left, top = max(x1, x), max(y1, y)
            right, bottom = max(min(x2, x + width), left), max(min(y2, y + height), top)
            crops.append(crop[top - y1 : bottom - y1, left - x1 : right - x1])
            corners.append((left - x, top - y, 0, 0))
        return CroppedMasks.from_crops(crops, torch.tensor(corners).reshape(-1, 4), (height, width))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "CroppedMasks":
        """Returns the masks on a device."""
        return CroppedMasks(
            self.pixels.to(device, non_blocking=non_blocking),
            self.boxes.to(device, non_blocking=non_blocking),
            self.size,
            self.limit,
        )


def _cell_of(length: int, cells: int) -> Tensor:
    """Returns which of `cells` each of `length` pixels reads, int64 [length]."""
    return torch.arange(length) * cells // max(length, 1)


def nearest_source(cell: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Returns which of `source` cells a cell of `target` cells reads under F.interpolate(mode="nearest").

    All int64, of shapes that broadcast. The ratio is rounded to float32 before it multiplies, as torch does.
    """
    return (cell * (source.float() / target)).long().minimum(source - 1)


def nearest_index(source: int, target: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns which of `source` cells the centre of each of `target` cells falls on, int64 [target].

    Between two cells it is the second. F.interpolate(mode="nearest-exact") does the same, where it need not round.
    """
    return (2 * torch.arange(target, device=device) + 1) * source // (2 * target)
