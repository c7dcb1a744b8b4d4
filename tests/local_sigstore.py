"""A Sigstore of one's own on the loopback: certificate authority, logs, provider of identities.

It answers as Fulcio, Rekor and an OpenID provider do, with keys made for it, and its trust configuration
names it in place of the public one. So the libraries' own code signs and verifies, certificates, timestamps,
proofs of inclusion and all, without a network. It vouches for whatever a token says: nothing checks tokens.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PROVIDER = "https://accounts.google.com"
_SCTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_ISSUER_V1 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_TREE_LEAF = b"\x00"


def token(identity: str = "me@example.org", *, seconds: int = 6 * 3600) -> str:
    """A token that names an identity, for longer than tests take; its signature is nonsense."""
    now = int(time.time())
    claims = {"iss": PROVIDER, "sub": "1", "aud": "sigstore", "email": identity}
    body = {**claims, "email_verified": True, "iat": now - 1, "exp": now + seconds}
    return ".".join((_b64url(json.dumps({"alg": "RS256"})), _b64url(json.dumps(body)), "c2ln"))


def _b64url(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


class LocalSigstore:
    """The services, as long as the server runs."""

    def __init__(self) -> None:
        self.ca_key, self.ct_key, self.log_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
        self.ca = _authority(self.ca_key)
        self.url = ""
        self.seen: list[str] = []
        """Paths that were asked for."""
        self.refuse_tokens = False
        self.lose_entries = False

    def trust_config(self) -> dict[str, Any]:
        """What clients are told: where the services are, and what they sign with."""
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [self._log(self.log_key)],
                "ctlogs": [self._log(self.ct_key)],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "local", "commonName": "local"},
                        "uri": self.url,
                        "certChain": {
                            "certificates": [{"rawBytes": _b64(self.ca.public_bytes(Encoding.DER))}]
                        },
                        "validFor": _valid(),
                    }
                ],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [self._service()],
                "oidcUrls": [self._service()],
                "rekorTlogUrls": [self._service()],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaConfig": {"selector": "ANY"},
            },
        }

    def answer(self, path: str, headers: Any, body: bytes) -> tuple[int, Any]:
        """Answer a call."""
        self.seen.append(path)
        if path == "/.well-known/openid-configuration":
            return 200, {"authorization_endpoint": f"{self.url}/auth", "token_endpoint": f"{self.url}/token"}
        if path == "/api/v2/signingCert":
            if self.refuse_tokens:
                return 401, {"message": f"the token {headers['Authorization']} is not ours"}
            return 200, self._certificate(headers["Authorization"].removeprefix("Bearer "), json.loads(body))
        if path == "/api/v1/log/entries":
            return (503, {"code": 503, "message": "later"}) if self.lose_entries else (201, self._enter(body))
        return 404, {}

    def _certificate(self, given: str, body: dict[str, str]) -> dict[str, Any]:
        request = x509.load_pem_x509_csr(base64.b64decode(body["certificateSigningRequest"]))
        padded = given.split(".")[1] + "=="
        identity = json.loads(base64.urlsafe_b64decode(padded))["email"]
        builder = _leaf(self.ca, identity, request.public_key())
        # What the log signs is the certificate without its own signature, which the certificate then carries.
        draft = _with_scts(builder, b"\x00\x00").sign(self.ca_key, hashes.SHA256())
        final = _with_scts(builder, self._scts(draft.tbs_precertificate_bytes)).sign(
            self.ca_key, hashes.SHA256()
        )
        chain = [one.public_bytes(Encoding.PEM).decode() for one in (final, self.ca)]
        return {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}

    def _scts(self, precertificate: bytes) -> bytes:
        """A list of one timestamp of the certificate log, as in RFC 6962, 3.3."""
        moment = int(time.time() * 1000)
        entry = hashlib.sha256(_der(self.ca_key)).digest() + _sized(precertificate, 3)
        signed = struct.pack("!BBQH", 0, 0, moment, 1) + entry + b"\x00\x00"
        signature = self.ct_key.sign(signed, ec.ECDSA(hashes.SHA256()))
        timestamp = b"\x00" + hashlib.sha256(_der(self.ct_key)).digest() + struct.pack("!Q", moment)
        timestamp += b"\x00\x00" + b"\x04\x03" + _sized(signature, 2)
        return _sized(_sized(timestamp, 2), 2)

    def _enter(self, body: bytes) -> dict[str, Any]:
        """Enter a signature into a log that holds nothing else, with promise and proof."""
        proposed = json.loads(body)["spec"]["proposedContent"]
        envelope = json.loads(proposed["envelope"])
        payload = base64.b64decode(envelope["payload"])
        entry = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": _sha256(proposed["envelope"].encode()),
                "payloadHash": _sha256(payload),
                "signatures": [
                    {"signature": one["sig"], "verifier": proposed["verifiers"][0]}
                    for one in envelope["signatures"]
                ],
            },
        }
        canonical = rfc8785.dumps(entry)
        log_id = hashlib.sha256(_der(self.log_key)).digest()
        promised = {"body": _b64(canonical), "integratedTime": int(time.time()), "logID": log_id.hex()}
        promised["logIndex"] = 0
        root = hashlib.sha256(_TREE_LEAF + canonical).digest()
        return {
            "uuid": {
                **promised,
                "verification": {
                    "signedEntryTimestamp": _b64(self._logged(rfc8785.dumps(promised))),
                    "inclusionProof": {
                        "logIndex": 0,
                        "rootHash": root.hex(),
                        "treeSize": 1,
                        "hashes": [],
                        "checkpoint": self._checkpoint(root, log_id),
                    },
                },
            }
        }

    def _checkpoint(self, root: bytes, log_id: bytes) -> str:
        note = f"local - 1\n1\n{_b64(root)}\n"
        return f"{note}\n— local {_b64(log_id[:4] + self._logged(note.encode()))}\n"

    def _logged(self, data: bytes) -> bytes:
        return self.log_key.sign(data, ec.ECDSA(hashes.SHA256()))

    def _log(self, key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
        return {
            "baseUrl": self.url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": _b64(_der(key)),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": _valid(),
            },
            "logId": {"keyId": _b64(hashlib.sha256(_der(key)).digest())},
        }

    def _service(self) -> dict[str, Any]:
        return {"url": self.url, "majorApiVersion": 1, "validFor": _valid(), "operator": "local"}


@contextmanager
def local_sigstore(folder: Path) -> Iterator[tuple[LocalSigstore, Path]]:
    """Run the services; yield them and the file with their trust configuration."""
    services = LocalSigstore()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, body: bytes) -> None:
            status, value = services.answer(self.path, self.headers, body)
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        services.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        path = folder / "sigstore.json"
        path.write_text(json.dumps(services.trust_config()))
        try:
            yield services, path
        finally:
            server.shutdown()


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "local")])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certify=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _leaf(ca: x509.Certificate, identity: str, key: Any) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(ca.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(minutes=10))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certify=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(identity)]), critical=True)
        .add_extension(x509.UnrecognizedExtension(_ISSUER_V1, PROVIDER.encode()), critical=False)
    )


def _with_scts(builder: x509.CertificateBuilder, scts: bytes) -> x509.CertificateBuilder:
    octets = b"\x04" + (bytes([len(scts)]) if len(scts) < 128 else b"\x81" + bytes([len(scts)])) + scts
    return builder.add_extension(x509.UnrecognizedExtension(_SCTS, octets), critical=False)


def _usage(*, certify: bool) -> x509.KeyUsage:
    nothing = dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    return x509.KeyUsage(digital_signature=not certify, key_cert_sign=certify, **nothing)


def _sized(data: bytes, bytes_of_size: int) -> bytes:
    return len(data).to_bytes(bytes_of_size, "big") + data


def _der(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _sha256(data: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _valid() -> dict[str, str]:
    return {"start": "2020-01-01T00:00:00Z"}
