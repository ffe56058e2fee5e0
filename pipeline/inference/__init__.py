"""Applying networks to full volumes.

`windows` says where windows lie, `sliding_window` blends their scores slab by slab, `budget` cuts a volume to
the memory there is, `labelling` (one door) makes a label map on the patient's grid of it; `predictor` puts a
checkpoint's preprocessing before it, `cohort` works on many cases, `evaluation` compares with references,
`explain` maps what a classifier's answer rests on.
"""
