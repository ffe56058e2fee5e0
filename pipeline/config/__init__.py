"""The typed job: what can be set, how it is loaded and written, and what is said when it is wrong.

`schema` holds every setting and `fields` what it can be, `strict_yaml` reads text with the place of every
value, `explaining` turns what pydantic finds into faults for people, `loading` joins them; `commenting`
writes a config for people. Imports neither torch nor monai nor mlflow.
"""

from pipeline.config.commenting import commented_yaml
from pipeline.config.loading import (
    job_from_mapping,
    job_parameters,
    job_schema,
    job_to_mapping,
    job_to_yaml,
    load_job,
)
from pipeline.config.schema import (
    AugmentationSection,
    DataSection,
    InferenceSection,
    Job,
    NetworkSection,
    PreprocessingSection,
    Section,
    TrackingSection,
    TrainingSection,
)

__all__ = [
    "AugmentationSection",
    "DataSection",
    "InferenceSection",
    "Job",
    "NetworkSection",
    "PreprocessingSection",
    "Section",
    "TrackingSection",
    "TrainingSection",
    "commented_yaml",
    "job_from_mapping",
    "job_parameters",
    "job_schema",
    "job_to_mapping",
    "job_to_yaml",
    "load_job",
]
