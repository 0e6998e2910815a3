"""`python -m normnumba compile`: what it compiles is what the ops call, and what it leaves is found."""

import json
import os
import re
import subprocess
import sys

import pytest

from normnumba import __main__ as command
from normnumba.kernels.cpu import compiling
from tests.helpers import ROOT, run_python

CALL = """
import numpy as np, normnumba as nn
nn.layer_norm_forward(np.ones((5, 7), np.float32))
nn.layer_norm_forward(np.ones((5, 7, 32), np.float32), axis=1)
"""

RECORD = """
import json
import numpy as np
import normnumba
from benchmarks.cases import OPS, RAGGED, Geometry
from normnumba.kernels.cpu import columns, compiling, launching, plain

class Idle:
    def __init__(self, kernel): pass
    def compile(self, signature): pass
    def disable_compile(self): pass
    def __call__(self, *args): pass

compiling.numba.njit = lambda **options: Idle
columns.address = launching.address = plain.address = lambda kernel: 0
variants = {name: kernel.variant for name, kernel in compiling.kernels.items()}
called, rng = {}, np.random.default_rng(0)
for op in OPS:
    large = Geometry((2, 2, 1025, 1025), 1), Geometry((1, 32, 32, 96), -1)
    for geometry in (*RAGGED[op.family], *(large if op.family.startswith(("batch", "group", "instance")) else ())):
        arguments = op.arguments(geometry, np.dtype(np.float32), rng)
        masks = [{}]
        if op.function.startswith("batch_") and "inference" not in op.function and geometry.size:
            masks.append({"mask": rng.random(np.delete(geometry.shape, geometry.axes)) < 0.9})
        for mask in masks:
            for cached in (plain._found, *variants.values()):
                cached.cache_clear()
            op(normnumba, {**arguments, **mask})
            used = {name for name, variant in variants.items() if variant.cache_info().currsize}
            called.setdefault(op.function, set()).update(used)
print(json.dumps({op: sorted(used) for op, used in called.items()}))
"""


def run(*arguments, **environment):
    return run_python("import runpy; runpy.run_module('normnumba', run_name='__main__')", *arguments, **environment)


def test_each_op_has_the_kernels_that_it_calls():
    called = json.loads(run_python(RECORD))
    assert {op: sorted(command.kernels_of(op)) for op in called} == called
    assert set(called) <= set(command.OPS)
    assert {name for used in called.values() for name in used} == set(compiling.kernels)


def test_what_was_compiled_is_found(tmp_path):
    arguments = ("compile", "--op", "layer_norm_f*")
    first = run(*arguments, NUMBA_CACHE_DIR=tmp_path).splitlines()
    files = sorted((f.name, f.stat().st_mtime_ns) for f in tmp_path.rglob("*.nb?"))
    assert first[0].split()[::3] == ["tasks.spread", "compiled"]
    assert sorted(line.split()[:2] + line.split()[4:] for line in first[1:4]) == [
        ["plain.rows_forward", "float32", "compiled"],
        ["rows.forward", "float32", "compiled"],
        ["strips.forward", "float32", "compiled"],
    ]
    assert first[4].startswith("4 kernels in ")
    assert first[4].endswith("s, 4 compiled and 0 already there")
    assert first[5].startswith(str(tmp_path))
    run_python(CALL, NUMBA_CACHE_DIR=tmp_path)
    assert "0 compiled and 4 already there" in run(*arguments, NUMBA_CACHE_DIR=tmp_path)
    assert files == sorted((f.name, f.stat().st_mtime_ns) for f in tmp_path.rglob("*.nb?"))


def test_everything_is_the_default():
    options = command._parse(["compile"])
    assert (options.kernels, options.dtype) == (list(compiling.kernels), ["float32"])
    assert command._parse(["compile", "--dtype", "all"]).dtype == ["float32", "float64", "float16", "bfloat16"]
    add = command._parse(["compile", "--op", "add_rms*"])
    kernels = ["rows.add_forward", "rows.add_backward", "plain.add_rows_forward", "plain.add_rows_backward"]
    assert add.kernels == kernels


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "int8"], "invalid choice: 'int8' .*float32.*bfloat16.*all"),
        (["--op", "layer_norm", "softmax"], "softmax matches none of add_layer_norm_backward, .*rms_norm_forward"),
        (["--op"], "expected at least one argument"),
        (["--threads"], "unrecognized arguments: --threads"),
    ],
)
def test_wrong_arguments_say_what_is_right(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["compile", *arguments])
    assert stopped.value.code == 2
    assert re.search(said, capsys.readouterr().err)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "normnumba", "compile"],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "file")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "nothing compiled: [Errno" in done.stderr
    assert not done.stdout
