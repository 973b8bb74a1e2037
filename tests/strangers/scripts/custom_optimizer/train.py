"""A Trainer with an optimizer, a schedule and a loss of its own: Lion with a rate by layer, and label smoothing."""

import sys

import torch
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import (
    HfArgumentParser,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from steerway import make_interactive  # 1

VOCAB, LENGTH = 32, 16


class Lion(Optimizer):
    """Evolved sign momentum (Chen et al., 2023)."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                exp_avg = state["exp_avg"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((exp_avg * beta1 + p.grad * (1 - beta1)).sign_(), alpha=-group["lr"])
                exp_avg.mul_(beta2).add_(p.grad, alpha=1 - beta2)
        return loss


class Sequences(Dataset):
    """Counting up, in steps of 1 to 3."""

    def __init__(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(0, VOCAB, (size, 1), generator=generator)
        stride = torch.randint(1, 4, (size, 1), generator=generator)
        self.ids = (start + stride * torch.arange(LENGTH)) % VOCAB

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        return {"input_ids": self.ids[index], "labels": self.ids[index].clone()}


class LionTrainer(Trainer):
    def create_optimizer(self, model=None):
        if self.optimizer is None:
            body, head = [], []
            for name, parameter in self.model.named_parameters():
                (head if "lm_head" in name or "embed" in name else body).append(parameter)
            groups = [{"params": body, "weight_decay": 0.1}, {"params": head, "lr": self.args.learning_rate / 2}]
            self.optimizer = Lion(groups, lr=self.args.learning_rate)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            self.lr_scheduler = get_cosine_schedule_with_warmup(
                optimizer or self.optimizer, warmup, num_training_steps, num_cycles=0.4
            )
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].reshape(-1, VOCAB)
        loss = F.cross_entropy(logits, labels[:, 1:].reshape(-1), label_smoothing=0.1)
        return (loss, outputs) if return_outputs else loss


def main():
    (args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
    set_seed(args.seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=0.1,
        max_position_embeddings=LENGTH,
    )
    trainer = make_interactive(LionTrainer)(  # 2
        model=LlamaForCausalLM(config),
        args=args,
        train_dataset=Sequences(130, seed=0),
        eval_dataset=Sequences(16, seed=1),
    )
    trainer.train()
    trainer.save_model()
    return 0


if __name__ == "__main__":
    sys.exit(main())
