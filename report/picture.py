"""One PNG of an evaluated run, for a README: the masked pictures, the model's samples and those of the controls."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ross3d.data.atomic import replace_file


COLUMNS = {
    "truth": "masked view",
    "mean_of_samples": "reconstructed",
    "one_sample": "one sample",
    "other_scene": "other room's states",
    "positions_only": "positions only",
    "teacher": "upper bound (VAE)",
}
TILE, GAP, HEAD = 160, 6, 24
PAPER, INK = (255, 255, 255), (28, 36, 48)


def list_rows(run_dir: Path, num_scenes: int) -> list[Path]:
    """Prefixes of picture names: a masked view and the bird's-eye picture of each of the first scenes.

    Raises:
        FileNotFoundError: when the run saved no pictures.
    """
    folders = sorted(path for path in (run_dir / "pictures").glob("*") if path.is_dir())[:num_scenes]
    if not folders:
        raise FileNotFoundError(
            f"{run_dir / 'pictures'}: expected images of reconstructed scenes, found none; evaluate with --task"
            " reconstruction."
        )
    rows = []
    for folder in folders:
        truths = sorted(path.name.removesuffix("_truth.png") for path in folder.glob("*_truth.png"))
        views, others = ([name for name in truths if name.startswith("view") == is_view] for is_view in (True, False))
        rows += [folder / name for name in [*views[:1], *others]]
    return rows


def make_picture(run_dir: Path, num_scenes: int = 2) -> Image.Image:
    """Rows of the run's first scenes, columns of `COLUMNS`, with a line of headings."""
    rows = list_rows(run_dir, num_scenes)
    step = TILE + GAP
    sheet = Image.new("RGB", (len(COLUMNS) * step + GAP, HEAD + len(rows) * step + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, (name, title) in enumerate(COLUMNS.items()):
        left = GAP + column * step
        draw.text((left + TILE / 2, HEAD / 2 + 2), title, fill=INK, font=font, anchor="mm")
        for row, beginning in enumerate(rows):
            with Image.open(beginning.with_name(f"{beginning.name}_{name}.png")) as picture:
                tile = picture.convert("RGB").resize((TILE, TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, HEAD + row * step))
    return sheet


def save_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG atomically."""
    with replace_file(path) as partial:
        picture.save(partial, format="PNG", optimize=True)


__all__ = ["make_picture", "save_picture"]
