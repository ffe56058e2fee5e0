"""Where a PACS is, and what does not belong on a command line."""

import pytest

from pipeline.errors import ConfigError
from pipeline.pacs.address import DimseAddress, WebAddress, parse_address, parse_endpoint


def test_the_forms_of_an_address():
    assert parse_address("dicom://PACS@10.0.0.5:104", "to") == DimseAddress("PACS", "10.0.0.5", 104)
    assert parse_address("dicom://PACS@[::1]:104", "to") == DimseAddress("PACS", "::1", 104)
    assert parse_address("https://pacs.example/dicom-web/", "to") == WebAddress(
        "https://pacs.example/dicom-web", is_private=True
    )
    assert parse_address("http://127.0.0.1:8042/dicom-web", "to").is_private
    for open_ in ("http://pacs.example/dicom-web", "http://127.0.0.1.evil.example/dicom-web"):
        assert not parse_address(open_, "to").is_private
    for text in ("dicom://A_TITLE_OF_16_CH@h:1", "dicom://PACS@[fe80::1]:104", "https://h:1/x"):
        assert str(parse_address(text, "to")) == text
    assert parse_endpoint("127.0.0.1:11112", "at") == ("127.0.0.1", 11112)


@pytest.mark.parametrize(
    "text",
    ["PACS", "dicom://10.0.0.5:104", "dicom://PACS@10.0.0.5", "dicom://A_TITLE_OF_17_CHA@h:1", "ftp://h/x",
     "dicom://PACS@h:99999", "https://h/x?token=abc", "dicom://A\\B@h:1", "", "http://"],
)  # fmt: skip
def test_what_is_none_is_refused(text):
    with pytest.raises(ConfigError):
        parse_address(text, "to")


@pytest.mark.parametrize(
    "text", ["https://me:secret@h/dicom-web", "dicom://PACS:secret@h:104", "http://me@h/x"]
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(text):
    with pytest.raises(ConfigError, match="netrc") as caught:
        parse_address(text, "to")
    assert "secret" not in caught.value.faults[0].message


@pytest.mark.parametrize("text", ["11112", "host", ":11112", "a@b:1", "h:1/x"])
def test_an_endpoint_is_a_host_and_a_port(text):
    with pytest.raises(ConfigError):
        parse_endpoint(text, "at")


@pytest.mark.parametrize(
    ("asked", "told"),
    [((), "--study"), (("--patient", "*"), "many"), (("--study", "../x"), "numbers and dots")],
)
def test_a_pull_names_what_it_wants(clinseg, tmp_path, asked, told):
    answer = clinseg("pacs", "pull", "dicom://PACS@127.0.0.1:1", "-o", tmp_path / "out", *asked)
    assert answer.code == 2 and told in answer.err and not (tmp_path / "out").exists()
