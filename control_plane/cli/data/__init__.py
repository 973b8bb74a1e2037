"""Commands about a run's data: add records, look at sources and their shares, change the mixture."""
