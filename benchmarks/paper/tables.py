"""results.jsonl to CSV files and Markdown tables: python benchmarks/paper/tables.py WORK

Writes what there is; a cell without a result stays empty. The paper's own values stand beside ours only
where a size is the paper's; at any other size its *ratios* to the SLM do.
"""

import csv
import json
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAPER_RATIOS = {"slm": 1.0, "slm-pn": 17.17 / 18.22, "slm-mix": 17.56 / 18.22, "llm": 15.03 / 18.22}
"""Macro-averaged perplexity over the SLM's after 1M tokens at 400 GPUh: Table 8."""
PAPER_TABLE_5 = {"slm-mix": 17.32, "slm-mix best-pretrained": 17.05, "slm-mix best-fine-tuned": 16.98}
ROWS = (
    "slm-nopt",
    "slm",
    "slm-d",
    "slm-is",
    "slm-mix",
    "trunk",
    "slm-pn",
    "slm-pn histogram",
    "slm-pn auto",
    "slm-pn replay",
    "llm",
    "llm-lora",
)
Result = dict[str, Any]


def read_results(work: Path) -> list[Result]:
    """Return all finished jobs."""
    path = work / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def macro_average(losses: Iterable[float]) -> float:
    """Return exp of the mean of the domains' losses (§3.1): every domain has the same weight."""
    return math.exp(statistics.fmean(losses))


class Results:
    """The finished jobs, by row, private tokens and seed."""

    def __init__(self, work: Path) -> None:
        self.plan = json.loads((work / "plan.json").read_text())
        self.clusters = json.loads((work / "clusters.json").read_text())
        found = read_results(work)
        self.pretrained = [entry for entry in found if "system" in entry]
        self.cells = [entry for entry in found if "row" in entry]
        self.domains = sorted({cell["domain"] for cell in self.cells})
        self.full_steps = max((p["steps"] for p in self.pretrained if p["system"] == "slm"), default=0)

    def of(self, row: str, tokens: int, seed: int | None = None, steps: int | None = None) -> list[Result]:
        """Return one row's cells, of the full pretraining unless steps are given."""
        found = []
        for cell in self.cells:
            if (cell["row"], cell["spec_tokens"]) != (row, tokens) or seed not in (None, cell["seed"]):
                continue
            of_full = cell.get("pretraining_steps") in (None, self.full_steps) or row.startswith(
                ("llm", "slm-is")
            )
            if cell.get("pretraining_steps") == steps if steps else of_full:
                found.append(cell)
        return found

    def macro(
        self, row: str, tokens: int, seed: int, which: str = "test_loss", steps: int | None = None
    ) -> float | None:
        """Return a row's macro-averaged perplexity, or None while a domain is missing."""
        losses = {c["domain"]: c.get(which) for c in self.of(row, tokens, seed, steps)}
        if set(losses) != set(self.domains) or None in losses.values():
            return None
        return macro_average(losses.values())  # type: ignore[arg-type]

    def seeds(self, row: str, tokens: int, which: str = "test_loss") -> list[float]:
        """Return the macro-averages of all seeds that have every domain."""
        found = [self.macro(row, tokens, seed, which) for seed in self.plan["seeds"]]
        return [value for value in found if value is not None]

    def ratios(self, row: str, tokens: int, base: str = "slm") -> list[float]:
        """Return the macro-average over the SLM's of the same seed, for each seed that has both."""
        pairs = [(self.macro(row, tokens, s), self.macro(base, tokens, s)) for s in self.plan["seeds"]]
        return [a / b for a, b in pairs if a is not None and b is not None]

    def domain_ratio(self, row: str, tokens: int, domain: str) -> list[float]:
        """Return one domain's perplexity over the SLM's, by seed."""
        ours, theirs = (
            {c["seed"]: c["test_loss"] for c in self.of(name, tokens) if c["domain"] == domain}
            for name in (row, "slm")
        )
        return [math.exp(ours[seed] - theirs[seed]) for seed in ours if seed in theirs]


