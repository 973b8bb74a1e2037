"""Kill campaign: SIGKILL at every failpoint of a control server."""
