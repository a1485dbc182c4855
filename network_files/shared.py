"""The config that a model and its parts share: a number that is set in one of them, under torchvision's name, acts.

model.roi_heads.score_thresh = 0.7          the config's box_score_thresh, for the model, its loaders, its checkpoint
model.roi_heads.box_roi_pool = ...          AttributeError: nothing would read it
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from network_files.config import MaskRCNNConfig

INSTEAD = {
    "anchor_generator": "give anchor_sizes and aspect_ratios to create_model",
    "box_roi_pool": "give box_roi_size and roi_sampling_ratio to create_model",
    "mask_roi_pool": "give mask_roi_size and roi_sampling_ratio to create_model",
    "box_coder": "give bbox_reg_weights to create_model",
    "proposal_matcher": "give box_fg_iou_thresh or rpn_fg_iou_thresh, and bg, to create_model",
    "fg_bg_sampler": "give box_batch_size_per_image or rpn_batch_size_per_image to create_model",
}


class Shared:
    """A holder of the config; every part of a model has the same one."""

    def __init__(self, config: MaskRCNNConfig) -> None:
        self.config = config

    @classmethod
    def of(cls, config: MaskRCNNConfig | Shared) -> Shared:
        """Returns the holder itself, or a new one of a config."""
        return config if isinstance(config, Shared) else cls(config)

    def set(self, **values: Any) -> None:
        """Replaces fields of the config; raises InputError for values that no model can have."""
        self.config = replace(self.config, **values)


def number(field: str, most: float | None = None) -> property:
    """Returns a property that stands for a field of the shared config; most: what more than that means the same as."""

    def read(part: Part) -> Any:
        return getattr(part.shared.config, field)

    def write(part: Part, value: Any) -> None:
        part.shared.set(**{field: value if most is None else min(value, most)})

    text = next(f.metadata["help"] for f in fields(MaskRCNNConfig) if f.name == field)
    return property(read, write, doc=f"{field}: {text}")


class Part:
    """The base of what shares a config. Attributes are those that its classes name: another one would do nothing."""

    shared: Shared

    @property
    def config(self) -> MaskRCNNConfig:
        """The config as it is now."""
        return self.shared.config

    @config.setter
    def config(self, config: MaskRCNNConfig) -> None:
        self.shared.config = config

    @classmethod
    def settings(cls) -> list[str]:
        """Returns the names of the numbers that can be set."""
        return [name for name, value in vars(cls).items() if isinstance(value, property) and value.fset]

    def __setattr__(self, name: str, value: Any) -> None:
        known = hasattr(type(self), name) or any(name in vars(c).get("__annotations__", ()) for c in type(self).__mro__)
        if not known and not name.startswith("_"):
            advice = INSTEAD.get(name) or f"what can be set is {', '.join(self.settings())}"
            raise AttributeError(f"{type(self).__name__}.{name} would have no effect: {advice}")
        super().__setattr__(name, value)
