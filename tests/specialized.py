"""A small specialized model as an owner has it: released, specialized, with its report and its documents."""

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import torch

from owner.models.loading import read_own_pieces
from owner.training.saving import publish_result, stage_model
from shared.pieces import build_tokenizer
from shared.sizes import SlmConfig
from shared.slm import build_slm
from tests import tiny


@dataclass(frozen=True)
class Specialized:
    """Where everything lies."""

    out: Path
    private: Path
    others: Path
    """Documents of the same kind that no model has seen."""
    home: Path


def make_specialized(folder: Path) -> Specialized:
    """Release a bundle and specialize it, in this process; about five seconds."""
    inputs = folder / "inputs"
    tiny.make_inputs(inputs)
    tiny.release(folder, inputs)
    tiny.trust(inputs)
    tiny.specialize(folder, inputs, folder / "out" / "tiny.st", heldout_fraction=0.4)
    others = folder / "others"
    others.mkdir()
    for name in sorted(topics, key=lambda name: len(topics[name]))[20:32]:
        (others / f"{name}.txt").write_text(topics[name][:700], encoding="utf-8")
    return Specialized(folder / "result", inputs / "private", others, inputs / "home")


def save_other(like: Path, out: Path, architecture: str, width: int, seed: int = 0) -> Path:
    """Save a model of other sizes with the tokenizer of `like`, as `owner specialize` saves one."""
    pieces = read_own_pieces(like / "model")
    assert pieces is not None
    torch.manual_seed(seed)
    model = build_slm(SlmConfig(architecture, 2, width, 2, 2 * width, len(pieces), 64))
    staged = out.with_name(f".{out.name}")
    stage_model(staged, model.eval(), build_tokenizer(pieces))
    publish_result(staged, out)
    return out
