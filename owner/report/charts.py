"""Geometry of the report's pictures: numbers to positions; the template writes the SVG elements.

Bars and intervals are positions in percent of a width that is the reader's; loss curves lie in a fixed box.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 36, 10, 26, 36
"""Margins of the loss curves' box, in its own units: about a pixel each."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Curves:
    """One fine-tuning's losses over its steps, as places in a box of WIDTH by HEIGHT."""

    heldout: list[tuple[float, float]]
    training: list[tuple[float, float]]
    best: tuple[float, float]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @staticmethod
    def path(points: Sequence[tuple[float, float]]) -> str:
        """Return the points as an SVG polyline has them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return round numbers from low to high, 1, 2 or 5 times a power of ten apart, at most `most` + 1."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    apart = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    first = math.ceil(low / apart - 1e-9)
    return [round(place * apart, 10) for place in range(first, math.floor(high / apart + 1e-9) + 1)]


def loss_range(histories: Sequence[Sequence[dict[str, Any]]]) -> tuple[float, float]:
    """Return the lowest and highest loss of all fine-tunings: their curves share one axis."""
    losses = [
        loss
        for history in histories
        for entry in history
        for loss in (entry["heldout_loss"], entry["train_loss"])
        if loss is not None
    ]
    low, high = min(losses), max(losses)
    margin = 0.05 * (high - low) or 0.1
    return low - margin, high + margin


def loss_curves(history: Sequence[dict[str, Any]], best_step: int, losses: tuple[float, float]) -> Curves:
    """Return the curves of one fine-tuning; `losses` is the range of the vertical axis in nats/token."""
    last = max(1, history[-1]["step"])
    low, high = losses
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(step: float) -> float:
        return LEFT + (right - LEFT) * step / last

    def y(loss: float) -> float:
        return bottom - (bottom - TOP) * (loss - low) / (high - low)

    heldout = [(x(entry["step"]), y(entry["heldout_loss"])) for entry in history]
    best = next(place for place, entry in zip(heldout, history, strict=True) if entry["step"] == best_step)
    return Curves(
        heldout=heldout,
        training=[
            (x(entry["step"]), y(entry["train_loss"])) for entry in history if entry["train_loss"] is not None
        ],
        best=best,
        x_ticks=[Tick(x(step), f"{step:,.0f}") for step in ticks(0, last, 4) if step == int(step)],
        y_ticks=[Tick(y(loss), f"{loss:g}") for loss in ticks(low, high, 7)],
    )


@dataclass(frozen=True)
class Scale:
    """A logarithmic axis for perplexities, in percent of a width."""

    low: float
    high: float

    def at(self, perplexity: float) -> float:
        """Return the place of a perplexity, 2 to 98."""
        share = math.log(perplexity / self.low) / math.log(self.high / self.low)
        return round(2 + 96 * min(1.0, max(0.0, share)), 2)

    def ticks(self) -> list[Tick]:
        """Return round perplexities on the axis: 1, 2, 5, 10 and so on, or any round ones on a short axis."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        round_ones = [
            step * 10.0**power for power in powers for step in (1, 2, 5) if self._holds(step * 10.0**power)
        ]
        if len(round_ones) < 2:
            round_ones = ticks(self.low, self.high, 3)
        return [Tick(self.at(value), f"{value:g}") for value in round_ones]

    def _holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def perplexity_scale(values: Sequence[float]) -> Scale:
    """Return an axis on which all these perplexities lie."""
    low, high = min(values), max(values)
    return Scale(low / 1.05, high * 1.05)
