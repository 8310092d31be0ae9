"""Servers that answer as they like, byte for byte, and certificates for them."""

import datetime
import ipaddress
import re
import socket
import ssl
import threading
from contextlib import contextmanager

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OK = b"HTTP/1.1 200 OK\r\n"


@contextmanager
def server(answer, host="127.0.0.1", context=None):
    """A server that calls `answer(connection, request)` for each connection; `.heads` are what it
    was sent."""
    listener = socket.create_server((host, 0))
    heads: list[bytes] = []

    def one(connection):
        try:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65_536)
                if not data:
                    return
                head += data
            heads.append(head)
            length = re.search(rb"content-length: (\d+)", head.lower())
            while length and len(head.partition(b"\r\n\r\n")[2]) < int(length.group(1)):
                head += connection.recv(65_536)
            answer(connection, head)
        except OSError:
            pass  # the client went, as it should in some tests
        finally:
            connection.close()

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port = listener.getsockname()[1]
    try:
        yield type("Server", (), {"port": port, "url": f"http://{host}:{port}", "heads": heads})
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def says(*lines, body=b""):
    """An answer that is the same for every request."""
    head = OK if not lines or not lines[0].startswith("HTTP") else b""
    head += "".join(line + "\r\n" for line in lines).encode()
    return lambda connection, _: connection.sendall(head + b"\r\n" + body)


def authority(tmp_path, name):
    """A certificate for `name`, signed by itself: (server context, path of the certificate)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    try:
        names = [x509.IPAddress(ipaddress.ip_address(name))]
    except ValueError:
        names = [x509.DNSName(name)]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = tmp_path / f"{name}.pem", tmp_path / f"{name}.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, secret)
    return context, str(certificate)
