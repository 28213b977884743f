"""The work of one job: a pretraining and its bundle, or a bundle specialized on a domain and measured.

Clustering, pretraining and publishing are the provider's own functions, choice, replay and fine-tuning the
owner's, with a signed bundle between them. Which jobs there are is run.py's.
"""

import argparse
import fcntl
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from plan import Plan, scaled, variant
from torch import nn

from owner.choice.candidates import expert_start, histogram_start
from owner.choice.selecting import Selection, select_expert
from owner.documents.reading import read_documents
from owner.documents.windows import Split, window_documents
from owner.training.adapting import Replay, adapt, finetune_teacher
from owner.training.finetuning import FinetuneConfig, finetune, train_config
from owner.training.replaying import ReplayConfig
from provider.preparing import cluster_corpus, prepare_corpus, read_clusters
from provider.pretraining import COST_FILE, load_windows
from provider.publishing import publish, publish_replay
from provider.recipe import Recipe
from provider.releasing import pretrain_system
from provider.signing import create_key, read_signing_key
from provider.stages import Stage
from shared.batches import Windows, all_microbatches
from shared.bundle import Bundle, open_bundle
from shared.checkpoints import load_checkpoint
from shared.clusters import assign_clusters, cluster_histogram
from shared.device import choose_device, make_deterministic
from shared.embedder import find_embedder_files
from shared.embedding import embed_texts, load_embedder
from shared.files import write_atomic
from shared.importance import importance_weights
from shared.losses import evaluate
from shared.pieces import build_tokenizer, read_pieces
from shared.replay import replay_windows
from shared.slm import build_slm, count_parameters
from shared.tokenizer import decode_window

FROM_SCRATCH = 8
"""Times as many passes, at most, for a model that starts from nothing; early stopping ends most."""


LORA_PASSES = 5
"""The same for low-rank matrices: App. F fine-tunes them for up to five times as many steps."""


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def first_tokens(windows: Windows, tokens: int) -> Windows:
    """Return the first windows that hold about so many tokens."""
    return windows.take(np.cumsum(windows.length) <= tokens)


