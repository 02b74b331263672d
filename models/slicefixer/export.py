"""ONNX graphs (opset 18, weights in fp16, computed in fp32) and the manifest that says what they take and give."""

import hashlib
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from .checkpoint import load, model_of
from .compact import PROJECTION
from .data import DataError
from .model import ANATOMIES, ANATOMY_OF_NAME, Scan, SliceFixer

OPSET = 18

# A protobuf message, which a graph is, cannot be longer. `diffnr` reads graphs of one file, with no data outside.
MOST_BYTES = 2**31 - 1

# Models with more values (in fp32 twice this) are written with their data outside on the way, and joined once the weights are halved.
MOST_VALUES_INSIDE = MOST_BYTES // 5

# Initialisers with fewer values stay fp32: they cost nothing, and among them are constants of the graph itself.
LEAST_HALVED = 64


class Condition(nn.Module):
    def __init__(self, model: SliceFixer):
        super().__init__()
        self.model = model

    def forward(self, projections: torch.Tensor, anatomy: torch.Tensor) -> torch.Tensor:
        return self.model.condition(Scan(projections, anatomy))


class Repair(nn.Module):
    def __init__(self, model: SliceFixer):
        super().__init__()
        self.model = model

    def forward(self, slices: torch.Tensor, context: torch.Tensor, plane: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
        return self.model.repair(slices, context, plane, height)


def graph(module: nn.Module, inputs: dict[str, torch.Tensor], output: str, dynamic: dict[str, dict[int, str]]) -> onnx.ModelProto:
    """The module as a graph without any trace of where it was made."""
    shapes = {name: {axis: torch.export.Dim.DYNAMIC for axis in axes} for name, axes in dynamic.items()}
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        path = Path(folder) / "graph.onnx"
        outside = sum(p.numel() for p in module.parameters()) > MOST_VALUES_INSIDE
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=tuple(shapes.get(name) for name in inputs) if shapes else None,
            external_data=outside,
            verbose=False,
        )
        model = onnx.load(path)
    for of_graph in (model.graph.input, model.graph.output):
        for value in of_graph:
            for axis, name in dynamic.get(value.name, {}).items():
                value.type.tensor_type.shape.dim[axis].dim_param = name
    strip(model)
    return model


def strip(model: onnx.ModelProto) -> None:
    """Removes stack traces, which name local files, and shapes of inner values."""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        if part.metadata_props:
            del part.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    model.producer_name, model.producer_version = "slicefixer", ""


