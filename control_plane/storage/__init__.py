"""Files: the journal, the measurements, the checkpoints and where they lie."""
