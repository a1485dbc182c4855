"""What the processes of a command on a trained model must have alike -> nothing, or a line that names what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from network_files import MaskRCNN
from train_utils.checkpoints.data_state import data_state, digests
from train_utils.data.dataset import ImageDataset
from train_utils.data.labels import LabelMap
from train_utils.prediction.runtimes.exported_model import ExportedModel
from train_utils.processes.agreement import Digest, Fact, digest, refuse_differences, version_facts
from train_utils.processes.distributed import World

# settings that a process may have otherwise: of its machine
OWN = ("weights_path", "weights_file", "label_json_path", "coco_json", "image_dir", "output_dir", "device", "workers")


def refuse_other_work(
    world: World,
    settings: Mapping[str, Any],
    model: MaskRCNN,
    label_map: LabelMap,
    data_set: ImageDataset | None = None,
) -> None:
    """Raises InputError on process 0, and ends the others silently, where some have other flags, weights or data.

    settings: by name; data_set: the images, where each process has opened them itself.
    """
    if world.size == 1:
        return
    flags = [Fact(f"--{name.replace('_', '-')}", value) for name, value in settings.items() if name not in OWN]
    weights = Fact("weights", weights_digest(model))
    groups = [version_facts(), flags, [weights, Fact("class names or ids", digest(label_map.to_dict()))]]
    if data_set is not None:
        state = data_state(data_set)
        columns = [Fact(name, Digest(value), name == "names") for name, value in digests(data_set, state).items()]
        groups.append([Fact("images", len(data_set), decides=True), *columns])
    refuse_differences(world, groups)


def weights_digest(model: MaskRCNN) -> Digest:
    """Returns a digest of a model's settings, weights and buffers; of an exported one, of what its file holds."""
    state = hashlib.sha256(repr(model.config).encode())
    file = model.file if isinstance(model, ExportedModel) else None
    for path in [] if file is None else [file, *sorted(file.rglob("*"))]:
        if path.is_file():
            state.update(path.read_bytes())
    for name, tensor in model.state_dict().items():
        state.update(name.encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())  # of any type
    return Digest(state.hexdigest())
