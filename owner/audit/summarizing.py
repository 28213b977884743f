"""An audit in a few lines of words, for the terminal and for whoever writes a report."""

import math
from typing import Any


def summarize_audit(found: dict[str, Any]) -> list[str]:
    """Return a line for each attack of `owner.audit.auditing.audit`, with what its figure compares to."""
    lines = [
        _membership(found["membership"]),
        _verbatim(found["verbatim"]),
        _canaries(found["canaries"]),
        _start(found["start"]),
    ]
    if found["privacy"]:
        epsilon, delta = found["privacy"]["epsilon"], found["privacy"]["delta"]
        lines.append(
            f"promise      differential privacy for documents: epsilon {epsilon:.3g}, delta {delta:.2g}"
        )
    return lines


def _membership(found: dict[str, Any]) -> str:
    low, high = found["auc_95"]
    return (
        f"membership   AUC {found['auc']:.3f} (95 %: {low:.3f} to {high:.3f}; 0.5 is a guess) by"
        f" {found['score']}, {found['trained']} {found['unit']} trained on against {found['heldout']} held"
        f" out; {found['found_at_1_percent_false']:.0%} found where at most 1 % are mistaken"
    )


def _verbatim(found: dict[str, Any]) -> str:
    ours, before = found["model"], found["start"]
    compared = ""
    if before:
        trained, heldout = (before[side]["longest_tokens"] for side in ("trained", "heldout"))
        compared = f" (the start: {trained} and {heldout})"
    return (
        f"verbatim     longest exact continuation: {ours['trained']['longest_tokens']} tokens of trained"
        f" text, {ours['heldout']['longest_tokens']} of held-out text{compared}, after"
        f" {found['prefix_tokens']} tokens of {ours['trained']['windows']} and"
        f" {ours['heldout']['windows']} windows"
    )


def _canaries(found: dict[str, Any] | None) -> str:
    if found is None:
        return (
            "canaries     none planted; `owner specialize --canaries 16` does, in a run for the audit alone"
        )
    ours, most_bits = found["model"], math.log2(found["candidates"])
    control = f" (the start: {found['start']['mean_bits']:.1f})" if found["start"] else ""
    return (
        f"canaries     mean exposure {ours['mean_bits']:.1f} of {most_bits:.0f} bits{control}; greedy"
        f" decoding writes {ours['completed']} of {found['planted']}, each planted {found['repeats']} times"
    )


def _start(found: dict[str, Any] | None) -> str:
    if found is None:
        return "start        whoever has the bundle can tell which expert is nearest; --bundle does it here"
    if found["next"] is None:
        return "start        the bundle holds one model: where this one started says nothing"
    times = found["next_distance"] / max(found["distance"], 1e-12)
    nearest = f"the nearest is {found['nearest']}, the next ({found['next']}) is {times:.3g} times as far"
    if found["nearest"] != found["true"]:
        return f"start        {found['true']}, and not given away by distance: {nearest}"
    return (
        f"start        given away to whoever has the bundle: {nearest}. Publishing the model tells"
        " roughly what your documents are about"
    )
