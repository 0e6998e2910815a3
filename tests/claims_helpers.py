"""What the tests of the claims study share: small runs, and comparing records."""

import dataclasses
import json

import numpy as np

from benchmarks.claims.runs import Run

TINY = Run(depth=1, width=8, steps=20)
"""The usual net is deeper, and trains for longer than any of these tests needs."""


def tiny(**settings):
    return dataclasses.replace(TINY, **settings)


def bits(record):
    """What tells two records apart by any bit, NaN being equal to NaN."""
    return json.dumps(record)


def shapes(record):
    return {name: (type(value), np.shape(value)) for name, value in record.items()}
