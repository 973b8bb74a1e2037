"""Appliers: carry out commands on a live training and read the values back."""
