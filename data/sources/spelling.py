"""Find files of a scan under other spellings of their names.

Names are compared without upper and lower case, and those of pictures without their suffix, where only one file fits.
Files whose names come near an expected one are not read, but named in errors and warnings (`find_near_misses`).
"""

import difflib
import fnmatch
import os
import re
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path

from ross3d.data.sources.inside import resolve_inside
from ross3d.image_processing_ross3d import RAW_SUFFIXES


# Suffixes of pictures, which can stand for each other: of those that are read, and of those that are known and refused
# by their kind, so that none counts as absent.
READ_PICTURES = (
    ".png", ".jpg", ".jpeg", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".jpe", ".jfif", ".jp2", ".ppm",
)  # fmt: skip
NOT_READ_PICTURES = (".heic", ".heif", ".jxl", *RAW_SUFFIXES)
PICTURE_SUFFIXES = READ_PICTURES + NOT_READ_PICTURES
# Files that a scan is recognised or read by -> stems that other programs give them; the suffix does not count.
OTHER_NAMES = {
    "transforms.json": ("transform",),
    "camera-intrinsics.txt": ("camera-intrinsic", "intrinsics", "intrinsic", "camera", "K", "depth_intrinsic"),
    "depth_intrinsic.txt": ("depth_intrinsics", "intrinsic_depth", "intrinsics_depth", "camera-intrinsics"),
    "axis_align.txt": ("axis_alignment", "axis_align_matrix", "align", "alignment"),
    "boxes.json": ("box", "bbox", "bboxes", "bounding_boxes"),
    "proposals.json": ("proposal", "proposal_boxes"),
    "lowres_wide.traj": (),
}
DATA_SUFFIXES = (
    ".txt", ".json", ".npy", ".npz", ".csv", ".tsv", ".dat", ".yaml", ".yml", ".xml", ".mat", ".pkl", ".traj", ".log",
)  # fmt: skip
# What downloads and file managers add to a name that is taken, at its end or at its beginning.
COPY_MARK = re.compile(
    r"[ _-]*(\(\d+\)|\(?(copy|kopie|copie|copia|kopia)( \d+)?\)?)$"
    r"|^(copy( \(\d+\))? of|kopie von|copie de|copia de) ",
    re.IGNORECASE,
)
# Share of letters in common from which on a stem is taken for a misspelling.
MISSPELT_FROM = 0.9


