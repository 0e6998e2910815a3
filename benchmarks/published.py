"""What others published about normalization on GPUs, to stand beside what is measured here."""

from __future__ import annotations

from benchmarks.selection import Cell

SOURCE = "NVIDIA, norm benchmark of cudnn-frontend, one H200, bfloat16, February 2026"

_GBS = {
    ("rms_norm", "16384x4096"): {"cuDNN": (3708, 3801), "PyTorch": (3365, 1807), "torch.compile": (3523, 1704)},
    ("rms_norm", "8192x8192"): {"cuDNN": (3771, 3526), "PyTorch": (2628, 1548), "torch.compile": (4176, 1703)},
    ("rms_norm", "4096x16384"): {"cuDNN": (3845, 3420), "PyTorch": (2396, 1542), "torch.compile": (4007, 2276)},
    ("rms_norm", "2048x4096"): {"cuDNN": (3352, 2795), "PyTorch": (2725, 1705), "torch.compile": (2783, 1641)},
    ("rms_norm", "131072x128"): {"cuDNN": (3203, 2923), "torch.compile": (3892, 1827)},
    ("rms_norm", "8192x128"): {"cuDNN": (1436, 729), "PyTorch": (567, 232), "torch.compile": (1738, 727)},
    ("layer_norm", "1024x12288"): {"cuDNN": (3227, 946), "PyTorch": (1644, 1245), "torch.compile": (2552, 1773)},
}
"""GB/s, forward and backward, with two arrays of x's size moved forward and three backward."""


def published(cell: Cell) -> dict[str, int]:
    """GB/s by library; empty where nothing is published."""
    shape, _, axis = str(cell.geometry).partition("@")
    directions = (f"{cell.op.family}_forward", f"{cell.op.family}_backward")
    if axis != "-1" or cell.dtype != "bfloat16" or cell.op.name not in directions:
        return {}
    found = _GBS.get((cell.op.family, shape), {})
    return {library: rates[directions.index(cell.op.name)] for library, rates in found.items()}
