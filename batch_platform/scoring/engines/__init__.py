"""Where scoring runs: an engine takes orders for partitions and gives staged files back.

Start with `local.py` (threads of this process).
"""
