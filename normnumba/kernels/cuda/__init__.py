"""Kernels for arrays on a CUDA device, compiled by numba-cuda when they are first launched."""

from .channels import (
    channels_backward,
    channels_forward,
    columns_backward,
    columns_forward,
    differentiate_masked,
    masked_moments,
)
from .groups import groups_backward, groups_forward
from .rows import add_rows_backward, add_rows_forward, rows_backward, rows_forward
from .strips import strips_backward, strips_forward
from .vectors import copy_finite, count_positions, shifted, stacked, sum_samples, update_running

__all__ = [
    "add_rows_backward",
    "add_rows_forward",
    "channels_backward",
    "channels_forward",
    "columns_backward",
    "columns_forward",
    "copy_finite",
    "count_positions",
    "differentiate_masked",
    "groups_backward",
    "groups_forward",
    "masked_moments",
    "rows_backward",
    "rows_forward",
    "shifted",
    "stacked",
    "strips_backward",
    "strips_forward",
    "sum_samples",
    "update_running",
]