@contextmanager
def locked(path: Path, block: bool) -> Iterator[bool]:
    """Hold a lock that ends with the process; yield whether it was to be had."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


class Workshop:
    """The work folder of one size: corpus stages, bundles, domains, jobs."""

    def __init__(self, plan: Plan, recipe: Recipe, options: argparse.Namespace) -> None:
        self.plan, self.recipe, self.options = plan, recipe, options
        self.work: Path = options.work
        self.device = choose_device(options.device)
        for folder in ("stages", "bundles", "jobs", "domains", "adapt"):
            (self.work / folder).mkdir(parents=True, exist_ok=True)
        self.results = self.work / "results.jsonl"
        with locked(self.work / "prepare.lock", block=True):
            key = self.work / "provider.key"
            self.key = read_signing_key(key) if key.exists() else create_key(key, key.with_suffix(".pub"))
            self.tokenizer_stage, self.corpus_stage, self.n_parts = prepare_corpus(
                recipe, options.corpus, self.work / "stages", say
            )
            self.pieces = (self.tokenizer_stage.folder / "pieces.json").read_bytes()
            self.tokenizer = build_tokenizer(read_pieces(self.pieces))
            for k in {recipe.clustering.n_clusters, *plan.is_clusters, *plan.report_clusters}:
                self.clusters(k)
            self.domains = [self.domain(folder) for folder in sorted(options.domains.iterdir())]

    # The provider's side

    def clusters(self, n_clusters: int) -> tuple[Stage, Stage]:
        """Return the clustering and sorting stages for k; done once."""
        clustering = replace(self.recipe.clustering, n_clusters=n_clusters)
        return cluster_corpus(
            clustering, self.recipe.seed, self.work / "stages", self.tokenizer_stage, self.corpus_stage,
            self.n_parts, str(self.device), self.options.embedder, lambda line: None,
        )  # fmt: skip

    def pretrain(
        self, system: str, steps: int, seed: int, domain: str = "", experts: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Pretrain a system and publish its bundle; return its record and cost."""
        recipe = scaled(variant(self.recipe, system, self.plan), steps, seed)
        clusters, windows = self.clusters(recipe.clustering.n_clusters)
        counts_K, centroids_KW = read_clusters(clusters)
        weights_K = None
        if domain:
            histogram_K = self.histogram(domain, self.plan.spec_tokens[0], recipe.clustering.n_clusters)
            weights_K = importance_weights(histogram_K, counts_K)

        def one(kind: str) -> Stage:
            return pretrain_system(
                recipe, kind, self.work / "stages", windows, str(self.device), say, weights_K, experts
            )

        stages = {kind: one(kind) for kind in (recipe.kind, *recipe.comparison)}
        name = self.bundle_name(system, steps, seed, domain)
        publish(
            replace(recipe, name=name, replay=None),
            pieces=self.pieces,
            centroids=centroids_KW,
            counts=counts_K,
            systems={kind: stage.folder for kind, stage in stages.items()},
            heldout=load_windows(windows.folder, "heldout", len(counts_K)),
            out=self.work / "bundles",
            key=self.key,
            embedder_folder=None,
            say=say,
        )
        stage = stages[recipe.kind]
        cost = json.loads((stage.folder / COST_FILE).read_text())
        trained = sum(
            t.numel() for t in load_checkpoint(stage.folder / "weights.safetensors").tensors.values()
        )
        small = build_slm(recipe.model, "meta")
        embedding = recipe.model.vocab_size * recipe.model.width
        record = stage.report
        return {
            "system": system,
            "steps": steps,
            "seed": seed,
            "domain": domain or None,
            "generic_loss": record["heldout_loss"],
            "history": self.history(stage),
            "importance": record.get("importance"),
            "parameters": trained,
            "inference_parameters": count_parameters(small),
            "tokens_per_parameter": cost["tokens"] / (count_parameters(small) - embedding),
            **{key: cost[key] for key in ("tokens", "seconds", "device", "threads")},
        }

    def history(self, stage: Stage) -> list[list[float]]:
        """Return (step, generic held-out loss) pairs of a finished run."""
        paths = sorted(stage.folder.glob("step-*.safetensors"))
        if not paths:
            return []
        return [[e["step"], e["heldout_loss"]] for e in load_checkpoint(paths[-1]).record["history"]]

    def pack(self) -> Path:
        """Return the replay pack; published once."""
        path = self.work / "bundles" / "pack-replay.st"
        if not path.exists():
            n_clusters = self.plan.is_clusters[0]
            clusters, windows = self.clusters(n_clusters)
            counts_K, centroids_KW = read_clusters(clusters)
            publish_replay(
                replace(variant(self.recipe, "slm", self.plan), name="pack", replay=self.recipe.replay),
                pieces=self.pieces,
                centroids=centroids_KW,
                counts=counts_K,
                windows=load_windows(windows.folder, "train", n_clusters),
                out=self.work / "bundles",
                key=self.key,
                embedder_folder=None,
                say=say,
            )
        return path

    @staticmethod
    def bundle_name(system: str, steps: int, seed: int, domain: str = "") -> str:
        return "-".join(filter(None, [system, domain, str(steps), f"seed{seed}"]))

    def open(self, path: Path) -> Bundle:
        return open_bundle(path, [self.key.public_key])

    # The owner's side

    def domain(self, folder: Path) -> str:
        """Tokenize and embed a domain once; return its name."""
        name = folder.name
        saved = self.work / "domains" / f"{name}.npz"
        if saved.exists():
            return name
        arrays: dict[str, np.ndarray] = {}
        for split in ("train", "valid", "test"):
            documents = read_documents(folder / f"{split}.jsonl.gz", [])
            windows = window_documents(documents, self.tokenizer, self.recipe.model.context_tokens).windows
            arrays |= {
                f"{split}_tokens": windows.streams[0],
                f"{split}_start": windows.start,
                f"{split}_length": windows.length,
            }
        embedder = load_embedder(*find_embedder_files(self.options.embedder), self.device)
        for tokens in self.plan.spec_tokens:
            train = first_tokens(self.windows(arrays, "train"), tokens)
            chosen = np.unique(np.linspace(0, len(train) - 1, self.plan.select_windows).astype(int))
            texts = [decode_window(self.tokenizer, train.tokens(window)) for window in chosen]
            arrays[f"embeddings_{tokens}"] = embed_texts(embedder, texts)
        with write_atomic(saved) as out:
            np.savez(out, **arrays)
        say(f"domain {name}: {len(arrays['train_length']):,} training windows")
        return name

    @staticmethod
    def windows(arrays: Any, split: str) -> Windows:
        length = arrays[f"{split}_length"]
        zeros = np.zeros(len(length), np.int32)
        return Windows([arrays[f"{split}_tokens"]], zeros, arrays[f"{split}_start"], length, zeros)

    def split(self, domain: str, tokens: int) -> tuple[Split, Windows]:
        """Return training and validation windows, and the test windows."""
        with np.load(self.work / "domains" / f"{domain}.npz") as arrays:
            train = first_tokens(self.windows(arrays, "train"), tokens)
            valid = first_tokens(self.windows(arrays, "valid"), self.plan.valid_tokens)
            test = first_tokens(self.windows(arrays, "test"), self.plan.test_tokens)
        unknown = np.zeros(len(train), np.int32), np.zeros(len(valid), np.int32)
        return Split(train, valid, "files", *unknown), test

    def embeddings(self, domain: str, tokens: int) -> np.ndarray:
        with np.load(self.work / "domains" / f"{domain}.npz") as arrays:
            return arrays[f"embeddings_{tokens}"]

    def histogram(self, domain: str, tokens: int, n_clusters: int) -> np.ndarray:
        """Return a domain's cluster histogram, (K,) int64."""
        _, centroids_KW = read_clusters(self.clusters(n_clusters)[0])
        return cluster_histogram(assign_clusters(self.embeddings(domain, tokens), centroids_KW), n_clusters)

    def selection(self, bundle: Bundle, domain: str, tokens: int) -> Selection:
        centroids_KW = bundle.array("clusters.centroids")
        return select_expert(self.embeddings(domain, tokens), centroids_KW)

    def generic(self) -> Windows:
        """Return the generic held-out windows, without clusters: measured as any dense model sees them."""
        _, windows = self.clusters(self.recipe.clustering.n_clusters)
        found = load_windows(windows.folder, "heldout", self.recipe.clustering.n_clusters)
        return found.take(np.arange(len(found)) % self.plan.heldout_every == 0)

    def loss(self, model: nn.Module, windows: Windows) -> float:
        context = self.recipe.model.context_tokens
        return evaluate(model, None, all_microbatches(windows, context, 8)).mean

    def finetune_config(self, tokens: int, rate: float, **more: Any) -> FinetuneConfig:
        epochs = self.plan.epochs[self.plan.spec_tokens.index(tokens)]
        return replace(
            FinetuneConfig(), max_epochs=epochs, rate_fraction=rate, evals_per_epoch=1,
            checkpoint_every_s=1e9, rows_per_microbatch=8, **more,
        )  # fmt: skip

    def rates(self, tokens: int) -> tuple[float, ...]:
        return self.plan.rates[self.plan.spec_tokens.index(tokens)]

    def specialize(
        self,
        row: str,
        domain: str,
        tokens: int,
        path: Path,
        seed: int,
        method: str = "most-frequent",
        lora_rank: int = 0,
        with_replay: bool = False,
        teacher: Path | None = None,
    ) -> dict[str, Any]:
        """Specialize a bundle on a domain at each rate; return the best one's test loss and what it cost."""
        split, test = self.split(domain, tokens)
        found: list[dict[str, Any]] = []
        with self.open(path) as bundle:
            selection = self.selection(bundle, domain, tokens)
            replay = None
            if with_replay:
                with self.open(self.pack()) as pack:
                    histogram = self.histogram(domain, tokens, pack.manifest.n_clusters)
                    config = replace(ReplayConfig(), tokens=self.plan.replay_tokens)
                    replay = Replay(replay_windows(pack), histogram, config)
            for rate in self.plan.lora_rates if lora_rank else self.rates(tokens):
                folder = self.work / "adapt" / f"{row}-{path.stem}-{domain}-{tokens}"
                config = self.finetune_config(tokens, rate, seed=seed, lora_rank=lora_rank)
                if lora_rank:
                    config = replace(config, max_epochs=LORA_PASSES * config.max_epochs)
                tutor = self.teacher(teacher, split, config, folder) if teacher else None
                (folder / f"{rate}").mkdir(parents=True, exist_ok=True)
                if replay is not None:  # the same for every rate
                    _share(folder, rate, "replay")
                adapted = adapt(
                    bundle, split, selection, method, config, self.device, folder / f"{rate}",
                    f"{path.name} {rate}" if replay is None else path.name,
                    lambda line: None, replay, tutor, compare=False,
                )  # fmt: skip
                figures = adapted.figures[adapted.chosen.name]
                found.append(
                    {
                        "rate": rate,
                        "valid_loss": math.log(figures["after"]),
                        "test_loss": self.loss(adapted.model, test),
                        "generic_loss": self.loss(adapted.model, self.generic()),
                        "chosen": adapted.chosen.name,
                        "starts": {start.name: start.heldout_loss for start in adapted.starts},
                        "best_step": figures["best_step"],
                        "steps": figures["steps"],
                        "tokens": sum(f["tokens"] for f in adapted.figures.values()),
                        "seconds": sum(f["seconds"] for f in adapted.figures.values()),
                        "replay": {k: v for k, v in figures.get("replay", {}).items() if k != "history"},
                    }
                )
            before = bundle_start_loss(self, bundle, selection, method, test)
        best = min(found, key=lambda entry: entry["valid_loss"])
        return {
            "row": row,
            "domain": domain,
            "spec_tokens": tokens,
            "seed": seed,
            "before_loss": before,
            **best,
            "rates": {str(entry["rate"]): entry["valid_loss"] for entry in found},
            "all_seconds": sum(entry["seconds"] for entry in found),
        }

    def teacher(self, path: Path, split: Split, config: FinetuneConfig, folder: Path) -> nn.Module:
        with self.open(path) as bundle:
            rate = self.plan.rates[0][-1]
            work = folder / "teacher"
            tuned = finetune_teacher(
                bundle, split, replace(config, rate_fraction=rate, lora_rank=0), self.device, work,
                f"teacher {path.name}", lambda line: None,
            )  # fmt: skip
        return tuned  # type: ignore[return-value]

    def from_scratch(self, domain: str, tokens: int, seed: int) -> dict[str, Any]:
        """Train a fresh SLM on the domain alone (SLM-nopt, Table 4), at the pretraining's rate or a third."""
        split, test = self.split(domain, tokens)
        context, training = self.recipe.model.context_tokens, self.recipe.pretraining
        found = []
        for rate in (1.0, 1 / 3):
            make_deterministic(seed)
            model: Any = build_slm(self.recipe.model).to(self.device)  # type: ignore[arg-type]
            config = self.finetune_config(tokens, rate, seed=seed)
            config = replace(config, max_epochs=FROM_SCRATCH * config.max_epochs)
            settings = train_config(
                config, split, context, training.learning_rate, training.rows_per_step, training.optimizer
            )
            folder = self.work / "adapt" / f"slm-nopt-{domain}-{tokens}-{seed}-{rate}"
            result = finetune(model, split, context, settings, seed, folder, lambda line: None, f"{rate}")
            found.append((result.heldout_loss, rate, self.loss(model, test), result))
        valid_loss, rate, test_loss, result = min(found, key=lambda entry: entry[0])
        return {
            "row": "slm-nopt", "domain": domain, "spec_tokens": tokens, "seed": seed, "before_loss": None,
            "rate": rate, "valid_loss": valid_loss, "test_loss": test_loss, "best_step": result.step,
            "steps": result.steps_run, "tokens": result.tokens, "seconds": result.seconds,
            "rates": {str(entry[1]): entry[0] for entry in found},
            "all_seconds": sum(entry[3].seconds for entry in found),
        }  # fmt: skip


def _share(folder: Path, rate: float, name: str) -> None:
    """Let every rate find the first rate's finished replay."""
    for start in folder.glob(f"*/*/{name}"):
        target = folder / f"{rate}" / start.parent.name / name
        if not target.exists() and start != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(start.resolve(), target_is_directory=True)


def bundle_start_loss(
    shop: Workshop, bundle: Bundle, selection: Selection, method: str, test: Windows
) -> float:
    """Return the test loss of the start that needs no training: the histogram's point, or the expert."""
    is_point = method in ("histogram", "auto") and bundle.manifest.kind == "pn"
    expert = selection.expert if bundle.manifest.n_experts > 1 else 0
    start = histogram_start(bundle, selection) if is_point else expert_start(expert)
    model: Any = start.materialize(bundle).to(shop.device)  # type: ignore[arg-type]
    return shop.loss(model, test)
