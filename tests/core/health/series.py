"""Synthetic signs of a training: healthy ones with noise of every kind, and one planted fault of each kind of alert."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from control_plane.core.model.health import AlertKind

GATHER_STEPS, HOOK_STEPS, EVALUATION_STEPS = 5, 20, 25
BLOCKS = ("h.0", "h.1", "h.2")
RANKS = 4
GIB = 2.0**30


@dataclass
class Signs:
    """Signs of one step, as the monitor takes them."""

    step: int
    signs: dict[str, float]
    by_rank: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Healthy:
    """Healthy training.

    Attributes:
        noise: standard deviation of the logarithm of a batch's loss.
        tail: degrees of freedom of the gradient norm's noise; small ones are heavy-tailed.
        schedule: `constant`, `cosine` with warm-up, or `linear` with warm-up.
        fp16: with a loss scale, and a skipped step now and then.
    """

    seed: int
    steps: int = 640
    noise: float = 0.03
    tail: float = 5.0
    schedule: str = "cosine"
    fp16: bool = False

    def __iter__(self) -> Iterator[Signs]:
        """Yield the signs of all steps."""
        chance = random.Random(self.seed)
        skipped, scale = 0, 65536.0
        for step in range(1, self.steps + 1):
            lr = 3e-3 * self._rate(step)
            level = 1.5 + 3.5 * (1 + step / 20) ** -0.4
            loss = level * math.exp(chance.gauss(0, self.noise))
            norm = (0.4 + 3.0 * (1 + step / 10) ** -0.5) * math.exp(0.15 * self._heavy(chance))
            signs = {"loss_local": loss, "grad_norm": norm, "lr": lr, "max_grad_norm": 1.0, "skipped_steps": 0.0}
            if self.fp16:
                overflows = step < 4 or chance.random() < 1 / 500
                skipped, scale = skipped + overflows, scale / 2 if overflows else scale
                signs |= {"skipped_steps": skipped, "loss_scale": scale, "loss_scale_min": 1.0}
                signs |= {"grad_norm": math.inf} if overflows else {}
            yield self._measured(step, signs, level, lr, chance)

    def _measured(self, step: int, signs: dict[str, float], level: float, lr: float, chance: random.Random) -> Signs:
        took = 0.1 * math.exp(abs(chance.gauss(0, 0.2)))
        signs |= {"step_s": took, "data_wait_s": 0.002 * chance.random(), "memory_bytes": 11 * GIB}
        signs |= {"memory_limit_bytes": 16 * GIB, "phase": 0.0, "phase_s": took}
        by_rank: dict[str, list[float]] = {}
        if step % EVALUATION_STEPS == 0:
            signs |= {"phase": 2.0, "phase_s": 2.0 + chance.random(), "step_s": 0.3}
            signs |= {
                "eval/test_loss": level * 1.2,
                "heldout/old_loss": (level + 0.2) * math.exp(chance.gauss(0, 0.01)),
            }
        if step % GATHER_STEPS == 0:
            by_rank = {"own_step_s": [0.09 * math.exp(abs(chance.gauss(0, 0.05))) for _ in range(RANKS)]}
            signs |= {"loss": level * math.exp(chance.gauss(0, self.noise / 2)), "tokens_per_s": 8192 / took}
            signs |= {"checkpoint_age_steps": float(step % 100), "checkpoint_interval_steps": 100.0}
            for number, block in enumerate(BLOCKS):
                signs[f"weight_norm/{block}"] = 10 + number + 0.002 * step
                signs[f"layer_grad_norm/{block}"] = (0.3 + 0.1 * number) * math.exp(0.3 * self._heavy(chance))
                signs[f"update_norm/{block}"] = lr
                signs[f"update_ratio/{block}"] = lr * math.exp(chance.gauss(0, 0.2))
        if step % HOOK_STEPS == 0:
            for block in BLOCKS:
                signs[f"hidden_std/{block}"] = 1.0 + 0.001 * step + chance.gauss(0, 0.05)
                signs[f"dormant/{block}"] = 0.1 + 0.02 * chance.random() + 0.0001 * step
                signs[f"attention_entropy/{block}"] = 0.9 - 0.0005 * step + chance.gauss(0, 0.01)
                signs[f"attention_logit_max/{block}"] = 3.0 + 0.01 * step
                signs[f"qk_entropy/{block}"] = 0.8 - 0.0001 * step + chance.gauss(0, 0.01)
        return Signs(step, signs, by_rank)

    def _heavy(self, chance: random.Random) -> float:
        """Return one value of Student's t distribution."""
        return chance.gauss(0, 1) / math.sqrt(chance.gammavariate(self.tail / 2, 2) / self.tail)

    def _rate(self, step: int) -> float:
        warm_up = self.steps / 10
        if self.schedule == "constant":
            return 1.0
        if step < warm_up:
            return step / warm_up
        done = (step - warm_up) / (self.steps - warm_up)
        return 1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


