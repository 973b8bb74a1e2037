"""Scripts as people write them, without DeepSpeed: killed, started again, and what was seen at their end.

Each is a function of a `Stage`; `train` runs the one that `spec["script"]` names. See `crashes` for kills: here
[place, step] is the step of the training that is called in this place, and what else there is the script knows.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.distributed as dist
from transformers import (
    Adafactor,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.optimization import AdafactorSchedule
from transformers.trainer_callback import ExportableState

from control_plane.server.control_server import ControlServer
from control_plane.storage.layout import RunFiles
from ray_jobs.config.sections import ScriptWorkload
from ray_jobs.process import context
from ray_jobs.steering.rollback import LeaveForBranch, forget_training
from ray_jobs.train import run_script
from tests.ray_jobs.trials.crash_trials import Asker, Patient, _known, die
from tests.ray_jobs.trials.data_trials import draws
from tests.ray_jobs.trials.skip_trials import skips, skips_in_a_loop
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, Blocks, open_server


class Marks(TrainerCallback):
    """Which steps this life made, and the death of this rank in one step of one training of the script."""

    def __init__(self, kill_at: int | None) -> None:
        self.made, self.kill_at = list[int](), kill_at

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.kill_at:
            die()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.made.append(state.global_step)


class Settled(Patient):
    """As `Patient`; and the journal knows of each checkpoint before the next step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_step_begin(args, state, control, **kwargs)
        session = self.trainer._steering.opened()
        session._report_outcomes()
        while session.link is not None and session.link._checkpoints:
            session.link._nudge()
            time.sleep(0.001)


class Stage:
    """What a script of these trials is given: a way to make its Trainers, and to note what it sees."""

    def __init__(self, files: RunFiles, spec: dict[str, Any], server: ControlServer | None) -> None:
        self.files, self.spec, self.server = files, spec, server
        self.made, self.noted = list[list[int]](), dict[str, Any]()

    def arguments(self, **given: Any) -> TrainingArguments:
        defaults: dict[str, Any] = {
            "output_dir": str(self.files.root / "trainer"),
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        return TrainingArguments(**(defaults | given))

    def trainer(self, made_from: type[Trainer] = Trainer, model: Any = None, data: Any = None, **given: Any) -> Any:
        from ray_jobs.hf.trainer import make_interactive

        callbacks, evaluated = given.pop("callbacks", []), given.pop("eval_dataset", None)
        optimizers = given.pop("optimizers", (None, None))
        trainer = make_interactive(made_from)(
            model=model if model is not None else fresh(),
            args=self.arguments(**given),
            train_dataset=data if data is not None else Blocks(40),
            eval_dataset=evaluated,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.watch(trainer)
        return trainer

    def watch(self, trainer: Any) -> None:
        trainer.add_callback(Settled(trainer))
        if self.server is not None and self.spec.get("asked"):
            trainer.add_callback(Asker(trainer, self.server, self.spec["asked"]))

    def note_commands(self) -> None:
        """How the commands were settled, and what the run knows of itself."""
        assert self.server is not None
        state = self.server._state
        settled = [life.settled for life in state.commands.values() if life.settled]
        self.noted["commands"] = [[each.status, each.reason or sorted(each.after or {})] for each in settled]
        self.noted["facts"] = state.generation.facts if state.generation else {}

    def run(self, trainer: Any) -> Any:
        """Call `train`. The step to die at is that of the training that is called in this place: [place, step]."""
        place, step = self.spec.get("kill") or (None, None)
        marks = Marks(step if place == len(self.made) + 1 else None)
        self.made.append(marks.made)
        trainer.add_callback(marks)
        try:
            return trainer.train()
        finally:
            trainer.remove_callback(marks)


def fresh(seed: int = 5, **shape: Any) -> GPT2LMHeadModel:
    set_seed(seed)
    given = {"n_embd": 16, "n_layer": 1, "n_head": 2} | shape
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, **given))


def weights(model: torch.nn.Module) -> float:
    return float(sum(float(each.double().sum()) for each in model.parameters()))


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One life of a script, and of each branch that the run is taken to in it."""
    files = RunFiles(Path(spec["root"]) / "runs" / "script")
    files.root.mkdir(parents=True, exist_ok=True)
    path = files.root / f"script-{rank}.py"
    path.write_text("from tests.ray_jobs.trials.script_trials import play\n\nplay()\n")
    known = _known(files)
    dist.barrier()
    new = [each for each in spec.get("commands", []) if each["uuid"] not in known]
    server = open_server(files, new) if rank == 0 else None
    while True:
        run = context.RunContext(
            files=files,
            connect=lambda: server,  # type: ignore[arg-type,return-value]
            checkpoint_every_steps=spec.get("every_steps", 0),
            digest_every_steps=spec.get("digest_every", 0),
            keeps_the_tail=spec.get("tail", False),
        )
        context.enter(run)
        stage = Stage(files, spec, server)
        _on_stage[:] = [stage]
        try:
            run_script(ScriptWorkload(kind="script", path=str(path), args=[]), run.trainings)
            return {"made": stage.made, **stage.noted}
        except LeaveForBranch:
            _on_stage.clear()
        forget_training()


_on_stage: list[Stage] = []


def play() -> None:
    """What the file of every script does."""
    stage = _on_stage[0]
    SCRIPTS[stage.spec["script"]](stage)


def folds(stage: Stage) -> None:
    """Two trainings on two halves, from fresh weights. With `skips` a half that was done before is left out."""
    for fold in (0, 1):
        done = stage.files.root / f"fold-{fold}"
        if not (stage.spec.get("skips") and done.exists()):
            model = fresh(seed=fold)
            half = torch.utils.data.Subset(Blocks(40), range(20 * fold, 20 * fold + 20))
            stage.run(stage.trainer(model=model, data=half, max_steps=(6, 8)[fold]))
            done.touch()
            stage.noted[f"fold-{fold}"] = weights(model)


def twice(stage: Stage) -> None:
    """One Trainer that trains twice: its second training goes on with the weights of the first."""
    trainer = stage.trainer(max_steps=6)
    for call in ("first", "second"):
        stage.run(trainer)
        stage.noted[call] = weights(trainer.model)


def result(stage: Stage) -> None:
    """Uses what `train` answers, as the examples of Transformers do."""
    trainer = stage.trainer(max_steps=6)
    answered = stage.run(trainer)
    if stage.spec.get("kill"):
        die()  # in the final evaluation, say
    stage.noted |= {"step": answered.global_step, "loss": answered.metrics["train_loss"]}


class Counts(Trainer):
    """Wants to know its steps per epoch before it is whole."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps_per_epoch = len(self.get_train_dataloader())