def halve(model: onnx.ModelProto) -> None:
    """Stores weights as fp16, each with a Cast behind it: half the size, and a runtime folds the casts away."""
    casts = []
    for weight in list(model.graph.initializer):
        if weight.data_type != TensorProto.FLOAT or np.prod(weight.dims) < LEAST_HALVED:
            continue
        values = numpy_helper.to_array(weight)
        # Half precision ends at 65504; weights beyond it would be infinite.
        assert np.abs(values).max() < 6e4, weight.name
        name = weight.name
        weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name + ".fp16"))
        casts.append(helper.make_node("Cast", [name + ".fp16"], [name], name="cast " + name, to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(casts + nodes)


def check_size(model: onnx.ModelProto, name: str) -> None:
    """Refuses what no single file can hold."""
    # Not ByteSize(), which fails itself beyond the limit. Weights are all but a thousandth of it.
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size > MOST_BYTES * 0.999:
        raise DataError(f"{name} would have {size} bytes of weights, one file holds {MOST_BYTES}, and diffnr reads graphs of one file")


def graphs(model: SliceFixer) -> dict[str, onnx.ModelProto]:
    """Role (`condition`, `repair`) to graph."""
    # Sizes unlike each other and unlike 1, so that none is taken for a constant.
    batch, rows, columns = 3, 4 * model.multiple, 5 * model.multiple
    projections, anatomy = torch.zeros(1, 2, PROJECTION, PROJECTION), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        context = model.condition(Scan(projections, anatomy))
    slices = torch.zeros(batch, model.channels, rows, columns)
    plane, height = torch.zeros(batch, dtype=torch.int64), torch.linspace(0.1, 0.9, batch)
    condition = graph(Condition(model), {"projections": projections, "anatomy": anatomy}, "context", {})
    repair = graph(
        Repair(model),
        {"slices": slices, "context": context, "plane": plane, "height": height},
        "repaired",
        {
            "slices": {0: "batch", 2: "rows", 3: "columns"},
            "plane": {0: "batch"},
            "height": {0: "batch"},
            "repaired": {0: "batch", 2: "rows", 3: "columns"},
        },
    )
    return {"condition": condition, "repair": repair}


def toml_value(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def shape_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


TYPES = {TensorProto.FLOAT: "float32", TensorProto.INT64: "int64"}


def manifest(name: str, model: SliceFixer, files: dict[str, tuple[Path, onnx.ModelProto]], training: dict) -> str:
    """What a runtime checks before it trusts a model (DESIGN.md: refused by the name of what differs)."""
    lines = [
        "# What these graphs take and give; a runtime refuses a model that differs. Made by `python -m slicefixer export`.",
        "format = 1",
        f"name = {toml_value(name)}",
        f"opset = {OPSET}",
        f"# HU that become -1 and 1; linear, nothing is clipped.\nwindow_hu = {toml_value([model.window.low, model.window.high])}",
        f"# A slice stands between so many others on each side.\nneighbours = {model.neighbours}",
        f"# Behind these: what the scan says and the volume does not, of the same slices, in units of the window without its offset.\nunexplained = {toml_value(model.unexplained)}",
        f"# Rows and columns are padded to multiples of this.\nmultiple = {model.multiple}",
        f"planes = {toml_value(model.planes)}",
        f"anatomies = {toml_value(ANATOMIES)}",
        "\n# Names of parts of the body that go by another.\n[anatomy_of_name]",
        *(f"{name} = {toml_value(anatomy)}" for name, anatomy in sorted(ANATOMY_OF_NAME.items())),
        "\n[training]",
        *(f"{key} = {toml_value(value)}" for key, value in training.items()),
    ]
    for role, (path, proto) in files.items():
        lines += ["\n[[graph]]", f'role = "{role}"', f'file = "{path.name}"', f'sha256 = "{hashlib.sha256(path.read_bytes()).hexdigest()}"']
        for kind, values in (("input", proto.graph.input), ("output", proto.graph.output)):
            for value in values:
                lines += [f"[[graph.{kind}]]", f'name = "{value.name}"', f'type = "{TYPES[value.type.tensor_type.elem_type]}"']
                lines.append(f"shape = {toml_value(shape_of(value))}")
    return "\n".join(lines) + "\n"


def export(checkpoint: Path, out: Path, weights: Path | None = None) -> list[Path]:
    """Writes both graphs and manifest.toml; returns their paths. `weights`: the pretrained weights of an sd-turbo model."""
    trained = load(checkpoint)
    model = model_of(trained, weights)
    parameters = sum(p.numel() for p in model.parameters())
    if trained.kind == "sd-turbo":
        model = model.merged()
    name = f"slicefixer-{trained.kind}"
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for role, proto in graphs(model).items():
        halve(proto)
        path = out / (f"{name}.onnx" if role == "repair" else f"{name}-{role}.onnx")
        check_size(proto, path.name)
        onnx.checker.check_model(proto, full_check=True)
        onnx.save(proto, path)
        files[role] = (path, proto)
    options = {key: value for key, value in trained.options.items() if key in ("seed", "batch", "rate", "ssim_weight", "losses")}
    training = {"commit": trained.commit, "steps": trained.before + trained.step, **options, "parameters": parameters, "torch": torch.__version__.split("+")[0]}
    path = out / "manifest.toml"
    path.write_text(manifest(name, model, files, training))
    return [*(path for path, _ in files.values()), path]
