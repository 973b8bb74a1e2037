"""The architecture as failing checks: floors, captions, sizes, vocabulary."""
