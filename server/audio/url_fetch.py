"""Audio behind a URL, fetched from listed hosts only, and from nowhere inside this network.

Neither the URL nor the server behind it is trusted:

1. the URL is http or https, of a listed host, without a user, a backslash or a control character;
2. the host's name is looked up once, and every address of it must be public;
3. the connection goes to the address just checked, under the host's name (TLS checks the name);
4. a redirect is a new URL and goes through 1 to 3 again;
5. bytes and time are bounded while they come; compressed answers are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from steering.errors import AudioError, AudioTooLarge, RequestError

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
FETCH_SECONDS = 10.0  # for all URLs of a request, side by side
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = 3
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f-\uffff\\]")  # two parsers may read these differently


@dataclass(frozen=True, slots=True)
class AllowedUrl:
    """A URL that may be fetched."""

    url: httpx.URL
    host: str
    port: int


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host name, by the system's resolver."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in infos]


def is_public(address: str) -> bool:
    """Whether an address belongs to the open internet, also when it is wrapped in another."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        inner = inner or (ip.teredo[1] if ip.teredo else None)
        if ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


@dataclass(frozen=True, slots=True)
class UrlFetcher:
    """Fetches from listed hosts, within limits of bytes and time."""

    hosts: frozenset[str]  # `name`, or `name:port` for a port that is not the scheme's
    max_bytes: int
    seconds: float = FETCH_SECONDS
    resolve: Resolve = resolve
    allow: Callable[[str], bool] = is_public  # of addresses
    headers: Mapping[str, str] = field(default_factory=dict)  # sent along

    async def fetch_all(self, urls: Sequence[str]) -> Mapping[str, bytes]:
        """The bytes behind each URL.

        Raises RequestError for a URL that may not be fetched, AudioTooLarge for a file with too
        many bytes, AudioError for an answer that is not a file.
        """
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(self._fetch(url)) for url in urls}
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return {url: task.result() for url, task in tasks.items()}

    async def _fetch(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(self.seconds):
                for _ in range(_REDIRECTS + 1):
                    file_or_url = await self._get(self.check(url))
                    if isinstance(file_or_url, bytes):
                        return file_or_url
                    url = file_or_url
        except TimeoutError:
            raise AudioError(
                f"{_printable(url)}: no whole file came within {self.seconds:g} s; send its bytes"
            ) from None
        except (httpx.HTTPError, OSError):
            raise AudioError(f"{_printable(url)}: could not be fetched; send its bytes") from None
        raise AudioError(f"{_printable(url)}: more than {_REDIRECTS} redirects; send the last URL")

    def check(self, url: str) -> AllowedUrl:
        """The URL, if its text allows to fetch it. Raises RequestError."""
        bad = _AMBIGUOUS.search(url)
        if bad or len(url) > 2000:
            reason = f"holds {bad[0]!r}" if bad else f"has {len(url):,} characters, over 2,000"
            raise RequestError(f"{_printable(url)}: the URL {reason}; write it plainly", "messages")
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError):
            raise RequestError(f"{_printable(url)} is not a URL", "messages") from None
        if parsed.scheme not in _PORTS or parsed.userinfo or not parsed.host:
            raise RequestError(
                f"{_printable(url)}: only data:, http and https URLs without a user are followed",
                "messages",
            )
        host = parsed.raw_host.decode("ascii").rstrip(".")
        port = parsed.port or _PORTS[parsed.scheme]
        listed_as = host if port == _PORTS[parsed.scheme] else f"{host}:{port}"
        if listed_as not in self.hosts:
            hosts = ", ".join(sorted(self.hosts)) or "none"
            raise RequestError(
                f"{_printable(url)}: audio may not be fetched from {listed_as!r}; allowed hosts"
                f" here: {hosts} (ALLEARS_ALLOWED_AUDIO_HOSTS). Send the file as input_audio",
                "messages",
            )
        return AllowedUrl(parsed, host, port)

    async def _get(self, allowed: AllowedUrl) -> bytes | str:
        """The file behind a URL, or the URL it redirects to."""
        address = await self._address(allowed)
        pinned = allowed.url.copy_with(host=address)
        headers = {"host": allowed.url.netloc.decode("ascii"), "accept-encoding": "identity"}
        headers |= self.headers
        async with (
            httpx.AsyncClient(trust_env=False, timeout=self.seconds) as client,
            client.stream(
                "GET", pinned, headers=headers, extensions={"sni_hostname": allowed.host}
            ) as response,
        ):
            if response.has_redirect_location:
                return str(allowed.url.join(response.headers["location"]))
            if response.status_code != 200 or "content-encoding" in response.headers:
                raise AudioError(
                    f"{_printable(str(allowed.url))}: answered {response.status_code}, not with a"
                    " plain file; send its bytes"
                )
            return await self._read(response, allowed)

    async def _address(self, allowed: AllowedUrl) -> str:
        """An address of the URL's host. Raises RequestError unless all are public."""
        addresses = await self.resolve(allowed.host, allowed.port)
        if not addresses or not all(self.allow(address) for address in addresses):
            raise RequestError(
                f"{_printable(str(allowed.url))}: {allowed.host!r} is not at a public address",
                "messages",
            )
        return addresses[0]

    async def _read(self, response: httpx.Response, allowed: AllowedUrl) -> bytes:
        data = bytearray()
        async for piece in response.aiter_raw(65_536):
            data += piece
            if len(data) > self.max_bytes:
                raise AudioTooLarge(
                    f"{_printable(str(allowed.url))}: the file has more than {self.max_bytes:,}"
                    " bytes; send a shorter clip, or a compressed one such as FLAC or Opus"
                )
        return bytes(data)


def _printable(url: str) -> str:
    """The URL as an error may show it: short, printable, without its query."""
    return ascii(url.partition("?")[0][:80]).strip("'")
