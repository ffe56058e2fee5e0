"""`clinseg plan` and `clinseg train --dry-run`, as at the command line."""

import contextlib
import json
import shutil
from functools import partial
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from pipeline import memory
from pipeline.config import job_to_mapping, load_job
from pipeline.data.synthetic import write_phantom_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planned")
    return write_phantom_study(folder / "study", num_cases=5).parent


@pytest.fixture
def here(study, monkeypatch):
    """The folder of the study is the current one, and the cache lies there too."""
    monkeypatch.chdir(study.parent)
    monkeypatch.setenv("HOME", str(study.parent))
    return study.parent


def leaves(values, prefix=""):
    for name, value in values.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]


def files(folder):
    return {path for path in folder.rglob("*") if ".cache" not in path.parts}


def test_a_plan_is_complete_loads_and_can_be_trained(here, clinseg):
    answer = clinseg("plan", "study/dataset.json", "-o", "planned/job.yaml", "--minutes", "0.1")
    assert answer.code == 0, answer.err
    for word in ("shell", "5 of 5 cases", "steps of", "memory", "disk", "clinseg train planned/job.yaml"):
        assert word in answer.out
    path = here / "planned/job.yaml"
    text = path.read_text(encoding="utf-8")
    job = load_job(path)
    assert set(leaves(yaml.safe_load(text))) == set(leaves(job_to_mapping(job)))
    assert "manifest: ../study/dataset.json" in text and job.data.manifest.is_file()
    lines = text[text.index("task:") :].splitlines()
    for above, line in pairwise(lines):
        assert "# " in line or "# " in above[:5] or line.endswith(":") or not line, (
            "a comment for every setting"
        )
    assert "steps of" in text.split("task:")[0]
    fingerprint = json.loads((here / "planned/job.fingerprint.json").read_text(encoding="utf-8"))
    assert len(fingerprint["cases"]) == 5

    before = files(here)
    answer = clinseg("train", path, "--dry-run", "--set", "training.minutes=7")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("7 minutes: ") and "GiB" in answer.out
    assert files(here) == before, "a dry run records nothing"


def test_a_manifest_that_is_a_link_is_named_as_given(here, clinseg):
    (here / "elsewhere").mkdir()
    shutil.copy(here / "study/dataset.json", here / "elsewhere/all.json")
    links = shutil.copytree(here / "study", here / "links")
    (links / "dataset.json").unlink()
    (links / "dataset.json").symlink_to(here / "elsewhere/all.json")
    answer = clinseg("plan", "links/dataset.json", "-o", "configs/linked.yaml", "--minutes", "0.1")
    assert answer.code == 0, answer.err
    assert "manifest: ../links/dataset.json" in (here / "configs/linked.yaml").read_text(encoding="utf-8")
    assert clinseg("check", "configs/linked.yaml").code == 0


def test_a_plan_never_overwrites(here, clinseg):
    (here / "mine.yaml").write_text("task: segmentation", encoding="utf-8")
    answer = clinseg("plan", "study/dataset.json", "-o", "mine.yaml")
    assert answer.code == 2 and "file-exists" in answer.err
    assert (here / "mine.yaml").read_text(encoding="utf-8") == "task: segmentation"


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ([], {"background": 0, "label_1": 1, "label_2": 2}),
        (["--labels", "background=0, rim = 1,core=2"], {"background": 0, "rim": 1, "core": 2}),
    ],
)
def test_labels_of_a_csv_are_given_or_found(here, clinseg, option, names):
    cases = [f"phantom_0{n}" for n in (1, 2, 3)]
    rows = [f"{case},study/imagesTr/{case}.nii.gz,study/labelsTr/{case}.nii.gz" for case in cases]
    (here / "three.csv").write_text("\n".join(["case,image,label", *rows]), encoding="utf-8")
    name = f"csv{len(option)}.yaml"
    answer = clinseg("plan", "three.csv", "-o", name, "--minutes", "0.1", *option)
    assert answer.code == 0, answer.err
    assert load_job(here / name).data.labels == names


