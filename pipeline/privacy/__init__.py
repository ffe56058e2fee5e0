"""What identifies a patient, taken out of files: keyed pseudonyms, DICOM's basic profile, NIfTI headers."""

from pipeline.privacy.images import Cleaned, clean_dicom, read_key
from pipeline.privacy.nifti import clean_nifti, header_texts
from pipeline.privacy.pseudonyms import Pseudonyms

__all__ = ["Cleaned", "Pseudonyms", "clean_dicom", "clean_nifti", "header_texts", "read_key"]
