"""Data of steering: intents, commands, limits, records, and the run's state as a fold of its records."""
