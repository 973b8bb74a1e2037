"""Alerts at the gateway: their route, and webhooks."""
