"""Local cluster of this machine: start, stop, supervise and break its Ray nodes, gateway and console."""
