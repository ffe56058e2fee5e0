"""Who is source, who is target, and that neither is a patient held out."""

import nibabel as nib
import numpy as np
import pytest

from pipeline.config import EnhancementDataSection, EnhancementTrainingSection
from pipeline.data.enhancement_study import (
    as_split,
    find_truths,
    read_enhancement_study,
    split_enhancement,
)
from pipeline.errors import ConfigError, InputError

UNPAIRED = EnhancementTrainingSection(epochs=1)
PAIRED = EnhancementTrainingSection(epochs=1, method="supervised")
NOISE = {"name": "rician_noise"}


def write_images(folder, names):
    folder.mkdir()
    for name in names:
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), folder / f"{name}.nii.gz")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "good", [f"p{k}" for k in range(20)])


def ids(cases):
    return {case.id for case in cases}


def section(manifest, **settings):
    return EnhancementDataSection.model_validate({"manifest": manifest, "num_folds": 4, **settings})


def test_a_folder_is_halved_into_sources_and_targets(folder):
    data = section(folder, corruption=NOISE)
    study = read_enhancement_study(data)
    split = split_enhancement(study, data, UNPAIRED)
    assert len(split.validation) == 5 and {len(split.sources), len(split.targets)} == {7, 8}
    assert not ids(split.sources) & ids(split.targets)
    assert not ids(split.validation) & (ids(split.sources) | ids(split.targets))
    assert ids(as_split(split).training) == ids(study.cases) - ids(split.validation)
    assert split == split_enhancement(study, data, UNPAIRED)
    others = split_enhancement(study, data, UNPAIRED.model_copy(update={"seed": 1}))
    assert ids(others.sources) != ids(split.sources)


def test_with_pairs_every_training_case_is_a_source_and_its_own_truth(folder):
    data = section(folder, corruption=NOISE)
    study = read_enhancement_study(data)
    split = split_enhancement(study, data, PAIRED)
    assert split.sources == split.targets and len(split.sources) == 15
    truths = find_truths(study, data)
    assert all(truths[case.id] is case for case in study.cases)


def test_two_folders_keep_a_patient_on_one_side(tmp_path, folder):
    other = write_images(tmp_path / "other", [f"p{k}" for k in range(10, 30)])
    data = section(folder, target=other)
    study = read_enhancement_study(data)
    split = split_enhancement(study, data, UNPAIRED)
    assert ids(split.sources) | ids(split.validation) == {f"p{k}" for k in range(20)}
    assert not ids(split.validation) & (ids(split.sources) | ids(split.targets))
    assert all(case.images[0].parent == other for case in split.targets)
    assert set(find_truths(study, data)) == {f"p{k}" for k in range(10, 20)}


def test_every_fold_holds_out_some_of_either(tmp_path, folder):
    """A fold of targets alone would have nothing to be validated on."""
    other = write_images(tmp_path / "other", [f"q{k}" for k in range(12)])
    few = write_images(tmp_path / "few", [f"r{k}" for k in range(4)])
    for manifest, target, nums in ((folder, other, (5, 3)), (few, other, (1, 3)), (other, few, (3, 1))):
        data = section(manifest, target=target)
        study = read_enhancement_study(data)
        for fold in range(4):
            split = split_enhancement(study, data.model_copy(update={"fold": fold}), UNPAIRED)
            held_out = len(split.validation), len(study.targets) - len(split.targets)
            assert held_out == nums


def test_an_image_that_both_manifests_name_is_one_of_each(tmp_path, folder):
    for name, cases in ("sources", range(8)), ("targets", range(6, 14)):
        rows = "".join(f"p{k},good/p{k}.nii.gz\n" for k in cases)
        (tmp_path / f"{name}.csv").write_text(f"case,image\n{rows}")
    data = section(tmp_path / "sources.csv", target=tmp_path / "targets.csv")
    study = read_enhancement_study(data)
    held_out = []
    for fold in range(4):
        split = split_enhancement(study, data.model_copy(update={"fold": fold}), UNPAIRED)
        left = ids(split.validation)
        held_out += [case.id for case in split.validation]
        assert ids(split.sources) == ids(study.sources) - left
        assert not left & ids(split.targets)
    assert sorted(held_out) == [f"p{k}" for k in range(8)]
    whole = data.model_copy(update={"fold": "none"})
    assert ids(split_enhancement(study, whole, UNPAIRED).targets) == ids(study.targets)


def test_a_fold_that_takes_all_of_one_side_says_so(tmp_path, folder):
    """Folds that are made hold out some of either; a manifest can say otherwise."""
    for name, cases, fold in ("sources", range(3), 0), ("targets", range(3, 8), 1):
        rows = "".join(f"p{k},good/p{k}.nii.gz,{fold}\n" for k in cases)
        (tmp_path / f"{name}.csv").write_text(f"case,image,fold\n{rows}")
    data = section(tmp_path / "sources.csv", target=tmp_path / "targets.csv")
    message = "0 sources and 5 targets are left to train on, as the fold holds out 3 of 8 cases"
    with pytest.raises(ConfigError, match=message):
        split_enhancement(read_enhancement_study(data), data, UNPAIRED)


def test_pairs_from_two_folders_need_a_truth_for_every_source(tmp_path, folder):
    other = write_images(tmp_path / "other", [f"p{k}" for k in range(19)])
    data = section(folder, target=other)
    with pytest.raises(ConfigError, match=r"1 have none: p19|0 have none"):
        for fold in range(4):
            held = data.model_copy(update={"fold": fold})
            split_enhancement(read_enhancement_study(held), held, PAIRED)


def test_manifests_of_all_forms_are_read(tmp_path, folder):
    table = tmp_path / "cases.csv"
    table.write_text(
        "case,patient,image\n" + "".join(f"p{k},q{k // 2},good/p{k}.nii.gz\n" for k in range(20))
    )
    study = read_enhancement_study(section(table, corruption=NOISE))
    assert len(study.cases) == 20 and len({case.patient for case in study.cases}) == 10


@pytest.mark.parametrize("text", ["case,image\na,missing.nii.gz\n", "case,image\n../a,good/p0.nii.gz\n"])
def test_wrong_cases_are_named(tmp_path, folder, text):
    table = tmp_path / "cases.csv"
    table.write_text(text)
    with pytest.raises(InputError):
        read_enhancement_study(section(table, corruption=NOISE))


def test_different_numbers_of_channels_are_refused(tmp_path, folder):
    table = tmp_path / "cases.csv"
    table.write_text("case,image_T1,image_T2\na,good/p0.nii.gz,good/p1.nii.gz\n")
    with pytest.raises(ConfigError, match="have 2 channels"):
        read_enhancement_study(section(folder, target=table))


def test_a_truth_of_somebody_else_is_refused(tmp_path, folder):
    table = tmp_path / "targets.csv"
    table.write_text("case,patient,image\np0,p0,good/p0.nii.gz\np1,somebody,good/p1.nii.gz\n")
    with pytest.raises(InputError, match=r"p1.*patient p1, the target of somebody"):
        read_enhancement_study(section(folder, target=table))
