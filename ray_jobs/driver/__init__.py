"""Driver side of a run: warm spares, failure reports, forks and replays."""
