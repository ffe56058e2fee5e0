"""The JSON schema for editors, and what importing the config costs."""

import json
import subprocess
import sys
from pathlib import Path

import pipeline.config as config
from pipeline.config import job_schema

ROOT = Path(__file__).parents[2]


def test_the_committed_schema_is_the_current_one():
    program = (
        "import json; from pathlib import Path; from pipeline.config import job_schema; "
        'Path("configs/schema.json").write_text(json.dumps(job_schema(), indent=2) + "\\n")'
    )
    committed = json.loads((ROOT / "configs/schema.json").read_text(encoding="utf-8"))
    assert committed == job_schema(), f"configs/schema.json is old; run: python -c '{program}'"


def test_the_schema_refers_only_to_what_it_defines_and_forbids_unknown_keys():
    schema = job_schema()

    def walk(node):
        if isinstance(node, dict):
            yield node
        for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from walk(inner)

    references = {node["$ref"] for node in walk(schema) if "$ref" in node}
    assert references == {f"#/$defs/{name}" for name in schema["$defs"]}
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values())
    assert schema["discriminator"]["propertyName"] == "task"
    assert {name: schema["$defs"][name]["required"] for name in ("SegmentationJob", "ClassificationJob")} == {
        "SegmentationJob": ["data", "training"],
        "ClassificationJob": ["task", "data", "preprocessing", "training"],
    }


def test_the_schema_tells_what_the_docstrings_tell():
    definitions = job_schema()["$defs"]
    for section in (
        config.DataSection,
        config.TrainingSection,
        config.NetworkSection,
        config.ClassifierSection,
    ):
        properties = definitions[section.__name__]["properties"]
        for name, field in section.model_fields.items():
            assert properties[name].get("description") == field.description
    assert "patient" in definitions["DataSection"]["properties"]["num_folds"]["description"]


def test_importing_the_config_imports_nothing_heavy():
    program = "import sys, pipeline.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"torch", "monai", "mlflow", "numpy", "nibabel"} & set(done.stdout.split())
