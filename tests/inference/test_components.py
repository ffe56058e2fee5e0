"""Only the largest component is kept where that helps cases nobody has seen, and harms no structure."""

import nibabel as nib
import numpy as np

from pipeline.inference.components import OutOfFold, decide_components

STRUCTURES = {"liver": (1,), "kidneys": (2,)}


def label_map(*boxes):
    """A map in which each of `boxes`, (value, start, stop), is filled along all axes."""
    array = np.zeros((20, 20, 20), dtype=np.uint8)
    for value, start, stop in boxes:
        array[start:stop, start:stop, start:stop] = value
    return array


def decide(folder, cases, structures, candidates):
    compared = []
    for number, (prediction, reference, *own) in enumerate(cases):
        paths = [folder / f"{side}{number}.nii.gz" for side in ("prediction", "reference")]
        for path, array in zip(paths, (prediction, reference), strict=True):
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        compared.append(OutOfFold(*paths, own[0] if own else structures))
    return decide_components(compared, {name: structures[name] for name in candidates})


def test_it_is_kept_of_the_structure_with_islands_and_not_of_the_one_in_two_parts(tmp_path):
    reference = label_map((1, 2, 7), (2, 10, 13), (2, 16, 18))
    with_island = label_map((1, 2, 7), (2, 10, 13), (2, 16, 18), (1, 14, 15))
    found = decide(tmp_path, [(with_island, reference), (reference, reference)], STRUCTURES, STRUCTURES)
    assert found.kept == ("liver",)
    assert found.before == {"liver": (2 * 125 / 251 + 1) / 2, "kidneys": 1.0}
    assert found.after == {"liver": 1.0, "kidneys": 1.0}


def test_what_helps_one_case_less_than_it_harms_another_is_not_done(tmp_path):
    whole = label_map((1, 2, 7))
    torn = (label_map((1, 2, 5), (1, 8, 10)), label_map((1, 2, 5), (1, 8, 10)))
    found = decide(tmp_path, [(label_map((1, 2, 7), (1, 12, 13)), whole), torn], STRUCTURES, ["liver"])
    assert found.kept == ()
    assert found.before == found.after


def test_a_case_counts_only_for_the_structures_that_are_compared_in_it(tmp_path):
    whole = label_map((1, 2, 7), (2, 10, 13))
    unknown = label_map((1, 2, 5), (1, 8, 12), (2, 10, 13)), whole, {"kidneys": (2,)}
    found = decide(tmp_path, [(label_map((1, 2, 7), (1, 15, 16)), whole), unknown], STRUCTURES, STRUCTURES)
    assert found.kept == ("liver",)
    assert found.after["liver"] == 1.0 and found.before["kidneys"] == found.after["kidneys"] == 0.5


def test_where_nothing_changes_nothing_is_kept(tmp_path):
    whole = label_map((1, 2, 7), (2, 10, 13))
    assert decide(tmp_path, [(whole, whole)], STRUCTURES, STRUCTURES).kept == ()
    island = label_map((1, 2, 7), (1, 14, 15))
    assert decide(tmp_path, [(island, whole)], STRUCTURES, []).kept == ()  # the user has decided


def test_a_region_is_not_cleaned_at_the_cost_of_one_inside_it(tmp_path):
    """The smaller part of the tumour holds the core: without it the tumour gains and the core is lost."""
    structures = {"tumour": (1, 2), "core": (2,)}
    reference = label_map((1, 2, 8), (2, 12, 14))
    predicted = label_map((1, 2, 8), (1, 11, 15), (2, 12, 14))
    found = decide(tmp_path, [(predicted, reference)], structures, structures)
    assert found.kept == ()


def test_what_helps_alone_but_not_together_is_not_done_at_all(tmp_path):
    """A wrong piece of core holds two true parts of the tumour together, and the tumour has an island."""
    structures = {"core": (2,), "tumour": (1, 2)}
    reference = label_map((1, 2, 8), (2, 3, 6), (1, 10, 15))
    predicted = label_map((1, 2, 8), (2, 3, 6), (1, 10, 15), (2, 8, 10), (1, 17, 18))
    for name in structures:
        assert decide(tmp_path, [(predicted, reference)], structures, [name]).kept == (name,)
    assert decide(tmp_path, [(predicted, reference)], structures, structures).kept == ()
