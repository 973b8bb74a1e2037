"""A seeded world: the real core over simulated ranks, disk, link and faults. No threads, no clock."""
