"""Run the notebooks, and keep what they show: `python scripts/run_notebooks.py`.

They run in a directory of their own, without a network. Warnings are left out, and of pictures one
form is kept.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def main() -> None:
    """Run all of them, in place."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as place:
            run(notebook, Path(place))
        nbformat.write(cleaned(notebook), path)


def run(notebook: Any, place: Path) -> None:
    """Run all cells, in this directory."""
    resources = {"metadata": {"path": str(place)}}
    client = NotebookClient(
        notebook, timeout=600, record_timing=False, resources=resources, coalesce_streams=True
    )
    client.execute()


def cleaned(notebook: Any) -> Any:
    """Without what differs from machine to machine."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)
    return notebook


if __name__ == "__main__":
    main()
