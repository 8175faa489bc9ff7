"""A made-up third modality: four numbers in a `.npy` file."""

import io

import numpy as np
import torch

from mora.data.modality import BrokenInputError, Modality

WIDTH = 4


class Vectors(Modality):
    name, plural = "vector", "vectors"

    def decode(self, data, where):
        try:
            found = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise BrokenInputError(f"{where}: the vector cannot be read: {error}") from error
        if found.shape != (WIDTH,):
            raise BrokenInputError(
                f"{where}: the vector cannot be read: it has {found.size} numbers, expected {WIDTH} in one row"
            )
        return torch.from_numpy(found.astype(np.float32))

    def remark(self, value):
        return "" if value.any() else "all zero"

    def probes(self):
        return [torch.arange(WIDTH, dtype=torch.float32)]
