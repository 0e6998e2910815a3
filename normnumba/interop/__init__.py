"""Layers of other frameworks, converted to normnumba's and back. A framework is imported by the first conversion."""

from __future__ import annotations


def refuse_if(what: str, *reasons: tuple[bool, str]) -> None:
    """Raise for the first reason that holds why `what` cannot be converted."""
    for holds, reason in reasons:
        if holds:
            raise ValueError(f"{what} cannot be converted: {reason}")
