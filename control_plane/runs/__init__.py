"""All runs of an installation: the start queue, quotas, disk usage, deletion and retention of ended runs."""
