"""A plan on paper for PN-32 on C4: hours, cost and what limits each stage on 1, 8 and 64 GPUs.

  python benchmarks/scaling.py [--price 2.0] [--write]

Prints the tables of docs/scaling.md, or writes them there; --price is that of a GPU hour. First the model of
provider/costs.py beside the paper's Tables 2 and 3 and what one core was measured to do (rates.py),
then the plan. Everything given is in scaling.toml. One constant is fitted: the share of all peaks that is
reached, to the training cells of SLM and LLM in Table 2.
"""

import argparse
import math
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from owner.training.finetuning import FinetuneConfig
from provider.costs import (
    Cost,
    Machine,
    Plan,
    System,
    distinct,
    forward_cost,
    resident_bytes,
    step_cost,
    step_terms,
)
from provider.recipe import read_recipe
from shared.embedder import SUB_WINDOW_PIECES, WIDTH
from shared.embedding import BATCH_PIECES, LENGTH_STEP
from shared.embedding import CONFIG as EMBEDDER
from shared.sizes import PRESETS, SlmConfig

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs/scaling.md"
DATA: dict[str, Any] = tomllib.loads((HERE / "scaling.toml").read_text(encoding="utf-8"))
PAPER, CORE, CORPUS = DATA["paper"], DATA["core"], DATA["corpus"]
RECIPE = read_recipe(HERE.parent / "examples/release-pn32.toml")
assert RECIPE.projection is not None

SLM = System(RECIPE.model)
PN = replace(SLM, n_projected_layers=len(RECIPE.projection.layers), capacity=RECIPE.projection.capacity)
LLM = System(replace(RECIPE.model, width=2816, n_heads=22, ffn_width=11_264))  # Table 6
SYSTEMS = {"slm": SLM, "slm-mix": SLM, "slm-pn": PN, "llm": LLM}
_WIDTHS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
MINILM = System(SlmConfig("starcoder2", *(EMBEDDER[name] for name in _WIDTHS), 3, SUB_WINDOW_PIECES + 2))
"""The embedder: two-matrix layers as well, and no vocabulary to speak of."""
HOUR = 3600.0
FITTED = ("slm", "llm")


def paper_plan(name: str) -> Plan:
    """Return how the paper trained: tokens per step follow from Tables 2 and 8; a row has 1,024."""
    steps, n_gpus = PAPER["steps"][name]
    tokens = 100 / PAPER["training"][name] * 1e9 / steps
    if name == "slm-mix":  # 16 experts, one on each GPU
        return Plan(tokens / n_gpus)
    points = 0.0 if name != "slm-pn" else distinct(32, tokens / n_gpus / 1024)
    return Plan(tokens, n_gpus, microbatches=max(1.0, points), points=points)


def per_billion(machine: Machine, name: str, plan: Plan) -> float:
    """GPU hours per 1B training tokens, as in Table 2."""
    return step_cost(machine, SYSTEMS[name], plan).seconds * plan.n_gpus / plan.tokens * 1e9 / HOUR


def fitted(machine: Machine) -> Machine:
    """Return the machine at the share of its peaks that fits Table 2's SLM and LLM best, in log."""
    cells = [(per_billion(machine, name, paper_plan(name)), PAPER["training"][name]) for name in FITTED]
    return replace(machine, achieved=math.sqrt(math.prod(found / paper for found, paper in cells)))


A100 = fitted(Machine(**DATA["machines"]["a100"]))
H200 = Machine(**DATA["machines"]["h200"], achieved=A100.achieved)
HOST = Machine(CORE["bf16_flops"], CORE["f32_flops"], CORE["memory_bytes_s"], achieved=A100.achieved)


