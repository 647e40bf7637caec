"""Servers on this machine and on private networks are asked directly; a proxy that is used is named."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from local_servers import free_port, reply, scripted

from flowward.rewards.service.remote import Remote
from flowward.system import addresses, asking
from flowward.system.addresses import is_private, proxy_of, without_password
from flowward.system.asking import Server, Unavailable

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUEST_METHOD")
HOSTS = {"gpu1": ["10.0.0.7"], "both": ["10.0.0.7", "8.8.8.8"], "far": ["8.8.8.8"], "six": ["fd00::1"]}


@pytest.fixture(autouse=True)
def resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy from outside, and a few names; what is a number resolves as it does."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    plain = socket.getaddrinfo

    def found(host: Any, *more: Any, **options: Any) -> Any:
        if host in HOSTS:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in HOSTS[host]]
        if host == "nowhere":
            raise socket.gaierror("no such host")
        return plain(host, *more, **options)

    monkeypatch.setattr(addresses.socket, "getaddrinfo", found)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.0.0.1", "127.8.9.1", "::1", "10.1.2.3", "192.168.0.4", "172.16.0.1", "169.254.1.1", "100.64.0.1",
     "fd12::1", "fe80::1", "gpu1", "six"],
)  # fmt: skip
def test_private_hosts_are_asked_directly(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    assert is_private(host)
    assert proxy_of(f"http://{f'[{host}]' if ':' in host else host}:8000/v1") is None


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1111", "far", "both", "nowhere", "x" * 70 + ".example"])
def test_other_hosts_are_asked_through_the_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://{f'[{host}]' if ':' in host else host}:8000"
    assert not is_private(host) and proxy_of(address) is None
    monkeypatch.setenv("HTTP_PROXY", "proxy:3128")
    assert proxy_of(address) == "http://proxy:3128" and proxy_of(address.replace("http", "https")) is None
    monkeypatch.setenv("HTTPS_PROXY", "http://other:1")
    assert proxy_of(address.replace("http", "https")) == "http://other:1"


def test_hosts_of_no_proxy_are_asked_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "far,.example.org,nowhere:8000")
    for address in ("http://far:8000", "https://user:pw@a.example.org/v1", "http://nowhere:8000"):
        assert proxy_of(address) is None
    assert proxy_of("http://nowhere:8001") == "http://proxy:3128"


def test_a_request_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def respond(path: str, headers: dict[str, str], body: bytes) -> Any:
        asked.append(path)
        return reply({"reward": "far", "path": path})

    with scripted(respond) as proxy, scripted(lambda *_: reply({"reward": "near"})) as near:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert Server("http://nowhere:8000", 5, None).call("GET", "/reward")["reward"] == "far"
        assert Server(near, 5, None).call("GET", "/reward")["reward"] == "near"
    assert asked == ["http://nowhere:8000/reward"]


def test_errors_name_the_proxy_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@127.0.0.1:{port}")
    with pytest.raises(ValueError) as caught:
        Remote("http://nowhere:8000")
    said = str(caught.value)
    assert f"http://nowhere:8000 (through the proxy http://127.0.0.1:{port}): " in said and "secret" not in said
    with scripted(lambda *_: reply({"detail": "no"}, 407)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy)
        with pytest.raises(ValueError, match=rf"nowhere:8000 \(through the proxy {proxy}\) answered 407: no"):
            Remote("http://nowhere:8000")
    with pytest.raises(Unavailable, match=rf"^http://127.0.0.1:{port}: "):
        Server(f"http://me:secret@127.0.0.1:{port}", 5, None).call("GET", "/reward")
    assert without_password("me:secret@proxy:1") == "proxy:1"


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "SOCKS5"])
def test_a_socks_proxy_names_its_package(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://me:secret@127.0.0.1:7890")
    monkeypatch.setattr(asking, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"^the SOCKS proxy {scheme}://127.0.0.1:7890 needs .* 'httpx2\[socks\]'$"):
        Remote("http://nowhere:8000")


@pytest.mark.parametrize(
    "proxy", ["socks://127.0.0.1:7890", "socks4://127.0.0.1:7890", "http://proxy:abc", "http://", "ftp://proxy"]
)
def test_a_proxy_that_cannot_be_used_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ValueError, match=r"^the proxy .* cannot be used; write it as http://host:port"):
        Server("http://nowhere:8000", 5, None)
