"""Addresses of servers: which ones are on this machine or a private network, and which proxy leads to the others."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SOCKS = ("socks5", "socks5h")


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine, so that no other machine can reach it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_private(host: str) -> bool:
    """Whether a host is on this machine or on a private network; a name is, if all its addresses are."""
    if is_loopback(host):
        return True
    try:
        found = [host.strip("[]")] if _is_number(host) else [str(each[4][0]) for each in socket.getaddrinfo(host, None)]
    except (OSError, UnicodeError):  # perhaps only the proxy can resolve it
        return False
    return all(not ipaddress.ip_address(each).is_global for each in found)


def _is_number(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def proxy_of(address: str) -> str | None:
    """The proxy that the environment has for an address; None for an address that is asked directly.

    HTTP_PROXY, HTTPS_PROXY and ALL_PROXY name proxies, NO_PROXY the hosts without one. Servers on this machine and on
    private networks are always asked directly.
    """
    parts, proxies = urlsplit(address), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    host = parts.hostname or ""
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]) or is_private(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def without_password(address: str) -> str:
    """An address for messages, without its user and password."""
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else address.rpartition("@")[2]
