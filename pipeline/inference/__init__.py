"""Applying networks to full volumes.

`sliding_window` (one door) gives scores, `predictor` a label map on the patient's grid, `evaluation` compares
it with a reference.
"""
