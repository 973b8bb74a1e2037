"""Launch service: one process per request of the gateway, which begins, resumes, forks or replays a run."""
