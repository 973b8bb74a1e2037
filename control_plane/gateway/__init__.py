"""The gateway: FastAPI, holding no state of any run."""
