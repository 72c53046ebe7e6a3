"""Addresses of stores without credentials, safe to show."""

import re

# Up to the last @ before a slash: a password that was not percent-encoded may contain an @.
_USERINFO = re.compile(r"(?<=://)[^/\s]+(?=@)")
# As a database's driver takes it.
_PASSWORD = re.compile(r"([?&](?:ssl)?password=)[^&\s'\"]+")


def without_user(text: str) -> str:
    """Replace user names and passwords in the addresses in a text by ***."""
    return _PASSWORD.sub(r"\1***", _USERINFO.sub("***", text))


def bare(text: str) -> str:
    """Return an address without user name and password, to be used with other credentials."""
    return without_user(text).replace("://***@", "://")


def to_be_typed(uri: str) -> tuple[str | None, str]:
    """Return an address for a command that a message suggests, and how to give the password.

    Returns:
        The address, None if a password has to be part of it, and a condition such as ", with
        MLFLOW_TRACKING_URI set to this store,", empty if the address has no password.
    """
    if bare(uri) == uri:
        return uri, ""
    if uri.startswith("http"):
        return bare(uri), ", with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set,"
    return None, ", with MLFLOW_TRACKING_URI set to this store,"
