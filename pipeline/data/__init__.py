"""Where cases come from and what is known about them before a network sees one.

Floor plan, in the order of the flow: `cases` reads a manifest into ids and paths, `folds` divides them by
patient. `images` finds and reads volumes; behind it stand `nifti` (with `nifti_header`) and `dicom`, which
trust no file, and `geometry`, the rules for an affine. `checks` judges a case, then a whole study. `datasets`
caches and serves what training needs, `fingerprint` measures what a normalisation and a plan need;
`synthetic` makes a study to try things on.
"""
