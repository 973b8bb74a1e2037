"""Adapter for any other training loop: plain PyTorch or a DeepSpeed engine."""
