"""Adapter for the Hugging Face Trainer."""
