"""A model as one ONNX file: ids, and keys and values of those before, to logits and all keys and values.

Names are the ones that optimum gives, so that its ORTModelForCausalLM and transformers.js run the file too.
One graph for both: a text is begun with a past of no tokens and gone on with a token at a time. Rows may be
padded on the left, where the attention mask is 0. Exported by torch's own exporter; what that notes about
source lines is taken out, for it names folders of this machine.
"""

import contextlib
import inspect
import io
import logging
import warnings
from pathlib import Path
from typing import Any, cast

import onnx
import onnxscript  # noqa: F401  what torch's exporter needs; found missing here, before any work
import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import DynamicCache
from transformers.modeling_utils import PreTrainedModel

from shared.errors import PlanearlyError

INPUTS, OUTPUT = ("input_ids", "attention_mask", "position_ids"), "logits"
PAST, PRESENT = "past_key_values", "present"
ROWS, TOKENS, PAST_TOKENS = "batch_size", "sequence_length", "past_sequence_length"
ALL_TOKENS = f"{PAST_TOKENS} + {TOKENS}"
"""Names of the axes, as optimum writes them."""
INLINE_BYTES = 1 << 30
"""Larger weights lie in a file beside the graph: protobuf ends at 2 GiB."""


class _WithPast(nn.Module):
    """The model as a function of tensors alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(list(zip(past[::2], past[1::2], strict=True))),
            use_cache=True,
        )
        return found.logits, *_flat(found.past_key_values)


def _flat(cache: Any) -> list[Tensor]:
    """Return keys, values of the first layer, keys, values of the second, and so on."""
    return [part for layer in cache.layers for part in (layer.keys, layer.values)]


def write_onnx(path: Path, model: nn.Module, example_id: int) -> None:
    """Write a causal model of transformers; the same model gives the same bytes. Changes how it attends.

    Raises PlanearlyError for a model that keeps something else than keys and values.
    """
    ids = torch.full((2, 3), example_id)
    past = _example_past(model, ids)
    example = (ids, torch.ones(2, 6, dtype=torch.long), torch.arange(3, 6).expand(2, 3), past)
    rows = Dim(ROWS)
    text = {0: rows, 1: Dim(TOKENS)}
    shapes = (text, {0: rows, 1: Dim.DYNAMIC}, text, [{0: rows, 2: Dim(PAST_TOKENS)} for _ in past])
    names = [f"{layer}.{part}" for layer in range(len(past) // 2) for part in ("key", "value")]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # torch's about its own parts
        program = torch.onnx.export(
            _WithPast(model).eval(),
            example,
            dynamo=True,
            input_names=[*INPUTS, *(f"{PAST}.{name}" for name in names)],
            output_names=[OUTPUT, *(f"{PRESENT}.{name}" for name in names)],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _name_axes(proto.graph)
    _forget_sources(proto)
    n_bytes = sum(parameter.nbytes for parameter in model.parameters())
    onnx.save_model(proto, path, save_as_external_data=n_bytes > INLINE_BYTES, location=f"{path.name}_data")


def _example_past(model: nn.Module, ids: Tensor) -> list[Tensor]:
    """Return what the model keeps of some ids, its attention written out from now on.

    The fused one gives NaN for a padding token, whose row of the mask is empty, and NaN spreads.
    """
    cast(PreTrainedModel, model).set_attn_implementation("eager")
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).get("past_key_values")
    if not isinstance(cache, DynamicCache) or INPUTS[2] not in inspect.signature(model.forward).parameters:
        raise PlanearlyError(
            f"a model of the class {type(model).__name__} keeps no plain keys and values of past tokens",
            hint="export it with optimum, which knows more classes",
        )
    return _flat(cache)


def _name_axes(graph: onnx.GraphProto) -> None:
    """Name the axes that are not fixed: whoever reads the file sees what may vary."""
    text = {0: ROWS, 1: TOKENS}
    named = {INPUTS[0]: text, INPUTS[1]: {0: ROWS, 1: ALL_TOKENS}, INPUTS[2]: text, OUTPUT: text}
    for value in (*graph.input, *graph.output):
        kept = {0: ROWS, 2: PAST_TOKENS if value.name.startswith(PAST) else ALL_TOKENS}
        for axis, name in named.get(value.name, kept).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


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
