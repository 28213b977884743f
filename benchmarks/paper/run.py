"""Every system of the paper on every domain of a folder, at one size; resumable, any number of processes.

  python benchmarks/paper/run.py tiny --corpus generic/ --domains domains/ --work paper-tiny/

A domain is a folder with train.jsonl.gz, valid.jsonl.gz and test.jsonl.gz. Start the command as often as
there are cores: each takes jobs that no other has. A finished job is a line of results.jsonl in the work
folder, and is not done again; a killed one goes on. When all are done, tables and figures are written to
`WORK/tables/` (python benchmarks/paper/tables.py WORK writes what there is so far).
Clustering, pretraining and publishing are the provider's own functions, trust, choice, replay and
fine-tuning the owner's, with a signed bundle between them.
"""

import argparse
import fcntl
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import figures
import tables
from plan import Plan, read_plan, scaled, variant

from owner.adapting import Replay, adapt, finetune_teacher
from owner.documents import read_documents
from owner.finetuning import FinetuneConfig, finetune, train_config
from owner.replaying import ReplayConfig
from owner.selecting import Selection, select_expert
from owner.windows import Split, window_documents
from provider.pretraining import COST_FILE, load_windows
from provider.publishing import publish, publish_replay
from provider.recipe import Recipe
from provider.releasing import cluster_corpus, prepare_corpus, pretrain_system, read_clusters
from provider.signing import create_key, read_signing_key
from provider.stages import Stage
from shared.batches import Windows, all_microbatches
from shared.bundle import Bundle, open_bundle
from shared.checkpoints import load_checkpoint
from shared.clusters import assign_clusters, cluster_histogram
from shared.device import choose_device, keep_freed_memory, make_deterministic
from shared.embedding import embed_texts, find_embedder_files, load_embedder
from shared.files import write_atomic, write_json
from shared.importance import entropy, importance_weights, top_share
from shared.losses import evaluate
from shared.replay import replay_windows
from shared.slm import build_slm, count_parameters
from shared.tokenizer import build_tokenizer, decode_window, read_pieces


@dataclass(frozen=True)
class Job:
    """One line of results.jsonl: a pretraining, or one system on one domain with so many private tokens."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[], dict[str, Any]]


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
        return Split(train, valid, "files"), test

    def embeddings(self, domain: str, tokens: int) -> np.ndarray:
        with np.load(self.work / "domains" / f"{domain}.npz") as arrays:
            return arrays[f"embeddings_{tokens}"]

    def histogram(self, domain: str, tokens: int, n_clusters: int) -> np.ndarray:
        """Return a domain's cluster histogram, (K,) int64."""
        _, centroids_KW = read_clusters(self.clusters(n_clusters)[0])
        return cluster_histogram(assign_clusters(self.embeddings(domain, tokens), centroids_KW), n_clusters)

    def selection(self, bundle: Bundle, domain: str, tokens: int) -> Selection:
        centroids_KW = bundle.tensor("clusters.centroids").numpy()
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
        """Train a fresh SLM on the domain alone (SLM-nopt, Table 4)."""
        split, test = self.split(domain, tokens)
        context, training = self.recipe.model.context_tokens, self.recipe.pretraining
        found = []
        for rate in self.rates(tokens):
            make_deterministic(seed)
            model: Any = build_slm(self.recipe.model).to(self.device)  # type: ignore[arg-type]
            config = self.finetune_config(tokens, rate, seed=seed)
            settings = train_config(config, split, context, training.learning_rate, training.rows_per_step)
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
    from owner.candidates import expert_start, histogram_start

    is_point = method in ("histogram", "auto") and bundle.manifest.kind == "pn"
    expert = selection.expert if bundle.manifest.n_experts > 1 else 0
    start = histogram_start(bundle, selection) if is_point else expert_start(expert)
    model: Any = start.materialize(bundle).to(shop.device)  # type: ignore[arg-type]
    return shop.loss(model, test)


