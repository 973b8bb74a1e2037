"""The order of a mixture, its sources on disk, and the trainings that draw from it."""
