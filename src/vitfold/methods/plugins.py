"""Methods and families that other packages bring, by their entry points."""

import functools
import importlib.metadata
import warnings

from vitfold.errors import one_line

METHODS_GROUP, FAMILIES_GROUP = "vitfold.methods", "vitfold.families"

OWN = "; for one of your own, import its module first: --import MODULE on the command line"
"""What to do where a name is unknown and no package brings it."""


@functools.cache
def load_plugins(group: str) -> tuple[str, ...]:
    """Import what installed packages name in an entry-point group, once; each registers itself when
    it is imported. One that cannot be imported is warned of. Returns the names of the others."""
    loaded = []
    for entry in importlib.metadata.entry_points(group=group):
        try:
            entry.load()
        # A package of others may raise anything when it is imported.
        except Exception as error:
            message = f"{type(error).__name__}: {one_line(error)}"
            warnings.warn(f"the plugin {entry.name} = {entry.value}: {message}", stacklevel=2)
        else:
            loaded.append(entry.name)
    return tuple(loaded)
