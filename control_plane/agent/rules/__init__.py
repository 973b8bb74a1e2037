"""Rules that propose without a model: GreedyLR, reduce on plateau, ZClip, our own, and a learned linear policy."""
