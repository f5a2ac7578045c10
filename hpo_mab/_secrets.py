"""Passwords in database URLs: never shown."""

from __future__ import annotations

import re

# To the last @: a password may hold one, or a slash, where it is not escaped as it should be.
_USER = re.compile(r"(://[^\s:/@]*:)[^\s'\"]+@")
#: Parts of a URL's query that drivers take secrets from; ``odbc_connect`` holds ``PWD=``.
_QUERY = re.compile(
    r"([?&;](?:password|passwd|passphrase|pwd|sslpassword|odbc_connect|token|secret)=)[^&\s'\"]*",
    re.IGNORECASE,
)


def hide_passwords(text: str) -> str:
    """The text with ``***`` for the password of every URL in it."""
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))
