"""A control server over a real journal, on a virtual clock."""
