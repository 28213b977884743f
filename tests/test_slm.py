"""Sizes, and the stock models that are built of them."""

import random
from dataclasses import replace

import pytest
import torch

from shared.errors import PlanearlyError
from shared.projection import feed_forward_linears
from shared.sizes import ARCHITECTURES, PRESETS, SlmConfig, linear_names, parameter_shapes
from shared.slm import CLASSES, build_slm, count_parameters

# Table 7 of the paper, in millions of parameters, for 16, 32 and 64 experts.
TABLE_7 = {
    "pn": {16: 756, 32: 1422, 64: 2770},
    "mix": {16: 2016, 32: 4032, 64: 8064},
}


@pytest.mark.parametrize(
    ("preset", "millions", "tolerance"),
    [("slm-126m", 126, 0.01), ("llm-771m", 771, 0.01), ("slm-126m-table6", 121.7, 0.001)],
)
def test_presets_have_the_papers_parameter_counts(preset, millions, tolerance):
    found = count_parameters(build_slm(PRESETS[preset], "meta")) / 1e6
    assert found == pytest.approx(millions, rel=tolerance)


def drawn_sizes():
    """All presets, and sizes drawn for each architecture."""
    generator = random.Random(0)
    for architecture in ARCHITECTURES * 10:
        n_heads, ffn_width = generator.randint(1, 6), generator.randint(1, 300)
        width = n_heads * 2 * generator.randint(1, 20)
        yield SlmConfig(architecture, generator.randint(1, 12), width, n_heads, ffn_width, 300, 32)
    # As wide as the feed-forward, and as the vocabulary: shapes alone tell no layer from another.
    yield SlmConfig("llama", 2, 300, 2, 300, 300, 32)
    yield from PRESETS.values()


@pytest.mark.parametrize("config", list(drawn_sizes()), ids=str)
def test_names_and_shapes_are_those_of_the_stock_model(config):
    model = build_slm(config, "meta")
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    assert list(parameter_shapes(config).items()) == list(shapes.items())
    assert linear_names(config) == [name for name in linears if f"{name}.weight" in shapes]


def test_every_architecture_has_a_stock_class():
    assert tuple(CLASSES) == ARCHITECTURES


@pytest.mark.parametrize("n_experts", [16, 32, 64])
def test_projected_network_totals_fit_table_7_with_h_equal_k_on_five_of_seven_layers(n_experts):
    model = build_slm(PRESETS["slm-126m-table6"], "meta")
    linears = feed_forward_linears(model, range(5))
    assert len(linears) == 10
    projected = sum(model.get_submodule(name).weight.numel() for name in linears)
    vectors = n_experts * n_experts + len(linears) * n_experts * n_experts
    found = count_parameters(model) - projected + n_experts * projected + vectors
    assert found / 1e6 == pytest.approx(TABLE_7["pn"][n_experts], rel=0.01)


@pytest.mark.parametrize("n_experts", [16, 32, 64])
def test_mixture_totals_fit_table_7(n_experts):
    found = n_experts * count_parameters(build_slm(PRESETS["slm-126m"], "meta"))
    assert found / 1e6 == pytest.approx(TABLE_7["mix"][n_experts], rel=0.01)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "mamba"}, "architecture"),
        ({"n_layers": 0}, "n_layers is 0, expected 1 to 256"),
        ({"width": 10**9}, "width is 1000000000"),
        ({"width": True}, "width is True"),
        ({"n_heads": 3}, "over 3 heads"),
        ({"vocab_size": 2}, "vocab_size is 2"),
    ],
)
def test_sizes_out_of_range_are_refused(change, message):
    with pytest.raises(PlanearlyError, match=message):
        replace(PRESETS["test"], **change)


def test_a_config_survives_its_dictionary_and_refuses_other_fields():
    config = PRESETS["laptop"]
    assert SlmConfig.from_dict(config.to_dict()) == config
    with pytest.raises(PlanearlyError, match="expected exactly"):
        SlmConfig.from_dict(config.to_dict() | {"auto_map": "evil"})


@pytest.mark.parametrize("architecture", ["llama", "starcoder2"])
def test_models_are_stock_classes_without_biases_and_with_tied_embeddings(architecture):
    model = build_slm(replace(PRESETS["test"], architecture=architecture))
    assert type(model).__module__.startswith("transformers.models.")
    linear_biases = [
        n for n, m in model.named_modules() if getattr(m, "bias", None) is not None and "norm" not in n
    ]
    assert linear_biases == []
    assert model.lm_head.weight is model.model.embed_tokens.weight
