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
