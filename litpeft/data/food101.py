"""Food-101: photographs of 101 dishes (Bossard et al. 2014, https://doi.org/10.1007/978-3-319-10599-4_29)."""

from typing import Any

from litpeft.data.image_folder import ImageFolder


class Food101(ImageFolder):
    """Food-101, from the hub: 75,750 training and 25,250 validation images, 101 classes.

    Args:
        dataset: hub id, used if no file is given.
        options: files and the other options of `ImageFolder`.
    """

    def __init__(self, dataset: str | None = "ethz/food101", **options: Any) -> None:
        super().__init__(dataset=dataset, **options)
