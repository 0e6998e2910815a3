"""Layers: the functions of normnumba with parameters, gradients and running statistics that they keep themselves."""

from .base import Layer
from .batch import BatchNorm, BatchRenorm
from .conventions import CONVENTIONS, Convention
from .groups import GroupNorm, InstanceNorm
from .rows import LayerNorm, RMSNorm
from .saving import load, save

__all__ = [
    "CONVENTIONS",
    "BatchNorm",
    "BatchRenorm",
    "Convention",
    "GroupNorm",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "RMSNorm",
    "load",
    "save",
]
