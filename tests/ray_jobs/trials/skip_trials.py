"""A training of which samples are left out, and which samples each of its steps took, in each of its lives.

`spec`: `data` (sized, stream, ...), `steps`, `workers`, `kept` (persistent workers), `accumulation`, `sampler`, `loop`
(how a loop of the script's own takes its samples), and what `script_trials` knows. Every life appends what its steps
were given to `samples-RANK.jsonl`.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from ray_jobs.data.sample_order import SampleOrder
from ray_jobs.loop.session import TrainingSession
from tests.ray_jobs.trials.crash_trials import die
from tests.ray_jobs.trials.data_trials import Lengths, Masks
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY

SAMPLES, MICRO_BATCH, GLOBAL_BATCH = 41, 2, 4
PER_EPOCH = SAMPLES // GLOBAL_BATCH
STREAM_SAMPLES = 20
"""Five steps of a pass."""


class Numbered(torch.utils.data.Dataset):
    """Token blocks whose first two tokens are their number."""

    def __init__(self, size: int = SAMPLES) -> None:
        generator = torch.Generator().manual_seed(7)
        self.ids = torch.randint(0, VOCABULARY, (size, BLOCK_TOKENS), generator=generator)
        self.ids[:, 0], self.ids[:, 1] = torch.arange(size) // VOCABULARY, torch.arange(size) % VOCABULARY

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Stream(IterableDataset):
    """The same blocks in their order, pass after pass, without a length."""

    def __init__(self, size: int = STREAM_SAMPLES) -> None:
        self.blocks = Numbered(size)

    def __iter__(self) -> Any:
        return (self.blocks[index] for index in range(len(self.blocks)))


class SizedStream(Stream):
    """The same with a length, as some streams have."""

    def __len__(self) -> int:
        return len(self.blocks)


OFFERED_WITHIN_S = 60.0


def wait_for_offers(steering: Any, server: Any) -> None:
    """On rank 0, wait until what is not settled yet has been offered: training would not wait for it."""
    link, replica = steering.opened().link, steering.opened().replica
    due = {uuid for uuid, life in server._state.commands.items() if not life.settled} if link is not None else set()
    waits = due - replica.ledger.keys() - {each.command.uuid for each in replica.repeats}
    until_s = time.monotonic() + OFFERED_WITHIN_S
    while waits and not link.offers():
        assert time.monotonic() < until_s, "no command was offered"
        time.sleep(0.01)


class Offered(TrainerCallback):
    """Waits for the offers before the first step."""

    def __init__(self, trainer: Any, server: Any) -> None:
        self.trainer, self.server = trainer, server

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        wait_for_offers(self.trainer._steering, self.server)


def note(path: Path, step: int, numbers: list[int]) -> None:
    with path.open("a") as file:
        file.write(json.dumps([os.getpid(), step, numbers]) + "\n")


class Noting(Trainer):
    """Notes which samples each step is given, before it is made."""

    notes = Path()

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        numbers = (inputs["input_ids"][:, 0] * VOCABULARY + inputs["input_ids"][:, 1]).tolist()
        note(self.notes, self.state.global_step + 1, numbers)
        return super().training_step(model, inputs, *args, **kwargs)


class OwnOrder(Noting, Lengths):
    """With a sampler that the script has written."""


class EarlyEpochs(TrainerCallback):
    """Ends each epoch after three steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_epoch_stop = state.global_step % 3 == 0


def skips(stage: Any) -> None:
    """As many steps as the spec says, over data of its kind."""
    spec = stage.spec
    data = {"sized": Numbered, "stream": Stream, "sized stream": SizedStream}[spec.get("data", "sized")]()
    trainer = stage.trainer(
        made_from=OwnOrder if spec.get("sampler") == "own" else Noting,
        data=data,
        max_steps=spec.get("steps", 14) if "epochs" not in spec else -1,
        num_train_epochs=spec.get("epochs", 3),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=spec.get("accumulation", 2),
        dataloader_num_workers=spec.get("workers", 0),
        dataloader_persistent_workers=spec.get("kept", False),
        train_sampling_strategy=spec.get("strategy", "random"),
        ignore_data_skip=spec.get("begins_anew", False),
        callbacks=[EarlyEpochs()] if spec.get("early") else [],
    )
    rank = int(os.environ["RANK"])
    trainer.notes = stage.files.root / f"samples-{rank}.jsonl"
    trainer.add_callback(Offered(trainer, stage.server))
    trainer.data_collator = Masks()
    stage.run(trainer)
    if stage.server is not None:
        stage.note_commands()
    stage.noted |= {
        "steps": trainer.state.global_step,
        "epoch": trainer.state.epoch,
        "weights": float(sum(float(each.detach().double().sum()) for each in trainer.model.parameters())),
        "random": torch.get_rng_state().sum().item(),
    }


def skips_in_a_loop(stage: Any) -> None:
    """The same by a loop of the script's own, which asks its session for samples, or for the position of its data."""
    spec, path = stage.spec, stage.files.root / "samples-0.jsonl"
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Embedding(SAMPLES, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    order = SampleOrder(SAMPLES, spec["order_seed"], GLOBAL_BATCH)
    given: dict[str, Any] = {"samples": {"sample_order": order}, "position": {"global_batch_samples": GLOBAL_BATCH}}
    session = TrainingSession(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        total_steps=spec["steps"],
        **given.get(spec["loop"], {}),
    )
    with session:
        wait_for_offers(session._steering, stage.server)
        for step in session.steps():
            _settle(session._steering)
            if spec.get("kill") == [1, step + 1]:
                die()
            ids = session.samples() if spec["loop"] == "samples" else order.batch(session.data_step + 1)
            note(path, step + 1, ids.tolist())
            model.zero_grad()
            loss = model(torch.from_numpy(ids)).square().mean()
            loss.backward()
            session._optimizer.step()
            session.step({"loss": loss})
    stage.note_commands()
    stage.noted |= {
        "steps": session.global_step,
        "epoch": None,
        "weights": float(sum(float(each.detach().double().sum()) for each in model.parameters())),
        "random": torch.get_rng_state().sum().item(),
    }


def _settle(steering: Any) -> None:
    """Wait until the journal has what was saved."""
    steering.saver.writer.drain(60)
    session = steering.opened()
    session._report_outcomes()
    while session.link is not None and session.link._checkpoints:
        session.link._nudge()
        time.sleep(0.001)
