"""Bundles of others become models of ours that give the same masks, and nothing in them is run."""

import copy
import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Compose, EnsureChannelFirst, LoadImage, NormalizeIntensity, Orientation

from pipeline.bundles.opening import opened
from pipeline.checkpoint import read_checkpoint
from pipeline.errors import FaultError
from pipeline.workflows.importing_bundle import import_bundle

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8, 16], "strides": [2, 2],
           "num_res_units": 1, "norm": "batch"}  # fmt: skip
CONFIG = {
    "imports": ["$import os"],
    "bundle_root": ".",
    "device": "$torch.device('cuda')",
    "window": [16, 16, 16],
    "network_def": {"_target_": "UNet", **NETWORK},
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "monai.transforms.Orientationd", "keys": ["image"], "axcodes": "RAS"},
            {"_target_": "NormalizeIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        ],
    },
    "inferer": {
        "_target_": "SlidingWindowInferer", "roi_size": "@window", "overlap": 0.5, "mode": "gaussian",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image",
             "nearest_interp": False, "to_tensor": True},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
        ],
    },
    "run": ["$os.system('touch /tmp/never')"],
}  # fmt: skip
METADATA = {
    "version": "0.3.1",
    "network_data_format": {
        "inputs": {"image": {"channel_def": {"0": "T1"}}},
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "liver", "2": "spleen"}}},
    },
}
RESAMPLING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return UNet(**NETWORK).eval()


