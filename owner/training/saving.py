"""The result on disk: a standard model directory, and a report that stays with the owner.

`OUT/model/` loads with `AutoModelForCausalLM` and `AutoTokenizer`; it holds nothing about the private
documents but the weights. `OUT/report.json` and `OUT/report.html` name the expert and the histogram, so they
lie outside, as does `OUT/canaries.json`, where some were planted.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from shared.files import make_folder, remove, rename, sync_tree, write_json
from shared.tokenizer import save_tokenizer

MODEL_FOLDER, REPORT_FILE, CANARIES_FILE = "model", "report.json", "canaries.json"
AUDIT_FILE = "audit.json"
"""Comes later, by `owner audit`."""


def stage_model(staged: Path, model: PreTrainedModel, tokenizer: Tokenizer) -> Path:
    """Write the model into `staged`, a new folder on the file system of the final one; return the model's.

    Weights are float32, in shards as transformers writes them. Raises OSError (no space left).
    """
    remove(staged)
    folder = staged / MODEL_FOLDER
    make_folder(folder)
    model.config.use_cache = True
    assert model.generation_config is not None
    model.generation_config.use_cache = True
    disable_progress_bar()
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, model.config.max_position_embeddings, folder)
    return folder


def publish_result(staged: Path, out: Path, canaries: dict[str, Any] | None = None) -> None:
    """Add the canaries, if there are some, and rename all to `out`. Raises OSError, with no `out` left."""
    if canaries is not None:
        write_json(staged / CANARIES_FILE, canaries)
    sync_tree(staged)
    rename(staged, out)
