"""Where the server listens, and who can reach that."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .origins import is_loopback
from .settings_error import SettingsError

_UDS_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. With `ca_certs` only clients with a certificate of these are let in."""

    certfile: str
    keyfile: str
    ca_certs: str | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port, or the path of a Unix socket."""

    host: str
    port: int
    uds: str | None = None
    tls: Tls | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it. Unknown hosts are for `listening` to refuse."""
        if self.uds is not None:
            return True
        try:
            found = _resolve(self.host, self.port)
        except OSError:
            return True
        return all(is_loopback(str(address[0])) for *_, address in found)


def address_from(args: argparse.Namespace) -> Address:
    """Raises `SettingsError`."""
    if not 0 <= args.port <= 65535:
        raise SettingsError(f"--port {args.port}: use a port from 1 to 65535, or 0 for a free one")
    return Address(args.host, args.port, args.uds, _tls(args))


def _tls(args: argparse.Namespace) -> Tls | None:
    if args.ssl_certfile is None and args.ssl_keyfile is None and args.ssl_ca_certs is None:
        return None
    if args.ssl_certfile is None or args.ssl_keyfile is None:
        raise SettingsError("TLS needs both --ssl-certfile and --ssl-keyfile")
    tls = Tls(args.ssl_certfile, args.ssl_keyfile, args.ssl_ca_certs)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:  # now, and not at the first connection; with a password, it would be asked for
        context.load_cert_chain(tls.certfile, tls.keyfile, password="")
        context.load_verify_locations(tls.ca_certs or tls.certfile)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"the TLS files cannot be used ({error.strerror or type(error).__name__}): "
            "--ssl-certfile, --ssl-keyfile and --ssl-ca-certs are PEM files, and the key fits the "
            "certificate and is not encrypted"
        ) from None
    return tls


@contextlib.contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """A socket that is bound, so that a taken address is known at once, but does not listen yet.

    Raises `SettingsError`.
    """
    try:
        sock = _tcp_socket(address) if address.uds is None else _unix_socket(Path(address.uds))
    except OSError as error:
        place = address.uds or f"{address.host}:{address.port}"
        raise SettingsError(
            f"cannot listen on {place} ({error.strerror}): stop what uses it, or choose another "
            "with --host and --port, or --uds"
        ) from error
    try:
        with sock:
            yield sock
    finally:
        if address.uds is not None:
            Path(address.uds).unlink(missing_ok=True)


def _resolve(host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    return socket.getaddrinfo(  # type: ignore[return-value]  # its types are enumerations
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )


def _tcp_socket(address: Address) -> socket.socket:
    family, kind, proto, _, name = _resolve(address.host, address.port)[0]
    sock = socket.socket(family, kind, proto)  # asyncio asks it whether to send at once
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name)
    except BaseException:
        sock.close()
        raise
    return sock


def _unix_socket(path: Path) -> socket.socket:
    """For its owner and group; one that a dead server left behind is taken over."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        if _is_left_behind(path):
            path.unlink()
        sock.bind(str(path))
        os.chmod(path, _UDS_MODE)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_left_behind(path: Path) -> bool:
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) != 0


def port_of(sock: socket.socket) -> int:
    """0 for a Unix socket."""
    name = sock.getsockname()
    return 0 if sock.family is socket.AF_UNIX else int(name[1])


def url_of(sock: socket.socket, address: Address) -> str:
    """Where clients find the API."""
    if address.uds is not None:
        return f"unix:{address.uds}"
    host, port = sock.getsockname()[:2]
    scheme = "http" if address.tls is None else "https"
    return f"{scheme}://[{host}]:{port}/v1" if ":" in host else f"{scheme}://{host}:{port}/v1"
