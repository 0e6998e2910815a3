"""Kernels for ndarrays, compiled by numba for the processor they run on."""

from .channels import channels_backward, channels_forward
from .columns import columns_backward, columns_forward
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
    "groups_backward",
    "groups_forward",
    "rows_backward",
    "rows_forward",
    "shifted",
    "stacked",
    "strips_backward",
    "strips_forward",
    "sum_samples",
    "update_running",
]
