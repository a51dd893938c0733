"""Pictures given to the processor: the right way up, with depth and cameras that belong to them, one at a time."""

import base64
import contextlib
import http.server
import io
import threading
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import pipeline
from transformers.image_utils import load_image

from ross3d.image_processing_ross3d import ORIENTATION_TAG, open_named_picture
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.tests.posed_views import make_poses, make_test_processor
from ross3d.tests.tiny import get_checkpoint


# As high as a view, so crops are symmetric and a turned scene is exactly the scene, turned.
HEIGHT, WIDTH, NUM_VIEWS = 40, 60, 3
QUESTION = "How many chairs are there?"


@pytest.fixture(scope="module")
def processor() -> Ross3DProcessor:
    return make_test_processor(geometry_mode="valid_depth")


def make_stored_scene(num_views: int = NUM_VIEWS, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> dict:
    """Posed views as a sensor stores them."""
    rng = np.random.default_rng(seed)
    return {
        "images": list(rng.integers(0, 256, (num_views, height, width, 3), dtype=np.uint8)),
        "depth_maps": rng.uniform(0.5, 3, (num_views, height, width)).astype(np.float32),
        "intrinsics": np.array([[45.0, 0, 0.5 * width + 2], [0, 47.0, 0.5 * height - 3], [0, 0, 1]]),
        "cam2world": make_poses(num_views, seed),
    }


def tag(picture: np.ndarray, orientation: int, file=None):
    """A picture of PIL whose pixels lie as `picture` does, or the file of one, with an orientation tag."""
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[ORIENTATION_TAG] = orientation
    stream = io.BytesIO() if file is None else file
    image.save(stream, format="PNG", exif=exif)
    return Image.open(stream) if file is None else file


def turn(array: torch.Tensor, turns: int) -> torch.Tensor:
    """(V, h, w, ...) turned counter-clockwise."""
    return torch.rot90(array, turns, (1, 2))


TURNS = [(3, 2), (6, 3), (8, 1)]


class TestOrientation:
    @pytest.mark.parametrize("kind", ["path", "string", "PIL", "chat"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_files_are_the_right_way_up(self, processor, tmp_path, kind, orientation):
        pictures = make_stored_scene()["images"][:2]
        files = [tag(picture, orientation, tmp_path / f"{n}.png") for n, picture in enumerate(pictures)]
        upright = [np.asarray(load_image(str(file))) for file in files]
        wanted = processor(images=upright, text=QUESTION)
        if kind == "chat":
            blocks = [{"type": "image", "path": str(file)} for file in files]
            chat = [{"role": "user", "content": [*blocks, {"type": "text", "text": QUESTION}]}]
            found = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
        else:
            given = {"path": files, "string": [str(file) for file in files], "PIL": [Image.open(f) for f in files]}
            found = processor(images=given[kind], text=QUESTION)
        assert torch.equal(found["pixel_values"], wanted["pixel_values"])
        assert torch.equal(found["input_ids"], wanted["input_ids"])
        as_stored = processor(images=pictures)["pixel_values"]
        assert torch.equal(found["pixel_values"], as_stored) == (orientation == 1)

    @pytest.mark.parametrize(("orientation", "turns"), TURNS)
    def test_depth_and_cameras_of_the_stored_pixels_are_turned_with_them(self, processor, orientation, turns):
        """The same points at the places where the upright picture shows them, and boxes cover the same patches."""
        scene = make_stored_scene() | {"proposal_boxes": np.array([[0, 0, 0, 2, 2, 3], [1, 1, 0, 1, 2, 1.0]])}
        wanted = processor(**scene)
        found = processor(**scene | {"images": [tag(picture, orientation) for picture in scene["images"]]})
        for key in ("pixel_values", "proposal_patches"):
            views = found[key][0].movedim(0, 1 if key == "proposal_patches" else 0)
            expected = wanted[key][0].movedim(0, 1 if key == "proposal_patches" else 0)
            assert torch.equal(views, torch.rot90(expected, turns, (2, 3))), key
        assert_close(found["patch_coords"][0], turn(wanted["patch_coords"][0], turns), atol=1e-5, rtol=0)
        assert torch.equal(found["patch_valid"][0], turn(wanted["patch_valid"][0], turns))
        assert found["proposal_patches"].any() and not found["proposal_patches"].all()

    @pytest.mark.parametrize(("orientation", "turns"), TURNS[1:])
    def test_depth_of_the_upright_picture_stays(self, processor, orientation, turns):
        stored = make_stored_scene()["images"]
        upright = make_stored_scene(height=WIDTH, width=HEIGHT, seed=1)
        found = processor(**upright | {"images": [tag(picture, orientation) for picture in stored]})
        wanted = processor(**upright | {"images": [np.rot90(picture, turns) for picture in stored]})
        for key in ("pixel_values", "patch_coords", "patch_valid"):
            assert torch.equal(found[key], wanted[key]), key

    def test_squares_belong_to_the_stored_pixels(self, processor):
        scene = make_stored_scene(height=HEIGHT, width=HEIGHT)
        found = processor(**scene | {"images": [tag(picture, 6) for picture in scene["images"]]})
        wanted = turn(processor(**scene)["patch_coords"][0], 3)
        assert_close(found["patch_coords"][0], wanted, atol=1e-5, rtol=0)

    def test_every_view_has_its_own_turn(self, processor):
        """One camera a view; views that were held to the left and to the right stand in one scene."""
        scene = make_stored_scene()
        cameras = np.stack([scene["intrinsics"] + [[0, 0, view], [0, 0, 0], [0, 0, 0]] for view in range(3)])
        scene["intrinsics"] = cameras
        wanted = processor(**scene)
        tags = [6, 8, 6]
        found = processor(**scene | {"images": [tag(p, o) for p, o in zip(scene["images"], tags, strict=True)]})
        for view, turns in enumerate((3, 1, 3)):
            expected = turn(wanted["patch_coords"][:, view], turns)
            assert_close(found["patch_coords"][:, view], expected, atol=1e-5, rtol=0)
        # A half turn keeps the size: such views stand beside those that were not turned.
        found = processor(**scene | {"images": [scene["images"][0], tag(scene["images"][1], 3), scene["images"][2]]})
        assert torch.equal(found["patch_coords"][:, 0], wanted["patch_coords"][:, 0])
        assert_close(found["patch_coords"][:, 1], turn(wanted["patch_coords"][:, 1], 2), atol=1e-5, rtol=0)

    def test_positions_in_the_blocks_of_a_chat_are_turned(self, processor, tmp_path):
        scene = make_stored_scene()
        files = [tag(picture, 6, tmp_path / f"{n}.png") for n, picture in enumerate(scene["images"])]
        blocks = [
            {
                "type": "image",
                "path": str(file),
                "depth_map": depth,
                "intrinsics": scene["intrinsics"],
                "cam2world": pose,
            }
            for file, depth, pose in zip(files, scene["depth_maps"], scene["cam2world"], strict=True)
        ]
        chat = [{"role": "user", "content": [*blocks, {"type": "text", "text": QUESTION}]}]
        found = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
        wanted = turn(processor(**scene)["patch_coords"][0], 3)
        assert_close(found["patch_coords"][0], wanted, atol=1e-5, rtol=0)

    def test_published_mode_refuses_what_is_portrait_once_upright(self, processor):
        own = make_test_processor(processor.tokenizer)
        scene = make_stored_scene()
        lying = [tag(picture, 6) for picture in scene["images"]]
        message = (
            r"images\[0\] of scene 0: expected pictures at least as wide as high, .* got 60 x 40 \(height x width\);"
            " set geometry_mode='valid_depth' on the processor, or give --geometry-mode valid_depth to ask.py and eval"
        )
        for given in ({"images": lying}, scene | {"images": lying}):
            with pytest.raises(ValueError, match=message):
                own(**given)
        own.geometry_mode = "valid_depth"
        wanted = processor(**scene | {"images": lying})["patch_coords"]
        assert torch.equal(own(**scene | {"images": lying})["patch_coords"], wanted)
        with pytest.raises(ValueError, match=r"geometry_mode: expected one of .*, got 'valid'"):
            own.geometry_mode = "valid"
        assert own.geometry_mode == "valid_depth" and own.to_dict()["geometry_mode"] == "valid_depth"

    def test_mirrored_pictures_have_no_depth(self, processor):
        scene = make_stored_scene()
        for orientation in (2, 4, 5, 7):
            mirrored = [scene["images"][0], tag(scene["images"][1], orientation), scene["images"][2]]
            message = (
                r"images\[1\] of scene 0: expected a picture that its EXIF orientation only turns, .* a mirrored one"
            )
            with pytest.raises(ValueError, match=message):
                processor(**scene | {"images": mirrored})
            processor(images=mirrored)

    def test_a_scene_has_depth_maps_of_one_size(self, processor):
        scene = make_stored_scene()
        mixed = [tag(scene["images"][0], 6), *scene["images"][1:]]
        message = (
            r"images of scene 0: expected depth maps of one size once pictures are turned upright, got quarter turns"
            r" by EXIF orientation in views \[0\] alone; turn all of them the same way"
        )
        with pytest.raises(ValueError, match=message):
            processor(**scene | {"images": mixed})
        found = processor(images=mixed)["pixel_values"]
        upright = [np.rot90(scene["images"][0], -1), *scene["images"][1:]]
        assert found.shape[1] == NUM_VIEWS and torch.equal(found, processor(images=upright)["pixel_values"])

    def test_published_mode_says_what_it_stretches(self, processor):
        own, scene = make_test_processor(processor.tokenizer), make_stored_scene()
        with pytest.warns(
            UserWarning, match=r"images\[1\] of scene 0: the 40 x 45 picture .* is stretched to the aspect"
        ):
            own(**scene | {"images": [scene["images"][0], scene["images"][1][:, :45], scene["images"][2]]})


class PictureServer(http.server.BaseHTTPRequestHandler):
    """Answers each path of `pages`, `/long` with a length beyond all limits, `/endless` with bytes for ever, `/moved`
    with another address, and anything else with words and an error."""

    pages: dict[str, bytes] = {}

    def answer(self):
        if self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                while True:
                    self.wfile.write(bytes(10_000))
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/room.png")
            self.end_headers()
        else:
            page = self.pages.get(self.path, b"secret words")
            self.send_response(200 if self.path in {*self.pages, "/long", "/short"} else 404)
            length = {"/long": 10**12, "/short": len(page) + 1}.get(self.path, len(page))
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(page)

    def log_message(self, *args):
        pass

    do_GET = answer


@pytest.fixture(scope="module")
def png() -> bytes:
    stream = io.BytesIO()
    tag(make_stored_scene(1)["images"][0], 6, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def address(png):
    wide = io.BytesIO()
    Image.fromarray(make_stored_scene(1, 44, 90)["images"][0]).save(wide, "PNG")
    pages = {"/room.png": png, "/wide.png": wide.getvalue(), "/words": b"secret words", "/half.png": png[:300]}
    handler = type("Handler", (PictureServer,), {"pages": pages})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def sources(png, address, tmp_path) -> dict[str, str]:
    """One picture by every kind of name."""
    file = tmp_path / "a room.png"
    file.write_bytes(png)
    text = base64.b64encode(png).decode()
    return {
        "http": f"{address}/room.png", "path": str(file), "file URI": file.as_uri(),
        "data URI": f"data:image/png;base64,{text}", "base64": text,
        "base64 in lines": base64.encodebytes(png).decode(),
    }  # fmt: skip


def make_chat(key: str, source: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image", key: source}, {"type": "text", "text": QUESTION}]}]


DOWNLOAD = r"expected a picture of at most 64 MB at 'http://127.0.0.1:\d+"


class TestNames:
    def test_all_name_the_same_picture(self, processor, sources):
        assert "%20" in sources["file URI"]
        wanted = processor(images=load_image(sources["path"]), text=QUESTION)
        for kind, source in sources.items():
            for images in (source, [source], [[source]]):
                found = processor(images=images, text=QUESTION)
                assert torch.equal(found["pixel_values"], wanted["pixel_values"]), kind
            for key in ("url", "image", "path", "base64")[: 4 if kind.startswith("base64") else 3]:
                chat = processor.apply_chat_template(
                    make_chat(key, source), tokenize=True, return_dict=True, add_generation_prompt=True
                )
                assert torch.equal(chat["pixel_values"], wanted["pixel_values"]), (kind, key)
                assert torch.equal(chat["input_ids"], wanted["input_ids"]), (kind, key)
        openai = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": sources["http"]}}]}]
        found = processor.apply_chat_template(openai, tokenize=True, return_dict=True)
        assert torch.equal(found["pixel_values"], wanted["pixel_values"])

    def test_pipeline(self, sources):
        ask = pipeline("image-text-to-text", model=str(get_checkpoint()), trust_remote_code=True)
        answers = [
            ask(text=make_chat("url", sources[kind]), max_new_tokens=4, return_full_text=False)[0]["generated_text"]
            for kind in ("path", "http", "data URI")
        ]
        answers.append(
            ask(images=sources["http"], text=QUESTION, max_new_tokens=4, return_full_text=False)[0]["generated_text"]
        )
        assert len(set(answers)) == 1 and answers[0]

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("{http}/gone", f"{DOWNLOAD}/gone', got an error of the server, status 404; check the address, or d"),
            ("{http}/long", f"{DOWNLOAD}/long', got an answer of 1000000 MB; check the address"),
            ("{http}/endless", f"{DOWNLOAD}/endless', got an answer that goes on behind them; check the address"),
            ("{http}/short", f"{DOWNLOAD}/short', got peer closed connection .*; check the address"),
            ("http://127.0.0.1:9/room.png", f"{DOWNLOAD}/room.png', got .*refused.*; check the address"),
            ("http://127.0.0.1:there/room.png", "expected a picture of .*there/room.png', got Invalid port: .*;"),
            ("file:" + "//elsewhere/room.png", "expected file:///path/of/a/picture on this machine, got .*elsewhere"),
            ("file:///gone/room.png", "the file /gone/room.png does not exist"),
            ("data:image/png;base64,", r"expected a picture in a data URI .* got 22 letters that are none"),
            ("data:image/png;base64,%%%" + "A" * 100_000, "expected a picture in a data URI .* encode the whole"),
            ("data:image/png;base64," + "AAAA" * 100_000, "expected a readable picture, got bytes that no known"),
            ("AAAA" * 100_000, "expected a readable picture, got bytes that no known format begins"),
            ("!AAA" * 100_000, "expected a path to a file, got '!AAA"),
        ],
    )  # fmt: skip
    def test_what_names_no_picture(self, processor, address, source, message):
        source = source.replace("{http}", address)
        for ask in (
            lambda: processor(images=[source]),
            lambda: processor.apply_chat_template(make_chat("url", source), tokenize=True, return_dict=True),
        ):
            with pytest.raises((ValueError, FileNotFoundError), match=rf"images\[0\] of scene 0: {message}") as error:
                ask()
            assert len(str(error.value)) < 600 and "secret" not in str(error.value)

    def test_what_a_server_has_is_no_picture(self, processor, address):
        where = rf"images\[1\] of scene 0 at '{address}/words': expected a readable picture, got a text; check whether"
        with pytest.raises(ValueError, match=where) as error:
            processor(images=[f"{address}/wide.png", f"{address}/words"])
        assert "secret" not in str(error.value) and "BytesIO" not in str(error.value)
        with pytest.raises(ValueError, match=r"images\[0\] of scene 0: expected a readable picture, got .*truncated"):
            processor(images=[f"{address}/half.png"])

    def test_a_download_ends_at_the_limit(self, address, png, monkeypatch):
        """No more comes than the limit and what is on its way; a picture that is just within it is read."""
        monkeypatch.setattr("ross3d.image_processing_ross3d.MAX_DOWNLOAD_BYTES", len(png))
        assert open_named_picture(f"{address}/room.png", "picture").size == (WIDTH, HEIGHT)
        monkeypatch.setattr("ross3d.image_processing_ross3d.MAX_DOWNLOAD_BYTES", len(png) - 1)
        tracemalloc.start()
        for page in ("room.png", "endless"):
            with pytest.raises(
                ValueError, match=f"picture: expected a picture of at most .* MB at '{address}/{page}'"
            ):
                open_named_picture(f"{address}/{page}", "picture")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
        tracemalloc.stop()

    def test_a_download_ends_in_time(self, address, monkeypatch):
        monkeypatch.setattr("ross3d.image_processing_ross3d.DOWNLOAD_TIMEOUT", 0.0)
        with pytest.raises(ValueError, match=r"got 0\.\d MB of it within 0 seconds; check the address"):
            open_named_picture(f"{address}/endless", "picture")

    def test_pictures_of_several_sizes(self, processor, address):
        """The second one lies on its side, the third is the second, told elsewhere."""
        found = processor(images=[f"{address}/{page}" for page in ("wide.png", "room.png", "moved")])["pixel_values"]
        pictures = [make_stored_scene(1, 44, 90)["images"][0], np.rot90(make_stored_scene(1)["images"][0], -1)]
        wanted = processor(images=[np.ascontiguousarray(picture) for picture in pictures])["pixel_values"]
        assert torch.equal(found[0, :2], wanted[0]) and torch.equal(found[0, 2], wanted[0, 1])

    def test_depth_and_cameras_turn_along(self, processor, png, address, tmp_path):
        """Those of a downloaded picture as those of the same file: they belong to the pixels as they are stored."""
        file, scene = tmp_path / "room.png", make_stored_scene(1)
        file.write_bytes(png)
        found, wanted = (processor(**scene | {"images": [picture]}) for picture in (f"{address}/room.png", str(file)))
        as_upright = processor(**scene | {"images": [load_image(str(file)).rotate(90, expand=True)]})
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
        assert not torch.equal(found["patch_coords"], as_upright["patch_coords"])

    def test_half_of_the_data(self, processor, sources):
        half = sources["data URI"][: len(sources["data URI"]) // 8 * 4 + 2]
        with pytest.raises(
            ValueError, match="expected a readable picture, got a truncated or damaged one: .*truncated"
        ) as error:
            processor(images=[half + "=" * (-(len(half) - 22) % 4)])
        assert len(str(error.value)) < 300

    def test_limits_hold_for_data_as_well(self, processor):
        stream = io.BytesIO()
        Image.new("1", (9000, 8000)).save(stream, "PNG")
        with pytest.raises(ValueError, match="expected a picture of 1 to 64 megapixels, got 9000 x 8000"):
            processor(images=f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}")


class TestMemory:
    def test_no_two_views_are_held_at_full_size(self, processor, tmp_path):
        """Eight views take as much memory at their highest as two do, give or take one decoded picture."""
        side = 1200
        files = []
        for view in range(8):
            files.append(tmp_path / f"{view}.png")
            Image.new("RGB", (side, side), (view, 0, 0)).save(files[-1])
        peaks = []
        for count in (2, 8):
            tracemalloc.start()
            pixels = processor(images=files[:count])["pixel_values"]
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert pixels.shape[:2] == (1, 8) and len(set(pixels[0, :, 0, 0, 0].tolist())) == 8
        assert peaks[1] - peaks[0] < side * side * 3
