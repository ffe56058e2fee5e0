"""Talking with a PACS: DICOM's own network protocol (DIMSE) and DICOMweb, behind one door.

address (where it is) → connecting (which client) → dimse, dicomweb (find, fetch, send) · receiving (what is
sent to us) · instances (what arrives, on disk) · queue (what was received, predicted and sent, across a kill).

Nothing here looks at pixels or at a patient's tags: objects are known by their UIDs, and lie under hashes
of these.
"""
