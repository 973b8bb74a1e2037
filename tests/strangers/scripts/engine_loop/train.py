"""Train a small convolutional net with a DeepSpeed engine, in the style of DeepSpeed's CIFAR-10 example."""

import argparse
import itertools

import deepspeed
import torch
import torch.nn as nn
import torch.nn.functional as F

from ray_jobs.training_session import TrainingSession  # 1


def add_argument():
    parser = argparse.ArgumentParser(description="Stripes")
    parser.add_argument("-e", "--epochs", default=3, type=int, help="number of total epochs (default: 3)")
    parser.add_argument("--local_rank", type=int, default=-1, help="local rank passed from distributed launcher")
    parser = deepspeed.add_config_arguments(parser)
    return parser.parse_args()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(4 * 3 * 3, 16)
        self.fc2 = nn.Linear(16, 2)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = F.dropout(F.relu(self.fc1(torch.flatten(x, 1))), 0.1, self.training)
        return self.fc2(x)


def stripes(size):
    """Images with horizontal or vertical stripes, in noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (size,), generator=generator)
    rows = torch.arange(8).remainder(2).float().expand(8, 8)
    images = torch.stack([rows if label else rows.T for label in labels]).unsqueeze(1)
    return torch.utils.data.TensorDataset(images + 0.5 * torch.randn(size, 1, 8, 8, generator=generator), labels)


def main(args):
    deepspeed.init_distributed(dist_backend="gloo")
    torch.manual_seed(42)
    net = Net()
    parameters = filter(lambda p: p.requires_grad, net.parameters())
    model_engine, _, _, _ = deepspeed.initialize(args=args, model=net, model_parameters=parameters)
    trainset = stripes(64)
    trainloader = torch.utils.data.DataLoader(
        trainset,
        batch_size=model_engine.train_micro_batch_size_per_gpu(),
        sampler=torch.utils.data.distributed.DistributedSampler(trainset, shuffle=True),
        generator=torch.Generator(),
    )
    criterion = nn.CrossEntropyLoss().to(model_engine.device)

    session = TrainingSession(engine=model_engine, total_steps=args.epochs * len(trainloader))  # 2
    with session:
        # As many batches as were made before are read over.
        batches = itertools.chain.from_iterable(trainloader for _ in range(args.epochs))
        batches = itertools.islice(batches, session.global_step, None)
        for i, (inputs, labels) in zip(session.steps(), batches, strict=False):
            outputs = model_engine(inputs.to(model_engine.device))
            loss = criterion(outputs, labels.to(model_engine.device))
            model_engine.backward(loss)
            model_engine.step()
            session.step({"loss": loss})  # 3
            if model_engine.local_rank == 0 and i % 4 == 3:
                print(f"[{i + 1:5d}] loss: {loss.item():.3f}")

    model_engine.save_checkpoint("checkpoints", tag="final")
    if torch.distributed.get_rank() == 0:
        torch.save(model_engine.module.state_dict(), "net.pt")


if __name__ == "__main__":
    main(add_argument())
