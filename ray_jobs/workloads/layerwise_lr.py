"""Layer-wise learning rates for a GPT-2, in a plain DeepSpeed loop: each layer is a named parameter group.

    steer submit configs/layerwise-lr.yaml
    steer set RUN 'lr*=0.1' --group layer0

It learns the bytes of Python's standard library. The learning rate decreases by the factor `decay` for each layer below
the top. The loop is the script's own; Steerway needs only the few lines that use the session.
"""

import argparse
import hashlib
from typing import Any

import torch
from torch import nn

from control_plane.core.model.errors import Invalid
from ray_jobs.config.sections import DataSettings
from ray_jobs.loop.session import TrainingSession

BLOCK_BYTES = 64
VOCABULARY = 256
MAX_TEXT_BYTES = 2_000_000


def layer_groups(model: nn.Module, layers: int, rate: float, decay: float) -> list[dict[str, Any]]:
    """Return a parameter group for the embedding, each layer and the head, which has the learning rate `rate`."""
    groups: dict[str, list[nn.Parameter]] = {"embedding": []}
    groups |= {f"layer{index}": [] for index in range(layers)} | {"head": []}
    for name, parameter in model.named_parameters():
        groups[group_of(name)].append(parameter)
    top = len(groups) - 1
    return [
        {"params": parameters, "name": name, "lr": rate * decay ** (top - depth)}
        for depth, (name, parameters) in enumerate(groups.items())
    ]


def group_of(parameter: str) -> str:
    """Return the group of a parameter, by its name."""
    if ".h." in parameter:
        return f"layer{parameter.split('.h.')[1].split('.')[0]}"
    return "embedding" if ".wte." in parameter or ".wpe." in parameter else "head"


def corpus() -> torch.Tensor:
    """Return the training text as bytes, shape `(n,)`."""
    from ray_jobs.workloads import stdlib_text

    documents = stdlib_text.read(DataSettings(source="stdlib", max_train_bytes=MAX_TEXT_BYTES)).train
    text = "\n".join(documents).encode("utf-8")
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def batch(text: torch.Tensor, seed: int, step: int, samples: int, rank: int, ranks: int) -> torch.Tensor:
    """Return this rank's blocks of a step, shape `(samples / ranks, BLOCK_BYTES)`. Depends on seed and step only."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    starts = torch.randint(0, len(text) - BLOCK_BYTES, (samples,), generator=generator)[rank::ranks]
    return torch.stack([text[start : start + BLOCK_BYTES] for start in starts.tolist()]).long()


def build_engine(arguments: argparse.Namespace, ranks: int) -> Any:
    """Build a DeepSpeed engine with the named groups. Raises `Invalid` if the ranks do not divide the batch."""
    import deepspeed
    from transformers import GPT2Config, GPT2LMHeadModel

    if arguments.samples % ranks:
        raise Invalid(f"a batch of {arguments.samples} samples cannot be divided evenly among {ranks} ranks")
    layers = arguments.layers
    shape = GPT2Config(vocab_size=VOCABULARY, n_positions=BLOCK_BYTES, n_embd=96, n_layer=layers, n_head=4)
    model = GPT2LMHeadModel(shape)
    optimizer = torch.optim.AdamW(layer_groups(model, layers, arguments.rate, arguments.decay), weight_decay=0.01)
    config = {
        "train_batch_size": arguments.samples,
        "train_micro_batch_size_per_gpu": arguments.samples // ranks,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def train(engine: Any, text: torch.Tensor, session: TrainingSession, arguments: argparse.Namespace) -> None:
    """Run the training loop."""
    import torch.distributed as dist

    rank, ranks = dist.get_rank(), dist.get_world_size()
    for step in session.steps():
        ids = batch(text, arguments.seed, step, arguments.samples, rank, ranks).to(engine.device)
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        session.step({"loss": loss})


def main() -> None:
    """Train on the ranks of torch.distributed."""
    import torch.distributed as dist

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--samples", type=int, default=16, help="samples of one step, over all ranks")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate of the head")
    parser.add_argument("--decay", type=float, default=0.7, help="factor of the learning rate, per layer below the top")
    parser.add_argument("--seed", type=int, default=20260101)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    engine = build_engine(arguments, dist.get_world_size())
    torch.manual_seed(arguments.seed + dist.get_rank())  # each rank drops out other units
    session = TrainingSession(engine=engine, total_steps=arguments.steps, seed=arguments.seed, tell_every_steps=5)
    with session:
        train(engine, corpus(), session, arguments)


if __name__ == "__main__":
    main()
