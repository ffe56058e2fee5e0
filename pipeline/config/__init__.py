"""The typed job: what can be set, how it is loaded and written, and what is said when it is wrong.

`schema` names the kinds of job; `sections`, `learning`, `segmentation`, `classification` and `enhancement`
hold every setting and `fields` what it can be; `strict_yaml` reads text with the place of every value,
`explaining` turns what pydantic finds into faults, `loading` joins them; `commenting` writes a config for
people; `space` is what a sweep tries.
Imports neither torch nor monai nor mlflow.
"""

from pipeline.config.classification import (
    LABEL_MAP,
    ClassificationDataSection,
    ClassificationInferenceSection,
    ClassificationJob,
    ClassificationPreprocessingSection,
    ClassificationTrainingSection,
    ClassifierSection,
)
from pipeline.config.commenting import commented_yaml
from pipeline.config.enhancement import (
    CorruptionSection,
    EnhancementAugmentationSection,
    EnhancementDataSection,
    EnhancementInferenceSection,
    EnhancementJob,
    EnhancementPreprocessingSection,
    EnhancementTrainingSection,
)
from pipeline.config.generators import GeneratorSection
from pipeline.config.learning import FittingSection, LevelsSection, LoopSection
from pipeline.config.loading import (
    classification_job,
    enhancement_job,
    flipped_axes,
    job_from_mapping,
    job_parameters,
    job_schema,
    job_to_mapping,
    job_to_yaml,
    load_job,
    on_fold,
    segmentation_job,
)
from pipeline.config.schema import Job
from pipeline.config.sections import (
    AugmentationSection,
    CasesSection,
    PreprocessingSection,
    Section,
    SlidingSection,
    TrackingSection,
)
from pipeline.config.segmentation import (
    DataSection,
    InferenceSection,
    NetworkSection,
    SegmentationJob,
    TrainingSection,
)
from pipeline.config.space import Range, Space, parse_space

__all__ = [
    "LABEL_MAP",
    "AugmentationSection",
    "CasesSection",
    "ClassificationDataSection",
    "ClassificationInferenceSection",
    "ClassificationJob",
    "ClassificationPreprocessingSection",
    "ClassificationTrainingSection",
    "ClassifierSection",
    "CorruptionSection",
    "DataSection",
    "EnhancementAugmentationSection",
    "EnhancementDataSection",
    "EnhancementInferenceSection",
    "EnhancementJob",
    "EnhancementPreprocessingSection",
    "EnhancementTrainingSection",
    "FittingSection",
    "GeneratorSection",
    "InferenceSection",
    "Job",
    "LevelsSection",
    "LoopSection",
    "NetworkSection",
    "PreprocessingSection",
    "Range",
    "Section",
    "SegmentationJob",
    "SlidingSection",
    "Space",
    "TrackingSection",
    "TrainingSection",
    "classification_job",
    "commented_yaml",
    "enhancement_job",
    "flipped_axes",
    "job_from_mapping",
    "job_parameters",
    "job_schema",
    "job_to_mapping",
    "job_to_yaml",
    "load_job",
    "on_fold",
    "parse_space",
    "segmentation_job",
]
