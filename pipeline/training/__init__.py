"""Fitting networks: `loop` knows no task, a `task` knows no loop; `segmentation` is one.

`losses` and `optim` serve them.
"""
