"""Kernels for ndarrays, compiled by numba for the processor they run on."""

from .channels import channels_backward, channels_forward
from .columns import columns_backward, columns_forward
from .groups import groups_backward, groups_forward
from .rows import rows_backward, rows_forward

__all__ = [
    "channels_backward",
    "channels_forward",
    "columns_backward",
    "columns_forward",
    "groups_backward",
    "groups_forward",
    "rows_backward",
    "rows_forward",
]
