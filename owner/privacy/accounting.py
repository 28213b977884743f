"""What differential privacy promises and how it is accounted for: one plan, fixed before the first step.

The unit is a document. A share of epsilon goes to choosing the expert, the rest to training, whose noise
Opacus' accountant finds. What the promise covers stands in words in `describe_privacy`.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from owner.documents.windows import Split
from owner.privacy.private_noise import SOURCE
from shared.errors import PlanearlyError
from shared.extras import install_hint

ACCOUNTANT = "prv"
"""Opacus' numerical composition (Gopi et al. 2021), an upper bound: less noise for a promise than RDP's."""
ACCOUNTING_ERROR, LEAST_ERROR = 1 / 200, 1e-3
"""Of epsilon: how far the accountant's bound and the search for the noise may be off, to the safe side; never
less than LEAST_ERROR, because time and memory grow with its inverse."""


@dataclass(frozen=True)
class PrivacyConfig:
    """The promise and how it is spent. Ours, where nothing else is said."""

    epsilon: float
    """Of the whole: choosing the expert and training."""
    delta: float = 0.0
    """Of training; 0: one tenth of one over the number of training documents."""
    select_fraction: float = 0.1
    """Share of epsilon for choosing the expert, where there are several."""
    clip_norm: float = 0.1
    """Largest gradient norm of one document; Li et al. 2022, who clip nearly every one so."""
    documents_per_step: int = 256
    """Expected; never more than a quarter of the documents."""
    least_steps: int = 64
    """With little text, steps at least."""

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < math.inf:
            raise PlanearlyError(
                f"epsilon is {self.epsilon}, expected more than 0", hint="8 is a weak promise, 1 a strong one"
            )
        if not 0 <= self.delta < 1:
            raise PlanearlyError(
                f"delta is {self.delta}, expected 0 to 1",
                hint="leave it out, or give less than one over the number of documents",
            )


@dataclass(frozen=True)
class PrivacyPlan:
    """All that accounting needs, fixed before the first step."""

    n_documents: int
    epsilon_selection: float
    """Of choosing the expert; 0 where there is but one."""
    epsilon_training: float
    """By the accountant, of all steps."""
    delta: float
    noise_multiplier: float
    """Standard deviation of the noise over the clipping norm."""
    sampling_rate: float
    steps: int
    clip_norm: float

    @property
    def epsilon(self) -> float:
        """The whole promise, by basic composition."""
        return self.epsilon_selection + self.epsilon_training

    def describe(self) -> str:
        """Return one line for the terminal."""
        return (
            f"epsilon {self.epsilon:.3g} (choice {self.epsilon_selection:.3g}, training"
            f" {self.epsilon_training:.3g}) · delta {self.delta:.2g} · per document of {self.n_documents:,}"
            f" · noise {self.noise_multiplier:.3g} · {self.steps} steps"
        )


def plan_privacy(config: PrivacyConfig, n_experts: int, split: Split, epochs: int) -> PrivacyPlan:
    """Return the plan that spends epsilon on a choice and about so many passes over the training windows.

    The number of documents counts as known to everyone. Raises PlanearlyError for fewer than two
    documents, a delta that promises nothing, a promise too strong for any noise, or without Opacus.
    """
    n = split.training_documents.n_documents
    if n < 2 or split.by != "documents":
        raise PlanearlyError(
            "one document cannot be hidden among others: differential privacy here is for documents",
            hint="give the documents as files or .jsonl lines of their own",
        )
    delta = config.delta or 1 / (10 * n)
    if delta >= 1 / n:
        raise PlanearlyError(
            f"delta is {delta:g}, expected less than one over {n} training documents",
            hint=f"leave --dp-delta out for {1 / (10 * n):.3g}",
        )
    expected = min(config.documents_per_step, n / 4)
    steps = max(config.least_steps, math.ceil(epochs * len(split.train) / expected))
    rate = expected / n
    for_selection = config.epsilon * config.select_fraction if n_experts > 1 else 0.0
    noise = noise_multiplier(config.epsilon - for_selection, delta, rate, steps)
    spent = spent_epsilon(noise, rate, steps, delta)
    return PrivacyPlan(n, for_selection, spent, delta, noise, rate, steps, config.clip_norm)


def noise_multiplier(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Return the least noise that keeps the promise, by bisection. Source: Opacus `get_noise_multiplier`."""
    _need_opacus()
    from opacus.accountants.utils import get_noise_multiplier

    error = max(LEAST_ERROR, epsilon * ACCOUNTING_ERROR)
    try:
        with _quietly():
            return float(
                get_noise_multiplier(
                    target_epsilon=epsilon,
                    target_delta=delta,
                    sample_rate=sampling_rate,
                    steps=steps,
                    accountant=ACCOUNTANT,
                    epsilon_tolerance=error,
                    eps_error=error,
                )
            )
    except (ValueError, RuntimeError) as problem:
        raise PlanearlyError(
            f"no noise was found for epsilon {epsilon:g}, delta {delta:.3g}, {steps} steps: {problem}",
            hint="use a larger --dp-epsilon",
        ) from None


def spent_epsilon(noise: float, sampling_rate: float, steps: int, delta: float) -> float:
    """Return the accountant's upper bound on epsilon of so many steps."""
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism=ACCOUNTANT)
    accountant.history = [(noise, sampling_rate, steps)]
    with _quietly():
        rough = float(accountant.get_epsilon(delta=delta))
        return float(
            accountant.get_epsilon(delta=delta, eps_error=max(LEAST_ERROR, rough * ACCOUNTING_ERROR))
        )


def describe_privacy(plan: PrivacyPlan, perplexity: dict[str, float]) -> dict[str, Any]:
    """Return what the report says of the promise: figures, in words what they cover, and what it cost."""
    return {
        "epsilon": plan.epsilon,
        **asdict(plan),
        "accountant": f"Opacus {ACCOUNTANT.upper()} for training; added to the choice's (basic composition)",
        "choice": "discrete Laplace noise on one vote per training document (OpenDP)",
        "noise": SOURCE,
        "unit": "one training document, after copies were dropped: adding or removing it",
        "covers": "the weights in model/, and which expert they started from",
        "does_not_cover": "this report; the held-out documents, which are not trained on but decide whether"
        " the start is written instead of a worse result; which documents are held out or dropped as copies;"
        " the numbers of documents, windows and tokens, which set steps and rates; attacks on the"
        " rounding of floating-point noise",
        "written": "result" if perplexity["after"] < perplexity["before"] else "start: the result was worse",
        "perplexity_start": perplexity["before"],
        "perplexity_private": perplexity["after"],
        "perplexity_without": perplexity["without_dp"],
    }


@contextmanager
def _quietly() -> Iterator[None]:
    """Leave out a remark on RDP's orders: it only bounds the domain on which Opacus composes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        yield


def _need_opacus() -> None:
    try:
        import opacus  # noqa: F401
    except ImportError:
        raise PlanearlyError(
            "differential privacy needs the package opacus", hint=install_hint("dp")
        ) from None
