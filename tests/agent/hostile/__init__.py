"""Hostile cases through the real loop: a gateway, an HTTP chat server that is scripted, and a journal to judge by."""