def counts(stage: Stage) -> None:
    trainer = stage.trainer(made_from=Counts, data=Blocks(41), num_train_epochs=1)
    stage.run(trainer)
    stage.noted["counted"] = trainer.steps_per_epoch


def bare_except(stage: Stage) -> None:
    """Whatever happens in the training, it goes on and saves, or trains once more."""
    trainer = stage.trainer(max_steps=8)
    try:
        stage.run(trainer)
    except:  # noqa: E722
        stage.run(trainer)


class Exits(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4:
            sys.exit(0)


def leaves(stage: Stage) -> None:
    """Leaves its training by `sys.exit(0)`, in its first life."""
    stage.run(stage.trainer(max_steps=6, callbacks=[Exits()] if stage.spec.get("kill") else []))


class Logs(TrainerCallback):
    """Logs what JSON has no words for."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        mine = {"mine": numpy.float32(1.5), "count": numpy.int64(2), "norm": torch.tensor(0.5), "curve": object()}
        state.log_history.append({"step": state.global_step, **mine})


def numbers(stage: Stage) -> None:
    trainer = stage.trainer(max_steps=6, callbacks=[Logs()])
    stage.run(trainer)
    kept = next(entry for entry in trainer.state.log_history if "mine" in entry)
    stage.noted["kept"] = {name: value for name, value in kept.items() if isinstance(value, int | float)}


def patience(stage: Stage) -> None:
    """Stops when four evaluations were no better; it has planned three."""
    trainer = stage.trainer(
        max_steps=6,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3, early_stopping_threshold=1.0)],
        eval_dataset={"one": Blocks(4), "two": Blocks(8)},
        learning_rate=1e-12,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="eval_one_loss",
        greater_is_better=False,
    )
    stage.run(trainer)
    stage.note_commands()


class Counter(TrainerCallback, ExportableState):
    """Stands for an average that a callback keeps, and exports as Transformers says."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1

    def state(self) -> dict[str, Any]:
        return {"args": {"count": self.count}, "attributes": {}}


def early_stop(stage: Stage) -> None:
    """Stops at step 8: its third evaluation is no better than its first, nor is its fourth."""
    counter = Counter()
    trainer = stage.trainer(
        max_steps=20,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=3), counter],
        eval_dataset=Blocks(4),
        learning_rate=1e-12,
        eval_strategy="steps",
        eval_steps=2,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    stage.run(trainer)
    if stage.spec.get("kill") == [1, "after"]:
        die()
    stage.noted |= {"step": trainer.state.global_step, "count": counter.count}


def epochs(stage: Stage) -> None:
    """Evaluates at the end of each epoch of 4 steps, with a plateau scheduler that halves the rate then."""
    trainer = stage.trainer(
        data=Blocks(8),
        num_train_epochs=3,
        eval_dataset=Blocks(4),
        eval_strategy="epoch",
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"patience": 0, "factor": 0.5, "threshold": 10.0},
        metric_for_best_model="eval_loss",
    )
    stage.run(trainer)
    history = trainer.state.log_history
    stage.noted["evaluated"] = [entry["step"] for entry in history if "eval_loss" in entry]
    stage.noted["losses"] = [
        [entry["step"], entry["loss"], entry["learning_rate"]] for entry in history if "loss" in entry
    ]
    stage.noted["weights"] = weights(trainer.model)


def own_rate(stage: Stage) -> None:
    """An optimizer that makes its own learning rate."""
    model = fresh()
    optimizer = Adafactor(model.parameters(), relative_step=True, scale_parameter=True, lr=None)
    stage.run(
        stage.trainer(model=model, data=Blocks(41), max_steps=3, optimizers=(optimizer, AdafactorSchedule(optimizer)))
    )
    stage.note_commands()


SCRIPTS: dict[str, Callable[[Stage], None]] = {
    "draws": draws,
    "skips": skips,
    "skips in a loop": skips_in_a_loop,
    "numbers": numbers,
    "patience": patience,
    "early stop": early_stop,
    "epochs": epochs,
    "own rate": own_rate,
    "folds": folds,
    "twice": twice,
    "result": result,
    "counts": counts,
    "bare except": bare_except,
    "leaves": leaves,
}
