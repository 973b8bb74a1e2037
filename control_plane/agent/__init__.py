"""An operator that happens to be a language model, or a rule: it may double, halve or keep the learning rate."""
