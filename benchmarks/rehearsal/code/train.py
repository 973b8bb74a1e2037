"""Script of the rehearsal: predict the next number of a sequence, in plain PyTorch, at a steady pace."""

import sys
import time

import torch
import torch.distributed as dist
from sequence import batch, make_model, read
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from steerway import TrainingSession

steps, pace_s = int(sys.argv[1]), float(sys.argv[2])
numbers = read("data/numbers.txt")
model = DistributedDataParallel(make_model())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
with TrainingSession(model, optimizer, total_steps=steps) as session:
    for step in session.steps():
        inputs, wanted = batch(numbers, step, dist.get_rank())
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), wanted)
        loss.backward()
        optimizer.step()
        time.sleep(pace_s)
        session.step({"loss": float(loss)})
