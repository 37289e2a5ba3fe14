"""Drawings of rectangles and words, written as SVG or PDF, or painted on a picture."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from math import ceil
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from .style import RGB, hexadecimal

POINTS = 0.75  # of a pixel, in PDF


class Box(NamedTuple):
    """A rectangle in pixels from the upper left corner; ``tip`` is shown where a viewer hovers over it."""

    x: float
    y: float
    width: float
    height: float
    color: RGB
    tip: str = ""


class Words(NamedTuple):
    """A line of text; (x, y) is the left end of its baseline, or its middle if ``centred``."""

    x: float
    y: float
    text: str
    size: int
    color: RGB
    centred: bool = False


@dataclass
class Drawing:
    """Rectangles and words on a background.

    Args:
        width, height: in pixels.
        title: for readers that show one.
        background: colour behind everything.
        boxes, words: in the order in which they are painted, boxes first.
    """

    width: int
    height: int
    title: str
    background: RGB
    boxes: list[Box] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Font of all pictures, in pixels; it has the letters of ASCII and little more."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """Width of a line in pixels."""
    return ceil(font(size).getlength(text))


def fitted(title: Sequence[str], size: int, width: int) -> str:
    """Make a line of any texts that fits a width in pixels, in letters that the font has.

    Accents are dropped; other letters that the font lacks become ``…``, as does the end of the first text, or
    of the line, where it is too long.
    """
    first, *rest = map(_legible, title)
    tail = "".join(f" · {text}" for text in rest)
    if text_width(f"…{tail}", size) > width:
        first, tail = f"{first}{tail}", ""
    if text_width(first + tail, size) <= width:
        return first + tail
    fits = (text_width(f"{first[:end]}…{tail}", size) <= width for end in range(len(first), 0, -1))
    end = len(first) - next((index for index, holds in enumerate(fits) if holds), len(first))
    return f"{first[:end].rstrip(' …')}…{tail}"


def _legible(text: str) -> str:
    plain = unicodedata.normalize("NFKD", " ".join(text[:200].split()).translate(_PLAIN))
    letters = (c for c in plain if not unicodedata.combining(c))
    return re.sub("\0+", "…", "".join(c if c.isprintable() and _has(c) else "\0" for c in letters))


_PLAIN = str.maketrans({"–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "×": "x", "ß": "ss"})


@lru_cache(4096)
def _has(letter: str) -> bool:
    """Tell whether the font has a letter: all others look alike."""
    return letter == " " or bytes(font(20).getmask(letter)) != bytes(font(20).getmask("\uffff"))


def write(draw: ImageDraw.ImageDraw, lines: Iterable[Words]) -> None:
    """Paint words on a picture."""
    for line in lines:
        anchor = "ms" if line.centred else "ls"
        draw.text((line.x, line.y), line.text, line.color, font(line.size), anchor=anchor)


def paint(drawing: Drawing) -> Image.Image:
    """Paint the background, the rectangles (of whole pixels) and the words."""
    image = Image.new("RGB", (drawing.width, drawing.height), drawing.background)
    draw = ImageDraw.Draw(image)
    for box in drawing.boxes:
        draw.rectangle((box.x, box.y, box.x + box.width - 1, box.y + box.height - 1), box.color)
    write(draw, drawing.words)
    return image


# --- SVG -----------------------------------------------------------------------------------------


def to_svg(drawing: Drawing) -> str:
    """Write the drawing as SVG 1.1: no script, no style, nothing from elsewhere."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {drawing.width} {drawing.height}" '
        'font-family="system-ui, sans-serif">',
        f"<title>{escape(drawing.title)}</title>",
        f'<rect width="100%" height="100%" fill="{hexadecimal(drawing.background)}"/>',
    ]
    for box in drawing.boxes:
        tip = f"><title>{escape(box.tip)}</title></rect>" if box.tip else "/>"
        parts.append(
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" '
            f'fill="{hexadecimal(box.color)}"{tip}'
        )
    for line in drawing.words:
        anchor = ' text-anchor="middle"' if line.centred else ""
        parts.append(
            f'<text x="{line.x:g}" y="{line.y:.5g}" font-size="{line.size}"{anchor} '
            f'fill="{hexadecimal(line.color)}" pointer-events="none">{escape(line.text)}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


# --- PDF -----------------------------------------------------------------------------------------

_FIRST, _LAST = 32, 255  # character codes of the font


def to_pdf(drawing: Drawing) -> bytes:
    """Write the drawing as PDF 1.4 of one page; the font is embedded, as journals ask."""
    content = zlib.compress("\n".join(_operators(drawing)).encode("cp1252", "replace"), 9)
    outline = getattr(font(1000), "font_bytes", b"")
    widths = " ".join(f"{font(1000).getlength(c):.0f}" for c in map(_character, range(_FIRST, _LAST + 1)))
    box = f"0 0 {drawing.width * POINTS:g} {drawing.height * POINTS:g}"
    title = _escaped(drawing.title).encode("cp1252", "replace")
    packed = zlib.compress(outline, 9)
    return _assemble(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents 4 0 R "
        "/Resources << /Font << /F 5 0 R >> >> >>".encode(),
        _stream(content, b"/Filter /FlateDecode"),
        f"<< /Type /Font /Subtype /TrueType /BaseFont /Aileron-Regular /Encoding /WinAnsiEncoding "
        f"/FirstChar {_FIRST} /LastChar {_LAST} /Widths [{widths}] /FontDescriptor 6 0 R >>".encode(),
        b"<< /Type /FontDescriptor /FontName /Aileron-Regular /Flags 32 /FontBBox [-200 -300 1200 1000] "
        b"/ItalicAngle 0 /Ascent 950 /Descent -250 /CapHeight 710 /StemV 80 /FontFile2 7 0 R >>",
        _stream(packed, f"/Filter /FlateDecode /Length1 {len(outline)}".encode()),
        b"<< /Title (" + title + b") /Producer (narcli) >>",
    )


def _operators(drawing: Drawing) -> Iterator[str]:
    """Operators of the page, in pixels from the upper left corner."""
    yield f"{POINTS} 0 0 -{POINTS} 0 {drawing.height * POINTS:g} cm"
    last: RGB | None = None
    for box in (Box(0, 0, drawing.width, drawing.height, drawing.background), *drawing.boxes):
        if box.color != last:
            yield _fill(box.color)
        yield f"{box.x:g} {box.y:g} {box.width:g} {box.height:g} re f"
        last = box.color
    for line in drawing.words:
        x = line.x - font(line.size).getlength(line.text) / 2 if line.centred else line.x
        yield f"BT {_fill(line.color)} /F {line.size} Tf 1 0 0 -1 {x:.5g} {line.y:.5g} Tm"
        yield f"({_escaped(line.text)}) Tj ET"


def _fill(color: RGB) -> str:
    return " ".join(f"{part / 255:.4g}" for part in color) + " rg"


def _escaped(text: str) -> str:
    r"""Escape a text for a PDF string: ``(``, ``)`` and ``\``."""
    return "".join(f"\\{c}" if c in "()\\" else c for c in text)


def _character(code: int) -> str:
    return bytes([code]).decode("cp1252", "replace")


def _stream(data: bytes, entries: bytes) -> bytes:
    return b"<< /Length %d %b >>\nstream\n%b\nendstream" % (len(data), entries, data)


def _assemble(*objects: bytes) -> bytes:
    """Number the objects from 1; the first is the catalog, the last the information."""
    file, places = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return file + (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (size, table, size, size - 1, len(file))
    )
