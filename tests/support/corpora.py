"""Corpora of small pictures in all forms that they come in, and broken ones."""

import io
import json
import os
import random
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import vitfold
from support.saving import tiny


def model(**options: Any) -> Any:
    """A small model, folded."""
    return vitfold.fold(tiny(**options), vitfold.ToMe(r=2))


def image(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(seed: int, kind: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    image(seed).save(out, kind, **options)
    return out.getvalue()


def folder(place: Path, count: int = 10) -> Path:
    """Pictures in folders below each other."""
    for number in range(count):
        file = place / f"class{number % 3}" / f"{number:02d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(number))
    return place


def tar(file: Path, count: int = 10, first: int = 0, way: str = "") -> Path:
    """A shard of WebDataset: pictures with labels beside them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, f"w:{way}") as out:  # type: ignore[call-overload]
        for number in range(first, first + count):
            for name, data in (f"{number}.jpg", encoded(number)), (f"{number}.cls", b"1"):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
    return file


def table(file: Path, columns: dict[str, Any], group: int = 4) -> Path:
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return file


def rows(directory: Path) -> list[dict[str, Any]]:
    """All rows of a corpus, in order."""
    files = sorted((directory / "embeddings").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def failures(directory: Path) -> dict[str, str]:
    """The reason of each image that failed, by id."""
    content = pq.read_table(directory / "failures.parquet").to_pylist()
    return {row["id"]: row["reason"] for row in content}


def manifest(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    return content


def contents(directory: Path) -> dict[str, bytes]:
    """The bytes of every file of rows."""
    return {file.name: file.read_bytes() for file in (directory / "embeddings").iterdir()}


def mutated(place: Path, count: int, seed: int = 0) -> Path:
    """Pictures with something wrong with each, or something rare."""
    place.mkdir(parents=True)
    ways = list(WAYS)
    for number in range(count):
        draw = random.Random(seed * 10**6 + number)
        way = ways[number % len(ways)]
        data, ending = WAYS[way](draw)
        (place / f"{number:05d}-{way}.{ending}").write_bytes(data)
    return place


def _truncated(draw: random.Random) -> tuple[bytes, str]:
    kind, ending = draw.choice([("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", "gif")])
    data = encoded(draw.randrange(99), kind)
    return data[: draw.randrange(len(data))], ending


def _flipped(draw: random.Random) -> tuple[bytes, str]:
    kind, ending = draw.choice([("JPEG", "jpg"), ("PNG", "png"), ("TIFF", "tif"), ("BMP", "bmp")])
    data = bytearray(encoded(draw.randrange(99), kind))
    for _ in range(draw.randrange(1, 20)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data), ending


def _bomb(draw: random.Random) -> tuple[bytes, str]:
    """A PNG of a few hundred bytes that says it has billions of pixels, or is very long and
    thin."""
    width, height = draw.choice([(60000, 60000), (2**31 - 1, 2**31 - 1), (1, 300000)])
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = zlib.compress(bytes(2 * height if height < 10**6 else 1000))
    chunks = (b"IHDR", head), (b"IDAT", body), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks), "png"


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _renamed(draw: random.Random) -> tuple[bytes, str]:
    ending = draw.choice(["txt", "png", "gif", "tif", "bin", "json", "heic"])
    return encoded(draw.randrange(99), draw.choice(["JPEG", "PNG", "WEBP"])), ending


def _cmyk(draw: random.Random) -> tuple[bytes, str]:
    out = io.BytesIO()
    image(draw.randrange(99), mode="CMYK").save(out, "JPEG")
    return out.getvalue(), "jpg"


def _deep(draw: random.Random) -> tuple[bytes, str]:
    values = np.random.default_rng(draw.randrange(99)).integers(0, 2**16, (30, 40), dtype=np.uint16)
    out = io.BytesIO()
    kind, ending = draw.choice([("PNG", "png"), ("TIFF", "tif")])
    Image.fromarray(values).save(out, kind)
    return out.getvalue(), ending


def _animated(draw: random.Random) -> tuple[bytes, str]:
    out = io.BytesIO()
    frames = [image(draw.randrange(99)) for _ in range(3)]
    kind, ending = draw.choice([("GIF", "gif"), ("PNG", "png"), ("WEBP", "webp")])
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue(), ending


def _turned(draw: random.Random) -> tuple[bytes, str]:
    exif = Image.Exif()
    exif[0x0112] = draw.randrange(1, 9)
    data = encoded(draw.randrange(99), exif=exif)
    if draw.random() < 0.3:  # and broken
        data = data.replace(b"Exif\0\0", b"Exif\0\0" + bytes(draw.randrange(256) for _ in "ab"))
    return data, "jpg"


def _palette(draw: random.Random) -> tuple[bytes, str]:
    out = io.BytesIO()
    picture = image(draw.randrange(99), mode="P")
    picture.save(out, "PNG", transparency=bytes(draw.randrange(256) for _ in range(256)))
    return out.getvalue(), "png"


def _noise(draw: random.Random) -> tuple[bytes, str]:
    return draw.randbytes(draw.randrange(2000)), draw.choice(["jpg", "png", "tif", "ico", "psd"])


WAYS = {
    "truncated": _truncated,
    "flipped": _flipped,
    "bomb": _bomb,
    "renamed": _renamed,
    "cmyk": _cmyk,
    "deep": _deep,
    "animated": _animated,
    "turned": _turned,
    "palette": _palette,
    "noise": _noise,
}
"""What is wrong with a picture: its bytes, and the ending of its name."""

WELL = ("cmyk", "deep", "animated", "palette", "renamed")
"""Those that are read all the same."""


def children(pid: int) -> set[int]:
    """The processes that a process has started, and those that these have (of Linux)."""
    parents = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                stat = (place / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(place.name)] = int(stat[1])
    below: set[int] = set()
    while new := {p for p, parent in parents.items() if parent in {pid, *below}} - below:
        below |= new
    return below - {os.getpid()}
