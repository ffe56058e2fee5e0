"""Dictionary keys and the axis order, said once.

A sample is a dict of channel-first tensors `(C, H, W, D)`; a batch adds a leading axis, `(B, C, H, W, D)`.
`H, W, D` are the array axes in the order of the job's orientation (RAS by default: right, anterior,
superior); nothing here is ever `(D, H, W)`. Two-dimensional jobs keep the order and drop the last axis.
"""

IMAGE = "image"
LABEL = "label"
CLASS = "class"
SOURCE = "source"
TARGET = "target"
