"""`SCENE.mask.npz`: masks of a detector over the vertices of a mesh, a sparse matrix of `scipy.sparse.save_npz`.

SciPy trusts the indices in such a file without a check, so sizes and indices are verified before anything is unpacked
or converted.
"""

import math
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse
from numpy.lib import format as npy

from ross3d.data.prepare.boxes import MAX_PROPOSALS, make_mask_boxes
from ross3d.data.text_files import check_file


# Maximum unpacked size; a scan's fifty masks take a few megabytes.
MAX_MASK_BYTES = 1 << 30
MAX_MASKS = 100_000
FORMATS = ("csr", "csc", "coo")
# The arrays of places, which SciPy would truncate to whole numbers.
PLACES = ("indices", "indptr", "row", "col", "coords", "shape")


def read_mask_boxes(file: Path, vertices: np.ndarray) -> list[list[float] | None]:
    """Boxes of the first 50 masks of a file; None for an empty mask.

    Args:
        file (`Path`): a sparse matrix (masks, M) of zeros and ones.
        vertices (`(M, 3)`): of the mesh, metres; boxes lie in their world.

    Raises:
        FileNotFoundError, ValueError: name the file, the expected and the actual content.
    """
    masks = load_masks(file)
    num_masks, num_vertices = masks.shape
    if num_vertices != len(vertices):
        raise ValueError(
            f"{file}: masks of {num_vertices} vertices for a mesh of {len(vertices)}; expected masks over the"
            " vertices of _vh_clean_2.ply."
        )
    if num_masks > MAX_MASKS:
        raise ValueError(f"{file}: expected at most {MAX_MASKS} masks, got {num_masks}; are rows and columns swapped?")
    chosen = masks.tocsr()[:MAX_PROPOSALS].toarray()
    if not np.isin(chosen, (0, 1)).all():
        raise ValueError(
            f"{file}: expected masks of 0 and 1, got {chosen[~np.isin(chosen, (0, 1))][0]}; apply the threshold when"
            " exporting."
        )
    return make_mask_boxes(vertices, chosen)


def load_masks(file: Path) -> scipy.sparse.sparray | scipy.sparse.spmatrix:
    """Load the matrix of a file and check that all its indices lie inside it.

    Raises:
        FileNotFoundError, ValueError: as `read_mask_boxes`.
    """
    check_file(file, "a sparse matrix of masks", MAX_MASK_BYTES)
    try:
        _check_members(file)
        masks = scipy.sparse.load_npz(file)
        if masks.format not in FORMATS or masks.ndim != 2:
            raise ValueError(f"format {masks.format} of {masks.ndim} axes, one of {FORMATS} of 2 is read")
        # SciPy's reader checks coordinates against the shape itself.
        if masks.format != "coo":
            masks.check_format(full_check=True)
    # Damaged bytes can make NumPy and SciPy raise anything.
    except Exception as error:
        raise ValueError(
            f"{file}: expected a sparse matrix of masks ({error}); download it again, or export it by"
            " scipy.sparse.save_npz."
        ) from error
    return masks


def _check_members(file: Path) -> None:
    """Refuse arrays that are larger than they say, or than `MAX_MASK_BYTES` together, and places that are no whole
    numbers, before they are unpacked."""
    with zipfile.ZipFile(file) as archive:
        total = sum(member.file_size for member in archive.infolist())
        if total > MAX_MASK_BYTES:
            raise ValueError(f"it unpacks to {total} bytes, at most {MAX_MASK_BYTES} are read")
        for member in archive.infolist():
            with archive.open(member) as opened:
                version = npy.read_magic(opened)
                read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, kind = read(opened)
                if kind.hasobject or math.prod(shape) * kind.itemsize + opened.tell() != member.file_size:
                    raise ValueError(f"{member.filename} does not hold the {shape} of {kind} that it says")
                if member.filename.removesuffix(".npy") in PLACES and kind.kind not in "iu":
                    raise ValueError(f"{member.filename} holds {kind}, places are whole numbers")


__all__ = ["load_masks", "read_mask_boxes"]
