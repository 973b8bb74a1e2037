"""Process of one rank: context, collectives, setup, and the internals of DeepSpeed; knows nothing of steering."""