def plan_jobs(shop: Workshop) -> list[Job]:
    """Return all jobs, the most important first."""
    plan, recipe = shop.plan, shop.recipe
    full = recipe.pretraining.steps
    first = plan.seeds[0]
    pn, mix, sampled = (
        f"{kind}-{k[0]}"
        for kind, k in (("pn", plan.pn_clusters), ("mix", plan.mix_clusters), ("is", plan.is_clusters))
    )
    trunk = f"trunk-{plan.pn_clusters[0]}"
    jobs: list[Job] = []

    def pretrained(system: str, steps: int, seed: int, domain: str = "") -> str:
        name = "pretrain " + shop.bundle_name(system, steps, seed, domain)
        if name not in [job.name for job in jobs]:
            # A projected network's bundle carries the plain model: two processes must not train it at once.
            needs = (pretrained("slm", steps, seed),) if system.startswith("pn-") else ()
            jobs.append(Job(name, needs, partial(shop.pretrain, system, steps, seed, domain)))
        return name

    def specialized(row: str, tokens: int, system: str, seed: int, steps: int = full, **more: Any) -> None:
        for domain in shop.domains:
            of_domain = domain if system.startswith("is-") else ""
            needs = [pretrained(system, steps, seed, of_domain)]
            path = shop.work / "bundles" / f"{shop.bundle_name(system, steps, seed, of_domain)}.st"
            if more.get("teacher"):
                needs.append(pretrained("llm", plan.llm_steps, first))
            label = row if steps == full or system in ("llm",) or of_domain else f"{row}@{steps}"
            name = f"{label} {domain} {tokens} seed{seed}"
            arguments = (row, domain, tokens, path, seed)
            jobs.append(Job(name, tuple(needs), partial(cell, arguments, steps, more)))

    def cell(arguments: tuple[Any, ...], steps: int, more: dict[str, Any]) -> dict[str, Any]:
        return {**shop.specialize(*arguments, **more), "pretraining_steps": steps}

    llm = shop.work / "bundles" / f"{shop.bundle_name('llm', plan.llm_steps, first)}.st"

    def claims(tokens: int, seed: int, with_replay: bool) -> None:
        specialized("slm", tokens, "slm", seed)
        specialized("slm-pn", tokens, pn, seed)
        specialized("slm-pn auto", tokens, pn, seed, method="auto")
        if with_replay:
            specialized("slm-pn replay", tokens, pn, seed, method="histogram", with_replay=True)

    def baselines(tokens: int) -> None:
        specialized("slm-is", tokens, sampled, first, plan.is_steps)
        specialized("trunk", tokens, trunk, first)
        specialized("slm-mix", tokens, mix, first)
        specialized("llm", tokens, "llm", first, plan.llm_steps)
        for domain in shop.domains:
            job = partial(shop.from_scratch, domain, tokens, first)
            jobs.append(Job(f"slm-nopt {domain} {tokens} seed{first}", (), job))

    small, *larger = plan.spec_tokens
    claims(small, first, with_replay=True)
    baselines(small)
    specialized("slm-d", small, "slm", first, teacher=llm)
    specialized("llm-lora", small, "llm", first, plan.llm_steps, lora_rank=plan.lora_rank)
    specialized("slm-pn histogram", small, pn, first, method="histogram")
    for seed in plan.seeds[1:]:
        claims(small, seed, with_replay=True)
    specialized("slm-mix best-pretrained", small, mix, first, method="best-pretrained")
    for tokens in larger:  # they carry no claim of their own: one seed
        claims(tokens, first, with_replay=False)
        baselines(tokens)
    for share in plan.budgets:
        if share != 1:
            specialized("slm", small, "slm", first, round(full * share))
            specialized("slm-pn", small, pn, first, round(full * share))
    for clusters in plan.is_clusters[1:]:
        specialized(f"slm-is-{clusters}", small, f"is-{clusters}", first, plan.is_steps)
    for clusters in plan.pn_clusters[1:]:
        specialized(f"slm-pn-{clusters}", small, f"pn-{clusters}", first)
    for clusters in plan.mix_clusters[1:]:
        specialized(f"slm-mix-{clusters}", small, f"mix-{clusters}", first)
    specialized("slm-mix best-fine-tuned", small, mix, first, method="best-fine-tuned")
    return jobs


def finished(shop: Workshop) -> set[str]:
    if not shop.results.exists():
        return set()
    return {json.loads(line)["job"] for line in shop.results.read_text().splitlines()}


def work_through(shop: Workshop, jobs: list[Job]) -> None:
    """Take jobs until none is left; wait for what another process is at."""
    while True:
        done = finished(shop)
        left = [job for job in jobs if job.name not in done]
        if not left:
            return
        taken = False
        for job in left:
            if not set(job.needs) <= done:
                continue
            with locked(shop.work / "jobs" / f"{job.name.replace(' ', '_')}.lock", block=False) as mine:
                if not mine or job.name in finished(shop):
                    continue
                start = time.monotonic()
                result = {"job": job.name, **job.run(), "wall_s": round(time.monotonic() - start, 1)}
                with locked(shop.work / "results.lock", block=True), shop.results.open("a") as out:
                    out.write(json.dumps(result) + "\n")
                loss = result.get("test_loss", result.get("generic_loss"))
                say(f"{len(done) + 1}/{len(jobs)} {job.name} · {loss:.3f} nats/token · {result['wall_s']} s")
                taken = True
                break
        if not taken:
            time.sleep(2)


def cluster_report(shop: Workshop) -> dict[str, Any]:
    """Return share of the top cluster and entropy, by k and domain (Tables 9, 10)."""
    report: dict[str, Any] = {}
    for k in shop.plan.report_clusters:
        counts_K, _ = read_clusters(shop.clusters(k)[0])
        rows = {d: shop.histogram(d, shop.plan.spec_tokens[-1], k) for d in shop.domains} | {
            "generic": counts_K
        }
        report[str(k)] = {name: {"top": top_share(h), "entropy": entropy(h)} for name, h in rows.items()}
    return report


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser()
    parser.add_argument("size", help="tiny, small, paper or toy: SIZE.toml and SIZE-recipe.toml")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--domains", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--embedder", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plans", type=Path, default=here, help="folder of the plans")
    parser.add_argument("--rows", nargs="*", help="only these rows, as slm or 'slm-pn auto'")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    plan, recipe = read_plan(options.plans, options.size)
    shop = Workshop(plan, recipe, options)
    write_json(shop.work / "clusters.json", cluster_report(shop))
    write_json(shop.work / "plan.json", {"size": options.size, **asdict(plan)})
    jobs = plan_jobs(shop)
    if options.rows:
        chosen = [job for job in jobs if job.name.rsplit(" ", 3)[0] in options.rows]
        needed = {need for job in chosen for need in job.needs}
        jobs = [job for job in jobs if job in chosen or job.name in needed]
    work_through(shop, jobs)
    tables.write_all(shop.work, shop.work / "tables")
    left_out = figures.write_all(shop.work, shop.work / "tables")
    say(f"figures in {shop.work / 'tables'}; nothing to draw for: {', '.join(left_out) or 'none'}")
    print((shop.work / "tables" / "tables.md").read_text())


if __name__ == "__main__":
    main()
