"""Public names of the callbacks around a steered Trainer's steps."""

from ray_jobs.hf.callbacks import CheckpointCallback, InteractiveCallback, LoggingCallback, RunPauseCallback

__all__ = ["CheckpointCallback", "InteractiveCallback", "LoggingCallback", "RunPauseCallback"]
