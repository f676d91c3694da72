"""What the paper reports, for the methods that are here (Inverse-and-Edit, tables 1 to 3).

The paper does not say which network its LPIPS and its CLIP have, nor on which range its MSE is;
here its numbers stand beside those by VGG, by ViT-L/14 and on [0, 1].
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ie_jax.editing.config import EditConfig
from ie_jax.evaluation.pie_bench import PAPER_IMAGES
from ie_jax.evaluation.runner import Case

MANY_PHOTOS = 2700
"""The paper took "more than" so many of COCO's."""


class Published(NamedTuple):
    """A number of the paper."""

    value: float
    table: str


def of_table(
    table: str, columns: str, **rows: Sequence[float | None]
) -> dict[str, dict[str, Published]]:
    """The numbers of a table by method and metric."""
    names = columns.split()
    return {
        method: {
            name: Published(x, table)
            for name, x in zip(names, numbers, strict=True)
            if x is not None
        }
        for method, numbers in rows.items()
    }


RECONSTRUCTION = of_table(
    "Table 1",
    "mse image_reward lpips_vgg",
    ddim=(0.027, 0.369, 0.268),
    icd=(None, -0.028, None),
    ours=(0.077, 0.344, 0.309),
)
EDITING = "dinov2 lpips_vgg clip_l14 image_reward"
EDITS = of_table(
    "Table 2",
    EDITING,
    npi=(0.632, 0.302, None, 0.224),
    nti=(0.795, None, 0.294, -0.034),
    renoise=(0.504, 0.446, 0.315, 0.362),
    **{"guide-and-rescale": (0.721, 0.277, 0.307, None)},
    infedit=(None, 0.236, 0.298, 0.158),
) | of_table(
    "Table 3",
    EDITING,
    ours=(0.719, 0.312, 0.304, 0.313),
    **{"ours, guided": (0.747, 0.296, 0.302, 0.279)},
)


def published(protocol: str, cases: Sequence[Case], config: EditConfig) -> Mapping[str, Published]:
    """The paper's numbers of a method by metric; none where it measured other images."""
    if protocol == "coco" and len(cases) > MANY_PHOTOS:
        return RECONSTRUCTION.get(config.method, {})
    if protocol == "pie-bench" and len(cases) == PAPER_IMAGES:
        guided = config.method == "ours" and config.guiders
        return EDITS.get("ours, guided" if guided else config.method, {})
    return {}
