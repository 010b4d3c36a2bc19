"""Other systems beside which ours is measured: a process each, in an environment of theirs (`make bench-peers`).

`client.py` runs in ours, `inputs.py` in both, and the rest in theirs.
"""
