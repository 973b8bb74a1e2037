"""Rehearsal: from a laptop to a cluster, on machines as network namespaces, with every fault on the way."""
