"""Training scripts that benchmarks submit, as a user would submit their own."""
