"""Alerts at a control server: recorded once, answered once, whatever is repeated or killed."""