Fault = Callable[[Signs, int], None]
"""Change the signs of a step, given the number of steps since the onset (0 at the onset)."""


def _set(**values: float) -> Fault:
    return lambda now, after: now.signs.update(values)


def _grow(prefix: str, factor: Callable[[int], float]) -> Fault:
    def fault(now: Signs, after: int) -> None:
        for name in now.signs:
            if name.startswith(prefix):
                now.signs[name] *= factor(after)

    return fault


def _replace(name: str, value: Callable[[int], float]) -> Fault:
    def fault(now: Signs, after: int) -> None:
        if name in now.signs:
            now.signs[name] = value(after)

    return fault


def _starve(now: Signs, after: int) -> None:
    now.signs |= {"data_wait_s": 0.4, "step_s": 0.5}


def _straggle(now: Signs, after: int) -> None:
    if "own_step_s" in now.by_rank:
        now.by_rank["own_step_s"][2] *= 1.8


def _overflow(now: Signs, after: int) -> None:
    now.signs |= {"skipped_steps": 10.0 + after, "loss_scale": 1.0, "loss_scale_min": 1.0, "grad_norm": math.inf}


def _diverge(now: Signs, after: int) -> None:
    for name in ("loss_local", "loss"):
        if name in now.signs:
            now.signs[name] *= 1 + 0.005 * after


def flat_after(onset: int) -> Fault:
    """Return a plateau: the noise goes on, the level stays what it was at the onset, the rate stays up."""
    level = 1.5 + 3.5 * (1 + onset / 20) ** -0.4

    def fault(now: Signs, after: int) -> None:
        now.signs["lr"] = 3e-3
        for name in ("loss_local", "loss"):
            if name in now.signs:
                now.signs[name] *= level / (1.5 + 3.5 * (1 + now.step / 20) ** -0.4)

    return fault


FAULTS: dict[AlertKind, Fault] = {
    "non_finite": _set(loss_local=math.nan),
    "gradient_overflow": lambda now, after: now.signs.update({"skipped_steps": 10.0, "loss_scale": 64.0}),
    "loss_scale_exhausted": _overflow,
    "loss_spike": _grow("loss_local", lambda after: 1.8),
    "gradient_spike": _grow("grad_norm", lambda after: 30.0),
    "slow_divergence": _diverge,
    "plateau": lambda now, after: flat_after(now.step - after)(now, after),
    "forgetting": _grow("heldout/", lambda after: 1.2 + 0.002 * after),
    "dead_units": _replace("dormant/h.1", lambda after: 0.8),
    "vanishing_layer": _grow("layer_grad_norm/h.0", lambda after: 1e-7),
    "exploding_layer": _grow("layer_grad_norm/h.2", lambda after: 1e4),
    "attention_blow_up": _replace("attention_logit_max/h.1", lambda after: 240.0),
    "straggling_rank": _straggle,
    "stalled_phase": _set(phase=0.0, phase_s=90.0),
    "data_starvation": _starve,
    "memory_near_limit": _set(memory_bytes=15.9 * GIB),
    "checkpoint_too_old": _replace("checkpoint_age_steps", lambda after: 260.0 + after),
}
"""One clear fault of each kind that stays; the onset of those at gathers or hooks is a step with one."""


def with_fault(healthy: Healthy, kind: AlertKind, onset: int) -> Iterator[Signs]:
    """Yield the signs of a healthy training into which a fault comes at a step and stays."""
    for now in healthy:
        if now.step >= onset:
            FAULTS[kind](now, now.step - onset)
        yield now
