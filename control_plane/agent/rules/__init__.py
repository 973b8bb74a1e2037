"""Rules that propose without a model: GreedyLR, reduce on plateau, ZClip, our own, a linear policy, data mixtures."""
