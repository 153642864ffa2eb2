"""Requests to one server: spaced, repeated after faults that may pass, limited in size, from several threads at once.

What a server sends is untrusted. The values of --header go to that server only and appear in no message and no file.

Public: Courier, Http, Fault, Refusal, headers_of, json_object, RETRIED, REFUSING, METADATA_BYTES, MOST_BYTES.
"""

import json
import math
import os
import random
import re
import threading
import time
from collections import deque
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

from kit.errors import UserError
from suspects.wire import MALFORMED

VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))")
RETRIED = {408, 425, 429, 500, 502, 503, 504}
# Statuses with which servers say that a request has a form that they can't read.
REFUSING = {400, 404, 405, 406, 411, 413, 415, 422, 500, 501}
HINTS = {
    401: ("give the right --header", "--header"),
    403: ("give the right --header", "--header"),
    404: ("check the model's name and version", "--checkpoint"),
    413: ("lower --query_batch", "--query_batch"),
}
TOO_LARGE = re.compile(r"batch.?size|too (large|big|long|many)|exceed|larger than|at most", re.IGNORECASE)
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER = 0.5, 30.0, 300.0  # seconds
METADATA_BYTES, ERROR_BYTES, MOST_BYTES = 2**23, 2**18, 2**28


class Fault(Exception):
    """The server failed in a way that may pass. retry_after: seconds that it asked for, 0.0 for none."""

    def __init__(self, message, retry_after=0.0):
        super().__init__(message)
        self.retry_after = retry_after


class Refusal(UserError):
    """The server refused a request for good. status: as HTTP numbers it; too_large: whether fewer images may do."""

    def __init__(self, status, reason):
        advice, flag = HINTS.get(status, (None, None))
        super().__init__(f"the server answered {status}: {reason}", advice, flag=flag)
        self.status, self.reason = status, reason
        self.too_large = status == 413 or (status == 400 and bool(TOO_LARGE.search(reason)))


def headers_of(lines):
    """{name: value} of "Name: value" strings, and the texts that must never be shown. No message quotes a value."""
    values, secrets = {}, set()

    def expand(match):
        value = os.environ.get(match[1] or match[2])
        if not value:
            raise UserError(
                f"--header needs the environment variable {match[1] or match[2]}, which is not set",
                advice="set it",
                flag="--header",
            )
        secrets.add(value)
        return value

    for number, line in enumerate(lines, 1):
        name, _, value = line.partition(":")
        if ":" not in line or not re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", name, re.ASCII):
            raise UserError(
                f'--header number {number} is not of the form "Name: value"', advice="write it so", flag="--header"
            )
        values[name] = VARIABLE.sub(expand, value).strip(" \t")
        if not re.fullmatch(r"[\t\x20-\x7e\xa0-\xff]*", values[name]):
            raise UserError(
                f"the value of --header {name} must be one line of printable Latin-1 characters", flag="--header"
            )
        secrets.update([values[name], *values[name].split()])
    # Nothing that short is secret, and the scheme's name makes messages about it readable. The longest goes first, so
    # that no part of it is left over.
    secrets = {secret for secret in secrets if len(secret) > 2 and secret.lower() not in ("bearer", "basic", "token")}
    return values, sorted(secrets, key=len, reverse=True)


class Courier:
    """Sends requests to one server, spaced and repeated as needed; any number of threads may use it.

    url: what to call the server in messages; requests_sent, retries_made: what it took so far.
    """

    def __init__(self, url, secrets=(), rate_limit=None, timeout=30.0, retries=6, sleep=time.sleep, clock=None):
        self.url, self.timeout, self.requests_sent, self.retries_made = url, timeout, 0, 0
        self._secrets, self._retries, self._sleep, self._clock = secrets, retries, sleep, clock or time.monotonic
        self._spacing, self._next = 1 / rate_limit if rate_limit else 0.0, -math.inf
        self._random = random.Random()  # of its own: the jitter must not move the seeds of the audit
        self._lock = threading.Lock()

    def clean(self, text):
        """One printable line of a server's text, without the secrets, in which it may have echoed them."""
        text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @contextmanager
    def reported(self):
        """Turn faults and errors inside into one UserError that names the server."""
        try:
            yield
        except (Fault, UserError) as error:
            problem = error.problem if isinstance(error, UserError) else error
            parts = [error.advice, error.command, error.flag] if isinstance(error, UserError) else [None] * 3
            advice, command = (part and self.clean(part)[:400] for part in parts[:2])
            raise UserError(f"{self.url}: {self.clean(problem)[:1000]}", advice, command, parts[2]) from None

    def deliver(self, once, retries=None, final=()):
        """once(), repeated after a Fault. final: statuses that are a Refusal at once, though they may pass elsewhere.

        once: sends one request, and returns what came of it, or raises Fault, Refusal or another UserError. A Fault
        with the status of `final` is turned into a Refusal. Raises UserError.
        """
        retries = self._retries if retries is None else retries
        for attempt in range(retries + 1):
            self._wait_for_turn()
            with self._lock:
                self.requests_sent += 1
            try:
                return once()
            except Fault as fault:
                if getattr(fault, "status", None) in final:
                    raise Refusal(fault.status, fault.reason) from None
                last = fault
            if attempt < retries:
                pause = min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) * self._random.uniform(0.5, 1)
                self._sleep(max(pause, last.retry_after))
                with self._lock:
                    self.retries_made += 1
        raise UserError(
            f"gave up after {retries + 1} tries: {last}", advice="try again later, or ask the server's owner"
        )

    def _wait_for_turn(self):
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._spacing
        if turn > now:
            self._sleep(turn - now)

    def refused(self, status, reason, retry_after=0.0):
        """The error for a status that is not success: a Fault when it may pass, else a Refusal."""
        reason = self.clean(reason)[:200]
        if status not in RETRIED and not 200 <= status < 300:
            return Refusal(status, reason)
        fault = Fault(f"the server answered {status}: {reason}", retry_after)
        fault.status, fault.reason = status, reason
        return fault


