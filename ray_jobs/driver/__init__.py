"""Driver side of a run: warm spares, start queue, failure reports, forks and replays."""
