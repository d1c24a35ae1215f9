"""Certificates made for a test, and servers that show them: for Temporal's port and for PostgreSQL's."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.tasks import executable

__all__ = [
    "Certificate",
    "Handle",
    "authority_and_certificate",
    "postgres_with_tls",
    "server",
    "server_with_tls",
]

_CONFIGURATION = """
[ca]
default_ca = tests
[tests]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = anything
x509_extensions = extensions
[anything]
commonName = supplied
[extensions]
subjectAltName = DNS:localhost
[req]
distinguished_name = name
x509_extensions = authority
[name]
[authority]
basicConstraints = critical, CA:true
"""

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass(frozen=True)
class Certificate:
    """For `localhost`, signed by an authority that nobody knows."""

    authority: Path
    file: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self.key)
        context.set_alpn_protocols(["h2"])
        return context


def authority_and_certificate(folder: Path, *, expired: bool = False) -> Certificate:
    """Make both in the folder. Only `openssl ca` takes dates in the past in every version."""
    folder.mkdir(parents=True)
    configuration = folder / "openssl.cnf"
    configuration.write_text(_CONFIGURATION.format(folder=folder))
    (folder / "index.txt").touch()
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made = Certificate(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    steps: list[list[str | Path]] = [
        ["req", "-x509", *new_key, "-keyout", "authority.key", "-out", made.authority, "-subj", "/CN=tests"],
        ["req", *new_key, "-keyout", made.key, "-out", "server.csr", "-subj", "/CN=localhost"],
        [
            *("ca", "-batch", "-notext", "-in", "server.csr", "-out", made.file),
            *("-cert", made.authority, "-keyfile", "authority.key"),
            *("-startdate", "20200101000000Z", "-enddate", f"{2020 if expired else 2048}0201000000Z"),
        ],
    ]
    for arguments in steps:
        command = [executable("openssl"), arguments[0], "-config", configuration, *arguments[1:]]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return made


@asynccontextmanager
async def server(handle: Handle, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on a loopback port, which is yielded; connections that break are no errors here."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handle(reader, writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


@asynccontextmanager
async def server_with_tls(certificate: Certificate) -> AsyncIterator[int]:
    """A TLS server that has nothing to say."""

    async def silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with server(silent, tls=certificate.context()) as port:
        yield port


@asynccontextmanager
async def postgres_with_tls(certificate: Certificate) -> AsyncIterator[int]:
    """As much of a PostgreSQL server as a client sees before it has accepted the certificate."""

    async def agree(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        await writer.start_tls(certificate.context())
        await reader.read(1)

    async with server(agree) as port:
        yield port
