"""Addresses of stores, as they may be shown."""

import re

# Up to the last @ before a slash: a password that was not quoted may hold an @ itself.
_USERINFO = re.compile(r"(?<=://)[^/\s]+(?=@)")


def without_user(text: str) -> str:
    """An address, or a text with some in it, without users' names and passwords."""
    return _USERINFO.sub("***", text)


def bare(text: str) -> str:
    """An address that has no user's name and password, so that it can be used with others."""
    return without_user(text).replace("://***@", "://")


def to_be_typed(uri: str) -> tuple[str | None, str]:
    """Return an address as a hint may show it, and words on where its password comes from.

    Returns:
        The address, None where none can be given without the password, and a condition such as
        ", with MLFLOW_TRACKING_URI set to this store,", empty if there is no password in it.
    """
    if bare(uri) == uri:
        return uri, ""
    if uri.startswith("http"):
        return bare(uri), ", with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set,"
    return None, ", with MLFLOW_TRACKING_URI set to this store,"
