"""The paper's figures from results.jsonl, as it draws them: python benchmarks/paper/figures.py WORK

A figure of which there is nothing to draw is left out, and named at the end. Costs are hours of the
device on which a run was made, where the paper has A100 hours.
"""

import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tables import Results, macro_average, total_cost

SYSTEMS = {"slm": "SLM", "mix": "SLM-mix", "pn": "SLM-pn", "llm": "LLM", "trunk": "shared trunk"}
ROWS = {
    "slm": "SLM", "slm-mix": "SLM-mix", "slm-pn": "SLM-pn", "slm-pn auto": "SLM-pn auto",
    "slm-is": "SLM-is", "llm": "LLM",
}  # fmt: skip
Point = tuple[float, float]


def _hours(entry: dict) -> float:
    return entry["seconds"] / 3600


def _pretrained(results: Results, system: str) -> list[dict]:
    seed = results.plan["seeds"][0]
    return [p for p in results.pretrained if p["system"] == system and p["seed"] == seed and not p["domain"]]


def _system_of(results: Results, row: str) -> str:
    """Return the pretrained system behind a row; importance sampling has none."""
    plan = results.plan
    of = {
        "slm": "slm",
        "slm-d": "slm",
        "llm": "llm",
        "llm-lora": "llm",
        "slm-mix": f"mix-{plan['mix_clusters'][0]}",
    }
    for name in ("slm-pn", "slm-mix"):
        suffix = row.removeprefix(f"{name}-")
        if suffix.isdigit():
            return f"{name.removeprefix('slm-')}-{suffix}"
    return of.get(row) or (f"pn-{plan['pn_clusters'][0]}" if row.startswith("slm-pn") else row)


def _curve(results: Results, row: str, tokens: int, which: str = "test_loss") -> list[Point]:
    """Return (pretraining hours, macro-averaged perplexity), one point for each pretraining budget."""
    seed = results.plan["seeds"][0]
    found = []
    for pretrained in sorted(_pretrained(results, _system_of(results, row)), key=_hours):
        value = results.macro(
            row, tokens, seed, which, None if row.startswith("llm") else pretrained["steps"]
        )
        if value is not None:
            found.append((_hours(pretrained), value))
    return found


def _draw(axes: Axes, label: str, points: list[Point]) -> bool:
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", label=label)
    return bool(points)


def _is_line(results: Results, axes: Axes, tokens: int, which: str = "test_loss") -> bool:
    value = results.macro("slm-is", tokens, results.plan["seeds"][0], which)
    if value is not None:
        axes.axhline(value, linestyle="--", color="gray", label="SLM-is")
    return value is not None


def figure_3(results: Results, axes: Axes) -> bool:
    """Generic perplexity while pretraining."""
    drawn = False
    for system in sorted({p["system"] for p in results.pretrained}):
        label = SYSTEMS.get(system.split("-")[0])
        for entry in _pretrained(results, system) if label else []:
            points = [
                (_hours(entry) * step / entry["steps"], math.exp(loss))
                for step, loss in entry["history"]
                if step
            ]
            drawn |= _draw(axes, label or "", points or [(_hours(entry), math.exp(entry["generic_loss"]))])
    axes.set(xlabel="generic pretraining, hours", ylabel="generic perplexity")
    return drawn


def figure_4(results: Results, axes: Axes, tokens: int, which: str = "test_loss") -> bool:
    """Perplexity on the domains, before or after fine-tuning."""
    drawn = [
        _draw(axes, label, _curve(results, row, tokens, which))
        for row, label in ROWS.items()
        if row != "slm-is"
    ]
    drawn.append(_is_line(results, axes, tokens, which))
    axes.set(xlabel="generic pretraining, hours", ylabel="specific perplexity")
    return any(drawn)


