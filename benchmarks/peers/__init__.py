"""Other systems to compare with, one process each, in their own environment (`make bench-peers`).

`client.py` runs in faquant's environment, `inputs.py` in both, and the rest in the peers'.
"""
