"""What a run has to be given: somebody to trust, a bundle, the embedder, the packages of extras."""

import importlib.util
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from owner.doctoring.findings import MISSING, OK, Check
from owner.trust.opening import open_vouched
from owner.trust.vouching import Trust, read_trust
from shared.bundle import Bundle
from shared.embedder import find_embedder_files
from shared.errors import PlanearlyError
from shared.extras import install_hint
from shared.slm import build_slm, count_parameters

EXTRAS = {
    "documents": ("pypdf", "PDF, Word, PowerPoint, Excel and Parquet"),
    "lora": ("peft", "--lora"),
    "histogram": ("opendp", "owner histogram"),
    "dp": ("opacus", "--dp-epsilon"),
    "gguf": ("gguf", "owner export --format gguf"),
    "llamacpp": ("llama_cpp", "owner export --quantize"),
    "onnx": ("onnxruntime", "owner export --format onnx"),
}
"""Of each extra the module that shows whether it is installed, and what needs it."""


def check_trust() -> tuple[Trust | None, Check]:
    """Return whom this owner trusts, and whether that is anybody."""
    hint = "owner trust add provider.pub"
    try:
        trust = read_trust(None)
    except PlanearlyError as error:
        return None, Check("trust", MISSING, str(error), error.hint, is_needed=True)
    usable = [file for file in trust.files if trust.is_usable(file)]
    found = f"{len(trust.pinned)} keys pinned · {len(trust.files)} trust files, {len(usable)} not expired"
    if not trust.pinned and not usable:
        return trust, Check("trust", MISSING, found, hint, is_needed=True)
    return trust, Check("trust", OK, found, is_needed=True)


def check_bundle(
    path: Path | None, trust: Trust | None, stack: ExitStack
) -> tuple[Bundle | None, list[Check]]:
    """Open and verify a bundle, where one is given."""
    if path is None or trust is None:
        return None, []
    try:
        bundle, _ = open_vouched(path, stack, trust, lambda line: None)
        bundle.verify_all()
    except (PlanearlyError, OSError) as error:
        return None, [Check("bundle", MISSING, str(error), getattr(error, "hint", ""), is_needed=True)]
    manifest = bundle.manifest
    size = f"{count_parameters(build_slm(manifest.model, 'meta')):,} parameters"
    found = f"{path.name} · key {bundle.key_id} · {manifest.kind} · {size} · every digest verified"
    return bundle, [Check("bundle", OK, found, is_needed=True)]


def check_embedder(bundle: Bundle | None, folder: Path | None) -> Check:
    """Look for the embedder's files, unless the bundle has them or needs none."""
    if bundle and (bundle.manifest.n_experts == 1 or bundle.manifest.embedder.embedded):
        return Check("embedder", OK, "in the bundle, or not needed by it", is_needed=True)
    try:
        weights, _ = find_embedder_files(folder)
    except PlanearlyError as error:
        return Check("embedder", MISSING, str(error), error.hint, is_needed=True)
    return Check("embedder", OK, f"{len(weights):,} bytes", is_needed=True)


def check_extras() -> Iterator[Check]:
    """Say of each extra whether it is installed; none is needed for a plain run."""
    for extra, (module, use) in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield Check(extra, OK, f"for {use}")
        else:
            yield Check(extra, MISSING, f"for {use}", install_hint(extra))
