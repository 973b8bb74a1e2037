"""Data of runs: routes that take records in and show the sources, and the loop that announces new shards."""
