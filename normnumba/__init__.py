"""Normalization layers for NumPy arrays, forward and backward, at the speed that memory allows."""

from . import layers
from .config import show_config
from .dispatch import backends
from .ops.add import (
    add_layer_norm_backward,
    add_layer_norm_forward,
    add_rms_norm_backward,
    add_rms_norm_forward,
)
from .ops.batch import (
    batch_norm,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
)
from .ops.blocks import batch_moments, batch_norm_backward_apply, batch_norm_backward_sums
from .ops.fold import fold_batch_norm
from .ops.groups import (
    group_norm,
    group_norm_backward,
    group_norm_forward,
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
)
from .ops.rows import layer_norm, layer_norm_backward, layer_norm_forward, rms_norm, rms_norm_backward, rms_norm_forward
from .pool import reuse_outputs

__version__ = "0.1.0"

__all__ = [
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "add_rms_norm_backward",
    "add_rms_norm_forward",
    "backends",
    "batch_moments",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_backward_apply",
    "batch_norm_backward_sums",
    "batch_norm_forward",
    "batch_norm_inference",
    "batch_norm_inference_backward",
    "fold_batch_norm",
    "group_norm",
    "group_norm_backward",
    "group_norm_forward",
    "instance_norm",
    "instance_norm_backward",
    "instance_norm_forward",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "layers",
    "reuse_outputs",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "show_config",
]