@pytest.fixture
def bundle(tmp_path, network):
    """Writes a bundle, changed before it is written."""

    def make(change=lambda config, metadata: None, weights=None, name="spleen"):
        folder = tmp_path / name
        for part in ("configs", "models"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        config, metadata = copy.deepcopy(CONFIG), copy.deepcopy(METADATA)
        change(config, metadata)
        (folder / "configs/inference.json").write_text(json.dumps(config))
        (folder / "configs/metadata.json").write_text(json.dumps(metadata))
        torch.save(network.state_dict() if weights is None else weights, folder / "models/model.pt")
        return folder

    return make


@pytest.fixture
def scan(tmp_path):
    image = np.random.default_rng(0).normal(100, 20, (30, 26, 22)).astype(np.float32)
    affine = np.array([[0, 0, 1.2, -5], [-1.0, 0, 0, 7], [0, 1.1, 0, 3], [0, 0, 0, 1]])
    path = tmp_path / "scans/scan.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(image, affine), path)
    return path


def monais_mask(scan, infer):
    """The mask that the transforms of MONAI and an inferer of its own give."""
    chain = Compose([LoadImage(), EnsureChannelFirst(), Orientation("RAS"), NormalizeIntensity()])
    image = chain(scan)
    with torch.no_grad():
        scores = infer(image[None])
    labels = image.copy_(scores.argmax(1).float())
    back = nib.as_closest_canonical(nib.load(scan))
    turned = nib.Nifti1Image(np.asarray(labels[0], dtype=np.uint8), back.affine)
    to_scan = nib.orientations.ornt_transform(
        nib.io_orientation(back.affine), nib.io_orientation(nib.load(scan).affine)
    )
    return np.asarray(turned.as_reoriented(to_scan).dataobj)


def test_it_gives_the_masks_of_monai(bundle, scan, network, tmp_path, clinseg):
    answer = clinseg("import-bundle", bundle(), "-o", tmp_path / "m.safetensors")
    assert answer.code == 0 and "liver (1), spleen (2)" in answer.out
    assert "warning" not in answer.out
    assert clinseg("predict", tmp_path / "m.safetensors", scan, "-o", tmp_path / "out").code == 0
    ours = np.asarray(nib.load(tmp_path / "out/scan.nii.gz").dataobj)
    window = SlidingWindowInferer((16, 16, 16), overlap=0.5, mode="gaussian")
    theirs = monais_mask(scan, lambda image: window(image, network))
    assert np.array_equal(ours, theirs) and len(np.unique(theirs)) == 3
    card = clinseg("card", tmp_path / "m.safetensors").out
    assert "MONAI bundle spleen, version 0.3.1" in card and "training.epochs" not in card
    assert not Path("/tmp/never").exists()


def test_yaml_zip_and_folder_are_one(bundle, tmp_path):
    folder = bundle()
    import_bundle(folder, tmp_path / "a.safetensors")
    config = folder / "configs/inference.json"
    config.with_suffix(".yaml").write_text(config.read_text())
    config.unlink()
    with zipfile.ZipFile(tmp_path / "spleen.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("./", "")  # some programs begin with the folder itself
        for path in folder.rglob("*.*"):
            archive.write(path, f"spleen/{path.relative_to(folder)}")
    import_bundle(tmp_path / "spleen.zip", tmp_path / "b.safetensors")
    a, b = (read_checkpoint(tmp_path / f"{name}.safetensors") for name in "ab")
    assert a.job == b.job and a.labels == b.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


def test_resampled_probabilities_are_told(bundle, tmp_path, clinseg):
    folder = bundle(lambda config, _: config["preprocessing"]["transforms"].insert(3, RESAMPLING))
    answer = clinseg("import-bundle", folder, "-o", tmp_path / "m.safetensors")
    assert answer.code == 0 and "interpolates probabilities" in answer.out
    checkpoint = read_checkpoint(tmp_path / "m.safetensors")
    assert checkpoint.job["preprocessing"]["spacing"] == [1.5, 1.5, 2.0]
    assert "interpolates probabilities" in clinseg("card", tmp_path / "m.safetensors").out


def test_what_a_label_gets_does_not_matter_for_an_image(bundle, tmp_path):
    step = RESAMPLING | {"keys": ["label", "image"], "mode": ["nearest", "bilinear"], "align_corners": None}
    path = tmp_path / "m.safetensors"
    import_bundle(bundle(lambda config, _: config["preprocessing"]["transforms"].insert(3, step)), path)
    assert read_checkpoint(path).job["preprocessing"]["spacing"] == [1.5, 1.5, 2.0]


def test_an_inversion_of_nothing_is_none(bundle, tmp_path):
    """Without `orig_keys` MONAI undoes what was done to `pred`: labels stay on the grid of the network."""

    def change(config, _):
        config["preprocessing"]["transforms"].insert(3, RESAMPLING)
        config["postprocessing"]["transforms"][1].pop("orig_keys")

    (told,) = import_bundle(bundle(change), tmp_path / "m.safetensors").differences
    assert "resamples labels" in told


SLICE = {"_target_": "SliceInferer", "roi_size": [16, 16], "overlap": 0.5, "mode": "gaussian"}


@pytest.fixture
def flat(bundle):
    """A 2D network, and a bundle of it whose inferer is given."""
    torch.manual_seed(0)
    arguments = NETWORK | {"spatial_dims": 2}
    network = UNet(**arguments).eval()

    def change(config, inferer):
        config["network_def"] = {"_target_": "UNet", **arguments}
        config["inferer"] = SLICE | inferer

    return network, lambda **inferer: bundle(lambda c, _: change(c, inferer), network.state_dict())


def test_slices_are_those_of_monai(flat, scan, tmp_path, clinseg):
    network, bundle = flat
    import_bundle(bundle(spatial_dim=2), tmp_path / "m.safetensors")
    assert clinseg("predict", tmp_path / "m.safetensors", scan, "-o", tmp_path / "out").code == 0
    inferer = SliceInferer(2, roi_size=(16, 16), overlap=0.5, mode="gaussian")
    theirs = monais_mask(scan, lambda image: inferer(image, network))
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out/scan.nii.gz").dataobj), theirs)


@pytest.mark.parametrize("inferer", [{}, {"spatial_dim": 0}, {"spatial_dim": 1}])
def test_slices_along_another_axis_are_refused(flat, tmp_path, clinseg, inferer):
    """Where nothing is written MONAI cuts along the first axis."""
    answer = clinseg("import-bundle", flat[1](**inferer), "-o", tmp_path / "m.safetensors")
    assert answer.code == 3 and "inferer.spatial_dim" in answer.err
    assert not (tmp_path / "m.safetensors").exists()


def set_transform(number, **changes):
    return lambda config, _: config["preprocessing"]["transforms"][number].update(changes)


RANGE = {"_target_": "ScaleIntensityRanged", "a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True}


@pytest.mark.parametrize("clip", [True, False])
def test_fixed_ranges_are_kept(bundle, tmp_path, clip):
    path = tmp_path / "m.safetensors"
    import_bundle(bundle(set_transform(3, **RANGE | {"clip": clip})), path)
    (known,) = read_checkpoint(path).intensity["channels"]
    value = (100.0 - known["mean"]) / known["deviation"]
    assert value == pytest.approx((100 + 57) / 221) and (known["high"] == 164) == clip


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def at(path, value, of=0):
    """Sets a value of the config (0) or the metadata (1) by its path."""

    def change(*documents):
        inner = documents[of]
        *before, last = path
        for key in before:
            inner = inner[key]
        inner[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "where", "rule"),
    [
        (at(["network_def", "channels"], "$__import__('os').system('touch /tmp/never')"), "def.channels",
         "bundle-expression"),
        (at(["network_def", "_target_"], "os.system"), "network_def._target_", "bundle-target"),
        (at(["network_def", "_target_"], "evil.UNet"), "network_def._target_", "bundle-target"),
        (at(["network_def", "_target_"], "SwinUNETR"), "network_def._target_", "bundle-target"),
        (at(["network_def"], {"_target_": "torch.jit.load", "f": "x"}), "network_def", "bundle-torchscript"),
        (at(["network_def"], "$get_network()"), "network_def", "bundle-network"),
        (at(["network_def", "act"], {"_target_": "os.system"}), "network_def.act", "bundle-object"),
        (at(["network_def", "channels"], [4, 10**9, 16]), "network_def.channels", "no-network"),
        (at(["network_def", "out_channels"], 10**9), "network_def.out_channels", "bundle-network"),
        (at(["network_def", "chanels"], 3), "network_def.chanels", "no-network"),
        (at(["window"], "@window"), "window", "bundle-reference"),
        (at(["window"], ["@window"] * 8), "window", "bundle-reference"),  # eight times as many at each level
        (at(["window"], [18, 16, 16]), "inferer.roi_size", "contradiction"),
        (at(["window"], [10**9] * 3), "roi_size", "bundle-unmapped"),
        (at(["preprocessing", "transforms", 3, "nonzero"], True), "transforms[3].nonzero", "bundle-unmapped"),
        (at(["preprocessing", "transforms", 3, "_target_"], "CropForegroundd"), "transforms[3]",
         "bundle-unmapped"),
        (at(["preprocessing", "transforms", 2, "axcodes"], "RASP"), "axcodes", "bundle-unmapped"),
        (at(["inferer", "_target_"], "SimpleInferer"), "inferer", "bundle-unmapped"),
        (at(["preprocessing", "transforms", 3], RESAMPLING | {"keys": ["label", "image"],
            "mode": ["bilinear", "nearest"]}), "transforms[3].mode", "bundle-unmapped"),
        (at(["preprocessing", "lazy"], True), "preprocessing.lazy", "bundle-unmapped"),
        (at(["preprocessing", "transforms", 2, "_disabled_"], " True"), "preprocessing", "bundle-unmapped"),
        (at(["preprocessing", "_disabled_"], True), "preprocessing", "bundle-unmapped"),
        (at(["preprocessing", "transforms", 3], {"_target_": "ScaleIntensityRanged", "keys": "image",
            "a_min": 0, "a_max": 9, "clip": True}), "clip", "bundle-unmapped"),  # MONAI: to what?
        (at(["preprocessing", "transforms", 3], {"_target_": "NormalizeIntensityd", "keys": "image",
            "subtrahend": [5.0], "divisor": [2.0]}), "channel_wise", "bundle-unmapped"),
        (at(["postprocessing", "transforms", 0, "sigmoid"], True), "transforms[0]", "bundle-unmapped"),
        (at(["postprocessing", "transforms", 0],
            {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}), "sigmoid", "bundle-unmapped"),
        (at(["postprocessing", "transforms", 3, "_target_"], "FillHolesd"), "transforms[3]",
         "bundle-unmapped"),
        (at(["network_data_format", "outputs", "pred", "channel_def"], {"0": "liver"}, 1), "channel_def",
         "bundle-channels"),
    ],
)  # fmt: skip
def test_what_has_no_words_is_refused_by_key(bundle, tmp_path, clinseg, change, where, rule):
    answer = clinseg("import-bundle", bundle(change), "-o", tmp_path / "m.safetensors")
    told = [line for line in answer.err.replace("\n  ", " ").splitlines() if where in line and rule in line]
    assert answer.code == 3 and told, answer.err
    assert not (tmp_path / "m.safetensors").exists() and not Path("/tmp/never").exists()


def test_all_faults_are_told_together(bundle, tmp_path):
    def change(config, metadata):
        at(["network_def", "_target_"], "Foreign")(config)
        at(["preprocessing", "transforms", 3, "nonzero"], True)(config)
        at(["inferer", "mode"], "cubic")(config)
        metadata["network_data_format"]["inputs"]["image"].pop("channel_def")

    with pytest.raises(FaultError) as refused:
        import_bundle(bundle(change), tmp_path / "m.safetensors")
    told = "\n".join(str(fault) for fault in refused.value.faults)
    assert all(word in told for word in ("Foreign", "nonzero", "mode", "channel_def"))


def test_weights_that_are_no_weights_are_refused(bundle, network, tmp_path, clinseg):
    state = network.state_dict()
    name = next(key for key in state if key.endswith("weight") and state[key].ndim == 5)
    fits = {
        "weights-refused": {"evil": Evil()},
        "bundle-weights": {key: value for key, value in state.items() if key != name},
    }
    for rule, weights in fits.items():
        answer = clinseg("import-bundle", bundle(weights=weights), "-o", tmp_path / "m.safetensors")
        assert answer.code == 3 and rule in answer.err
    huge = state | {name: torch.zeros(1).expand(state[name].shape)}
    answer = clinseg("import-bundle", bundle(weights=huge), "-o", tmp_path / "m.safetensors")
    assert answer.code == 3 and "bundle-weights" in answer.err
    folder = bundle()
    (folder / "models/model.pt").write_bytes(pickle.dumps(Evil()))
    assert clinseg("import-bundle", folder, "-o", tmp_path / "m.safetensors").code == 3
    torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)).save(folder / "models/model.pt")
    answer = clinseg("import-bundle", folder, "-o", tmp_path / "m.safetensors")
    assert answer.code == 3 and "weights-torchscript" in answer.err
    assert not (tmp_path / "m.safetensors").exists() and not Path("/tmp/never").exists()


