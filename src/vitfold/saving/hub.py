"""Folds on the hub: what `save` writes, some kilobytes of JSON and safetensors, and a page."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from vitfold.errors import PlanError, VitfoldError, one_line
from vitfold.saving import page, plans, store
from vitfold.saving.fields import FILE

PICTURES = ("card.json", "*.png")
"""What may lie beside a plan and its page."""


def push(
    model: nn.Module | plans.Directory,
    repository: str,
    *,
    backbone: bool = False,
    private: bool = False,
    branch: str | None = None,
    message: str = "A fold by vitfold",
    token: str | None = None,
) -> str:
    """Put a folded model on the hub, as `save` writes it, with a page; the name by which
    `vitfold.load` takes it, pinned to this revision.

    model: folded; or the directory of a saved one, with what lies beside its plan: the page and the
        card of `vitfold tune`.
    repository: `user/name`, made where it is not there yet.
    backbone: put the model's own weights there, too.
    private: whether a new repository is for its owner alone.
    branch: in place of the main one.
    token: of the hub, in place of that of `hf auth login` and of HF_TOKEN.
    """
    from huggingface_hub import HfApi

    name = f"{store.HUB}{repository}"
    if store.repository_of(name)[1] is not None:
        raise PlanError(f"{repository!r} names a revision: give USER/NAME, and branch=...")
    with _laid_out(model, backbone, name) as place, _errors(name):
        api = HfApi(token=token)
        api.create_repo(repository, private=private or None, exist_ok=True)
        if branch is not None:
            api.create_branch(repository, branch=branch, exist_ok=True)
        files = [*store.PATTERNS, page.FILE, *PICTURES]
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=place,
            revision=branch,
            commit_message=message,
            allow_patterns=files,
            delete_patterns=files,
        )
    return f"{name}@{commit.oid}"


@contextlib.contextmanager
def _laid_out(model: nn.Module | plans.Directory, backbone: bool, name: str) -> Iterator[Path]:
    """A directory with all that goes to the hub."""
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if isinstance(model, nn.Module):
            plans.save(model, place, backbone=backbone)
        else:
            _copy(store.source(model), place)
        written = place / page.FILE
        if not written.exists():
            written.write_text("\n".join(page.plain(plans.read_plan(place))) + "\n", "utf-8")
        text = written.read_text("utf-8").replace(page.HERE, name)
        written.write_text(text, "utf-8")
        yield place


def _copy(source: Path, place: Path) -> None:
    """Copy what was saved, its page and its pictures."""
    plan, _ = store.open_together(source)
    names = [FILE, *([plan.weights.file] if plan.weights else [])]
    for pattern in (page.FILE, *PICTURES):
        names += [path.name for path in source.glob(pattern)]
    for name in names:
        shutil.copyfile(source / name, place / name)


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    """What the hub, or the way to it, says comes in one line."""
    try:
        yield
    except VitfoldError:
        raise
    except Exception as error:
        raise PlanError(f"{name} cannot be written: {one_line(error)}") from error
