"""Photographs to learn from and others to judge by: `python benchmarks/split.py PHOTOS.tar FOLDER`.

Unpacks a tar of class folders into FOLDER/train (every fifth photograph, in sorted order) and
FOLDER/validation (the others), and writes FOLDER/classes.txt, a class map in the order of all class
folders: the labels stay those of the tar where a part has not every class.

    python benchmarks/split.py imagenet-samples.tar photos
    vitfold train deit_tiny_imagenet/model.py:build --method ltmp --flops 0.6 --data-dir photos \\
        --class-map photos/classes.txt --no-val --no-aug --batch-size 8 --epochs 3 -o ltmp
"""

import shutil
import tarfile
from pathlib import Path
from typing import Annotated

import typer

from vitfold.cli import show


def main(
    photographs: Path,
    folder: Path,
    every: Annotated[int, typer.Option(min=2, help="Every so many-th is for learning.")] = 5,
) -> None:
    """Unpack a tar in two parts."""
    classes: set[str] = set()
    with tarfile.open(photographs) as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda member: member.name)
        for number, member in enumerate(members):
            place = Path(member.name)
            name = place.parent.name
            classes.add(name)
            target = folder / ("validation" if number % every else "train") / name / place.name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None  # it is a file
            with source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    listed = folder / "classes.txt"
    listed.write_text("".join(f"{name}\n" for name in sorted(classes)), encoding="utf-8")
    show.written(listed)


if __name__ == "__main__":
    typer.run(main)
