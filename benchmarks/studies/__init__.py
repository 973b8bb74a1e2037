"""Studies of steering: who, or what rule, at the learning rate ends where, by arms, starts and seeds."""
