"""Writes the small graphs that the tests of `src/repair` run: `python make.py` (packages onnx and numpy).

They keep SliceFixer's contract and do something that a test can compute by itself, with a model window of -1000 to 1000 HU:

    context  = [[mean of view 0, mean of view 1, anatomy], [view 0's first row, its first three pixels]]
    repaired = middle + 0.1 ((below + above) / 2 - middle) + 0.03 (pixel of the next row - middle) + 0.05 (pixel of the next column - middle)
               + 0.01 plane + 0.02 height + 0.004 * sum of the context's first token

where beyond the edge the last row and column are repeated. `broken` holds graphs that each break one thing.
"""

import hashlib
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

HERE = Path(__file__).parent
OPSET = 18
FLOAT, INT64, DOUBLE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.DOUBLE
TYPES = {FLOAT: "float32", INT64: "int64", DOUBLE: "float64"}
ROWS, COLUMNS = 4, 6


def constant(name, values, kind=np.float32):
    return numpy_helper.from_array(np.array(values, kind), name)


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def model(name, inputs, outputs, nodes, constants, opset=OPSET):
    bodies = [inner for node in nodes for attribute in node.attribute for inner in attribute.g.node]
    used = {name for node in (*nodes, *bodies) for name in node.input}
    constants = [constant for constant in constants if constant.name in used]
    graph = helper.make_graph(nodes, name, inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="diffnr tests")
    checker.check_model(made, full_check=True)
    return made


def condition():
    inputs = [value("projections", FLOAT, [1, 2, ROWS, COLUMNS]), value("anatomy", INT64, [1])]
    nodes = [
        node("ReduceMean", ["projections", "pixels"], "means", keepdims=0),
        node("Cast", ["anatomy"], "index", to=FLOAT),
        node("Unsqueeze", ["index", "first"], "word"),
        node("Concat", ["means", "word"], "token", axis=1),
        node("Unsqueeze", ["token", "second"], "token0"),
        node("Slice", ["projections", "starts", "ends"], "corner"),
        node("Reshape", ["corner", "shape"], "token1"),
        node("Concat", ["token0", "token1"], "context", axis=1),
    ]
    constants = [
        constant("pixels", [2, 3], np.int64),
        constant("first", [0], np.int64),
        constant("second", [1], np.int64),
        constant("starts", [0, 0, 0, 0], np.int64),
        constant("ends", [1, 1, 1, 3], np.int64),
        constant("shape", [1, 1, 3], np.int64),
    ]
    return model("condition", inputs, [value("context", FLOAT, [1, 2, 3])], nodes, constants)


