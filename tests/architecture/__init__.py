"""The architecture as failing checks: import contracts, captions, sizes, names, documents."""
