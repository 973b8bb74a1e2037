"""Pre-trained weights of the study: made once, cached, and known by their digest."""

import hashlib
import os
import time
from typing import Any

import torch
from torch import nn
from transformers import GPT2LMHeadModel

from benchmarks.studies.human import plan
from benchmarks.studies.human.texts import evenly, texts
from ray_jobs.config.run_config import DataSettings
from ray_jobs.data.sample_order import SampleOrder, cache_folder
from ray_jobs.workloads.gpt2 import fresh_model

WARM_UP_STEPS = 100


def new_model() -> GPT2LMHeadModel:
    """Return the model with new weights, the same at each call."""
    data = DataSettings(source="stdlib", block_size=plan.BLOCK_TOKENS, vocab_size=plan.VOCABULARY)
    return fresh_model(plan.SHAPE, data, plan.VOCABULARY, plan.PRETRAINING_SEED)


def loss_of(model: nn.Module, blocks: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of blocks (samples, tokens), in nats a token."""
    loss: torch.Tensor = model(input_ids=blocks, labels=blocks).loss
    return loss


def evaluated(model: nn.Module, blocks: torch.Tensor) -> float:
    """Return the mean loss of blocks, without dropout."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        loss = sum(loss_of(model, part).item() * len(part) for part in blocks.split(64)) / len(blocks)
    model.train(was_training)
    return loss


def digest_of(state: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 over the weights by name, in hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def pretrained(steps: int = plan.PRETRAINING_STEPS) -> dict[str, Any]:
    """Return the weights: `state`, `digest`, losses before and after, seconds. Trains if they are not cached intact."""
    path = cache_folder() / f"study-human-{plan.version()}-{steps}.pt"
    if path.exists():
        kept: dict[str, Any] = torch.load(path, weights_only=True)
        if digest_of(kept["state"]) == kept["digest"]:
            return kept
    made = _pretrain(steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(made, temporary)
    os.replace(temporary, path)
    return made


def _pretrain(steps: int) -> dict[str, Any]:
    began_s, cpu_s = time.monotonic(), time.process_time()
    torch.manual_seed(plan.PRETRAINING_SEED)
    model, data = new_model(), texts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.PRETRAINING_RATE, weight_decay=plan.WEIGHT_DECAY)
    warm = min(WARM_UP_STEPS, max(1, steps // 4))
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    order = SampleOrder(len(data.pretraining), plan.PRETRAINING_SEED, plan.BATCH)
    before = evaluated(model, evenly(data.evaluation, plan.FINAL_BLOCKS))
    model.train()
    for step in range(1, steps + 1):
        loss = loss_of(model, data.pretraining[torch.from_numpy(order.batch(step))])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), plan.CLIPPING)
        optimizer.step()
        scheduler.step()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    return {
        "state": state,
        "digest": digest_of(state),
        "library_loss": evaluated(model, evenly(data.pretraining_evaluation, plan.FINAL_BLOCKS)),
        "wikitext_loss": evaluated(model, evenly(data.evaluation, plan.FINAL_BLOCKS)),
        "untrained_wikitext_loss": before,
        "seconds": time.monotonic() - began_s,
        "cpu_s": time.process_time() - cpu_s,
    }


def load_into(model: GPT2LMHeadModel, state: dict[str, torch.Tensor]) -> None:
    """Load weights; the output layer is the embedding's own tensor."""
    model.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]})
