"""The whole job in this process, as small as it gets: release a tiny bundle, specialize it, compare."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from owner.specializing import SpecializeConfig
from owner.specializing import specialize as owner_specialize
from owner.training.finetuning import FinetuneConfig
from owner.trust.pinning import pin_key
from owner.trust.remembering import HOME_VARIABLE
from provider.recipe import Recipe, read_recipe
from provider.releasing import release as provider_release
from provider.signing import create_key, read_signing_key
from shared.progress import Say
from tests.parties import write_recipe

N_FILES, N_BYTES, N_DOCUMENTS = 3, 3000, 4
FINETUNE = FinetuneConfig(max_epochs=1, least_steps_per_epoch=6, evals_per_epoch=3, checkpoint_every_s=0.0)
"""Six steps, a checkpoint after each."""


def quiet(line: str) -> None:
    """Say nothing."""


def make_inputs(folder: Path) -> None:
    """Write recipe, corpus, private documents and keys."""
    names = sorted(topics, key=lambda name: (-len(topics[name]), name))
    for name, chosen in (("corpus", names[:N_FILES]), ("private", names[N_FILES : N_FILES + N_DOCUMENTS])):
        (folder / name).mkdir(parents=True)
        for number, topic in enumerate(chosen):
            (folder / name / f"{number}.md").write_text(
                topics[topic][: N_BYTES if name == "corpus" else N_BYTES // 6]
            )
    write_recipe(folder / "release.toml")
    create_key(folder / "provider.key", folder / "provider.pub")


def tiny_recipe(folder: Path, kind: str) -> Recipe:
    """Return the recipe of tests/parties.py with a few steps, and a checkpoint after each."""
    recipe = read_recipe(folder / "release.toml")
    if kind == "slm":
        recipe = replace(recipe, kind="slm", comparison=(), projection=None)
    assert recipe.replay is not None
    return replace(
        recipe,
        model=replace(recipe.model, vocab_size=400, n_layers=1),
        corpus=replace(recipe.corpus, heldout_every=3),
        clustering=replace(recipe.clustering, n_clusters=2),
        pretraining=replace(recipe.pretraining, steps=6, eval_every_steps=3, checkpoint_every_s=0.0),
        replay=replace(recipe.replay, windows_per_cluster=4),
    )


def release(folder: Path, inputs: Path, say: Say = quiet, kind: str = "pn") -> None:
    """Release `inputs` into `folder/out`, working in `folder/work`."""
    recipe, key = tiny_recipe(inputs, kind), read_signing_key(inputs / "provider.key")
    provider_release(recipe, inputs / "corpus", folder / "out", folder / "work", key, say, device="cpu")


def specialize(
    folder: Path, inputs: Path, bundle: Path, say: Say = quiet, with_samples: bool = False, **finetune: Any
) -> dict[str, Any]:
    """Specialize a bundle on the private documents of `inputs` into `folder/result`; trusting its keys."""
    os.environ[HOME_VARIABLE] = str(inputs / "home")
    config = SpecializeConfig(finetune=replace(FINETUNE, **finetune), with_samples=with_samples)
    return owner_specialize(bundle, inputs / "private", folder / "result", config, say, device_name="cpu")


def trust(inputs: Path) -> None:
    """Pin the provider's key."""
    os.environ[HOME_VARIABLE] = str(inputs / "home")
    pin_key(inputs / "provider.pub")


def fingerprint(folder: Path, *patterns: str) -> dict[str, str]:
    """Return the SHA-256 of each file that matches."""
    found = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


RELEASED, SPECIALIZED = ("out/*.st", "out/*.pub"), ("result/model/*",)
"""What must repeat bit for bit; a report holds seconds."""
