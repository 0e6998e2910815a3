"""Kernels for arrays on a CUDA device, compiled by numba-cuda when they are first launched."""

from .channels import channels_backward, channels_forward, columns_backward, columns_forward
from .groups import groups_backward, groups_forward
from .rows import add_rows_backward, add_rows_forward, rows_backward, rows_forward
from .strips import strips_backward, strips_forward

__all__ = [
    "add_rows_backward",
    "add_rows_forward",
    "channels_backward",
    "channels_forward",
    "columns_backward",
    "columns_forward",
    "groups_backward",
    "groups_forward",
    "rows_backward",
    "rows_forward",
    "strips_backward",
    "strips_forward",
]
