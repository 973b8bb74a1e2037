"""Tests of ray_jobs/process."""
