"""Every system of the paper on every domain of a folder, at one size; resumable, any number of processes.

  python benchmarks/paper/run.py tiny --corpus generic/ --domains domains/ --work paper-tiny/

A domain is a folder with train.jsonl.gz, valid.jsonl.gz and test.jsonl.gz. Start the command as often as
there are cores: each takes jobs that no other has. A finished job is a line of results.jsonl in the work
folder, and is not done again; a killed one goes on. When all are done, tables and figures are written to
`WORK/tables/` (python benchmarks/paper/tables.py WORK writes what there is so far).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import figures
import tables
import torch
from plan import read_plan
from workshop import Workshop, locked, say

from provider.releasing import read_clusters
from shared.device import keep_freed_memory
from shared.files import write_json
from shared.importance import entropy, top_share


@dataclass(frozen=True)
class Job:
    """One line of results.jsonl: a pretraining, or one system on one domain with so many private tokens."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[], dict[str, Any]]


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

    def replayed(tokens: int, seed: int) -> None:
        specialized("slm-pn replay", tokens, pn, seed, method="histogram", with_replay=True)

    def claims(tokens: int, seed: int, with_replay: bool) -> None:
        specialized("slm", tokens, "slm", seed)
        specialized("slm-pn", tokens, pn, seed)
        specialized("slm-pn auto", tokens, pn, seed, method="auto")
        if with_replay:
            replayed(tokens, seed)

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
        claims(small, seed, with_replay=False)
    for seed in plan.seeds[1:]:
        replayed(small, seed)
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
