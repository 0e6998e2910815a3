"""The oracle: every public function again, in plain float64 NumPy on the original axes.

It is deliberately slow and plain, and shares no code with the kernels, so that the two cannot be wrong together.
Whatever comes in is converted to float64, everything that goes out is float64, and no argument is validated.
"""

from .batch import (
    batch_moments,
    batch_norm,
    batch_norm_backward,
    batch_norm_backward_apply,
    batch_norm_backward_sums,
    batch_norm_forward,
    batch_norm_inference,
    batch_norm_inference_backward,
    fold_batch_norm,
)
from .groups import (
    group_norm,
    group_norm_backward,
    group_norm_forward,
    instance_norm,
    instance_norm_backward,
    instance_norm_forward,
)
from .rows import (
    add_layer_norm_backward,
    add_layer_norm_forward,
    add_rms_norm_backward,
    add_rms_norm_forward,
    layer_norm,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
)

__all__ = [
    "add_layer_norm_backward",
    "add_layer_norm_forward",
    "add_rms_norm_backward",
    "add_rms_norm_forward",
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
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
]
