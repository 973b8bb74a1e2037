"""Stages of the GPU check: each returns figures and named checks, on every rank."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu import measured, probes
from benchmarks.gpu.steered import Intent, Observed, Setting, Training, memory_bytes, steer

Answer = dict[str, Any]
"""`checks`: name to bool; `agree`: values that must be equal on all ranks; everything else: figures."""

EXACT_STEPS, SAVED_STEP, LEFT_AT_STEP = 9, 4, 7
ROLLBACKS = 20
HANG_AFTER_S = 4.0
FREED_SHARE = 0.3
"""Least share of the rank's tensor memory that a pause with offload must free."""


def boundary(setting: Setting) -> Answer:
    """Check that learning rates that are set and halved are used by the next step, on every rank."""
    commands: tuple[tuple[int, Intent], ...] = (
        (4, {"kind": "set_learning_rate", "value": 5e-4, "schedule": "hold"}),
        (7, {"kind": "set_learning_rate", "factor": 0.5, "schedule": "hold"}),
    )
    seen = steer(setting, Training("boundary", steps=14, stage=1, commands=commands))
    used = sorted({rate for _, rates in seen.rates for rate in rates if rate in (5e-4, 2.5e-4)})
    return {
        "checks": {"applied": _all_applied(setting, seen, 2), "both rates were used": used == [2.5e-4, 5e-4]},
        "agree": {"rates": seen.rates, "losses": seen.losses},
        "steps_until_applied": [
            settled["step"] - sent for settled, (sent, _) in zip(seen.settled, commands, strict=False)
        ],
    }


def knobs(setting: Setting) -> Answer:
    """Check that all optimizer knobs, clipping and dropout, set in one command, are live at the end."""
    wanted = {"weight_decay": 0.25, "eps": 1e-7, "gradient_clipping": 0.5, "betas": [0.85, 0.95], "dropout": 0.05}
    changes = [{"knob": name, "value": value} for name, value in wanted.items()]
    seen = steer(setting, Training("knobs", steps=8, commands=((3, {"kind": "set_knobs", "changes": changes}),)))
    live = {name: seen.final[name] for name in wanted}
    expected = wanted | {"dropout": [0.05]}
    return {
        "checks": {"applied": _all_applied(setting, seen, 1), "live values are those that were set": live == expected},
        "agree": {"live": live, "losses": seen.losses},
        "live": live,
    }


def exact(stage: int) -> Callable[[Setting], Answer]:
    """Save, continue, roll back, and repeat the same steps: state digests and losses must be bit-equal."""

    def run(setting: Setting) -> Answer:
        rollback = {"kind": "rollback", "checkpoint": f"step-{SAVED_STEP:08d}-g1"}
        training = Training(
            f"exact-zero{stage}",
            steps=EXACT_STEPS,
            stage=stage,
            save_every=SAVED_STEP,
            commands=((LEFT_AT_STEP, rollback),),
            digest_steps=True,
        )
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            seen = steer(setting, training)
        finally:
            torch.use_deterministic_algorithms(False)
        again = range(SAVED_STEP, LEFT_AT_STEP)
        digests, losses = _twice(seen.digests, again), _twice(seen.losses, range(SAVED_STEP + 1, LEFT_AT_STEP + 1))
        return {
            "checks": {
                "the run was rolled back": seen.lives == 2,
                "digests are equal": bool(digests) and all(len(set(pair)) == 1 for pair in digests.values()),
                "losses are equal": bool(losses) and all(len(set(pair)) == 1 for pair in losses.values()),
            },
            "digests_compared": len(digests),
            "losses_compared": len(losses),
            "losses": losses,
        }

    return run


def overflow(setting: Setting) -> Answer:
    """Check that a step with non-finite gradients is skipped on all ranks, and that the command's readback has it."""
    command: Intent = {"kind": "set_learning_rate", "value": 5e-4, "schedule": "hold"}
    precision = "bf16" if setting.rehearse else "fp16"  # DeepSpeed has no fp16 on CPUs: there a loss is made infinite
    training = Training(
        "overflow",
        steps=30 if not setting.rehearse else 10,
        precision=precision,
        commands=((2, command),),
        wrap_model=probes.with_infinite_losses if setting.rehearse else lambda model: model,
    )
    seen = steer(setting, training)
    readings = [settled.get("after") or {} for settled in seen.settled]
    return {
        "checks": {
            "steps were skipped": seen.final["skipped_steps"] > 0,
            "training went on after them": seen.final["skipped_steps"] < training.steps - 1,
            "the command was applied": _all_applied(setting, seen, 1),
            "its reading tells of skipped steps": setting.rank > 0 or any("skipped_steps" in r for r in readings),
        },
        "agree": {"skipped_steps": seen.final["skipped_steps"]},
        "skipped_steps": seen.final["skipped_steps"],
        "precision": precision,
    }


