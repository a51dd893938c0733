"""Pure functions from data to HTML: a page is one file without external assets, and every text in it is escaped."""

import base64
import html
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --paper: #ffffff; --wash: #f5f7f9; --accent: #2457c5;
  --good: #14804a; --bad: #c0392b; --warm: #d9730d; color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header { background: var(--paper); border-bottom: 1px solid var(--line); padding: 30px 0 22px; }
main, .inner { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
h1 { font-size: 25px; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 4px; letter-spacing: -.005em; }
h3 { font-size: 14px; margin: 22px 0 8px; }
header p, .note { color: var(--soft); margin: 6px 0 0; max-width: 88ch; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px 24px;
  margin: 22px 0; }
.note { font-size: 13.5px; margin-bottom: 14px; }
.facts { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 18px; }
.fact { border: 1px solid var(--line); border-radius: 8px; padding: 9px 16px 8px; background: var(--wash); }
.fact b { display: block; font-size: 21px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.fact span { color: var(--soft); font-size: 12.5px; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; min-width: 50%; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: 12.5px; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; } td.number, td:first-child { overflow-wrap: normal; }
td.number, th.number { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 650; border-top: 2px solid var(--ink); }
.bar { display: inline-block; position: relative; width: 92px; height: 9px; background: #dde3ea; border-radius: 5px;
  margin-right: 9px; }
.bar i, .bar b, .bar u { position: absolute; left: 0; height: 100%; border-radius: 5px; background: var(--accent); }
.bar b { top: 4px; height: 1px; background: var(--ink); }
.bar u { top: -3px; width: 3px; height: 15px; margin-left: -1px; border-radius: 1px; background: var(--warm); }
.good { color: var(--good); font-weight: 650; } .bad { color: var(--bad); font-weight: 650; }
.soft { color: var(--soft); } .whole { white-space: nowrap; } .name { min-width: 8.5em; }
.row { display: flex; flex-wrap: wrap; gap: 12px; align-items: flex-start; } .row > * { max-width: 100%; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); gap: 18px 28px; }
.plain { list-style: none; margin: 0; padding: 0; } .plain li { margin: 0 0 9px; } ul.notes { padding-left: 20px; }
.plain .bar { display: block; width: 100%; max-width: 330px; margin: 5px 0 4px; }
.small { font-size: 13px; } .example { margin: 0; overflow-wrap: anywhere; } .example p { margin: 6px 0 0; }
figure { margin: 0; max-width: 100%; }
figure img, figure svg { display: block; border-radius: 5px; max-width: 100%; height: auto; }
img.pixels { image-rendering: pixelated; background: #0d1117; }
figure.masked img { outline: 3px solid var(--warm); outline-offset: -3px; }
figcaption { font-size: 12px; color: var(--soft); margin-top: 4px; line-height: 1.35; }
details { margin-top: 12px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  font-size: 12px; line-height: 1.45; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 18px; }
.chart-title { font-size: 13px; font-weight: 600; margin-bottom: 2px; }
footer { color: var(--soft); font-size: 12.5px; padding: 6px 0 40px; }
@media (max-width: 600px) { main, .inner { padding: 0 10px; } section { padding: 16px 12px 18px; }
  header { padding: 20px 0 16px; } h1 { font-size: 21px; } th, td { padding-right: 10px; } }
""".strip()


JPEG_QUALITY = 85
# Characters that are illegal in a page, although a model may produce them.
FORBIDDEN = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")


@dataclass(frozen=True)
class Markup:
    """A string that is HTML already; everything else is escaped."""

    text: str

    def __str__(self) -> str:
        return self.text


def render(value) -> str:
    """HTML of a value: markup as it is, anything else escaped."""
    return value.text if isinstance(value, Markup) else escape_text(str(value))


def escape_text(text: str) -> str:
    return html.escape(FORBIDDEN.sub("\ufffd", text), quote=True)


def join(parts: Iterable) -> Markup:
    return Markup("".join(render(part) for part in parts))


def element(tag: str, *children, **attributes) -> Markup:
    """`<tag attributes>children</tag>`; `class_` becomes class, attributes that are None are left out."""
    named = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items() if value is not None)
    opened = "".join(f' {name}="{escape_text(str(value))}"' for name, value in named)
    return Markup(f"<{tag}{opened}>{join(children)}</{tag}>")


def make_page(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Markup]) -> str:
    """A whole document, HTML that is XML too: a header with the title, a sentence and figures, then the sections."""
    boxes = [element("div", element("b", value), element("span", name), class_="fact") for name, value in facts]
    header = element(
        "header",
        element(
            "div", element("h1", title), element("p", lead), element("div", *boxes, class_="facts"), class_="inner"
        ),
    )
    body = element("main", *sections, element("footer", "Written by ross3d. One file, nothing from outside."))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<title>{escape_text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"/>\n<style>\n{STYLE}\n</style>\n</head>\n'
        f"<body>\n{header}\n{body}\n</body>\n</html>\n"
    )


def make_section(title: str, *body, note: str = "") -> Markup:
    notes = [element("p", note, class_="note")] if note else []
    return element("section", element("h2", title), *notes, *body)


def make_table(
    headers: Sequence[str], rows: Sequence[Sequence], numeric: Iterable[int] = (), strong: Iterable[int] = ()
) -> Markup:
    """A table; columns in `numeric` are right-aligned, rows in `strong` are emphasised."""
    numeric, strong = set(numeric), set(strong)

    def make_cells(tag: str, values: Sequence) -> list[Markup]:
        scope = "col" if tag == "th" else None
        looks = ["number" if i in numeric else None for i in range(len(values))]
        return [element(tag, value, scope=scope, class_=look) for value, look in zip(values, looks, strict=True)]

    head = element("thead", element("tr", *make_cells("th", headers)))
    lines = [
        element("tr", *make_cells("td", row), class_="strong" if i in strong else None) for i, row in enumerate(rows)
    ]
    # Reached with the tab key, so that a keyboard can scroll it.
    return element("div", element("table", head, element("tbody", *lines)), class_="scroll", tabindex=0)


def make_bar(share: float, ends: tuple[float, float] | None = None, other: float | None = None) -> Markup:
    """A small horizontal bar filled to `share` in [0, 1], with a line between `ends` and a mark at `other`.

    It is hidden from screen readers: give the numbers beside it.
    """

    def place(value: float) -> float:
        return 100 * min(max(value, 0.0), 1.0)

    parts = [element("i", style=f"width:{place(share):.1f}%")]
    if ends is not None:
        low, high = map(place, ends)
        parts.append(element("b", style=f"left:{low:.1f}%;width:{high - low:.1f}%"))
    if other is not None:
        parts.append(element("u", style=f"left:{place(other):.1f}%"))
    return element("span", *parts, class_="bar", aria_hidden="true")


def clip_text(text: str, longest: int = 160) -> str:
    """A text that fits a table: a longer one is cut and ends in an ellipsis."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def make_details(summary, *body, is_open: bool = False) -> Markup:
    """A part that the reader unfolds."""
    return element("details", element("summary", summary), *body, open="open" if is_open else None)


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of RGB pixels (H, W, 3), uint8, or floats in [0, 1]."""
    if pixels.dtype != np.uint8:
        pixels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_picture(pixels: np.ndarray) -> bytes:
    """PNG or JPEG bytes of RGB pixels (H, W, 3), whichever are fewer: PNG for drawn rooms, JPEG for photos."""
    png, buffer = encode_png(pixels), io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return min(png, buffer.getvalue(), key=len)


def encode_data_uri(data: bytes) -> str:
    """Bytes of a PNG or JPEG file as a link that holds them."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")


def shrink(pixels: np.ndarray, longest: int) -> np.ndarray:
    """Pixels (H, W, 3) uint8 resized so that the longer side is at most `longest`."""
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def make_figure(
    picture: np.ndarray | Path, caption="", width: int = 150, masked: bool = False, alt: str = ""
) -> Markup:
    """A picture with a caption; `masked` marks a view that the model did not see.

    Args:
        picture (`np.ndarray` of shape `(H, W, 3)`, or `Path` of a PNG file).
        width (`int`): pixels on the page.
        alt (`str`): what the picture shows, for those who do not see it; the caption unless given.
    """
    if isinstance(picture, Path):
        with Image.open(picture) as image:
            picture = np.asarray(image.convert("RGB"))
    data = encode_picture(shrink(picture, 2 * width))
    told = alt or str(caption) or "picture"
    image = element("img", src=encode_data_uri(data), width=width, alt=told, class_="pixels", loading="lazy")
    image = Markup(image.text.removesuffix("></img>") + "/>")
    captions = [element("figcaption", caption)] if str(caption) else []
    return element("figure", image, *captions, class_="masked" if masked else None, style=f"width:{width}px")


def make_row(*children) -> Markup:
    return element("div", *children, class_="row")


__all__ = [
    "Markup",
    "clip_text",
    "element",
    "encode_data_uri",
    "encode_picture",
    "encode_png",
    "join",
    "make_bar",
    "make_details",
    "make_figure",
    "make_page",
    "make_row",
    "make_section",
    "make_table",
    "render",
    "shrink",
]
