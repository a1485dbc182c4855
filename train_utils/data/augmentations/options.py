"""Every option of augmentation in one place, and the presets that stand for several."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from backbone.errors import InputError
from backbone.settings import Settings, setting

# Safe for photographs: nothing is turned upside down. Add --vertical-flip --quarter-turns where nothing has an upside.
PRESETS: dict[str, dict[str, Any]] = {
    "light": {"photometric": True, "zoom": (0.8, 1.25)},
    "medium": {"photometric": True, "zoom": (0.7, 1.4), "rotate": 10.0, "shift": 0.1, "copy_paste": 0.5, "blur": 1.0},
    "heavy": {
        "photometric": True, "zoom": (0.5, 1.6), "rotate": 30.0, "shift": 0.15, "copy_paste": 0.7, "blur": 1.5,
        "noise": 0.05, "gamma": 1.5, "channel_jitter": 0.1, "cutout": 3,
    },
}  # fmt: skip

FUNCTION = "augment_function"  # a checkpoint's entry: the name of the one given in Python, or None


@dataclass(frozen=True)
class Augmentation(Settings):
    """Augmentation: what makes a training sample of an image; the arguments of transforms.build_augment."""

    horizontal_flip: float = setting(0.5, "probability", least=0, most=1, metavar="P")
    vertical_flip: float = setting(0.0, "probability", least=0, most=1, metavar="P", bare=0.5)
    photometric: bool = setting(False, "jitter brightness, contrast, saturation and hue")
    large_scale_jitter: int | None = setting(
        None, "scale and crop to a square of SIZE pixels", least=32, metavar="SIZE", bare=1024
    )
    jitter_scale: tuple[float, float] = setting(
        (0.1, 2.0), "range of scales of --large-scale-jitter", length=2, least=0.01, most=10, metavar=("LOW", "HIGH")
    )
    expand: float | None = setting(
        None,
        "with probability 0.5, put the image on a canvas of 1 to MAX times its sides",
        least=1,
        most=10,
        metavar="MAX",
        bare=4.0,
    )
    mini_mask: int | None = setting(
        None,
        "keep masks to train on in at most SIZE x SIZE cells of their box, such as 56: less memory, rounder edges",
        least=1,
        metavar="SIZE",
    )
    quarter_turns: float = setting(
        0.0, "probability of a turn by 90, 180 or 270 degrees", least=0, most=1, metavar="P", bare=0.75
    )
    rotate: float = setting(
        0.0,
        "turn half of the images (by chance) by up to so many degrees either way",
        least=0,
        most=180,
        metavar="DEGREES",
        bare=15.0,
    )
    zoom: tuple[float, float] = setting(
        (1.0, 1.0),
        "scale half of the images (by chance), each in its frame",
        length=2,
        least=0.1,
        most=10,
        metavar=("LOW", "HIGH"),
    )
    shift: float = setting(
        0.0,
        "move half of the images (by chance) by up to this share of their sides",
        least=0,
        most=0.5,
        metavar="SHARE",
        bare=0.1,
    )
    copy_paste: float = setting(
        0.0, "probability that objects of another image are put on top", least=0, most=1, metavar="P", bare=0.5
    )
    cutout: int = setting(
        0, "cover up to N rectangles of half of the images (by chance)", least=0, most=100, metavar="N", bare=3
    )
    blur: float = setting(
        0.0,
        "smooth half of the images (by chance) by up to so many pixels",
        least=0,
        most=20,
        metavar="SIGMA",
        bare=1.5,
    )
    noise: float = setting(
        0.0,
        "noise in half of the images (by chance), up to this share of the range",
        least=0,
        most=1,
        metavar="SHARE",
        bare=0.05,
    )
    gamma: float = setting(
        1.0, "half of the images (by chance) to a power of 1/MAX to MAX", least=1, most=10, metavar="MAX", bare=1.5
    )
    contrast: float = setting(
        1.0, "contrast of half of the images (by chance) times 1/MAX to MAX", least=1, most=10, metavar="MAX", bare=1.5
    )
    channel_jitter: float = setting(
        0.0,
        "change each channel of half of the images (by chance) by up to this share",
        least=0,
        most=1,
        metavar="SHARE",
        bare=0.1,
    )
    stain_jitter: float = setting(
        0.0, "the same of the stains of histology (H, E, DAB)", least=0, most=1, metavar="SHARE", bare=0.2
    )
    augment: str | None = setting(
        None,
        f"{', '.join(PRESETS)}: several of these at once, which single flags overrule; or a function of your own, "
        "my_file.py:name, in their place",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("jitter_scale", "zoom"):
            low, high = getattr(self, name)
            if low > high:
                raise InputError(f"{name} {low:g} {high:g}: the lower one comes first")
        if not (self.augment is None or self.augment in PRESETS or self.own):
            raise InputError(f"augment {self.augment}: is none of {', '.join(PRESETS)}, and not like my_file.py:name")
        others = [f for f in fields(Augmentation) if f.name != "augment" and getattr(self, f.name) != f.default]
        if self.own and others:
            raise InputError(
                f"augment {self.augment} takes the place of the built-in augmentation: leave out "
                f"{', '.join(f.name for f in others)}"
            )

    @property
    def own(self) -> bool:
        """Whether a function of a user's takes the place of the built-in augmentation."""
        return self.augment is not None and ".py:" in self.augment


def with_preset(given: dict[str, Any]) -> dict[str, Any]:
    """Returns options by name with what --augment stands for, which those given overrule."""
    return {**PRESETS.get(given.get("augment"), {}), **given}
