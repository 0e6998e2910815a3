"""README.md and docs/ hold: code runs as it stands and prints what is shown, and lines said to be equal are."""

import contextlib
import functools
import io
import os
import re
from importlib.util import find_spec

import numpy as np
import pytest

import normnumba
from normnumba import layers
from tests.helpers import ROOT

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
README, FRAMEWORKS = PAGES["README.md"], PAGES["frameworks.md"]

EXAMPLES = [
    pytest.param(code, shown, id=f"{name}-{number}")
    for name, page in PAGES.items()
    for number, (code, shown) in enumerate(re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL), 1)
]

# Said of tensors by NumPy 2 when Keras on torch converts them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture
def framework(monkeypatch, tmp_path):
    """Import a framework, or skip. Keras writes a file of settings into its home."""

    def imported(name, minversion=None):
        if name == "keras":
            backends = [backend for backend in ("jax", "torch", "tensorflow") if find_spec(backend)]
            monkeypatch.setenv("KERAS_BACKEND", os.environ.get("KERAS_BACKEND", (*backends, "none")[0]))
            monkeypatch.setenv("KERAS_HOME", str(tmp_path))
            if not backends:
                pytest.skip("Keras has no backend here")
        return pytest.importorskip(name, minversion=minversion)

    return imported


# --- code ------------------------------------------------------------------------------------------------------------


def test_every_python_block_shows_its_output():
    assert len(EXAMPLES) == sum(page.count("```python") for page in PAGES.values())
    assert README.count("```python") == 2


@pytest.mark.parametrize(("code", "shown"), EXAMPLES)
def test_example_prints_what_is_shown(code, shown, framework, monkeypatch, tmp_path):
    for name in re.findall(r"^(?:import|from) (torch|keras|flax)\b", code, re.MULTILINE):
        framework(name)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<example>", "exec"), {})
    assert printed.getvalue() == shown


@pytest.mark.parametrize(
    "command",
    [
        'python -m pip install -e ".[bench]" && python -m benchmarks',
        'python -m pip install -e ".[test]" && python -m pytest',
    ],
)
def test_command_stands_alone_in_a_block(command):
    assert f"```sh\n{command}\n```" in README


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    """Relative links to files that are there, and those inside a page to its headings."""
    page, folder = PAGES[name], ROOT if name == "README.md" else ROOT / "docs"
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)", page, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", page):
        if not target.startswith("http"):
            file, _, heading = target.partition("#")
            assert (folder / file).exists(), target
            assert not heading or heading in headings, target


def test_every_public_function_is_in_the_readme():
    assert [name for name in normnumba.__all__ if f"`{name}`" not in README and name != "layers"] == []


# --- tables of lines -------------------------------------------------------------------------------------------------

N, C, H, W, T, G = 4, 6, 5, 3, 7, 3


def pairs_of(heading):
    """The rows of a section's tables: a line of code on either side."""
    section = re.split(r"\n##+ ", FRAMEWORKS.split(f"\n### {heading}\n")[1])[0]
    pairs = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|$", section, re.MULTILINE)
    assert len(pairs) == section.count("\n| `"), heading
    return [pytest.param(*pair, id=pair[0]) for pair in pairs]


def arrays_for(line, channels_last, rng):
    """The arrays that lines are about, so small that a wrong epsilon shows."""
    rows = re.search("layer_?norm|rms|standardize", line, re.IGNORECASE) and "permute" not in line
    shape = (N, T, C) if rows else (N, H, W, C) if channels_last else (N, C, H, W)
    sizes = {"x": shape, "dy": shape, "residual": shape, "w": C, "b": C, "rm": C, "conv_w": (C, 3, 3, 3), "conv_b": C}
    given = {name: rng.standard_normal(size, dtype=np.float32) for name, size in sizes.items()}
    given |= {name: given[name] * np.float32(0.02) for name in ("x", "rm")}
    given["rv"] = rng.uniform(1e-4, 1e-3, C).astype(np.float32)
    for kind in ("layer_norm", "batch_norm", "group_norm"):
        if f"{kind}_backward" in line:
            groups = [G] if kind == "group_norm" else []
            _, given["mean"], given["rstd"] = getattr(normnumba, f"{kind}_forward")(given["x"], *groups)
    return given


