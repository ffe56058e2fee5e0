"""What happens to voxels: chains of MONAI transforms and tensor functions. Knows nothing of `pipeline`.

Floor plan, in the order in which an image passes: `keys` (names and axis order), `preprocessing`
(deterministic: orientation, spacing, normalisation), `augmentation` (random, a batch at a time on the
device; `laterality` tells what mirroring means for labels), the network, `postprocessing` (logits → label
map → native grid → largest component). Beside them `corruption` makes images worse by a known amount.
"""
