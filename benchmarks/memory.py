"""asv: the most memory a process holds while it runs one large call.

asv reports the whole process's peak, so the input is filled in place: a temporary of its making would hide the call's.
"""

from __future__ import annotations

import numpy as np

import normnumba


class Peak:
    version = "1"
    param_names = ("shape",)
    timeout = 120.0

    x: np.ndarray

    def setup(self, shape: str) -> None:
        self.x = np.empty(tuple(map(int, shape.split("x"))), np.float32)
        self.x.reshape(-1)[:] = 1.0
        self.x.reshape(-1)[::2] = -1.0


class PeakLayerNorm(Peak):
    params = ("65536x512",)

    def setup(self, shape: str) -> None:
        if not hasattr(normnumba, "layer_norm_forward"):
            raise NotImplementedError("this commit has no layer_norm_forward")
        super().setup(shape)

    def peakmem_layer_norm_forward(self, shape: str) -> None:
        normnumba.layer_norm_forward(self.x)


class PeakBatchNorm(Peak):
    params = ("32x256x64x64",)

    def setup(self, shape: str) -> None:
        if not hasattr(normnumba, "batch_norm_forward"):
            raise NotImplementedError("this commit has no batch_norm_forward")
        super().setup(shape)

    def peakmem_batch_norm_forward(self, shape: str) -> None:
        normnumba.batch_norm_forward(self.x)
