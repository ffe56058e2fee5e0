"""Applying networks to full volumes.

`windows` says where windows lie, `sliding_window` blends their scores slab by slab, `budget` cuts a volume to
the memory there is, `engine` slides any network over it. `labelling` (one door) makes a label map on the
patient's grid; `predictor` puts a checkpoint's preprocessing before it, `cohort` works on many cases, which
`relay` has side by side, `evaluation` compares with references. `enhancer` (one door) makes images,
`enhancing` works on many, `image_evaluation` compares them, `grids` brings them together. `explain` maps what
a classifier's answer rests on.
"""
