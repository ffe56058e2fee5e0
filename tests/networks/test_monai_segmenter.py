"""MONAI's networks come in with their own arguments, compute what MONAI's do, and train as ours do."""

import pytest
import torch
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet, SegResNet, UNet

from pipeline.config import SegmentationJob, job_from_mapping, job_to_mapping
from pipeline.errors import ConfigError
from pipeline.networks import MonaiSegmenter, build_network
from pipeline.networks.pretrained import Source, load_pretrained

ARGUMENTS = {
    "monai_unet": (UNet, {"channels": [4, 8, 16], "strides": [2, [2, 2, 1]], "norm": "batch"}),
    "monai_attention_unet": (AttentionUnet, {"channels": [4, 8, 16], "strides": [2, 2]}),
    "monai_basic_unet": (BasicUNet, {"features": [4, 4, 8, 8, 16, 4]}),
    "monai_dynunet": (
        DynUNet,
        {
            "kernel_size": [3, 3, 3],
            "strides": [1, 2, 2],
            "upsample_kernel_size": [2, 2],
            "filters": [4, 8, 8],
        },
    ),
    "monai_segresnet": (SegResNet, {"init_filters": 8, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]}),
}


def job_of(name, arguments, **changes):
    network = {"name": name, "arguments": arguments}
    training = {"epochs": 1, "patch_size": [16, 16, 16], **changes}
    return SegmentationJob.model_validate(
        {"data": {"manifest": "x"}, "network": network, "training": training}
    )


@pytest.mark.parametrize("name", ARGUMENTS)
def test_it_is_monais_network(name):
    build, arguments = ARGUMENTS[name]
    job = job_from_mapping(job_to_mapping(job_of(name, arguments)))
    network = build_network(job.network, 2, 3).eval()
    theirs = build(spatial_dims=3, in_channels=2, out_channels=3, **arguments).eval()
    theirs.load_state_dict({key.removeprefix("network."): w for key, w in network.state_dict().items()})
    image = torch.randn(1, 2, *(8 * max(n, 4) for n in job.network.total_stride))
    with torch.no_grad():
        assert torch.equal(network(image), theirs(image))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize(
    ("inputs", "outputs", "like"),
    [((0, 1), (0, 1, 2), (2, 3)), ((0, 1), (0, 2, None), (2, 7)), ((1, 0), (0, 1, 2), (5, 3))],
    ids=["same", "labels", "channels"],
)
def test_what_other_labels_or_channels_size_is_not_taken_by_place(name, inputs, outputs, like):
    """`like`: channels and labels of a network in which just those tensors have other shapes."""
    section = job_of(name, ARGUMENTS[name][1]).network
    target, source = build_network(section, 2, 3), build_network(section, 2, 3)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    random = torch.get_rng_state()
    transfer = load_pretrained(target, Source(source.state_dict(), inputs, outputs))
    assert torch.equal(torch.get_rng_state(), random), "a run's draws do not depend on it"
    other = build_network(section, *like).state_dict()
    unlike = {name for name, tensor in before.items() if other[name].shape != tensor.shape}
    assert set(transfer.new) == unlike and bool(unlike) == (like != (2, 3)) and not transfer.adapted
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, before[name] if name in unlike else source.state_dict()[name])


@pytest.mark.parametrize(
    ("arguments", "key", "told"),
    [
        ({"channels": [4, 8], "strides": [2], "widht": 3}, "widht", "no such argument"),
        ({"channels": [4, 8], "strides": [2], "kernel_siz": 3}, "kernel_siz", "kernel_size?"),
        ({"channels": [4, 10**9], "strides": [2]}, "channels", "too large"),
        ({"channels": [4, 8], "strides": [2], "num_res_units": 10**6}, "num_res_units", "too large"),
        ({"strides": [2]}, "channels", "missing"),
        ({"channels": [4, 8], "strides": [2], "out_channels": 2}, "out_channels", "leave it out"),
        ({"channels": [4, 8], "strides": [2], "norm": "nonsense"}, "arguments", "MONAI builds no network"),
    ],
)
def test_wrong_arguments_are_told_by_name(arguments, key, told):
    job = job_of("monai_unet", arguments)
    with pytest.raises(ConfigError) as refused:
        MonaiSegmenter(job.network, 1, 2)
    (fault,) = refused.value.faults
    assert key in fault.where and told in fault.message


def test_settings_of_the_other_network_are_refused():
    with pytest.raises(ValueError, match="features: is for `attention_unet`"):
        SegmentationJob.model_validate(
            {
                "data": {"manifest": "x"},
                "network": {"name": "monai_basic_unet", "arguments": {}, "features": [4, 8]},
                "training": {"epochs": 1},
            }
        )
    with pytest.raises(ValueError, match="multiple of the network's total stride"):
        job_of("monai_unet", {"channels": [4, 8, 16], "strides": [2, 2]}, patch_size=[18, 16, 16])
