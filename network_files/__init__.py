"""Feature pyramid -> boxes and masks; the whole network and its weights."""

from backbone.errors import InputError
from network_files.config import MaskRCNNConfig
from network_files.mask_rcnn import MaskRCNN, create_model
from network_files.operators.cropped_masks import CroppedMasks
from network_files.recorder import Recorder
from network_files.weight_files.weights import load_weights

__all__ = ["CroppedMasks", "InputError", "MaskRCNN", "MaskRCNNConfig", "Recorder", "create_model", "load_weights"]
