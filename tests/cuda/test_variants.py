"""The machine code of the CUDA kernels, for architectures that are not here.

Every launch that the table's ops make on some shapes is written down. One kernel of each family is built for all
architectures, and one of each dtype for one of them in turn. `--every-variant` builds everything for all.
"""

import collections
import itertools
import re

import numpy as np
import pytest
from _pytest.monkeypatch import MonkeyPatch

from benchmarks.cases import DTYPES, OPS, RAGGED, Geometry
from tests.cuda import offline
from tests.helpers import arguments_of, shared

pytestmark = pytest.mark.cuda_offline

SHAPES = shared(
    rows=(
        *(Geometry((2, n), -1) for n in (64, 128, 256, 1024, 2048, 4096, 8192, 16384, 32768)),
        *(Geometry((2, 8, 64), 1), Geometry((2, 8, 33), 1)),
    ),
    channels=(
        *(Geometry((2, 64, 8, 8), 1), Geometry((2, 8, 8, 64), -1), Geometry((2, 64, 7, 7), 1), Geometry((32, 64), 1)),
        *(Geometry((2, 6, 5, 3), 1), Geometry((2, 5, 3, 6), -1), Geometry((1, 32, 64, 64), 1)),
    ),
)

DOUBLE = ("DADD", "DMUL", "DFMA")

IN_DOUBLE = ("merge_", "prepare", "sum_rows", "add_samples", "average")
"""Kernels for one value of each unit or parameter, which float64 costs nothing."""


def family(kernel):
    return kernel.name.partition("-")[0]


@pytest.fixture(scope="session")
def variants():
    """Every kernel that is launched, by name."""
    pytest.importorskip("greenlet")
    if offline.missing():
        pytest.skip(offline.missing())
    from tests.cuda.emulation import Library

    with MonkeyPatch.context() as monkeypatch:
        library, rng = Library(monkeypatch, execute=False), np.random.default_rng(0)
        for op in OPS:
            for geometry in (*SHAPES[op.family], *RAGGED[op.family][:4]):
                for dtype in DTYPES:
                    op(library, arguments_of(op, geometry, dtype, rng))
        return {kernel.name: kernel for kernel, _, _ in library.emulation.launches}


def _some(variants):
    """[(kernel, cc)]"""
    longest = {}
    for name, kernel in sorted(variants.items(), key=lambda item: [int(n) for n in re.findall(r"-(\d+)", item[0])]):
        longest[re.sub(r"-(\d+)-\d+-\d+", r"-\1", name, count=1)] = kernel
    kinds = {k: [*k.name.split("-"), ""] for k in longest.values()}
    families = {parts[0]: kernel for kernel, parts in kinds.items()}
    dtypes = {tuple(parts[:2]): kernel for kernel, parts in kinds.items()}
    others = [k for k in dtypes.values() if k not in families.values()]
    everywhere = [(kernel, cc) for kernel in families.values() for cc in offline.ARCHITECTURES]
    return everywhere + list(zip(others, itertools.cycle(offline.ARCHITECTURES), strict=False))


def _width(kernel):
    """Elements that a thread takes at a time."""
    found = re.search(r"-float(?:32|64)-(\d+)(?:-|$)", kernel.name)
    return int(found[1]) if found else 0


@pytest.fixture(scope="session")
def built(variants, request):
    """[(kernel, Built)]"""
    if request.config.getoption("--every-variant"):
        wanted = [(kernel, cc) for kernel in variants.values() for cc in offline.ARCHITECTURES]
    else:
        wanted = _some(variants)
    by_cc = collections.defaultdict(list)
    for kernel, cc in wanted:
        by_cc[cc].append(kernel)
    for cc, kernels in by_cc.items():
        offline.build_all(kernels, (cc,))
    return [(kernel, offline.build(kernel, cc)) for kernel, cc in wanted]


def test_every_family_is_built_for_every_architecture(built):
    families = collections.defaultdict(set)
    for kernel, result in built:
        families[family(kernel)].add(result.cc)
    assert len(families) > 12
    assert set(map(frozenset, families.values())) == {frozenset(offline.ARCHITECTURES)}


def test_nothing_spills(built):
    assert not [(b.name, b.cc) for _, b in built if b.stack or b.spill_stores or b.spill_loads]
    assert not [(b.name, b.cc) for _, b in built if b.count("LDL", "STL")]


def test_registers_suffice_for_every_launch(built):
    assert not [(b.name, b.cc, b.registers) for k, b in built if b.registers * k.threads > 65536]


def test_no_register_is_wasted(built):
    ceiling = {"row_forward": 128, "row_backward": 128, "products_across": 128}
    assert not [(b.name, b.cc, b.registers) for k, b in built if b.registers > ceiling.get(family(k), 96)]


def test_float32_is_not_computed_in_float64(built):
    single = [b for k, b in built if "float64" not in k.name and not family(k).startswith(IN_DOUBLE)]
    assert single
    assert not [(b.name, b.cc, b.count(*DOUBLE)) for b in single if b.count(*DOUBLE)]
    assert any(b.count(*DOUBLE) for k, b in built if "-float64-" in k.name), "or nothing would be counted"


def test_accesses_are_of_16_bytes(built):
    writing = ("row_forward", "row_backward", "normalize", "differentiate")
    reading = (*writing, "moments_along", "moments_across", "products_along", "products_across")
    seen = set()
    for kernel, result in built:
        size = {"float32": 4, "float64": 8}.get([*kernel.name.split("-"), ""][1], 2)
        if family(kernel) in reading and size * _width(kernel) == 16:
            assert result.count("LDG.E.128"), result.name
            assert family(kernel) not in writing or result.count("STG.E.128"), result.name
            seen.add(family(kernel))
    assert seen == set(reading)