def table(head: str, rows: Iterator[tuple[object, ...]]) -> str:
    """Return a Markdown table; `head` separates columns by bars, all but the first are numbers."""
    line = "|" + " --- |" + " ---: |" * head.count("|")
    return "\n".join([f"| {head} |", line, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def compared(name: str, cell: str, paper: float, found: float, note: str) -> tuple[object, ...]:
    """Return a row: cell, figure of the paper or of a measurement, of the model, residual."""
    return name, cell, f"{paper:,.6g}", f"{found:,.3g}", f"{found / paper - 1:+.0%}", note


def table_2() -> Iterator[tuple[object, ...]]:
    """How the paper runs clusters that share a GPU is not told: one after the other, or all at once."""
    for name, paper in PAPER["training"].items():
        note, plan = "fitted" if name in FITTED else "predicted", paper_plan(name)
        case = "training" if not plan.points else "training, by cluster"
        yield compared(name, case, paper, per_billion(A100, name, plan), note)
        if plan.points:
            found = per_billion(A100, name, replace(plan, microbatches=1))
            yield compared(name, "training, at once", paper, found, note)
    for name, hours in PAPER["inference"].items():
        plan = paper_plan(name)
        found = forward_cost(A100, SYSTEMS[name], 1e9, plan.tokens / plan.n_gpus).seconds / HOUR
        yield compared(name, "inference", hours, found, "predicted")


def terms() -> Iterator[tuple[object, ...]]:
    """One step of the paper's projected network, and of the plain model on as many tokens."""
    plan = paper_plan("slm-pn")
    plain = step_terms(A100, SLM, Plan(plan.tokens, plan.n_gpus))
    for (name, limit, _, slm), (*_, pn) in zip(plain, step_terms(A100, PN, plan), strict=True):
        yield name, limit, f"{1000 * slm / A100.achieved:.1f}", f"{1000 * pn / A100.achieved:.1f}"
    slm_s = step_cost(A100, SLM, Plan(plan.tokens, plan.n_gpus)).seconds
    yield "step", "", f"{1000 * slm_s:.1f}", f"{1000 * step_cost(A100, PN, plan).seconds:.1f}"


def table_3() -> Iterator[tuple[object, ...]]:
    """One GPU with the batch that it had in pretraining, for as many steps as §4 allows at most."""
    step_s = {}
    for name in ("slm", "llm"):
        plan = paper_plan(name)
        step_s[name] = step_cost(A100, SYSTEMS[name], Plan(plan.tokens / plan.n_gpus)).seconds
    student = paper_plan("slm")
    taught_s = forward_cost(A100, LLM, student.tokens / student.n_gpus, 1024).seconds
    step_s["slm-d"] = step_s["llm"] + step_s["slm"] + taught_s
    for name, seconds in step_s.items():
        limits, most = PAPER["limits"][name][1:], PAPER["finetuning"]["most_steps"]
        for size, paper, steps in zip(("1M", "8M", "64M"), limits, most, strict=True):
            note = "upper bound" if size == "1M" else "predicted"
            yield compared(name, size, paper, steps * seconds / HOUR, note)


def budgets() -> Iterator[tuple[object, ...]]:
    tokens = CORPUS["text_bytes"] / CORE["bytes_per_token"]
    for name, (hours, *_) in PAPER["limits"].items():
        if name != "slm-d":
            bought = hours / PAPER["training"].get(name, PAPER["training"]["slm"]) * 1e9
            yield name, hours, f"{bought / 1e9:.0f}B", f"{bought / tokens:.1f}"


def core() -> Iterator[tuple[object, ...]]:
    """Small models on one core: both figures of each pair are the measured one and the model's."""
    slm = System(PRESETS["laptop"])
    pn = replace(slm, n_projected_layers=slm.sizes.n_layers, capacity=16)
    for cell in DATA["training"]:
        tokens, rate, ratio = (cell[name] for name in ("tokens_per_step", "slm_tokens_s", "pn_over_slm"))
        plain = step_cost(HOST, slm, Plan(tokens)).seconds
        more = step_cost(HOST, pn, Plan(tokens, points=1)).seconds - plain
        extra = f"{1000 * (ratio - 1) * tokens / rate:.0f} | {1000 * more:.0f}"
        ratios = f"{ratio:.2f} ({' to '.join(map(str, cell['quartiles']))}) | {1 + more / plain:.2f}"
        yield f"{tokens:,}", f"{rate:,}", f"{tokens / plain:,.0f}", extra, ratios
    one = forward_cost(HOST, MINILM, SUB_WINDOW_PIECES + 2, BATCH_PIECES).seconds
    yield "embedding, sub-windows/s", CORE["embedded_sub_windows_s"], f"{1 / one:.0f}", "", "", "", ""


def our_plan(n_gpus: int, system: System = SLM, tokens: float = 0, **options: bool) -> Plan:
    """Return the recipe's step on some GPUs; a GPU has at least one microbatch."""
    config, sizes = RECIPE.pretraining, RECIPE.model
    tokens = tokens or config.rows_per_step * sizes.context_tokens
    microbatches = max(1.0, tokens / n_gpus / config.rows_per_microbatch / sizes.context_tokens)
    points = distinct(RECIPE.clustering.n_clusters, microbatches) if system.projected else 0.0
    return Plan(tokens, n_gpus, microbatches, points, **options)


def stages(machine: Machine, n_gpus: int, n_cores: int) -> Iterator[tuple[str, Cost]]:
    """Yield every stage of the provider and of one owner; CPU work is spread over the cores."""
    config, k = RECIPE.pretraining, RECIPE.clustering.n_clusters
    text, context = CORPUS["text_bytes"], RECIPE.model.context_tokens
    tokens, pieces = text / CORE["bytes_per_token"], text / CORE["bytes_per_word_piece"]
    # Documents of exponential length: the mean number of windows follows from the mean length.
    windows = CORPUS["documents"] / -math.expm1(-context * CORPUS["documents"] / tokens)
    disks = DATA["assumed"]["disk_bytes_s"] * math.ceil(n_gpus / 8)
    fit, is_kept = RECIPE.clustering.fit_windows, RECIPE.clustering.keep_embeddings
    vectors = 4 * WIDTH * windows * is_kept
    again = 0 if is_kept else fit / windows  # the sample is embedded first

    def host(moved: float, core_s: float = 0.0, one_core: float = 0.0, flops: float = 0.0) -> Cost:
        return Cost(flops, moved, cpu=core_s / n_cores, disk=moved / disks, one_core=one_core)

    per_byte = 1 / CORE["read_bytes_s"] + 1 / CORE["tokenize_bytes_s"]
    yield "read, tokenize", host(CORPUS["compressed_bytes"] + 2 * tokens, text * per_byte)
    per_byte = 1 / CORE["decode_bytes_s"] + 1 / CORE["word_piece_bytes_s"]
    beside = host((1 + again) * 2 * tokens + vectors, (1 + again) * text * per_byte)
    padded = pieces + 2 * (pieces / SUB_WINDOW_PIECES + windows / 2) + LENGTH_STEP / 2 * windows
    vector = forward_cost(machine, MINILM, (1 + again) * padded / n_gpus, BATCH_PIECES)
    yield "embed", replace(vector, cpu=beside.cpu, disk=beside.disk, bytes=beside.bytes)
    fit *= RECIPE.clustering.n_init
    yield "k-means", host(4 * WIDTH * fit, one_core=fit * k / CORE["kmeans_window_clusters_s"])
    flops = windows * 2 * WIDTH * k
    yield "assign", host(vectors, flops / (CORE["f32_flops"] / 2), flops=flops)
    yield "sort by cluster", host(4 * tokens, one_core=windows / CORE["sort_windows_s"])
    yield "pack rows", host(20 * windows, one_core=windows / CORE["pack_windows_s"])
    for name, system in (("slm", SLM), ("pn", PN), ("llm", LLM)):
        yield f"pretrain {name}", step_cost(machine, system, our_plan(n_gpus, system)).times(config.steps)
    columns = our_plan(n_gpus, PN, sends_leaves=n_gpus > 1, is_sharded=n_gpus > 1)
    yield "pretrain pn, columns, dW sent", step_cost(machine, PN, columns).times(config.steps)
    share = step_cost(machine, SLM, Plan(config.rows_per_step * context / k))
    yield "pretrain mix", share.times(config.steps * math.ceil(k / n_gpus))
    sampled = PAPER["limits"]["slm-is"][0] / PAPER["training"]["slm"] * 1e9
    steps = sampled / (config.rows_per_step * context)
    yield "pretrain is, per owner", step_cost(machine, SLM, our_plan(n_gpus)).times(steps)
    bundle = 2 * (PN.trained + SLM.slm)  # bytes, bfloat16
    hashed_s = 2 * bundle / CORE["sha256_bytes_s"]  # once as a file or tensor, once when it is used
    yield "publish", host(3 * bundle, one_core=hashed_s)
    # A bank is read, widened to float32 and read again.
    converted_s = 10 * PN.capacity * PN.projected / CORE["memory_bytes_s"]
    yield "owner: verify, materialize", host(2 * bundle, one_core=hashed_s + converted_s)
    tuning = FinetuneConfig()
    for millions in (1, 8, 64):
        n_rows = int(millions * 1e6 / context)
        rows = min(config.rows_per_step, n_rows // tuning.least_steps_per_epoch)
        step = step_cost(machine, SLM, Plan(rows * context, microbatches=rows / tuning.rows_per_microbatch))
        yield f"owner: fine-tune {millions}M", step.times(tuning.max_epochs * n_rows / rows)


def stage_table(machine: Machine, price: float) -> Iterator[tuple[object, ...]]:
    """Yield a row per stage: one core for all CPU work, then `cores_per_gpu` beside each GPU."""
    cores = DATA["assumed"]["cores_per_gpu"]
    sizes = ((1, 1), (1, cores), (8, 8 * cores), (64, 64 * cores))
    total = [0.0] * len(sizes)
    for row in zip(*(stages(machine, *size) for size in sizes), strict=True):
        name, one = row[1]
        if name in ("pretrain slm", "pretrain pn") or not name.startswith(("pretrain", "owner")):
            total = [hours + cost.seconds / HOUR for hours, (_, cost) in zip(total, row, strict=True)]
        cells = [f"{cost.seconds / HOUR:,.3g} {cost.limit}" for _, cost in row]
        n_gpus = 0 if not one.compute else 1 if name.startswith("owner") else 8
        money = f"{price * n_gpus * row[2][1].seconds / HOUR:,.2f}" if n_gpus else ""
        yield name, f"{one.bytes:.1e}", f"{one.flops:.1e}", *cells, money
    yield "the release pn32", "", "", *(f"{hours:,.0f}" for hours in total), f"{8 * price * total[2]:,.0f}"


def step_table(machine: Machine) -> Iterator[tuple[object, ...]]:
    """Yield the projected network's step in four ways, over the plain model's."""
    for n_gpus, power in ((1, 14), (1, 16), (1, 17), (8, 17), (8, 20), (64, 17), (64, 20)):
        tokens = 2**power
        slm = step_cost(machine, SLM, our_plan(n_gpus, SLM, tokens)).seconds
        plans = [
            our_plan(n_gpus, PN, tokens, sends_leaves=leaves, is_sharded=shards)
            for leaves, shards in ((False, False), (False, True), (True, False), (True, True))
        ]
        costs = [step_cost(machine, PN, plan) for plan in plans[: 1 if n_gpus == 1 else 4]]
        cells = [f"{cost.seconds / slm:.2f} {cost.limit}" for cost in costs] + [""] * (4 - len(costs))
        memory = [f"{resident_bytes(PN, plan) / 1e9:.0f}" for plan in (plans[0], plans[3])]
        yield n_gpus, f"{tokens:,}", f"{1000 * slm:.0f}", *cells, *memory


def tables(price: float = 1.0) -> dict[str, str]:
    """Return the tables of the page, by the names of their blocks."""
    beside = "system | case | paper | model | residual | how"
    core_head = "tokens/step | SLM tokens/s | model | PN - SLM, ms/step | model | PN / SLM | model"
    stage_head = "stage | bytes | FLOPs | 1 GPU, 1 core | 1 GPU | 8 GPUs | 64 GPUs | 8 GPUs cost"
    step_head = (
        "GPUs | tokens/step | SLM, ms | DDP | ZeRO-1 | DDP, dW sent | columns, dW sent | GB, DDP | columns"
    )
    return {
        "fit": f"Share of all peaks that is reached, fitted: {A100.achieved:.2f}",
        "table 2": table(beside, table_2()),
        "terms": table("term | limit | SLM, ms | PN, ms", terms()),
        "table 3": table(beside, table_3()),
        "budgets": table("system | GPUh (Table 3) | tokens | passes over C4", budgets()),
        "core": table(core_head, core()),
        "stages a100": table(stage_head, stage_table(A100, price)),
        "stages h200": table(stage_head, stage_table(H200, price)),
        "steps a100": table(step_head, step_table(A100)),
        "steps h200": table(step_head, step_table(H200)),
    }


def refreshed(text: str, price: float = 1.0) -> str:
    """Return the page with every table as it should be; raises ValueError when a block is missing."""
    for name, content in tables(price).items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        head, rest = text.split(begin)
        text = head + begin + content + rest[rest.index(end) :]
    return text


def main() -> None:
    """Print every table, or write them into the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--price", type=float, default=1.0, help="of a GPU hour; 1: cost in GPU hours")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args()
    if options.write:
        PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), options.price), encoding="utf-8")
    else:
        print("\n".join(f"{name}\n\n{content}\n" for name, content in tables(options.price).items()))


if __name__ == "__main__":
    main()
