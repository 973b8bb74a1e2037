"""Run configuration: sections, validation, environment variables."""
