"""Picture files: limits that hold before memory is taken, and orientation tags."""

import os

import numpy as np
import pytest
from PIL import Image

from ross3d.image_processing_ross3d import (
    MAX_PICTURE_ASPECT,
    MAX_PICTURE_PIXELS,
    ORIENTATION_TAG,
    check_picture_size,
    check_regular_file,
    get_orientation,
    get_stored_turns,
    open_picture,
    turn_upright,
)


HEIGHT, WIDTH = 20, 30


def make_picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def save_tagged(file, orientation: int, picture: np.ndarray | None = None):
    """A PNG whose pixels lie as `picture` does and whose tag says how to turn them."""
    image = Image.fromarray(make_picture() if picture is None else picture)
    exif = image.getexif()
    exif[ORIENTATION_TAG] = orientation
    image.save(file, exif=exif)
    return file


class TestFiles:
    def test_what_is_no_regular_file(self, tmp_path):
        """Opening a pipe that nobody writes to would wait for ever."""
        pipe = tmp_path / "pipe.png"
        os.mkfifo(pipe)
        for file, kind in (
            (pipe, "pipe, socket or device"),
            ("/dev/zero", "pipe, socket or device"),
            (tmp_path, "folder"),
        ):
            with pytest.raises(
                ValueError, match=rf"images\[2\]: expected a regular file, got the {kind} {file}; give"
            ):
                open_picture(file, "images[2]")

    def test_a_path_that_leads_nowhere(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"view: the file .*gone\.png does not exist; correct the path"):
            open_picture(tmp_path / "gone.png", "view")
        for path in ("a" * 5000, "nul\0.png"):
            with pytest.raises(ValueError, match=r"view: expected a path to a file, got '(aaa|nul).*\(.*\)") as error:
                check_regular_file(path, "view")
            assert len(str(error.value)) < 400
        assert check_regular_file(save_tagged(tmp_path / "a.png", 1), "view") == tmp_path / "a.png"


class TestLimits:
    @pytest.mark.parametrize(("width", "height"), [(8001, 8000), (12000, 12000), (0, 5), (10**9, 10**9)])
    def test_pixels(self, width, height):
        message = (
            rf"view: expected a picture of 1 to 64 megapixels, got {width} x {height} \(width x height\); "
            f"{'make it smaller' if width else 'leave it out'}"
        )
        with pytest.raises(ValueError, match=message):
            check_picture_size((width, height), "view")
        check_picture_size((8000, 8000), "view")
        assert MAX_PICTURE_PIXELS == 8000 * 8000

    @pytest.mark.parametrize(("width", "height"), [(1, 60000), (60000, 1), (601, 30)])
    def test_aspect(self, width, height):
        message = rf"at most 20 times as long as wide, got {width} x {height} \(width x height\); crop it"
        with pytest.raises(ValueError, match=message):
            check_picture_size((width, height), "view")
        check_picture_size((600, 30), "view")
        assert MAX_PICTURE_ASPECT == 20

    def test_files_are_measured_before_they_are_decoded(self, tmp_path):
        """The header alone is looked at: 144 megapixels of a PNG are 18 MB of packed bits here, 432 MB decoded."""
        bomb = tmp_path / "bomb.png"
        Image.new("1", (12000, 12000)).save(bomb)
        with pytest.raises(
            ValueError, match=r"images\[0\]: expected a picture of 1 to 64 megapixels, got 12000 x 12000"
        ):
            open_picture(bomb, "images[0]")
        with pytest.raises(ValueError, match="expected a picture of 1 to 64"):
            open_picture(Image.open(bomb), "images[0]")

    def test_beyond_the_limit_of_the_library(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match="view: expected a picture of 1 to 64 megapixels, got a larger one"):
            open_picture(save_tagged(tmp_path / "a.png", 1), "view")


class TestOrientation:
    def test_tags_that_say_nothing(self, tmp_path):
        for tag in (0, 9, 4000):
            picture = open_picture(save_tagged(tmp_path / f"{tag}.png", tag), "view")
            assert get_orientation(picture) == 1 and turn_upright(picture) is picture
        assert get_orientation(Image.new("RGB", (4, 3))) == 1

    @pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
    def test_turns_bring_stored_pixels_upright(self, tmp_path, orientation, turns):
        picture = open_picture(save_tagged(tmp_path / "a.png", orientation), "view")
        assert get_stored_turns(picture) == turns
        upright = turn_upright(picture)
        assert np.array_equal(np.asarray(upright), np.rot90(make_picture(), turns))
        assert get_orientation(upright) == 1

    @pytest.mark.parametrize(("orientation", "turns"), [(2, 0), (4, 2), (5, 3), (7, 1)])
    def test_mirrored_pictures_are_no_turn(self, tmp_path, orientation, turns):
        picture = open_picture(save_tagged(tmp_path / "a.png", orientation), "view")
        assert get_stored_turns(picture) is None
        assert np.array_equal(np.asarray(turn_upright(picture)), np.rot90(make_picture(), turns)[:, ::-1])
