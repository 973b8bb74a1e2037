"""Launch routes: begin, resume, fork and replay runs, and watch their Ray jobs."""
