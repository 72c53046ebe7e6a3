"""Text that is safe to show and to keep: without secrets, on one line, not endless."""

import contextlib
import os
import re
from urllib.parse import quote, unquote, unquote_plus, urlsplit

# Of a name, and of a line that may hold a path and a command.
LONGEST_NAME, LONGEST_LINE = 500, 10_000
# Where there are both a colon and an @, all up to the last @ is taken for name and password: a
# password that was not percent-encoded may contain any of @ / ? #. A number after the colon is a
# server's port, though, unless a server follows the @. All lengths are bounded, or a long text
# would take a time that grows with its square.
_USERINFO = re.compile(
    r"(?P<scheme>(?<![a-z0-9+.-])(?:(?P<web>https?)|(?!https?:)[a-z][a-z0-9+.-]{0,40})://)"
    r"(?P<secret>[^/\s@:]{0,500}:(?(web)(?!\d{1,5}/[^\s@]{0,500}@[\w-]{0,99}(?:[/?#\s]|$)))\S{0,500}"
    r"|[^/\s]{1,500})@",
    re.IGNORECASE,
)
# The same without a scheme, or with one that is mistyped, where a word begins.
_NAKED = re.compile(
    r"(?<![^\s'\"=(,])(?P<scheme>[a-z][a-z0-9+.-]{0,40}(?::/(?!/)|//)|//|[a-z]:\\)?"
    r"(?P<secret>[^\s'\"/:@=(,\\]{1,500}:(?![/\\])[^\s'\"]{1,500})@(?=[^\s@])",
    re.IGNORECASE,
)
# In the query of an address, in the words that a database's driver takes, or in JSON.
_PARAMETER = re.compile(
    r"(?<![^\s?&;#'\"(,{])(?P<name>[\w.%-]{1,99})(?P<mark>=['\"]?|['\"]\s?:\s?['\"])"
    r"(?P<secret>[^&\s'\"]+)"
)
# In the head of a request.
_AUTHORIZATION = re.compile(
    r"(authorization['\"]?\s?[:=]\s?['\"]?(?:\w{1,20}\s)?)[\w.~+/=-]+", re.IGNORECASE
)
_USER = re.compile("user|username", re.IGNORECASE)
_SECRET = re.compile(
    ".*(password|passwd|pwd|passphrase|secret|token|credential|signature|api_?key|access_?key"
    "|account_?key|odbc_connect).*|pass|sig|auth",
    re.IGNORECASE,
)
# Variables whose values are secret. PWD is the working folder.
_SECRET_VARIABLE = re.compile(
    r"(PASSWORD|PASSWD|TOKEN|SECRET|ACCESS_KEY|ACCOUNT_KEY|API_KEY|CONNECTION_STRING|[A-Z]_PWD)$"
)
# Shorter secrets are looked for in addresses alone, and those that are not long as whole words
# alone: they occur by chance.
_SHORTEST, _LONG = 4, 8

_secrets: set[str] = set()


def remember(address: str) -> None:
    """Have the secrets of an address, and those of the environment, shown nowhere from now on."""
    found = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    addresses = (value for value in os.environ.values() if "://" in value or "@" in value)
    for text in (address, *addresses):
        for pattern in (_USERINFO, _NAKED):
            found |= {match["secret"].partition(":")[2] for match in pattern.finditer(text)}
        found |= {
            match["secret"]
            for match in _PARAMETER.finditer(text)
            if _SECRET.fullmatch(match["name"])
        }
    for read in (str, unquote, unquote_plus):
        for secret in [read(one) for one in found]:
            found |= {secret, quote(secret, safe="")}
    _secrets.update(secret for secret in found if len(secret) >= _SHORTEST)


def without_user(text: str) -> str:
    """Replace user names and passwords in addresses, and known secrets anywhere, by ***."""
    text = _without_credentials(text)
    for secret in sorted(_secrets, key=len, reverse=True):
        if secret in text:
            bounds = ("", "") if len(secret) >= _LONG else (r"(?<!\w)", r"(?!\w)")
            text = re.sub(re.escape(secret).join(bounds), "***", text)
    return text


def _without_credentials(text: str) -> str:
    if "@" in text:
        text = _NAKED.sub(r"\g<scheme>***@", _USERINFO.sub(r"\g<scheme>***@", text))
    return _AUTHORIZATION.sub(r"\1***", _PARAMETER.sub(_parameter_hidden, text))


def _parameter_hidden(match: re.Match[str]) -> str:
    name, value = unquote(match["name"]), match["secret"]
    is_user = _USER.fullmatch(name) and match["mark"] == "="
    if is_user or _SECRET.fullmatch(name) or _holds_secret(unquote(value)):
        value = "***"
    return match["name"] + match["mark"] + value


def _holds_secret(value: str) -> bool:
    """Return whether a parameter's value is itself words for a driver, with a secret in them."""
    return any(map(_SECRET.fullmatch, re.findall(r"(\w+)\s?=", value)))


def without_home(text: str) -> str:
    """Replace this user's home folder, whose name may be the person's, by ~ in a text's paths."""
    home = os.path.expanduser("~")
    for folder in {home, os.path.realpath(home)} - {"~", os.sep}:
        text = re.sub(rf"(?<![\w.-]){re.escape(folder)}(?![\w.-])", "~", text)
    return text


def to_be_kept(text: str) -> str:
    """Return a text as it may be recorded, for others to read: without secrets and home folder."""
    return without_home(without_user(text))


def printable(text: str, longest: int = LONGEST_NAME) -> str:
    r"""Return a text as it may be shown: on one line, without secrets.

    What would steer a terminal, break a line, or change the direction of writing is shown as in
    Python, such as `\x1b`. A text that is too long ends with `…`.
    """
    text = without_user(text)
    if not text.isprintable():
        kept = text[: longest + 1]
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)
    return text if len(text) <= longest else f"{text[:longest]}…"


def bare(uri: str) -> str:
    """Return an address without user name and password, to be used with other credentials."""
    if uri.startswith(("http://", "https://")):
        with contextlib.suppress(ValueError):  # an address that is none
            parts = urlsplit(uri)
            uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return _without_credentials(uri).replace("://***@", "://")


def to_be_typed(uri: str) -> tuple[str | None, str]:
    """Return an address for a command that a message suggests, and how to give the password.

    Returns:
        The address, None if a password has to be part of it, and a condition such as ", with
        MLFLOW_TRACKING_URI set to this store,", empty if the address has no password.
    """
    if bare(uri) == uri:
        return uri, ""
    if uri.startswith("http") and "***" not in bare(uri):
        return bare(uri), ", with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD set,"
    return None, ", with MLFLOW_TRACKING_URI set to this store,"
