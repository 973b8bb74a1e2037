"""Commands about alerts and signs: list, acknowledge, snooze, explain."""
