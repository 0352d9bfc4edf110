"""What a file is, by its name and its first bytes."""

PICTURES = frozenset((
    ".apng", ".avif", ".avifs", ".bmp", ".dds", ".dib", ".gif", ".heic", ".heif", ".ico",
    ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".pbm",
    ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".psd", ".sgi", ".tga", ".tif", ".tiff",
    ".webp", ".xbm", ".xpm",
))  # fmt: skip
"""Endings of pictures, also of kinds that cannot be read here: that is said of each."""

TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

TABLES = (".parquet", ".parq")

HEAD = 16
"""How many bytes tell what a file is."""

MARKS = (
    (0, b"\xff\xd8\xff"),
    (0, b"\x89PNG\r\n"),
    (0, b"GIF8"),
    (8, b"WEBP"),
    (0, b"II*\0"),
    (0, b"MM\0*"),
    (4, b"ftypavif"),
    (4, b"ftyphei"),
    (4, b"jP  \r\n"),
)
"""Bytes that pictures have at some place."""


def ending(name: str) -> str:
    """The last ending of a name, in small letters."""
    _, dot, last = name.rpartition("/")[2].rpartition(".")
    return f".{last.lower()}" if dot else ""


def is_tar(name: str) -> bool:
    """Whether a file is called as tars are."""
    return name.lower().endswith(TARS)


def is_table(name: str) -> bool:
    """Whether a file is called as those of Parquet are."""
    return name.lower().endswith(TABLES)


def is_picture(name: str) -> bool:
    """Whether a file is called as pictures are."""
    return ending(name) in PICTURES


def looks_like_picture(head: bytes) -> bool:
    """Whether a file begins as pictures do, whatever it is called."""
    return any(head[place:].startswith(mark) for place, mark in MARKS)
