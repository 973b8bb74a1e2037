"""Health signs of a rank: what is measured at its steps, gathered over the ranks, and judged on rank 0."""
