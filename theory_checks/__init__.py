"""Compare measured training trajectories with the predictions of docs/theory.md.

Run `theory-checks run`, or `python -m theory_checks run`.
"""
