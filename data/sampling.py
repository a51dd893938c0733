"""Which views of a scan to use."""

import numpy as np


def sample_uniform(num_frames: int, num_views: int, unique: bool = False) -> np.ndarray:
    """Indices of `num_views` frames spread evenly over `num_frames`.

    The published rule, floor(linspace(0, num_frames - 1, num_views)), repeats frames when there are fewer than asked
    for; with `unique` no frame comes twice, so there may be fewer indices than `num_views`.
    """
    if num_frames < 1 or num_views < 1:
        raise ValueError(
            f"num_frames and num_views must be at least 1, got {num_frames} and {num_views}; is the scan empty?"
        )
    indices = np.floor(np.linspace(0, num_frames - 1, num_views)).astype(np.int64)
    return np.unique(indices) if unique else indices


__all__ = ["sample_uniform"]