@pytest.mark.parametrize(
    "labels",
    [
        "liver",
        "background=0,background=1",
        "=0",
        "liver=one",
        f"background=0,liver={'9' * 5000}",
        "a=1,b=2",
        "background=0,a=1,b=1",
        "background=0,a=70000",
    ],
)
def test_labels_that_make_no_sense_are_refused(here, clinseg, labels):
    answer = clinseg("plan", "study/dataset.json", "-o", "x.yaml", "--labels", labels)
    assert answer.code == 2 and "background=0,liver=1" in answer.err


@pytest.mark.parametrize("minutes", ["inf", "nan", "1e300", "0", "-inf"])
def test_a_budget_is_a_number_of_minutes(here, clinseg, minutes):
    answer = clinseg("plan", "study/dataset.json", "-o", "x.yaml", "--minutes", minutes)
    assert answer.code == 2 and "--minutes" in answer.err and not (here / "x.yaml").exists()


def write_table(here, value, labelled):
    """A CSV with one case, whose label map holds a value."""
    image = nib.load(here / "study/imagesTr/phantom_01.nii.gz")
    label = np.zeros(image.shape, np.int32)
    label[3:6, 3:6, 3:6] = value
    nib.save(nib.Nifti1Image(label, image.affine), here / "odd.nii.gz")
    row = f"a,study/imagesTr/phantom_01.nii.gz,odd.nii.gz,{labelled}"
    (here / "odd.csv").write_text(f"case,image,label,labelled\n{row}", encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "labelled", "code", "told"),
    [
        (70000, "", 3, "label values run from 0 to 65535, these from 0 to 70000"),
        (0, "", 2, "nothing but the background"),
        (1, "liver;spleen", 2, "--labels background=0,liver=1,spleen=2"),
    ],
)
def test_labels_of_a_csv_that_cannot_be_found_are_asked_for(here, clinseg, value, labelled, code, told):
    write_table(here, value, labelled)
    answer = clinseg("plan", "odd.csv", "-o", "x.yaml")
    assert answer.code == code and told in " ".join(answer.err.split())


@pytest.fixture
def config(here):
    path = here / "small.yaml"
    path.write_text(
        "data: {manifest: study/dataset.json, cache_dir: .cache}\n"
        "network: {features: [4, 8]}\n"
        "training: {epochs: 2, patch_size: [16, 16, 16]}\n",
        encoding="utf-8",
    )
    return path


def test_a_job_that_cannot_fit_ends_with_4(config, clinseg):
    huge = "training.patch_size=[4096, 4096, 4096]"
    answer = clinseg("train", config, "--dry-run", "--set", huge)
    assert answer.code == 4 and "training: it needs" in answer.err, "known before it is tried"
    assert "lower training.batch_size or training.patch_size" in answer.err


@pytest.mark.parametrize("is_peak_told", [True, False])
def test_what_cannot_be_compiled_is_refused_with_the_reason(config, clinseg, monkeypatch, is_peak_told):
    if not is_peak_told:  # as on a system that is not Linux
        monkeypatch.setattr(memory, "_STATUS", config.with_name("no such file"))

    def fail(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=fail))
    answer = clinseg("train", config, "--dry-run", "--set", "training.compile=true")
    assert answer.code == 2 and "no compiler here" in answer.err and "cannot-compile" in answer.err


def test_a_disk_that_is_too_small_ends_with_4(config, clinseg, small_disk):
    with contextlib.chdir(small_disk):
        answer = clinseg("train", config, "--dry-run")
    assert answer.code == 4 and "disk-full" in answer.err and "(of 0 MiB)" in answer.err


def test_a_budget_in_epochs_is_told_in_minutes(config, clinseg):
    answer = clinseg("train", config, "--dry-run", "--fold", "none")
    assert answer.code == 0, answer.err
    assert " minutes: 200 steps of " in answer.out and "validations" not in answer.out


def test_a_dry_run_is_for_new_runs(clinseg, config):
    for arguments in (["--resume", "latest"], [], [config, "--resume", "latest"]):
        assert clinseg("train", "--dry-run", *arguments).code == 2
