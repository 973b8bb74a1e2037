"""Queue, usage and deletion of runs: their routes, and the loop that starts queued runs."""