def figure_5(results: Results, axes: Axes) -> bool:
    """Distillation, the teacher's pretraining counted."""
    tokens = results.plan["spec_tokens"][0]
    teacher = sum(_hours(p) for p in _pretrained(results, "llm")[:1])
    drawn = [_draw(axes, ROWS[row], _curve(results, row, tokens)) for row in ("slm", "slm-mix", "slm-pn")]
    points = [(hours + teacher, value) for hours, value in _curve(results, "slm-d", tokens)]
    drawn.append(_draw(axes, "SLM-d", points))
    axes.set(xlabel="overall pretraining, hours", ylabel="specific perplexity")
    return drawn[-1]


def figure_6(results: Results, axes: Axes) -> bool:
    """Total cost of importance sampling and of the projected network, over numbers of domains (Eq. 1)."""
    tokens, seed = results.plan["spec_tokens"][0], results.plan["seeds"][0]
    value = results.macro("slm-is", tokens, seed)
    runs = [p for p in results.pretrained if p["domain"]]
    if value is None or not runs:
        return False
    for n in (1, 7, 50):
        _draw(axes, f"SLM-is, {n} domains", [(total_cost(0, statistics.fmean(map(_hours, runs)), n), value)])
    _draw(axes, "SLM-pn", _curve(results, "slm-pn", tokens))
    axes.set(xlabel="total training, hours", ylabel="specific perplexity", xscale="log")
    return True


def _by_clusters(results: Results, axes: Axes, row: str, key: str) -> bool:
    tokens, drawn = results.plan["spec_tokens"][0], False
    for index, clusters in enumerate(results.plan[key]):
        points = _curve(results, row if index == 0 else f"{row}-{clusters}", tokens)
        drawn |= _draw(axes, f"{row.removeprefix('slm-')}-{clusters}", points)
    axes.set(xlabel="generic pretraining, hours", ylabel="specific perplexity")
    return drawn and len(results.plan[key]) > 1


def figure_7(results: Results, axes: Axes) -> bool:
    """Number of experts of the projected network."""
    return _by_clusters(results, axes, "slm-pn", "pn_clusters")


def figure_8(results: Results, axes: Axes) -> bool:
    """Specialization cost: importance sampling, and a mixture of which one expert is trained."""
    tokens, seed = results.plan["spec_tokens"][0], results.plan["seeds"][0]
    value, mix = results.macro("slm-is", tokens, seed), results.macro("slm-mix", tokens, seed)
    runs = [p for p in results.pretrained if p["domain"]]
    whole = _pretrained(results, _system_of(results, "slm-mix"))
    if value is None or mix is None or not runs or not whole:
        return False
    _draw(axes, "SLM-is", [(statistics.fmean(map(_hours, runs)), value)])
    _draw(axes, "SLM-mix, one expert", [(_hours(whole[0]) / results.plan["mix_clusters"][0], mix)])
    axes.set(xlabel="specialization, hours", ylabel="specific perplexity")
    return True


def figure_9(results: Results, axes: Axes) -> bool:
    """Fine-tuning's cost to its best step, against the pretraining's."""
    tokens, seed, drawn = results.plan["spec_tokens"][0], results.plan["seeds"][0], False
    for row, label in ROWS.items():
        points = []
        for pretrained in _pretrained(results, _system_of(results, row)):
            cells = results.of(row, tokens, seed, None if row.startswith("llm") else pretrained["steps"])
            if cells:
                best = [c["seconds"] * c["best_step"] / max(1, c["steps"]) / 3600 for c in cells]
                points.append((_hours(pretrained), statistics.fmean(best)))
        drawn |= _draw(axes, label, points)
    axes.set(xlabel="generic pretraining, hours", ylabel="fine-tuning to the best step, hours")
    return drawn


def figure_10(results: Results, axes: Axes) -> bool:
    """Number of clusters of importance sampling."""
    tokens, seed, points = results.plan["spec_tokens"][0], results.plan["seeds"][0], []
    for index, clusters in enumerate(results.plan["is_clusters"]):
        value = results.macro("slm-is" if index == 0 else f"slm-is-{clusters}", tokens, seed)
        if value is not None:
            points.append((float(clusters), value))
    axes.set(xlabel="clusters", ylabel="specific perplexity", xscale="log")
    return _draw(axes, "SLM-is", sorted(points)) and len(points) > 1


