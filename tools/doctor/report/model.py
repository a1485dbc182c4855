"""The flags, and the data where it is known -> the model that sizes, anchors and masks are looked at for."""

from __future__ import annotations

from typing import Any

from network_files import MaskRCNNConfig
from network_files.weight_files.architecture import infer_architecture
from tools.doctor.report.options import Options
from train_utils.checkpoints.checkpoint import fitting_settings, is_checkpoint, load_file
from train_utils.checkpoints.weights_source import weights_file
from train_utils.data.dataset import ImageDataset
from train_utils.data.objects.fitting import asks_for_fit, fitted
from train_utils.run.defaults import BUILT_IN_MODEL, USUAL, default_geometry, default_weights, is_auto


def model_config(
    options: Options, classes: int | None = None, data_set: ImageDataset | None = None
) -> tuple[MaskRCNNConfig, str, list[str]]:
    """Returns (the model that sizes and anchors are looked at for, where it is from, lines on what `auto` chose).

    It is that of --weights-path, else train.py's for this data; flags that are given precede it. classes: of the data,
    background counted; data_set: that `auto` fits; None: it is not known yet, and the usual sizes stand for it.
    """
    about: list[str] = []

    def sized(fields: dict[str, Any]) -> dict[str, Any]:
        asked = asks_for_fit(fields)
        if data_set is None or not asked:
            return {name: value for name, value in fields.items() if name not in asked}
        fields, about[:] = fitted(fields, data_set)
        return fields

    given = {name: value for name, value in options.model.items() if name != "value_range" or not is_auto(value)}
    if options.weights_path:
        path = weights_file(options.weights_path)
        content = load_file(path)
        own, state = (
            (content["config"], content["model"])
            if is_checkpoint(content)
            else (infer_architecture(content, str(path), given.get("backbone")), content)
        )
        config, source = MaskRCNNConfig(**fitting_settings(path, own, sized(given), state)), f"the model of {path}"
    elif options.built_in:
        fields = sized({**BUILT_IN_MODEL, "geometry": default_geometry("none", {}), **given})
        config, source = MaskRCNNConfig(**fields), "train.py's model for these shapes"
    else:
        weights = default_weights(given.get("backbone", USUAL["backbone"]), given.get("variant"))
        fields = sized({"geometry": default_geometry(weights, {}, classes), **given})
        config, source = MaskRCNNConfig(**fields), "train.py's usual model"
    return config, source + (", and the flags given" if given else ""), about
