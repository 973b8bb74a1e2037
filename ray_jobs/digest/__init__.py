"""Digests of live state: proof that two runs are bit-identical."""
