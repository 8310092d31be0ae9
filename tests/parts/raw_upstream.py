"""An upstream made of raw sockets in real threads: it says exactly the bytes a test gives it."""

import datetime
import ipaddress
import socket
import ssl
import struct
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Peer:
    """One accepted connection."""

    def __init__(self, sock: socket.socket, number: int):
        self.sock = sock
        self.number = number  # 0 for the first connection of the server
        self._rest = b""

    def request(self) -> tuple[bytes, bytes] | None:
        """(head, body) of the next request, None when the client closed."""
        while b"\r\n\r\n" not in self._rest:
            data = self.sock.recv(1 << 20)
            if not data:
                return None
            self._rest += data
        head, _, rest = self._rest.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        parts = [rest]
        got = len(rest)
        while got < length:
            data = self.sock.recv(1 << 20)
            assert data, "the client closed inside its request body"
            parts.append(data)
            got += len(data)
        whole = b"".join(parts)
        self._rest = whole[length:]
        return head, whole[:length]

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def closed_by_client(self, timeout_s: float = 5.0) -> bool:
        """Waits until the client closes; False when it does not within the time."""
        self.sock.settimeout(timeout_s)
        try:
            return self.sock.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def reset(self) -> None:
        """Closes with a reset instead of an orderly end."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class RawUpstream:
    """`serve(peer)` runs in a thread for every connection; the connection closes when it returns.

    What `serve` raises is raised by `stop`, so an assertion in it fails the test.
    """

    def __init__(self, serve, tls: ssl.SSLContext | None = None):
        self._serve = serve
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def stop(self, join_s: float = 5.0) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(join_s)
        self._listener.close()
        for sock in self._socks:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        for thread in self._threads:
            thread.join(join_s)
        if self._errors:
            raise self._errors[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number, self.connections = self.connections, self.connections + 1
            thread = threading.Thread(target=self._one, args=(sock, number), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _one(self, sock: socket.socket, number: int) -> None:
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._socks.append(sock)
            self._serve(Peer(sock, number))
        except (OSError, ssl.SSLError):
            pass  # the client went away; tests that care look with closed_by_client()
        except BaseException as error:
            self._errors.append(error)
        finally:
            sock.close()


def certificate_authority(folder, host: str = "127.0.0.1") -> tuple[str, ssl.SSLContext]:
    """(path of the CA's certificate, server context with a certificate for `host`)."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    ca = _certificate(ca_name, ca_name, ca_key.public_key(), ca_key, ca=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test upstream")])
    leaf = _certificate(name, ca_name, key.public_key(), ca_key, ca=False, host=host)
    ca_file, chain_file, key_file = folder / "ca.pem", folder / "chain.pem", folder / "key.pem"
    ca_file.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    chain_file.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain_file, key_file)
    return str(ca_file), context


def _certificate(subject, issuer, public_key, signer, *, ca: bool, host: str = ""):
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if host:
        try:
            general = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            general = x509.DNSName(host)
        builder = builder.add_extension(x509.SubjectAlternativeName([general]), critical=False)
    return builder.sign(signer, hashes.SHA256())
