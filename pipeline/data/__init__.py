"""Where cases come from and what is known about them before a network sees one.

Floor plan, in the order of the flow: `cases` reads a manifest into ids and paths, `folds` divides them by
patient. `images` finds and reads volumes; behind it stand `nifti` (with `nifti_header`), `dicom`, `pictures`
and `npz`, which trust no file; `foreign` reads what is only converted. `case_images` reads and judges what
belongs to a case, `checks` a case with its label map, then a whole study. `datasets` caches and serves what
training needs, `fingerprint` measures what a normalisation and a plan need; `synthetic` makes a study to try
things on.

For classification `class_study` reads a manifest into cases (its forms: `class_manifests`, with `medmnist`
and `class_folders`), `class_inputs` finds what is to be classified and what it is known to be, and
`class_checks` judges a study and finds copies.
"""
