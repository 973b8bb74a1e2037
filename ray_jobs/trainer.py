"""Public names of the steered Hugging Face Trainer."""

from ray_jobs.hf.trainer import InteractiveTrainer, make_interactive

__all__ = ["InteractiveTrainer", "make_interactive"]