class Http(Courier):
    """A Courier over HTTP. headers: {name: value} of every request; others: see Courier."""

    def __init__(self, url, headers=None, *args, **settings):
        super().__init__(url, *args, **settings)
        self._headers, self._idle = headers or {}, deque()  # a session is used by one thread at a time

    def send(self, method, url, read, limit, body=None, headers=None, retries=None, final=()):
        """read(content, headers) of a 200 of at most `limit` bytes; repeats after faults, those of `read` included."""
        return self.deliver(lambda: self._once(method, url, read, limit, body, headers or {}), retries, final)

    def _session(self):
        import requests

        try:
            return self._idle.pop()
        except IndexError:
            session = requests.Session()
            session.headers.update(self._headers)
            session.auth = lambda request: request  # else a .netrc would replace --header Authorization
            return session

    def _once(self, method, url, read, limit, body, headers):
        import requests

        headers, session = {**headers, "Accept-Encoding": "identity"}, self._session()
        try:
            with session.request(
                method, url, data=body, headers=headers, timeout=self.timeout, stream=True, allow_redirects=False
            ) as response:
                content = _content(response, limit) if response.status_code == 200 else _error_content(response)
        except requests.Timeout:
            raise Fault(f"no answer within {self.timeout:g} s") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise self._lost(error) from None
        except (OSError, ValueError) as error:  # requests' own are OSErrors, as is a missing REQUESTS_CA_BUNDLE
            raise UserError(
                f"the request can't be made ({error})", advice="check the address and the proxy settings"
            ) from None
        finally:
            self._idle.append(session)
        if response.status_code != 200:
            raise self._status(response, content)
        return read(content, response.headers)

    def _lost(self, error):
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return UserError(
                "its TLS certificate is not trusted",
                advice="if it is your own authority's, name that in REQUESTS_CA_BUNDLE",
            )
        cause = _cause(error)
        if str(cause).startswith("\0\0") or "\\x00\\x00" in str(error):  # the first frame of HTTP/2
            host, name = re.match(r"\w+://([^/]+).*?/models/([^/]+)", self.url + "/models/NAME").groups()
            return UserError(
                "this port speaks gRPC, not HTTP", advice=f"write grpc://{host}/{name}", flag="--checkpoint"
            )
        return Fault(f"the connection failed ({cause})")

    def _status(self, response, content):
        status = response.status_code
        if 300 <= status < 400:
            place = self.clean(response.headers.get("Location", "elsewhere"))[:200]
            return UserError(
                f"redirects ({status}) to {place}, which is not followed because --header would go there, too",
                advice="give the final address",
                flag="--header",
            )
        try:
            told = json.loads(content)
            reason = told["error"] if "error" in told else told["detail"]
        except MALFORMED:
            reason = (
                f"{response.reason}, a web page (HTML)" if is_page(content) else _last_line(content, response.reason)
            )
        return self.refused(status, reason, _retry_after(response.headers.get("Retry-After", "")))


def json_object(content, headers):
    """A reply's JSON object; a web page is a UserError that says what to write instead, anything else a Fault."""
    try:
        value = json.loads(content)
    except MALFORMED:
        value = None
    if isinstance(value, dict):
        return value
    if is_page(content):
        raise UserError(
            "a web page (HTML) answers there, not a model server",
            advice="write the address of its REST interface, http://host:port/v2/models/NAME",
            flag="--checkpoint",
        )
    raise Fault("the reply is not a JSON object")


def is_page(content):
    """Whether bytes look like HTML."""
    return bytes(content[:200]).lstrip()[:1] == b"<"


def _last_line(content, usual):
    """What a reply in plain text says in the end, as tracebacks do."""
    lines = content.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else usual


def _content(response, limit):
    # Unpacking could turn a few bytes into more than the memory holds, and nobody asked for a compressed reply.
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Fault("the reply is compressed, which it must not be")
    content = bytearray()
    for chunk in response.iter_content(2**16):
        content += chunk
        if len(content) > limit:
            raise Fault(f"the reply is longer than the {limit} bytes that it may have")
    return bytes(content)


def _error_content(response):
    try:
        return _content(response, ERROR_BYTES)
    except Fault:
        return b""


def _cause(error):
    """The innermost reason in plain words: the outer ones show object addresses."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return getattr(error, "strerror", None) or error


def _retry_after(text):
    """Seconds that a Retry-After header asks for, from a number or an HTTP date; 0.0 for anything else."""
    try:
        seconds = float(text) if text.isdecimal() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)
