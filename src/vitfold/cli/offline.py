"""Weights that are neither here nor to be fetched: said at once, with what to do."""

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

from vitfold.errors import UnsupportedModel
from vitfold.saving.sources import file, packaged

HUBS = ("hf:", "hub:")
"""What names of checkpoints, and of folds, on the hub begin with."""

WAIT = 3.0
"""Seconds in which the hub has to answer."""


@contextmanager
def fetching(name: str, pretrained: bool, remedy: str) -> Iterator[None]:
    """Around making a model by name. Without a connection only the cache is looked at: the hub's
    own library would try for half a minute.

    remedy: what to do where the weights are not there.
    """
    hub = name.startswith(HUBS)  # of which some file is fetched in any case
    own = name in packaged.MODELS or file.parts(name) is not None  # a file fetches as it likes
    here = own or os.path.isdir(name.removeprefix("hf:"))
    if here or not (pretrained or hub):
        yield
        return
    remedy = "give hf: and a directory" if hub else remedy
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable(constants.ENDPOINT)
    try:
        yield
    except UnsupportedModel as error:
        if not _no_connection(error):
            raise
        raise UnsupportedModel(
            f"the files of {name} are not in the cache, and there is no connection to fetch "
            f"them: {remedy}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def reachable(address: str) -> bool:
    """Whether a server answers; behind a proxy nobody knows before asking."""
    url = urlsplit(address)
    if urllib.request.getproxies():
        return True
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), WAIT).close()
    except OSError:
        return False
    return True


CAUSES = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError")
"""Errors of several libraries and of their versions, by name."""


def _no_connection(error: BaseException) -> bool:
    """Whether an error, or what it came from, is that there is no connection."""
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in CAUSES or isinstance(
            cause, urllib.error.URLError | socket.gaierror
        ):
            return not isinstance(cause, urllib.error.HTTPError)
        cause = cause.__cause__ or cause.__context__
    return False
