"""What columns and controls are usually called, best names first: what guesses are made by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

# Names that columns have, best first; of words split at capitals, dots and underscores.
ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    "compound": (
        "perturbation",
        "compound",
        "drug",
        "sm name",
        "treatment",
        "target gene",
        "gene target",
        "perturbed gene",
        "condition",
        "stimulus",
        "stimulation",
        "stim",
        "agent",
        "product name",
        "guide identity",
        "knockout",
        "pert",
        "perturbation name",
        "drugname",
        "treatment name",
        "group",
        "gene",
        "guide",
        "sgrna",
        "label",
    ),
    "cell_type": (
        "cell type",
        "celltype",
        "cell line",
        "cellline",
        "cell label",
        "cell identity",
        "seurat annotations",
        "annotation",
        "cluster",
        "line",
        "cell",
        "leiden",
        "louvain",
        "seurat clusters",
    ),
    "donor": ("donor", "patient", "individual", "subject", "participant", "mouse", "animal", "ind"),
    "well": ("well", "well position"),
    "sample": (
        "sample",
        "replicate",
        "biological replicate",
        "rep",
        "hashtag",
        "tube",
        "bio replicate",
        "orig ident",
    ),
    "plate": (
        "plate",
        "plate name",
        "culture plate",
        "batch",
        "gem group",
        "gemgroup",
        "lane",
        "channel",
        "run",
        "pool",
        "chip",
    ),
    "row": ("row",),
    "dose": (
        "dose",
        "dosage",
        "concentration",
        "conc",
        "dose val",
        "dose value",
        "dose um",
        "dose u m",
    ),
}
# What may end a longer name without changing what it is: "annotated cell type", "drug treatment".
_HEADS: Final[Mapping[str, tuple[str, ...]]] = {
    "compound": ("perturbation", "compound", "drug", "treatment", "stimulus", "condition"),
    "cell_type": ("cell type", "celltype", "cell line", "cellline"),
    "donor": ("donor", "patient", "individual", "subject"),
    "sample": ("sample", "replicate"),
    "plate": ("plate", "batch", "lane"),
    "dose": ("dose", "concentration"),
}
# What may follow a name: "cell type (fine)".
_QUALIFIERS: Final = r" (fine|coarse|broad|major|minor|final|predicted|manual|curated|l|level)$"
BETWEEN: Final = ("+", "_", "|", ",", ";")  # the perturbations of a combination
GENE_ID: Final = r"ENS[A-Z]*G\d{6,}(\.\d+)?"
# Columns of var with names of genes, best first, as letters alone.
GENE_NAMES: Final = (
    "genesymbol",
    "genesymbols",
    "symbol",
    "symbols",
    "genename",
    "genenames",
    "geneshortname",
    "featurename",
    "hgncsymbol",
)
# What controls are called, those that are vehicles of compounds before those of genes and stimuli.
_CONTROLS: Final = (
    r"dmso( vehicle| control)?|dimethyl sulfoxide|vehicle( control)?( \(?dmso\)?)?|veh|pbs|"
    r"solvent|saline|water|etoh|ethanol",
    r"non ?targeting( control)?|nontargeting|nt(c| ctrl)?|safe ?targeting|scrambled?|negctrl|"
    r"neg(ative)?( ctrl| control)?|no ?target|olfactory",
    r"ctrl|control|ctr|cntrl|untreated|unstim(ulated)?|unperturbed|mock|none|no treatment|"
    r"baseline|wt|wild ?type|media|medium|resting|naive",
)


def _words(name: str) -> str:
    """A column's name in lower case, words apart, trailing numbers and ids gone."""
    split = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    words = re.sub(r"[^a-z0-9]+", " ", split.lower()).strip()
    words = re.sub(r"( ?\d+)$", "", words)
    return words or name.lower()


def name_rank(name: str, role: str) -> float | None:
    """How good a name is for a role, 0 the best; None where it says nothing of it."""
    known, words = ROLES[role], _words(name)
    if words in known:
        return float(known.index(words))
    bare = re.sub(r" (id|ids|name|label|code|no|nr|number)$", "", words)
    if bare in known:  # an id is a less likely name than the name itself
        return known.index(bare) + 1.5
    core = re.sub(_QUALIFIERS, "", bare)
    core = core[:-1] if core.endswith("s") else core
    if core in known:
        return known.index(core) + 2.5
    ends = [head for head in _HEADS.get(role, ()) if core.endswith(f" {head}")]
    return min(known.index(head) for head in ends) + 5.0 if ends else None


def control_of(levels: Iterable[str]) -> str | None:
    """The level that is called as controls are, the likeliest vehicle of several."""
    for pattern in _CONTROLS:
        found = [
            level
            for level in levels
            if re.fullmatch(pattern, re.sub(r"[^a-z0-9()]+", " ", level.lower()).strip())
        ]
        if found:
            return min(found, key=lambda level: (len(level), level))
    return None


def named_control(levels: Iterable[str]) -> str | None:
    """The one level that has the name of a control among other words, such as "PBS, 24 h"."""
    inside = "|".join(f"(?:{pattern})" for pattern in (*_CONTROLS, "healthy"))
    found = [
        level
        for level in levels
        if re.search(rf"\b(?:{inside})\b", re.sub(r"[^a-z0-9()]+", " ", level.lower()))
    ]
    return found[0] if len(found) == 1 else None
