"""What PyTorch, Keras and Flax mean by the same words, in one table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Convention:
    """The defaults of a framework's layers, and what its running statistics are.

    `momentum` is the weight of the old value where `momentum_of_old`, of the new one otherwise.
    """

    name: str
    channel_axis: int
    layer_eps: float
    rms_eps: float | None
    """None: the machine epsilon of the type that x is computed in."""
    batch_eps: float
    group_eps: float
    """Of instance norm as well."""
    momentum: float
    momentum_of_old: bool
    unbiased: bool
    """Whether the running variance is that of n - 1."""
    instance_affine: bool

    def weight_of_new(self, momentum: float | None, batches: int) -> float:
        """How much a batch counts in the running statistics when it is the `batches`-th; None averages all alike."""
        if momentum is None:
            return 1 / batches
        return 1 - momentum if self.momentum_of_old else momentum


CONVENTIONS = {
    row.name: row
    for row in (
        # name, channels on, eps of layer, RMS, batch, group norm, momentum, of the old, unbiased, affine instance norm
        Convention("torch", 1, 1e-5, None, 1e-5, 1e-5, 0.1, False, True, False),
        Convention("keras", -1, 1e-3, 1e-6, 1e-3, 1e-3, 0.99, True, False, True),
        Convention("flax", -1, 1e-6, 1e-6, 1e-5, 1e-6, 0.99, True, False, True),
    )
}
"""As of PyTorch 2.13, Keras 3.15 and Flax 0.12."""


def convention_of(name: str) -> Convention:
    """Return a row of the table."""
    if not isinstance(name, str) or name not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(map(repr, CONVENTIONS))}, got {name!r}")
    return CONVENTIONS[name]
