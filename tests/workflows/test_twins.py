"""`augmentation.from_enhancer`: twins of training images, which share grid and labels with them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from pipeline.config import EnhancementJob, job_to_mapping, job_to_yaml, load_job
from pipeline.data.patches import PatchSampler
from pipeline.data.synthetic import write_phantom_study
from pipeline.errors import ConfigError
from pipeline.networks import build_generator
from pipeline.workflows.tasks.segmentation_material import load_material
from transforms.keys import IMAGE, LABEL

CONFIG = Path(__file__).parents[2] / "configs/smoke/hippocampus.yaml"


def write_enhancer(path, num_channels=1, change=1.0):
    """One that adds noise on its way back, and changes an image a little on its way forward."""
    job = EnhancementJob.model_validate(
        {
            "task": "enhancement",
            "data": {"manifest": "a", "target": "b"},
            "network": {
                "features": (4, 8),
                "num_blocks": 1,
                "discriminator_levels": 1,
                "norm": "none",
                "noise_channels": 1,
            },
            "training": {"epochs": 1, "patch_size": (8, 8, 8)},
        }
    )
    torch.manual_seed(0)
    weights = {}
    for way, noise in ("forward", 0), ("backward", 1):
        generator = build_generator(job.network, num_channels, noise)
        torch.nn.init.constant_(generator.body.head.bias, change)
        weights |= {f"{way}.{name}": weight for name, weight in generator.state_dict().items()}
    channels = tuple(f"contrast {number}" for number in range(num_channels))
    write_checkpoint(path, Checkpoint(weights, job_to_mapping(job), {}, {}, channels, None, {"run": "a"}))
    return path


@pytest.fixture
def job(tmp_path):
    manifest = write_phantom_study(tmp_path / "study", num_cases=6)
    enhancer = write_enhancer(tmp_path / "enhancer.safetensors")

    def load(**settings):
        given = {
            "data.manifest": manifest,
            "data.cache_dir": tmp_path / "cache",
            "augmentation.from_enhancer": enhancer,
            **{name.replace("__", "."): value for name, value in settings.items()},
        }
        return load_job(CONFIG, [f"{name}={value}" for name, value in given.items()])

    return load


def test_a_twin_is_what_the_enhancer_makes_on_the_grid_of_the_case(job):
    material = load_material(job())
    plain = load_material(job(augmentation__from_enhancer="null"))
    assert len(material.training) == len(plain.training) > 0
    for with_twin, without in zip(material.training, plain.training, strict=True):
        assert torch.equal(with_twin.image, without.image) and torch.equal(with_twin.label, without.label)
        assert with_twin.twin.shape == with_twin.image.shape and without.twin is None
        # It only shifts intensities, which z-scores undo.
        torch.testing.assert_close(with_twin.twin, with_twin.image, atol=1e-3, rtol=0)
    assert all(case.twin is None for case in material.validation)
    assert material.enhancer_hash and material.data_hash != plain.data_hash


def test_the_way_back_is_noisy_and_the_same_each_time(job, monkeypatch):
    first = load_material(job(augmentation__enhancer_reverse="true")).training[0]
    assert 0.1 < float((first.twin - first.image).std()) < 1
    monkeypatch.setattr("pipeline.workflows.tasks.twins.load_enhancer", lambda *_, **__: _Never())
    again = load_material(job(augmentation__enhancer_reverse="true")).training[0]  # from the cache
    assert torch.equal(first.twin, again.twin)


class _Never:
    channels = ("a",)

    def prepare(self, *_):
        raise AssertionError("it was made before")


def test_patches_come_from_twins_as_often_as_is_asked_and_from_the_same_places(job):
    cases = load_material(job(augmentation__enhancer_reverse="true")).training

    def draw(probability, **changes):
        sampler = PatchSampler(cases, (8, 8, 8), (8, 8, 8), 40, 0.5, 0, probability, **changes)
        return sampler.draw(3)

    never, half, always = (draw(probability) for probability in (0.0, 0.5, 1.0))
    assert torch.equal(never.tensors[LABEL], always.tensors[LABEL]) and never.seeds == always.seeds
    same = [
        [bool(torch.equal(a, b)) for a, b in zip(half.tensors[IMAGE], other.tensors[IMAGE], strict=True)]
        for other in (never, always)
    ]
    assert all(a != b for a, b in zip(*same, strict=True)) and 10 < sum(same[0]) < 30


def test_models_that_do_not_fit_are_refused(job, tmp_path):
    other = replace(read_checkpoint(tmp_path / "enhancer.safetensors"), job=job_to_mapping(job()))
    write_checkpoint(tmp_path / "other.safetensors", other)
    with pytest.raises(ConfigError, match="does not enhance"):
        load_material(job(augmentation__from_enhancer=tmp_path / "other.safetensors"))
    two = write_enhancer(tmp_path / "two.safetensors", num_channels=2)
    with pytest.raises(ConfigError, match="2 channels"):
        load_material(job(augmentation__from_enhancer=two))
    forth = read_checkpoint(tmp_path / "enhancer.safetensors")
    weights = {name: weight for name, weight in forth.weights.items() if name.startswith("forward.")}
    write_checkpoint(tmp_path / "forth.safetensors", replace(forth, weights=weights))
    one_way = {"augmentation__from_enhancer": tmp_path / "forth.safetensors"}
    with pytest.raises(ConfigError, match=r"augmentation\.enhancer_reverse: .* one way only"):
        load_material(job(**one_way, augmentation__enhancer_reverse="true"))


@pytest.mark.slow
def test_a_training_records_the_enhancer(clinseg, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(job_to_yaml(job(training__epochs=1, training__steps_per_epoch=2)))
    assert clinseg("train", "job.yaml").code == 0
    (run,) = (tmp_path / "mlruns/runs").iterdir()
    expected = read_checkpoint(tmp_path / "enhancer.safetensors").content_hash
    assert read_checkpoint(run / "checkpoints/best.safetensors").provenance["enhancer_sha256"] == expected
    assert expected in (run / "events.jsonl").read_text()
