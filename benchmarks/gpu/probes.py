"""Probes of the GPU check: infinite losses, a paused rank's memory, and a stopped rank."""

import os
import signal
import threading
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from benchmarks.gpu.steered import Setting, memory_bytes

STOP_AT_STEP = 6
POLL_S = 0.1
INFINITE_STEPS = (2, 3)


def with_infinite_losses(model: torch.nn.Module) -> torch.nn.Module:
    """Make the model's loss infinite in its second and third training step, so that gradients are not finite."""
    made = 0

    def plant(module: torch.nn.Module, given: Any, output: Any) -> Any:
        nonlocal made
        made += module.training
        if module.training and made in INFINITE_STEPS:
            output["loss"] = output["loss"] * float("inf")
        return output

    model.register_forward_hook(plant)
    return model


class PauseMemory:
    """Memory of this rank before a pause, and its least value during the pause."""

    def __init__(self, setting: Setting) -> None:
        self.before_bytes = self.least_bytes = 0
        self._setting, self._stopped = setting, threading.Event()

    def attach(self, trainer: Trainer) -> TrainerCallback:
        """Return a callback that starts sampling in the step in which the pause is sent."""
        probe = self

        class Watch(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step + 1 == 4:
                    probe.before_bytes = probe.least_bytes = memory_bytes(probe._setting)
                    threading.Thread(target=probe._watch, daemon=True).start()

        return Watch()

    def stop(self) -> None:
        """End sampling."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_S):
            now = torch.cuda.memory_allocated() if self._setting.device == "cuda" else memory_bytes(self._setting)
            self.least_bytes = min(self.least_bytes, int(now))


class StopsItself(TrainerCallback):
    """Callback that stops this process in a step: it neither ends nor answers."""

    def __init__(self, trainer: Trainer) -> None:
        pass

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Send SIGSTOP to this process at one step."""
        if state.global_step + 1 == STOP_AT_STEP:
            os.kill(os.getpid(), signal.SIGSTOP)
