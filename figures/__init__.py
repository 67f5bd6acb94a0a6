"""Figures of the paper and of the theory, regenerated on this machine: `python -m figures`."""
