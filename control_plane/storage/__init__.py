"""Files of a run: journal, metrics, checkpoints, and their layout."""