def assert_same(theirs, ours):
    theirs, ours = (value if isinstance(value, (tuple, list)) else (value,) for value in (theirs, ours))
    for a, b in zip(theirs, ours, strict=True):
        a, b = np.ravel(a), np.ravel(b)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def compare(left, right, given, names, convert, call, to_numpy):
    """Evaluate both lines; compare what they return, or what the two layers do."""
    sizes = {"N": N, "C": C, "H": H, "W": W, "T": T, "G": G}
    here = {"np": np, "nn": normnumba, "layers": layers, **sizes, **{k: v.copy() for k, v in given.items()}}
    there = {**names, **sizes, **{k: convert(v) for k, v in given.items()}}
    ours, theirs = eval(right, here), eval(left, there)
    if not isinstance(ours, layers.Layer):
        values = theirs if isinstance(theirs, (tuple, list)) else (theirs,)
        assert_same([to_numpy(value) for value in values], ours)
        for name in ("rm", "rv"):
            assert_same(to_numpy(there[name]), here[name])
        return
    for training, scale in ((True, 1), (True, 1000), (False, 1)):  # the second makes the running variance show
        x = given["x"] * np.float32(scale)
        assert_same(to_numpy(call(theirs, convert(x), training)), ours.train(training)(x))


@pytest.mark.parametrize(("left", "right"), pairs_of("PyTorch"))
def test_pytorch_line(left, right, framework, rng):
    torch = framework("torch")
    if "_fused_rms_norm" in left and not hasattr(torch.ops.aten, "_fused_rms_norm"):
        pytest.skip("this PyTorch has no such op")
    names = {"torch": torch, "F": torch.nn.functional, "aten": torch.ops.aten}
    if "fusion" in left:
        from torch.nn.utils import fusion

        names["fusion"] = fusion

    def call(module, x, training):
        return module.train(training)(x)

    given = arrays_for(left, False, rng)
    compare(left, right, given, names, torch.tensor, call, lambda value: value.detach().numpy())


@pytest.mark.parametrize(("left", "right"), pairs_of("Keras"))
def test_keras_line(left, right, framework, rng):
    keras = framework("keras", "3.9")  # which has RMSNormalization

    def call(layer, x, training):
        # Only a batch norm knows the two apart.
        return layer(x, training=training) if "BatchNormalization" in left else layer(x)

    convert, to_numpy = keras.ops.convert_to_tensor, keras.ops.convert_to_numpy
    compare(left, right, arrays_for(left, True, rng), {"keras": keras}, convert, call, to_numpy)


@pytest.mark.parametrize(("left", "right"), pairs_of("Flax and JAX"))
def test_flax_line(left, right, framework, rng):
    jax, nnx = framework("jax"), framework("flax.nnx")

    def call(layer, x, training):
        return layer(x, use_running_average=not training) if "BatchNorm" in left else layer(x)

    names = {"jax": jax, "nnx": nnx, "rngs": nnx.Rngs(0)}
    compare(left, right, arrays_for(left, True, rng), names, jax.numpy.asarray, call, np.asarray)


@pytest.mark.parametrize(("left", "right"), pairs_of("ONNX"))
def test_onnx_line(left, right, framework, rng):
    onnx, reference = framework("onnx", "1.18"), framework("onnx.reference")  # which has RMSNormalization

    def run(operator, *inputs, **attributes):
        given = {f"input{i}": array for i, array in enumerate(inputs)}
        outputs = ["y", "mean", "rstd"] if operator == "LayerNormalization" else ["y"]
        kind, describe = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
        node = onnx.helper.make_node(operator, list(given), outputs, **attributes)
        values = [describe(name, kind, array.shape) for name, array in given.items()]
        graph = onnx.helper.make_graph([node], operator, values, [describe(name, kind, None) for name in outputs])
        return reference.ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, given)

    operator = left.partition("(")[0]
    names = {operator: functools.partial(run, operator)}
    compare(left, right, arrays_for(left, False, rng), names, np.copy, None, np.asarray)
