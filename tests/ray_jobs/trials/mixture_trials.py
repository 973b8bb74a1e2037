"""A training whose samples are drawn from sources that change while it trains, and what each of its steps was given.

`spec`: `stage` (of ZeRO; None: DDP), `steps`, `workers`, `kept` (persistent workers), `accumulation`, `loop` (of the
script's own), `losses` (noted by the script, and measured by source), `sources`, `pack` (documents into blocks),
`schedule` (of weights), and what `crash_trials` knows. Every life appends what its steps were given to
`samples-RANK.jsonl`. A record's first two tokens are its number; a block is named by a hash of its tokens.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from control_plane.core.health.settings import HealthSettings
from control_plane.core.model.data import SourceSettings
from control_plane.server.control_server import ControlServer
from control_plane.storage.layout import RunFiles
from ray_jobs.data.mixture.dataset import MixtureDataset, mixture
from ray_jobs.hf.trainer import make_interactive
from ray_jobs.loop.session import TrainingSession
from ray_jobs.process import context
from ray_jobs.steering.rollback import LeaveForBranch, forget_training
from tests.ray_jobs.trials.crash_trials import Asker, Killer, Patient, _known, die
from tests.ray_jobs.trials.skip_trials import Offered, _settle, note, wait_for_offers
from tests.ray_jobs.trials.trials import BLOCK_TOKENS, VOCABULARY, deepspeed_config, open_server

RUN, SEED, GLOBAL_BATCH = "mixed", 11, 4


def tokens(record: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A block of tokens, of which the first two are the record's number."""
    number = int(record["id"])
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(0, VOCABULARY, (BLOCK_TOKENS,), generator=generator)
    ids[0], ids[1] = number // VOCABULARY, number % VOCABULARY
    return {"input_ids": ids, "labels": ids}


def document(record: dict[str, Any]) -> list[int]:
    """The tokens of a record that is packed: from 3 to 43, other ones for another record."""
    number = int(record["id"])
    generator = torch.Generator().manual_seed(number)
    return [int(token) for token in torch.randint(0, VOCABULARY, (3 + 7 * number % 41,), generator=generator)]


def block_name(tokens: list[int]) -> int:
    """The name of a block of tokens."""
    return int.from_bytes(hashlib.sha256(bytes(tokens)).digest()[:6], "big")


def data_of(spec: dict[str, Any]) -> MixtureDataset:
    """The data of a training."""
    if spec.get("pack"):
        return mixture(document, pack=BLOCK_TOKENS, fingerprint="documents of the trials")
    return mixture(tokens)


class Noting(Trainer):
    """Notes which samples each step is given, before it is made."""

    notes = Path()
    losses: Path | None = None
    packs = False

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        numbers = (inputs["input_ids"][:, 0] * VOCABULARY + inputs["input_ids"][:, 1]).tolist()
        if self.packs:
            numbers = [block_name(row) for row in inputs["input_ids"].tolist()]
        note(self.notes, self.state.global_step + 1, numbers)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.losses is not None:
            # Of one sample; the Trainer has divided it by the number of micro-batches, and counts the label of the
            # first token, which nothing predicts.
            whole = float(loss) * self.args.gradient_accumulation_steps * BLOCK_TOKENS / (BLOCK_TOKENS - 1)
            with self.losses.open("a") as file:
                file.write(json.dumps([self.state.global_step + 1, numbers[0], whole]) + "\n")
        return loss


def train(rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """One life, and each branch that the run is taken to in it."""
    files = RunFiles(Path(spec["root"]) / "runs" / RUN)
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
            sources={name: SourceSettings.model_validate(each) for name, each in spec["sources"].items()},
            seed=SEED,
            health=HealthSettings() if spec.get("losses") else None,
            weights_schedule=[(step, weights) for step, weights in spec.get("schedule", ())],
        )
        context.enter(run)
        set_seed(5)
        try:
            return (_loop if spec.get("loop") else _trainer)(files, server, rank, spec)
        except LeaveForBranch:
            forget_training()


def _trainer(files: RunFiles, server: ControlServer | None, rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    stage = spec.get("stage")
    args = TrainingArguments(
        output_dir=str(files.root / "trainer"),
        max_steps=spec["steps"],
        per_device_train_batch_size=1,
        gradient_accumulation_steps=spec["accumulation"],
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=spec.get("workers", 0),
        dataloader_persistent_workers=spec.get("kept", False),
        dataloader_prefetch_factor=4 if spec.get("workers") else None,
        use_cpu=stage is None,
        deepspeed=deepspeed_config(stage, "constant") if stage is not None else None,
    )
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_TOKENS, n_embd=16, n_layer=1, n_head=2)
    trainer = make_interactive(Noting)(model=GPT2LMHeadModel(shape), args=args, train_dataset=data_of(spec))
    trainer.packs = bool(spec.get("pack"))
    trainer.notes = files.root / f"samples-{rank}.jsonl"
    trainer.losses = files.root / f"losses-{rank}.jsonl" if spec.get("losses") else None
    trainer.add_callback(Patient(trainer))
    if server is not None and spec["commands"]:
        trainer.add_callback(Offered(trainer, server))
    if server is not None and spec.get("asked"):
        trainer.add_callback(Asker(trainer, server, spec["asked"]))
    if spec.get("kill") and spec["kill"][0] == rank:
        trainer.add_callback(Killer(trainer, *spec["kill"][1:]))
    trainer.train()
    return _seen(trainer.model, trainer.state.global_step)


def _loop(files: RunFiles, server: ControlServer | None, rank: int, spec: dict[str, Any]) -> dict[str, Any]:
    """The same by a loop of the script's own, on one rank."""
    model = torch.nn.Sequential(torch.nn.Embedding(VOCABULARY, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = mixture(tokens)
    session = TrainingSession(model, optimizer, total_steps=spec["steps"], data=data, global_batch_samples=GLOBAL_BATCH)
    with session:
        wait_for_offers(session._steering, server)
        for step in session.steps():
            _settle(session._steering)
            if spec.get("kill") and spec["kill"][1] == step + 1:
                die()
            ids = torch.stack([data[reference]["input_ids"] for reference in session.references()])
            note(files.root / f"samples-{rank}.jsonl", step + 1, (ids[:, 0] * VOCABULARY + ids[:, 1]).tolist())
            model.zero_grad()
            losses = model(ids).square().mean(dim=(1, 2))
            session.note_sample_losses(losses)
            loss = losses.mean()
            loss.backward()
            if spec.get("losses"):
                with (files.root / f"losses-{rank}.jsonl").open("a") as file:
                    for number, one in zip((ids[:, 0] * VOCABULARY + ids[:, 1]).tolist(), losses.tolist(), strict=True):
                        file.write(json.dumps([step + 1, number, one]) + "\n")
            optimizer.step()
            session.step({"loss": loss})
    return _seen(model, session.global_step)


def _seen(model: Any, step: int) -> dict[str, Any]:
    return {
        "steps": step,
        "weights": float(sum(float(each.detach().double().sum()) for each in model.parameters())),
        "random": torch.get_rng_state().sum().item(),
    }


def lines(numbers: list[int]) -> bytes:
    """A JSONL shard with these records."""
    return b"".join(json.dumps({"id": number}).encode() + b"\n" for number in numbers)
