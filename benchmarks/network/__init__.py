"""Rig of several machines on one: namespaces on a bridge, whose links can be cut, delayed and made to lose packets."""
