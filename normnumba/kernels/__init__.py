"""Kernels by backend: what both backends have is called alike, with the same signatures."""

BATCH, CONSTANT, GIVEN = 0, 1, 2
"""What a batch norm's dx takes from the sums over its channel: those of x itself, nothing, or those it is given."""

NONE, RELU, GELU, GELU_TANH, SILU = 0, 1, 2, 3, 4
"""The activation that follows a norm."""
