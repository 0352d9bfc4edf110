"""ONNX files, run by ONNX Runtime."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfold.errors import UnsupportedModel, one_line
from vitfold.exporting.graph import INPUT, Graph, Outputs, quiet
from vitfold.exporting.targets.base import Runner, Target

FILE = "model.onnx"

OPSET = 20
"""GELU is one operator from here on."""

LARGE = 2**31 - 2**20
"""A file of more bytes keeps its weights in another beside it: protobuf ends at 2 GB."""


def write(graph: Graph, path: Path, *, lean: bool = True) -> None:
    """The ONNX file of a program.

    lean: by onnxscript's optimizer, which takes longer than all the rest; another reader has its
        own.
    """
    with torch.no_grad(), quiet():
        try:
            written: Any = torch.onnx.export(
                graph.program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(graph.names),
                optimize=lean,
            )
        except Exception as error:  # the exporter raises what it met
            raise UnsupportedModel(
                f"ONNX has no form of this program: {one_line(error)}: give another method, or "
                "the target torch or aoti"
            ) from error
        _keep_names_apart(written.model.graph)
        size = sum(value.nbytes for value in graph.program.state_dict.values())
        written.save(path, external_data=size > LARGE)


def _keep_names_apart(graph: Any) -> None:
    """What lies inside a graph is called after what computes it, and so may be an output's name."""
    outside = {value.name for value in (*graph.inputs, *graph.outputs)}
    ends = {id(value) for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in outside and id(value) not in ends:
                value.name = f"{value.name}_inside"


class Onnx(Target):
    """An ONNX file for ONNX Runtime and whatever else reads ONNX."""

    name = "onnx"
    runtime = "ONNX Runtime"
    packages = ("onnx", "onnxscript", "onnxruntime")
    quantizes = True

    def write(self, graph: Graph, directory: Path) -> None:
        """One `model.onnx`; of more than 2 GB, with its weights beside it."""
        write(graph, directory / FILE)

    def open(self, directory: Path, names: Sequence[str], threads: int | None = None) -> Runner:
        """A session on the CPU, whose threads rest between two calls: those that go on turning take
        the time of whatever runs then, which may be another session."""
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.intra_op_num_threads = threads or torch.get_num_threads()
        providers = ["CPUExecutionProvider"]
        session = runtime.InferenceSession(directory / FILE, options, providers=providers)

        def run(images: Tensor) -> Outputs:
            outputs = session.run(list(names), {INPUT: images.numpy()})
            return {name: torch.from_numpy(o) for name, o in zip(names, outputs, strict=True)}

        return run

    def quantize(self, source: Path, directory: Path, images: Sequence[Tensor]) -> None:
        """Weights of products in eight bits, by channel; what they are multiplied by is quantized
        as it comes, so that no ranges need be known. Matching has no weights, and stays."""
        quantization = importlib.import_module("onnxruntime.quantization")
        library = importlib.import_module("onnx")
        model = library.load(source / FILE)
        del model.graph.value_info[:]  # the quantizer finds shapes by itself
        with quiet():
            quantization.quantize_dynamic(
                model,
                directory / FILE,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
                use_external_data_format=(source / f"{FILE}.data").exists(),
                extra_options={"MatMulConstBOnly": True},
            )


TARGET = Onnx()
