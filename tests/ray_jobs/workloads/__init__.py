"""Shipped models and data: what they learn, and how they are steered."""
