"""What a structure is called in the world's terms: a code, what kind of thing it is, its side, its colour.

A structure whose name is known here has its SNOMED CT code without anybody's doing; one that is not gets the
code of an anatomical structure in general, and keeps its name as a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

Category = Literal["anatomy", "tissue", "abnormality"]
Side = Literal["left", "right", "both"]


@dataclass(frozen=True, slots=True)
class Code:
    """A concept of a coding scheme.

    Attributes:
        value: Such as `10200004`; at most 16 characters.
        meaning: For people; at most 64 characters.
        scheme: `SCT` is SNOMED CT.
    """

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True, slots=True)
class Term:
    """What a structure is.

    Attributes:
        code: Of the structure itself, its side left out.
        category: What kind of thing that is.
        side: Which of a pair; None where there is none.
        colour: `#rrggbb`; None takes the next of `PALETTE`.
    """

    code: Code
    category: Category = "anatomy"
    side: Side | None = None
    colour: str | None = None


PALETTE: Final = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
"""Okabe and Ito's colours, told apart with any colour vision; the eighth is a tint of the first."""

CATEGORIES: Final[dict[Category, Code]] = {
    "anatomy": Code("91723000", "Anatomical Structure"),
    "tissue": Code("85756007", "Tissue"),
    "abnormality": Code("49755003", "Morphologically Abnormal Structure"),
}
SIDES: Final[dict[Side, Code]] = {
    "left": Code("7771000", "Left"),
    "right": Code("24028007", "Right"),
    "both": Code("51440002", "Bilateral"),
}
UNKNOWN: Final = Term(Code("91723000", "Anatomical Structure"))
"""Of a structure that nobody has coded."""

# Codes and meanings as in DICOM's context groups (PS3.16), whose own names for them a test looks up.
_ANATOMY: Final = {
    "adrenal gland|adrenal": Code("23451007", "Adrenal gland"),
    "aorta": Code("15825003", "Aorta"),
    "bladder|urinary bladder": Code("89837001", "Bladder"),
    "bone": Code("272673000", "Bone"),
    "brain": Code("12738006", "Brain"),
    "brain stem|brainstem": Code("119238007", "Brain Stem"),
    "brain ventricle|ventricles": Code("35764002", "Brain ventricle"),
    "breast": Code("76752008", "Breast"),
    "cerebellum": Code("113305005", "Cerebellum"),
    "colon": Code("71854001", "Colon"),
    "duodenum": Code("38848004", "Duodenum"),
    "esophagus|oesophagus": Code("32849002", "Esophagus"),
    "eye": Code("81745001", "Eye"),
    "femur": Code("71341001", "Femur"),
    "femoral head|femur head": Code("2812003", "Femoral head"),
    "gallbladder|gall bladder": Code("28231008", "Gallbladder"),
    "head": Code("69536005", "Head"),
    "heart": Code("80891009", "Heart"),
    "hippocampus": Code("5366008", "Hippocampus"),
    "inferior vena cava|ivc|postcava": Code("64131007", "Inferior vena cava"),
    "kidney": Code("64033007", "Kidney"),
    "larynx": Code("4596009", "Larynx"),
    "liver": Code("10200004", "Liver"),
    "lung": Code("39607008", "Lung"),
    "mandible": Code("91609006", "Mandible"),
    "optic chiasm|chiasm": Code("244453006", "Optic chiasm"),
    "optic nerve": Code("18234004", "optic nerve"),
    "pancreas": Code("15776009", "Pancreas"),
    "parotid gland|parotid": Code("45289007", "Parotid gland"),
    "portal vein": Code("32764006", "Portal vein"),
    "prostate": Code("41216001", "Prostate"),
    "rectum": Code("34402009", "Rectum"),
    "skull": Code("89546000", "Skull"),
    "spinal cord": Code("2748008", "Spinal cord"),
    "spleen": Code("78961009", "Spleen"),
    "stomach": Code("69695003", "Stomach"),
    "submandibular gland|submandibular": Code("54019009", "Submandibular gland"),
    "thyroid": Code("69748006", "Thyroid"),
    "trachea": Code("44567001", "Trachea"),
    "uterus": Code("35039007", "Uterus"),
    "vertebra": Code("51282000", "Vertebra"),
}
_TISSUES: Final = {
    "cerebrospinal fluid|csf": Code("65216001", "Cerebrospinal Fluid"),
    "grey matter|gray matter": Code("389081007", "Gray Matter"),
    "white matter": Code("389080008", "White Matter"),
    "fat": Code("55603005", "Fat"),
}
_ABNORMALITIES: Final = {
    "edema|oedema": Code("79654002", "Edema"),
    "lesion": Code("52988006", "Lesion"),
    "necrosis": Code("6574001", "Necrosis"),
    "tumor|tumour|neoplasm|cancer": Code("108369006", "Neoplasm"),
}


def _by_name() -> dict[str, Term]:
    rooms: tuple[tuple[Category, dict[str, Code]], ...] = (
        ("anatomy", _ANATOMY),
        ("tissue", _TISSUES),
        ("abnormality", _ABNORMALITIES),
    )
    return {
        name: Term(code, category)
        for category, codes in rooms
        for names, code in codes.items()
        for name in names.split("|")
    }


KNOWN: Final = _by_name()
"""Terms by lower-case name; a plural and a side beside the name are understood as well."""

_SIDE_WORDS: Final[dict[str, Side]] = {"left": "left", "right": "right", "l": "left", "r": "right"}


def term_of(name: str) -> Term:
    """The term of a structure by its name, such as `left_kidney`, `Kidney (L)` or `LeftKidney`."""
    words = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    sides = {side for word in words if (side := _SIDE_WORDS.get(word))}
    bare = " ".join(word for word in words if word not in _SIDE_WORDS)
    known = KNOWN.get(bare) or KNOWN.get(bare.removesuffix("s"))
    if known is None:
        return UNKNOWN
    side = sides.pop() if len(sides) == 1 else "both" if sides else None
    return Term(known.code, known.category, side)


def fill_colours(colours: Iterable[str | None]) -> list[str]:
    """A colour for each structure: its own, or that of its place in the palette, later tinted or shaded."""
    return [colour or _palette_colour(place) for place, colour in enumerate(colours)]


def _palette_colour(place: int) -> str:
    rounds, place = divmod(place, len(PALETTE))
    towards, share = ((0, 0.0), (255, 0.55), (0, 0.45))[rounds % 3]
    levels = bytes.fromhex(PALETTE[place][1:])
    return "#" + bytes(round(level + share * (towards - level)) for level in levels).hex().upper()
