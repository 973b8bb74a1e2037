"""Questions to a model: the prompt, the schema of its answers, and the second opinion before anything of high risk."""