def spread(values: list[float], digits: int = 2) -> str:
    """Return a mean, with the smallest and largest of several."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; all columns but the first to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def main_table(results: Results) -> str:
    """Perplexity before and after, macro-averaged (Tables 4 and 8, Fig. 4)."""
    sizes = results.plan["spec_tokens"]
    head = [
        "system",
        "before",
        *[f"after {n:,}" for n in sizes],
        *[f"/ SLM at {n:,}" for n in sizes],
        "paper",
    ]
    rows = []
    for row in ROWS:
        cells = [spread(results.seeds(row, sizes[0], "before_loss"))]
        cells += [spread(results.seeds(row, n)) for n in sizes]
        cells += [spread(results.ratios(row, n), 3) for n in sizes]
        paper = PAPER_RATIOS.get(row)
        if any(cells):
            rows.append([row, *cells, f"{paper:.3f}" if paper else ""])
    return markdown(head, rows)


def domain_table(results: Results, tokens: int) -> str:
    """Perplexity after fine-tuning, by domain (Fig. 12), and the ratio of auto to the SLM."""
    head = ["system", *results.domains]
    rows = []
    for row in ROWS:
        by_domain = [
            [math.exp(c["test_loss"]) for c in results.of(row, tokens) if c["domain"] == d]
            for d in results.domains
        ]
        if any(by_domain):
            rows.append([row, *[f"{statistics.fmean(v):.2f}" if v else "" for v in by_domain]])
    for row in ("slm-pn", "slm-pn auto", "slm-pn replay"):
        ratios = [results.domain_ratio(row, tokens, d) for d in results.domains]
        if any(ratios):
            rows.append([f"{row} / slm", *[spread(v, 3) for v in ratios]])
    return markdown(head, rows)


def forgetting_table(results: Results) -> str:
    """Generic perplexity of fine-tuned models: what they forgot."""
    tokens = results.plan["spec_tokens"][0]
    rows = []
    for row in ROWS:
        values = results.seeds(row, tokens, "generic_loss")
        if values:
            rows.append([row, spread(values)])
    return markdown(["system", f"generic perplexity after {tokens:,} private tokens"], rows)


def selection_table(results: Results) -> str:
    """Ways to choose the expert of a mixture (Table 5)."""
    tokens, seed = results.plan["spec_tokens"][0], results.plan["seeds"][0]
    rows = []
    for row, paper in PAPER_TABLE_5.items():
        value = results.macro(row, tokens, seed)
        if value is not None:
            rows.append([row, f"{value:.2f}", f"{paper:.2f}"])
    return markdown(["method", "ours", "paper (other size and corpus)"], rows)


def chosen_table(results: Results) -> str:
    """What `auto` measured before fine-tuning, in perplexity, and chose, by domain."""
    tokens, seed = results.plan["spec_tokens"][0], results.plan["seeds"][0]
    rows = []
    for cell in sorted(results.of("slm-pn auto", tokens, seed), key=lambda c: c["domain"]):
        starts = {name: math.exp(loss) for name, loss in cell["starts"].items() if loss is not None}
        expert = next((v for name, v in starts.items() if name.startswith("expert")), math.nan)
        rest = [f"{starts[n]:.1f}" if n in starts else "" for n in ("histogram", "learned", "slm")]
        rows.append([cell["domain"], f"{expert:.1f}", *rest, cell["chosen"]])
    return markdown(["domain", "top expert", "histogram", "learned", "slm", "kept"], rows)


def pretraining_table(results: Results) -> str:
    """Every pretraining: tokens, seconds, generic perplexity (Tables 1, 2, 7; Fig. 3)."""
    head = ["system", "seed", "steps", "tokens", "tokens/parameter", "seconds", "tokens/s",
            "parameters", "at inference", "generic perplexity"]  # fmt: skip
    rows = []
    for p in sorted(
        results.pretrained, key=lambda p: (p["system"], p["steps"], p["seed"], p["domain"] or "")
    ):
        rows.append([
            p["system"] + (f" for {p['domain']}" if p["domain"] else ""), str(p["seed"]), f"{p['steps']:,}",
            f"{p['tokens']:,}", f"{p['tokens_per_parameter']:.0f}", f"{p['seconds']:,.0f}",
            f"{p['tokens'] / max(1e-9, p['seconds']):,.0f}", f"{p['parameters']:,}",
            f"{p['inference_parameters']:,}", f"{math.exp(p['generic_loss']):.2f}",
        ])  # fmt: skip
    return markdown(head, rows)


def costs(results: Results, n_domains: tuple[int, ...] = (1, 7, 50)) -> list[dict[str, Any]]:
    """Return C_total(N) = C_generic + C_spec x N in seconds (Eq. 1, Fig. 6), from the recorded runs."""
    tokens, seed = results.plan["spec_tokens"][0], results.plan["seeds"][0]
    generic: dict[str, float] = {}
    for p in results.pretrained:
        if p["steps"] == results.full_steps and p["seed"] == seed and p["domain"] is None:
            generic[p["system"].split("-")[0]] = p["seconds"]
    llm = [p["seconds"] for p in results.pretrained if p["system"] == "llm"]
    generic["llm"] = llm[0] if llm else math.nan
    found = []
    for row in ROWS:
        cells = results.of(row, tokens, seed)
        if not cells:
            continue
        specific = statistics.fmean(c["seconds"] + (c.get("replay") or {}).get("seconds", 0.0) for c in cells)
        kind = "pn" if row.startswith("slm-pn") else row.split()[0].removeprefix("slm-")
        base = generic.get({"llm-lora": "llm", "d": "slm", "nopt": "", "is": ""}.get(kind, kind), 0.0)
        if row == "slm-d":  # the teacher's pretraining and fine-tuning too
            base += generic["llm"]
            specific += statistics.fmean([c["seconds"] for c in results.of("llm", tokens, seed)] or [0.0])
        if row == "slm-is":
            specific += statistics.fmean(
                [p["seconds"] for p in results.pretrained if p["domain"] and p["seed"] == seed] or [0.0]
            )
        totals = {str(n): total_cost(base, specific, n) for n in n_domains}
        found.append({"row": row, "generic_s": base, "specific_s": specific, **totals})
    return found


def total_cost(generic: float, specialization: float, n_domains: int) -> float:
    """Return C_total(N) = C_generic + C_specialization x N (Eq. 1)."""
    return generic + specialization * n_domains


def cost_table(results: Results) -> str:
    """Costs in seconds (Tables 2 and 3, Eq. 1)."""
    found = costs(results)
    head = ["system", "generic, s", "specialization, s", "1 domain", "7 domains", "50 domains"]
    keys = ("generic_s", "specific_s", "1", "7", "50")
    return markdown(head, [[c["row"], *[f"{c[key]:,.0f}" for key in keys]] for c in found])


def cluster_tables(results: Results) -> str:
    """Share of the top cluster and entropy, by k (Tables 9 and 10)."""
    parts = []
    for key, title in (
        ("top", "Share of the most frequent cluster (Table 9)"),
        ("entropy", "Entropy, nats (Table 10)"),
    ):
        ks = list(results.clusters)
        names = list(next(iter(results.clusters.values())))
        rows = [[name, *[f"{results.clusters[k][name][key]:.2f}" for k in ks]] for name in names]
        parts.append(f"**{title}**\n\n" + markdown(["domain", *ks], rows))
    return "\n\n".join(parts)


def resampling_table(results: Results) -> str:
    """Effective sample size and repeats of importance sampling (App. D.1)."""
    rows = []
    for p in results.pretrained:
        if p.get("importance"):
            found = p["importance"]
            numbers = [f"{found['largest_weight']:.1f}", f"{found['mean_passes']:.2f}"]
            rows.append(
                [
                    f"{p['system']} for {p['domain']}",
                    str(found["n_clusters"]),
                    f"{found['effective_windows']:,.0f}",
                    *numbers,
                    f"{found['most_passes']:.2f}",
                ]
            )
    head = ["run", "clusters drawn from", "effective windows", "largest weight", "mean passes", "most passes"]
    return markdown(head, sorted(rows))


def write_all(work: Path, out: Path) -> None:
    """Write tables.md, results.csv, pretraining.csv and costs.csv into `out`."""
    results = Results(work)
    out.mkdir(parents=True, exist_ok=True)
    sizes = results.plan["spec_tokens"]
    sections = [
        ("Macro-averaged perplexity (§3.1)", main_table(results)),
        *[(f"By domain, {n:,} private tokens", domain_table(results, n)) for n in sizes],
        ("What auto measured and kept", chosen_table(results)),
        ("Choosing the mixture's expert (Table 5)", selection_table(results)),
        ("Forgetting", forgetting_table(results)),
        ("Pretraining", pretraining_table(results)),
        ("Costs (Eq. 1)", cost_table(results)),
        ("Resampling (App. D.1)", resampling_table(results)),
        ("Clusters", cluster_tables(results)),
    ]
    text = "\n\n".join(f"### {title}\n\n{table}" for title, table in sections)
    (out / "tables.md").write_text(text + "\n", encoding="utf-8")
    for name, entries in (
        ("results", results.cells),
        ("pretraining", results.pretrained),
        ("costs", costs(results)),
    ):
        _write_csv(out / f"{name}.csv", entries)


def _write_csv(path: Path, entries: list[Result]) -> None:
    flat = [{k: v for k, v in entry.items() if not isinstance(v, dict | list)} for entry in entries]
    names = sorted({name for entry in flat for name in entry})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(flat)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]), Path(sys.argv[1]) / "tables")
    print((Path(sys.argv[1]) / "tables" / "tables.md").read_text())
