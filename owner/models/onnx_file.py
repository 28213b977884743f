"""A model as one ONNX file: token ids in, logits out, any number of rows and tokens.

Exported by torch's own exporter. No cache of keys and values is in the graph, so that each further token
costs a whole pass: for scoring and short texts. What the exporter notes about source lines is taken out, for
it names folders of this machine.
"""

import contextlib
import io
import logging
import warnings
from pathlib import Path

import onnx
import onnxscript  # noqa: F401  what torch's exporter needs; found missing here, before any work
import torch
from torch import Tensor, nn

INPUT, OUTPUT = "input_ids", "logits"
INLINE_BYTES = 1 << 30
"""Larger weights lie in a file beside the graph: protobuf ends at 2 GiB."""


class _Logits(nn.Module):
    """The model as a function of ids alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def write_onnx(path: Path, model: nn.Module, example_id: int) -> None:
    """Write a causal model of transformers as it is; the same model gives the same bytes."""
    module = _Logits(model).eval()
    rows, tokens = torch.export.Dim("rows"), torch.export.Dim("tokens")
    example = torch.full((2, 8), example_id)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch's about its own parts
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: rows, 1: tokens}},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _forget_sources(proto)
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    onnx.save_model(proto, path, save_as_external_data=n_bytes > INLINE_BYTES, location=f"{path.name}.data")


def _forget_sources(proto: onnx.ModelProto) -> None:
    for node in (*proto.graph.node, *(node for function in proto.functions for node in function.node)):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for holder in (proto, proto.graph, *proto.graph.value_info, *proto.graph.initializer, *proto.functions):
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    for value in (*proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
