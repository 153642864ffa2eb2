"""One question to a public web server. What it answers is untrusted: limited in size and time, and never redirected.

Public: ask, check_address, NoAnswer.
"""

import re
import time

from kit.errors import UserError

ADDRESS = re.compile(r"https?://[^/?#\s\\@]+(/[^?#\s\\]*)?")


class NoAnswer(Exception):
    """A server gave no answer of use; the text says why. status: its HTTP status, None where none came."""

    def __init__(self, reason, status=None):
        super().__init__(reason)
        self.status = status


def check_address(url, where, flag=None):
    """Raise UserError unless `url` is http(s)://host[:port][/path], without user, query or fragment.

    where: what the message calls it, such as "--timestamp". The address is not quoted: a token may be in it.
    """
    if not ADDRESS.fullmatch(url):
        raise UserError(f"{where} must be an address such as https://host.example/path", flag=flag)


def ask(url, limit, timeout, body=None, headers=None):
    """The bytes of a server's answer, at most `limit`: GET, or POST where there is a body (bytes).

    timeout: seconds to connect, to wait for each part of the answer, and for the whole of its content. Raises NoAnswer.
    """
    import requests

    headers = {**(headers or {}), "Accept-Encoding": "identity"}
    try:
        with requests.request(
            "GET" if body is None else "POST",
            url,
            data=body,
            headers=headers,
            timeout=timeout,
            stream=True,
            allow_redirects=False,
            auth=lambda request: request,  # a .netrc is nobody's business here
        ) as response:
            return _content(response, limit, time.monotonic() + timeout)
    except requests.Timeout:
        raise NoAnswer(f"no answer within {timeout:g} s") from None
    except (OSError, ValueError) as error:  # requests' own errors are OSErrors
        raise NoAnswer(f"the connection failed ({_cause(error)})") from None


def _content(response, limit, deadline):
    if response.status_code != 200:
        raise NoAnswer(f"it answered {response.status_code}", response.status_code)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise NoAnswer("its answer is compressed, which nobody asked for", 200)
    content = bytearray()
    for part in response.iter_content(1):  # byte by byte, so that a server that trickles does not hold the process
        content += part
        if len(content) > limit:
            raise NoAnswer(f"its answer is longer than {limit} bytes", 200)
        if time.monotonic() > deadline:
            raise NoAnswer("its answer takes too long", 200)
    return bytes(content)


def _cause(error):
    """The innermost reason in plain, printable words: the outer ones show object addresses."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    text = str(getattr(error, "strerror", None) or error) or type(error).__name__
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
