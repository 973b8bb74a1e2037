"""Classify spirals with DistributedDataParallel, in the style of PyTorch's own examples: a loop over epochs."""

import argparse
import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from steerway import TrainingSession  # 1


class Spirals(Dataset):
    """Points of three spirals, in noise."""

    def __init__(self, size, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.label = torch.randint(0, 3, (size,), generator=generator)
        self.angle = torch.rand(size, generator=generator) * 4
        self.noise = 0.05 * torch.randn(size, 2, generator=generator)

    def __len__(self):
        return len(self.label)

    def __getitem__(self, index):
        turned = self.angle[index] + self.label[index] * 2 * math.pi / 3
        point = self.angle[index] * torch.stack([turned.cos(), turned.sin()])
        return point + self.noise[index], self.label[index]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(2, 32)
        self.norm = nn.BatchNorm1d(32)
        self.dropout = nn.Dropout(0.1)
        self.fc2 = nn.Linear(32, 3)

    def forward(self, x):
        return self.fc2(self.dropout(F.relu(self.norm(self.fc1(x)))))


def batches(loader, sampler, start, epochs):
    """All epochs, from the step where the training is."""
    for epoch in range(start // len(loader), epochs):
        sampler.set_epoch(epoch)
        for place, batch in enumerate(loader):
            if epoch * len(loader) + place >= start:
                yield batch


@torch.no_grad()
def test(model, loader):
    model.eval()
    correct = sum((model(data).argmax(1) == target).sum().item() for data, target in loader)
    model.train()
    return correct / len(loader.dataset)


def main():
    parser = argparse.ArgumentParser(description="Spirals")
    parser.add_argument("--batch-size", type=int, default=8, help="of one process")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--gamma", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-model", default="spirals.pt")
    args = parser.parse_args()

    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(args.seed)
    dataset = Spirals(128)
    sampler = DistributedSampler(dataset, shuffle=True, seed=args.seed)
    # A loader draws a number for each epoch: from a generator of its own.
    own = torch.Generator().manual_seed(args.seed)
    train_loader = DataLoader(dataset, batch_size=args.batch_size, sampler=sampler, drop_last=True, generator=own)
    test_loader = DataLoader(Spirals(32, seed=1), batch_size=32)

    model = DistributedDataParallel(Net())
    optimizer = optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = StepLR(optimizer, step_size=len(train_loader), gamma=args.gamma)
    torch.manual_seed(args.seed + rank)

    total_steps = args.epochs * len(train_loader)
    session = TrainingSession(model, optimizer, scheduler=scheduler, total_steps=total_steps)  # 2
    with session:
        data_of_steps = batches(train_loader, sampler, session.global_step, args.epochs)
        for step, (data, target) in zip(session.steps(), data_of_steps, strict=False):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(data), target)
            loss.backward()
            optimizer.step()
            scheduler.step()
            session.step({"loss": loss})  # 3
            if rank == 0 and step % 5 == 0:
                print(f"Train step {step}/{total_steps} loss {loss.item():.6f}")

    accuracy = test(model.module, test_loader)
    if rank == 0:
        print(f"Test accuracy {accuracy:.3f}")
        torch.save(model.module.state_dict(), args.save_model)


if __name__ == "__main__":
    main()