def figure_11(results: Results, axes: Axes) -> bool:
    """Number of experts of the mixture."""
    return _by_clusters(results, axes, "slm-mix", "mix_clusters")


def figure_12(results: Results, axes: Axes) -> bool:
    """Every domain by itself, after fine-tuning on the smallest set."""
    tokens = results.plan["spec_tokens"][0]
    rows = [row for row in ROWS if results.of(row, tokens)]
    for index, row in enumerate(rows):
        values = []
        for domain in results.domains:
            losses = [c["test_loss"] for c in results.of(row, tokens) if c["domain"] == domain]
            values.append(macro_average(losses) if losses else math.nan)
        places = [place + index * 0.8 / len(rows) for place in range(len(values))]
        axes.bar(places, values, 0.8 / len(rows), label=ROWS[row])
    axes.set_xticks([place + 0.4 for place in range(len(results.domains))], results.domains, rotation=30)
    axes.set(ylabel="specific perplexity")
    return bool(rows)


def figure_14(results: Results, axes: Axes) -> bool:
    """LoRA of the large model, by private tokens."""
    seed, drawn = results.plan["seeds"][0], []
    for row in ("llm", "llm-lora"):
        points = []
        for tokens in results.plan["spec_tokens"]:
            value = results.macro(row, tokens, seed)
            if value is not None:
                points.append((float(tokens), value))
        drawn.append(_draw(axes, row.upper() if row == "llm" else "LLM-lora", points))
    axes.set(xlabel="private tokens", ylabel="specific perplexity", xscale="log")
    return all(drawn)


def tokens_per_parameter(results: Results, axes: Axes) -> bool:
    """Not in the paper: generic perplexity over the SLM's, as both see more tokens per parameter."""
    drawn, slm = False, _pretrained(results, "slm")
    if slm:
        base = dict(slm[0]["history"])
        for system in ("pn", "trunk"):
            for entry in _pretrained(results, f"{system}-{results.plan['pn_clusters'][0]}"):
                scale = entry["tokens_per_parameter"] / entry["steps"]
                points = [
                    (step * scale, math.exp(loss - base[step]))
                    for step, loss in entry["history"]
                    if step and step in base
                ]
                drawn |= _draw(axes, SYSTEMS[system], points)
    axes.axhline(1, color="gray", linestyle="--")
    axes.set(xlabel="tokens per non-embedding parameter", ylabel="generic perplexity / SLM's")
    return drawn


def write_all(work: Path, out: Path) -> list[str]:
    """Draw what there is as PNG files into `out`; return the names of what could not be drawn."""
    results = Results(work)
    out.mkdir(parents=True, exist_ok=True)
    sizes = results.plan["spec_tokens"]
    figures: dict[str, Callable[[Results, Axes], bool]] = {
        "figure-3": figure_3,
        "figure-4a": partial(figure_4, tokens=sizes[0], which="before_loss"),
        **{f"figure-4{'bcd'[i]}": partial(figure_4, tokens=n) for i, n in enumerate(sizes[:3])},
        "figure-5": figure_5, "figure-6": figure_6, "figure-7": figure_7, "figure-8": figure_8,
        "figure-9": figure_9, "figure-10": figure_10, "figure-11": figure_11, "figure-12": figure_12,
        "figure-14": figure_14, "tokens-per-parameter": tokens_per_parameter,
    }  # fmt: skip
    missing = []
    for name, draw in figures.items():
        canvas, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        if draw(results, axes):
            text = (getattr(draw, "func", draw).__doc__ or "").split(".")[0]
            axes.set_title(f"{name.replace('-', ' ')}: {text}", fontsize="small")
            if axes.get_legend_handles_labels()[1]:
                axes.legend(fontsize="small")
            canvas.savefig(out / f"{name}.png", dpi=120, metadata={"Software": None})
        else:
            missing.append(name)
        plt.close(canvas)
    return missing


if __name__ == "__main__":
    left_out = write_all(Path(sys.argv[1]), Path(sys.argv[1]) / "tables")
    print("nothing to draw for:", ", ".join(left_out) or "none")