def repair(opset=OPSET, channels=3, kind=FLOAT, last=None, name="repair"):
    inputs = [
        value("slices", kind, ["batch", channels, "rows", "columns"]),
        value("context", FLOAT, [1, 2, 3]),
        value("plane", INT64, ["batch"]),
        value("height", FLOAT, ["batch"]),
    ]
    kernel = np.zeros((1, channels, 3, 3), np.float32)
    kernel[0, 0, 1, 1] = kernel[0, -1, 1, 1] = 0.05
    kernel[0, channels // 2] += [[0, 0, 0], [0, 1 - 0.1 - 0.03 - 0.05, 0.05], [0, 0.03, 0]]
    nodes = [
        node("Cast", ["slices"], "slices32", to=FLOAT),
        node("Pad", ["slices32", "pads"], "padded", mode="edge"),
        node("Conv", ["padded", "kernel"], "mixed"),
        node("Cast", ["plane"], "plane32", to=FLOAT),
        node("Mul", ["plane32", "by_plane"], "of_plane"),
        node("Mul", ["height", "by_height"], "of_height"),
        node("Add", ["of_plane", "of_height"], "of_slice"),
        node("Unsqueeze", ["of_slice", "axes"], "of_slice4"),
        node("Slice", ["context", "starts", "ends", "along"], "token"),
        node("ReduceSum", ["token"], "sum", keepdims=0),
        node("Mul", ["sum", "by_context"], "of_context"),
        node("Add", ["mixed", "of_slice4"], "with_slice"),
        node("Add", ["with_slice", "of_context"], "sound" if last else "repaired"),
        *(last or []),
    ]
    constants = [
        constant("pads", [0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        constant("kernel", kernel),
        constant("by_plane", 0.01),
        constant("by_height", 0.02),
        constant("by_context", 0.004),
        constant("axes", [1, 2, 3], np.int64),
        constant("starts", [0], np.int64),
        constant("ends", [1], np.int64),
        constant("along", [1], np.int64),
        constant("half", 0.5),
        constant("huge", 1e3),
        constant("none", 0.0),
        constant("endless", 1 << 60, np.int64),
        constant("never", 0, np.int64),
        constant("yes", True, np.bool_),
        constant("zero", [0.0]),
        constant("one", [1.0]),
    ]
    return model(name, inputs, [value("repaired", FLOAT, ["batch", 1, "rows", "columns"])], nodes, constants, opset)


def doubtful(nodes):
    """The sound repair, and something added for slices above half of the height."""
    above = node("Sub", ["height", "half"], "above")
    to_image = node("Unsqueeze", ["odd", "axes"], "odd4")
    return [above, *nodes, to_image, node("Add", ["sound", "odd4"], "repaired")]


def stalling():
    """Adds 1 to 0 some 2^60 times where a slice stands above half of the height."""
    count = value("iteration", INT64, [])
    body = helper.make_graph(
        [node("Add", ["sum_in", "one"], "sum_out"), node("Identity", ["go_in"], "go_out")],
        "body",
        [count, value("go_in", TensorProto.BOOL, []), value("sum_in", FLOAT, [1])],
        [value("go_out", TensorProto.BOOL, []), value("sum_out", FLOAT, [1])],
    )
    nodes = [
        node("ReduceMax", ["above"], "highest", keepdims=0),
        node("Greater", ["highest", "none"], "stalls"),
        node("Where", ["stalls", "endless", "never"], "turns"),
        node("Loop", ["turns", "yes", "zero"], "many", body=body),
        node("Mul", ["many", "zero"], "odd"),
    ]
    return doubtful(nodes)


def graphs():
    not_a_number = doubtful([node("Neg", ["above"], "below"), node("Sqrt", ["below"], "root"), node("Sub", ["root", "root"], "odd")])
    far = doubtful([node("Relu", ["above"], "part"), node("Mul", ["part", "huge"], "odd")])
    return {
        "condition": condition(),
        "repair": repair(),
        "broken/opset17": repair(opset=17),
        "broken/channels": repair(channels=5),
        "broken/type": repair(kind=DOUBLE),
        "broken/nan": repair(last=not_a_number),
        "broken/far": repair(last=far),
        "broken/stall": repair(last=stalling()),
    }


def probe():
    """y = 2 x, for `diffnr doctor` to ask execution providers with."""
    nodes = [node("MatMul", ["x", "w"], "y")]
    return model("probe", [value("x", FLOAT, [8, 8])], [value("y", FLOAT, [8, 8])], nodes, [constant("w", 2 * np.eye(8))])


def manifest(files):
    lines = [
        "format = 1",
        'name = "test"',
        f"opset = {OPSET}",
        "window_hu = [-1000.0, 1000.0]",
        "neighbours = 1",
        "multiple = 8",
        'planes = ["axial", "coronal", "sagittal"]',
        'anatomies = ["other", "head", "chest"]',
        "[anatomy_of_name]",
        'thorax = "chest"',
    ]
    for role in ("condition", "repair"):
        path, made = files[role]
        lines += ["", "[[graph]]", f'role = "{role}"', f'file = "{path.name}"', f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"']
        for kind, values in (("input", made.graph.input), ("output", made.graph.output)):
            for one in values:
                tensor = one.type.tensor_type
                sizes = ", ".join(f'"{size.dim_param}"' if size.dim_param else str(size.dim_value) for size in tensor.shape.dim)
                lines += [f"[[graph.{kind}]]", f'name = "{one.name}"', f'type = "{TYPES[tensor.elem_type]}"', f"shape = [{sizes}]"]
    return "\n".join(lines) + "\n"


files = {}
for name, made in graphs().items():
    path = HERE / f"{name}.onnx"
    path.parent.mkdir(exist_ok=True)
    save(made, path)
    files[name] = (path, made)
(HERE / "manifest.toml").write_text("# Made by make.py.\n" + manifest(files))
save(probe(), HERE.parents[2] / "src/repair/probe.onnx")