def pause(setting: Setting) -> Answer:
    """Check that a pause with offload frees device memory, and does not change the training."""
    size: Answer = {} if setting.rehearse else {"layers": 12, "width": 768, "vocabulary": 8192, "block": 128}
    plain = Training("pause-plain", steps=8, stage=3, optimizer="fused" if not setting.rehearse else "torch", **size)
    undisturbed = steer(setting, plain)
    probe = probes.PauseMemory(setting)
    commands: tuple[tuple[int, Intent], ...] = ((4, {"kind": "pause"}),)
    paused = Training(
        **{name: getattr(plain, name) for name in ("steps", "stage", "optimizer")},
        **size,
        name="pause",
        commands=commands,
        offload_pauses=True,
        resume_after_s=3.0,
        callbacks=(probe.attach,),
    )
    seen = steer(setting, paused)
    probe.stop()
    freed = 1 - probe.least_bytes / probe.before_bytes if probe.before_bytes else 0.0
    return {
        "checks": {
            "losses are those of a run that was not paused": seen.losses == undisturbed.losses,
            "memory was freed": setting.rehearse or freed >= FREED_SHARE,
        },
        "before_bytes": probe.before_bytes,
        "least_bytes": probe.least_bytes,
        "freed_share": round(freed, 3),
    }


def rollbacks(setting: Setting) -> Answer:
    """Measure the memory after each of twenty rollbacks in the same processes."""
    count = 3 if setting.rehearse else ROLLBACKS
    rollback = {"kind": "rollback", "checkpoint": "step-00000002-g1"}
    training = Training(
        "rollbacks", steps=6, stage=2, save_every=2, commands=tuple((4, rollback) for _ in range(count))
    )
    seen = steer(setting, training)
    return {
        "checks": {"every rollback was made": seen.lives == count + 1},
        "memory_bytes": seen.memory_bytes,
        "grown_bytes": seen.memory_bytes[-1] - seen.memory_bytes[0],
        "at_end_bytes": memory_bytes(setting),
    }


def fused_adam(setting: Setting) -> Answer:
    """Measure the build of DeepSpeed's FusedAdam kernel (needs nvcc), and check that a learning rate reaches it."""
    if setting.rehearse:
        return {"skipped": "DeepSpeed's FusedAdam is a CUDA kernel"}
    build_s = measured.build_fused_adam_s()
    command: Intent = {"kind": "set_learning_rate", "value": 5e-4, "schedule": "hold"}
    seen = steer(setting, Training("fused", steps=8, optimizer="fused", commands=((3, command),)))
    return {
        "checks": {
            "applied": _all_applied(setting, seen, 1),
            "it is FusedAdam": seen.final["optimizer"] == "FusedAdam",
            "the rate was used": any(rates[0] == 5e-4 for _, rates in seen.rates),
        },
        "build_s": build_s,
    }


def blocked_rank(setting: Setting) -> Answer:
    """Stop the last rank in a step: the others must end themselves with our watchdog's exit code."""
    stopped = setting.rank == setting.world_size - 1
    steer(
        setting,
        Training("blocked", steps=10**6, hang_after_s=HANG_AFTER_S, callbacks=(probes.StopsItself,) if stopped else ()),
    )
    return {"checks": {"the rank ended itself": False}}


def _all_applied(setting: Setting, seen: Observed, count: int) -> bool:
    """Return whether all commands were applied, on rank 0, which has the control server; True on other ranks."""
    return setting.rank > 0 or [settled.get("status") for settled in seen.settled] == ["applied"] * count


def _twice(values: list[tuple[int, Any]], steps: range) -> dict[int, list[Any]]:
    """Return the first and the second value of each of these steps."""
    by_step = {step: [value for at, value in values if at == step] for step in steps}
    return {step: both for step, both in by_step.items() if len(both) == 2}


STAGES: dict[str, Callable[[Setting], Answer]] = {
    "boundary": boundary,
    "knobs": knobs,
    "exact_zero1": exact(1),
    "exact_zero2": exact(2),
    "exact_zero3": exact(3),
    "step_time": measured.step_time,
    "trace": measured.trace,
    "overflow": overflow,
    "save": measured.save,
    "digest": measured.digest,
    "rollbacks": rollbacks,
    "pause": pause,
    "fused_adam": fused_adam,
    "blocked_rank": blocked_rank,
}
"""By the names of `catalogue.STAGE_BOXES`."""