def link(name):
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "content", "rule"),
    [
        ("../../outside.txt", b"x", "zip-path"),
        ("/etc/outside", b"x", "zip-path"),
        (link("models/model.pt"), b"/etc/passwd", "zip-link"),
        ("models/model.safetensors", bytes(10**7), "zip-bomb"),
        (None, b"", "bundle-incomplete"),
    ],
)
def test_hostile_zips_are_refused(tmp_path, clinseg, entry, content, rule):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("configs/inference.json", json.dumps(CONFIG))
        if entry is not None:
            archive.writestr(entry, content)
    answer = clinseg("import-bundle", path, "-o", tmp_path / "m.safetensors")
    assert answer.code == 3 and rule in answer.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zip"]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_zip_is_refused_or_whole(tmp_path, data):
    """Nothing but a refusal comes of a changed byte, wherever it is."""
    written = {"configs/metadata.json": random.Random(0).randbytes(500).hex(), "Ж/inference.json": "{}"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in written.items():
            archive.writestr(name, text)
    whole = bytearray(buffer.getvalue())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "b.zip").write_bytes(whole)
    try:
        with opened(tmp_path / "b.zip") as files:
            assert all(path.read_text() == written[name] for name, path in files.items())
    except FaultError:
        pass


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_whose_size_no_header_bounds_are_refused(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "b.zip", "w", packing) as archive:
        archive.writestr("configs/metadata.json", "{}")
    with pytest.raises(FaultError, match="zip-packing"), opened(tmp_path / "b.zip"):
        pass


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1, "a": 2}', "[1]", '{"a": ', "\x00"])
def test_configs_that_are_no_plain_data_are_refused(bundle, tmp_path, clinseg, text):
    folder = bundle()
    (folder / "configs/inference.json").write_text(text)
    answer = clinseg("import-bundle", folder, "-o", tmp_path / "m.safetensors")
    assert answer.code == 3 and "bundle-unreadable" in answer.err


@pytest.mark.slow
def test_what_was_exported_comes_back(trained, tmp_path, clinseg):
    assert clinseg("export", trained.model, "--format", "bundle", "-o", tmp_path / "bundle").code == 0
    answer = clinseg("import-bundle", tmp_path / "bundle", "-o", tmp_path / "m.safetensors")
    assert answer.code == 0 and "clinseg put into the bundle" in answer.out
    before, after = read_checkpoint(trained.model), read_checkpoint(tmp_path / "m.safetensors")
    assert before.job == after.job and before.intensity == after.intensity
    assert all(torch.equal(before.weights[name], after.weights[name]) for name in before.weights)


@pytest.mark.slow
def test_an_imported_model_is_exported_again(bundle, scan, tmp_path, clinseg):
    model = tmp_path / "m.safetensors"
    import_bundle(bundle(), model)
    for form, name in (("bundle", "again"), ("torch-export", "m.pt2")):
        answer = clinseg("export", model, "--format", form, "-o", tmp_path / name, "--on", scan)
        assert answer.code == 0 and answer.out.splitlines()[-1].startswith("0 of "), answer.err


def test_minmax_is_monais_scaling(bundle, tmp_path):
    from monai.transforms import ScaleIntensity

    from transforms.preprocessing import Preprocessing, preprocess

    change = at(["preprocessing", "transforms", 3], {"_target_": "ScaleIntensityd", "keys": "image"})
    import_bundle(bundle(change), tmp_path / "m.safetensors")
    section = read_checkpoint(tmp_path / "m.safetensors").job["preprocessing"]
    assert section["normalisation"] == "minmax"
    image = np.random.default_rng(1).normal(5, 3, (5, 6, 7)).astype(np.float32)
    prepared = preprocess(Preprocessing(normalisation="minmax"), [image], np.eye(4))
    assert torch.equal(prepared.image[0], torch.as_tensor(ScaleIntensity()(image)))