class Listing:
    """The names in a folder, read once.

    Args:
        path (`Path`): the folder; one that is absent or may not be read has no names.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._names = sorted(os.listdir(path))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            self._names = []
        self._inner: dict[str, Listing] = {}

    @cached_property
    def _by_lower(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for name in self._names:
            names.setdefault(name.lower(), []).append(name)
        return names

    def find(self, name: str) -> list[str]:
        """The names that are `name` in upper or lower case."""
        return self._by_lower.get(name.lower(), [])

    def glob(self, pattern: str) -> Iterator[Path]:
        """The paths below that match a pattern (`*`, `?`, `[...]`, slashes between folders) in upper or lower case.

        They come in the order of their names.
        """
        first, _, rest = pattern.lower().partition("/")
        is_plain = not set("*?[") & set(first)
        lower = [first] if is_plain else fnmatch.filter(self._by_lower, first)
        for name in (name for other in lower for name in self._by_lower.get(other, ())):
            if rest:
                yield from self.enter(name).glob(rest)
            else:
                yield self.path / name

    def has(self, pattern: str) -> bool:
        return next(self.glob(pattern), None) is not None

    def enter(self, name: str) -> "Listing":
        """The listing of a folder in this one."""
        if name not in self._inner:
            self._inner[name] = Listing(self.path / name)
        return self._inner[name]

    @cached_property
    def stems(self) -> dict[str, list[str]]:
        """The names by what `find_near_misses` compares of them."""
        stems: dict[str, list[str]] = {}
        for name in self._names:
            stems.setdefault(_simplify(name), []).append(name)
        return stems

    def list_pictures(self, name: str, suffixes: Collection[str]) -> list[str]:
        """Names of pictures that are `name` but for its suffix, which may be left out, in upper or lower case.

        Those of a kind that is not read count only where there are no others.
        """
        stem, suffix = os.path.splitext(name.lower())
        stem = stem if suffix in PICTURE_SUFFIXES else name.lower()
        found = [(wanted, other) for wanted in suffixes for other in self.find(stem + wanted)]
        read = [other for wanted, other in found if wanted not in NOT_READ_PICTURES]
        return read or [other for _, other in found]


class ScanFiles:
    """The files of one scan, by the names that its layout or a file of it gives them.

    Args:
        root (`Path`): the scan's folder.
        allow_outside (`bool`): whether names and links may lead out of it.
    """

    def __init__(self, root: Path, allow_outside: bool = False):
        self.root, self.allow_outside = root, allow_outside

    @cached_property
    def listing(self) -> Listing:
        """The names in the scan's folder."""
        return Listing(self.root)

    def find(
        self,
        name: str,
        *,
        where: str | None = None,
        suffixes: Collection[str] = (),
        besides: Collection[Path] = (),
    ) -> Path:
        """The path of `name`; where there is no such file, that of the only file which differs from it in upper and
        lower case, or else in its suffix alone.

        Args:
            where (`str`, *optional*): the source of the name, for errors.
            suffixes: those that a picture of this name may have; none for other files.
            besides: pictures that are something else, such as depth maps.

        Raises:
            OutsideError, ValueError: of `resolve_inside`.
        """
        file = resolve_inside(self.root, name, where=where, allow_outside=self.allow_outside)
        other = self.spell(file, suffixes, besides)
        if other == file:
            return file
        inner = str(other.relative_to(self.root))
        return resolve_inside(self.root, inner, where=where, allow_outside=self.allow_outside)

    def spell(self, file: Path, suffixes: Collection[str] = (), besides: Collection[Path] = ()) -> Path:
        """As `find`, of a path, without a look at links."""
        # A link that leads nowhere is an error, not an absence.
        if os.path.lexists(file) or not file.is_relative_to(self.root):
            return file
        return self._find_other(file, suffixes, besides) or file

    def _find_other(self, file: Path, suffixes: Collection[str], besides: Collection[Path]) -> Path | None:
        *folders, name = file.relative_to(self.root).parts
        listing = self.listing
        for folder in folders:
            found = listing.find(folder)
            exact = [one for one in found if one == folder] or found
            if len(exact) != 1:
                return None
            listing = listing.enter(exact[0])
        for names in (listing.find(name), listing.list_pictures(name, suffixes)):
            others = [listing.path / other for other in names if listing.path / other not in besides]
            if others:
                return others[0] if len(others) == 1 else None
        return None

    def describe_alike(self, file: Path, besides: Collection[Path] = ()) -> str:
        """Where an absent picture may lie, as the end of an error: pictures of its name but for the suffix in its
        folder, or else in the scan's folder or in one of those in it; empty where there are none."""
        folders = [
            self.listing,
            *(self.listing.enter(folder.name) for folder in self.listing.glob("*") if folder.is_dir()),
        ]
        found = [
            listing.path / name for listing in folders for name in listing.list_pictures(file.name, PICTURE_SUFFIXES)
        ]
        found = [other for other in found if other not in besides]
        near = [other for other in found if other.parent == file.parent] or found
        names = sorted(str(other.relative_to(self.root)) for other in near)
        return f" ({', '.join(names[:3])} {'lies' if len(names) == 1 else 'lie'} there)" if names else ""


def find_near_misses(listing: Listing, name: str) -> list[str]:
    """Names of files in a folder that come near that of an absent one of `OTHER_NAMES`: a copy of it, another spelling
    or suffix, or the name that other programs give it."""
    stems, known = listing.stems, {_simplify(other) for other in OTHER_NAMES[name]}
    misspelt = difflib.get_close_matches(_simplify(name), stems, len(stems) or 1, MISSPELT_FROM)
    found = [other for stem in {*misspelt, *(known & stems.keys())} for other in stems[stem]]
    return sorted(other for other in found if other != name and _may_hold_numbers(listing.path / other))


def _may_hold_numbers(file: Path) -> bool:
    """Whether a file has a suffix of texts or arrays, or has none and is no program."""
    suffixes = [suffix.lower().rstrip("~") for suffix in file.suffixes]
    is_data = any(suffix in DATA_SUFFIXES for suffix in suffixes)
    return os.path.isfile(file) and (is_data or (not suffixes and not os.access(file, os.X_OK)))


def _simplify(name: str) -> str:
    """The letters of a name without its suffixes and the mark of a copy."""
    stem = COPY_MARK.sub("", name.partition(".")[0])
    return re.sub(r"[^a-z]", "", stem.lower())


def describe_near_misses(listing: Listing, name: str) -> str:
    """The near misses of one of `OTHER_NAMES` and what to do, as the end of an error; empty where there are none."""
    names = find_near_misses(listing, name) if name in OTHER_NAMES else []
    if not names:
        return ""
    is_same_kind = all(Path(other).suffix.lower() == Path(name).suffix for other in names)
    remedy = "rename it to" if is_same_kind else "save it as"
    return (
        f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not read: {remedy} {name} if that is what it is"
    )


__all__ = [
    "NOT_READ_PICTURES",
    "PICTURE_SUFFIXES",
    "READ_PICTURES",
    "Listing",
    "ScanFiles",
    "describe_near_misses",
    "find_near_misses",
]
