"""An authority and what it signed, as a user of the chart would bring them."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Authority:
    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's authority")])
        authority = x509.BasicConstraints(ca=True, path_length=0)
        self.certificate = self.builder(self.name, self.key).add_extension(authority, True).sign(self.key, hashes.SHA256())

    def builder(self, subject, key):
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        # Longer than what the alert looks at.
        return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(days=60))

    def ca(self):
        return pem(self.certificate)

    def secret(self, address):
        """The data of a Secret of type kubernetes.io/tls, good for servers and clients."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's node")])
        builder = self.builder(subject, key).add_extension(names, False).add_extension(uses, False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        certificate = builder.sign(self.key, hashes.SHA256())
        return {"tls.crt": pem(certificate), "tls.key": private.decode(), "ca.crt": self.ca()}


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
