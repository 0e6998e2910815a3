"""ONNX Runtime: a model of one cell, from the operators that it has kernels for; there are none for gradients.

A function has the name of its op and returns the model's nodes, whose names of values are the table's. Channels lie on
axis 1 and normalized axes last, where the operators want them; for other layouts the model transposes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.cases import X_SIZED, Arguments, Op, data_of
from benchmarks.contender import Contender

onnx: Any = None
onnxruntime: Any = None
"""The modules, once `load` has imported them: asv imports this file where neither is installed."""

OPSET, IR_VERSION = 21, 10
"""The newest that older releases of ONNX Runtime read, too."""

BIND_FROM = 1 << 16
"""Bytes of x from which outputs are bound. A plain `run` copies them, binding them anew for a call takes 9 us."""

_threads = 1


def load(threads: int) -> None:
    """Import ONNX Runtime, for sessions with as many threads as numba has."""
    global onnx, onnxruntime, _threads
    import onnx
    import onnxruntime

    _threads = threads


def prepare(op: Op, arguments: Arguments) -> Contender | None:
    """The op as a session that allocates its outputs; None where there are no operators for it."""
    build = globals().get(op.function)
    if build is None:
        return None
    model = _model(_transposed(build(arguments), arguments), arguments)
    feeds = _feeds(model, arguments)
    session = _session(model)
    names = [output.name for output in session.get_outputs()]
    run = _bound(session, feeds, names)
    if data_of(arguments).nbytes < BIND_FROM:
        run = partial(session.run, names, feeds)

    def outputs(result: Any) -> tuple[Any, ...]:
        found = dict(zip(names, (a if isinstance(a, np.ndarray) else a.numpy() for a in result), strict=True))
        if "var" in found and op.direction == "forward":
            found["rstd"] = 1 / np.sqrt(found["var"] + found["var"].dtype.type(1e-5))
        return tuple(_shaped(found.get(name), name, arguments) for name in op.outputs)

    return Contender(run, outputs)


def _shaped(found: np.ndarray | None, name: str, a: Arguments) -> np.ndarray | None:
    if found is not None and "axis" in a and name in ("mean", "rstd"):
        return found.squeeze(-1)
    return found


# --- models and sessions ---------------------------------------------------------------------------------------------


def _node(operator: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def _permutation(a: Arguments) -> tuple[int, ...] | None:
    """The axes of x in the order that the operators want; None where they lie so already."""
    ndim = data_of(a).ndim
    here, there = (a["axis"] % ndim, ndim - 1) if "axis" in a else (a["channel_axis"] % ndim, 1)
    order = [axis for axis in range(ndim) if axis != here]
    order.insert(there, here)
    return None if order == list(range(ndim)) else tuple(order)


def _transposed(nodes: list[Any], a: Arguments) -> list[Any]:
    """The nodes between transpositions of all that has x's shape, where the layout asks for them."""
    order = _permutation(a)
    if order is None:
        return nodes
    made = {name for node in nodes for name in node.output if name in X_SIZED}
    used = {name for node in nodes for name in node.input if name in X_SIZED} - made
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [f"{name}_moved" if name in X_SIZED else name for name in names]
    back = [int(axis) for axis in np.argsort(order)]
    return [
        *(_node("Transpose", name, f"{name}_moved", perm=order) for name in sorted(used)),
        *nodes,
        *(_node("Transpose", f"{name}_moved", name, perm=back) for name in sorted(made)),
    ]


def _model(nodes: list[Any], a: Arguments) -> Any:
    """A model whose inputs are the table's arguments, and whose outputs are what no node uses up."""
    helper, dtype = onnx.helper, data_of(a).dtype
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    made = [name for node in nodes for name in node.output if name]
    used = dict.fromkeys(name for node in nodes for name in node.input)
    inputs = [helper.make_tensor_value_info(name, kind, _input(name, a).shape) for name in used if name not in made]
    outputs = [
        helper.make_tensor_value_info(name, kind if name in X_SIZED else onnx.TensorProto.FLOAT, None)
        for name in made
        if name not in used or name == "summed"
    ]
    graph = helper.make_graph(nodes, "cell", inputs, outputs)
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=IR_VERSION)


def _feeds(model: Any, a: Arguments) -> dict[str, np.ndarray]:
    """The model's inputs, parameters in x's dtype: the operators know no other."""
    names = [value.name for value in model.graph.input]
    return {name: _input(name, a).astype(data_of(a).dtype, copy=False) for name in names}


def _input(name: str, a: Arguments) -> np.ndarray:
    """An argument of the table's, or its like for what the operator wants and does not use."""
    return a["weight"] if name.startswith("old_") else a[name]


def _session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads
    options.log_severity_level = 4  # what goes wrong is raised, too
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _bound(session: Any, feeds: dict[str, np.ndarray], names: list[str]) -> Any:
    """A call that allocates its outputs through a binding."""
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))

    def run() -> Any:
        # A binding keeps the outputs of its first run, and every later one would write into them again.
        binding.clear_binding_outputs()
        for name in names:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return binding.get_outputs()

    return run


# --- the ops ---------------------------------------------------------------------------------------------------------


def _followed(norm: Any, a: Arguments) -> list[Any]:
    """The nodes of a norm and of what follows it."""
    nodes, last = [norm], "y"
    steps = [*(["residual"] if "residual" in a else []), *([a["activation"]] if "activation" in a else [])]
    for i, step in enumerate(steps):
        nodes[-1].output[0] = before = f"step{i}"
        if step == "silu":
            nodes += [_node("Sigmoid", before, "gate"), _node("Mul", f"{before} gate", last)]
        elif step == "residual":
            nodes.append(_node("Add", f"{before} residual", last))
        else:
            nodes.append(_node({"relu": "Relu", "gelu": "Gelu"}[step], before, last))
    return nodes


def layer_norm_forward(a: Arguments) -> list[Any]:
    return [_node("LayerNormalization", "x weight bias", "y mean rstd", epsilon=1e-5)]


def rms_norm_forward(a: Arguments) -> list[Any]:
    # RMSNormalization has no kernel of its own: it would run as six operators.
    return [_node("SimplifiedLayerNormalization", "x weight", "y rstd", epsilon=1e-6)]


def add_layer_norm_forward(a: Arguments) -> list[Any]:
    return [_node("Add", "x residual", "summed"), _node("LayerNormalization", "summed weight bias", "y mean rstd")]


def add_rms_norm_forward(a: Arguments) -> list[Any]:
    norm = _node("SimplifiedLayerNormalization", "summed weight", "y rstd", epsilon=1e-6)
    return [_node("Add", "x residual", "summed"), norm]


def batch_norm_forward(a: Arguments) -> list[Any]:
    # With no weight on the old ones, the new running statistics are those of the batch.
    training = {"training_mode": 1, "momentum": 0.0, "epsilon": 1e-5}
    return _followed(_node("BatchNormalization", "x weight bias old_mean old_var", "y mean var", **training), a)


def batch_norm_inference(a: Arguments) -> list[Any]:
    return _followed(_node("BatchNormalization", "x weight bias mean var", "y", epsilon=1e-5), a)


def group_norm_forward(a: Arguments) -> list[Any]:
    groups = {"num_groups": a["num_groups"], "epsilon": 1e-5}
    return _followed(_node("GroupNormalization", "x weight bias", "y", **groups), a)


def instance_norm_forward(a: Arguments) -> list[Any]:
    return [_node("InstanceNormalization", "x weight bias", "y", epsilon=1e-5)]
