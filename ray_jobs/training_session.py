"""Public name for steering any other training loop: plain PyTorch or a DeepSpeed engine."""

from ray_jobs.loop.session import TrainingSession

__all__ = ["TrainingSession"]
