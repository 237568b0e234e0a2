"""A Sigstore instance of our own, for tests: certificate authority, certificate log, transparency logs of both
generations, timestamp authority. Everything that it signs is real; what a test wants broken, it breaks by name."""

import base64
import contextlib
import dataclasses
import datetime
import hashlib
import json
import pathlib
import struct
import subprocess
import tempfile

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

GITHUB = "https://token.actions.githubusercontent.com"
REPOSITORY = "https://github.com/huggingface/kernels-community"
WORKFLOW = f"{REPOSITORY}/.github/workflows/build.yaml@refs/heads/main"
SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
FULCIO = "1.3.6.1.4.1.57264.1."


def b64(data):
    return base64.b64encode(data).decode()


def spki(key):
    public = key.public_key() if hasattr(key, "public_key") else key
    return public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def der_text(text):
    """A UTF8String in DER."""
    data = text.encode()
    length = bytes([len(data)]) if len(data) < 128 else b"\x81" + bytes([len(data)])
    return b"\x0c" + length + data


def octets(data):
    """An OCTET STRING in DER."""
    size = len(data)
    length = bytes([size]) if size < 128 else b"\x81" + bytes([size]) if size < 256 else b"\x82" + struct.pack("!H", size)
    return b"\x04" + length + data


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "graft tests"),
                      x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage(**granted):
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
             "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{key: granted.get(key, False) for key in names})


@dataclasses.dataclass
class Identity:
    issuer: str = GITHUB
    old_issuer: str = GITHUB
    repository: str = REPOSITORY
    workflow: str = WORKFLOW
    ref: str = "refs/heads/main"


class MerkleLog:
    """RFC 6962 over a list of leaves."""

    def __init__(self, leaves):
        self.leaves = [hashlib.sha256(b"\0" + leaf).digest() for leaf in leaves]

    def root(self, leaves=None):
        leaves = self.leaves if leaves is None else leaves
        if len(leaves) == 1:
            return leaves[0]
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return hashlib.sha256(b"\1" + self.root(leaves[:split]) + self.root(leaves[split:])).digest()

    def proof(self, index, leaves=None):
        leaves = self.leaves if leaves is None else leaves
        if len(leaves) == 1:
            return []
        split = 1 << (len(leaves) - 1).bit_length() - 1
        if index < split:
            return self.proof(index, leaves[:split]) + [self.root(leaves[split:])]
        return self.proof(index - split, leaves[split:]) + [self.root(leaves[:split])]


class Instance:
    def __init__(self, now=None):
        self.now = (now or datetime.datetime.now(datetime.timezone.utc)).replace(microsecond=0)
        self.root_key, self.root = self.authority("root", None, None)
        self.between_key, self.between = self.authority("intermediate", self.root_key, self.root)
        self.ct_key = ec.generate_private_key(ec.SECP256R1())
        self.rekor_key = ec.generate_private_key(ec.SECP256R1())
        self.rekor2_key = ed25519.Ed25519PrivateKey.generate()
        self.tsa_root_key, self.tsa_root = self.authority("timestamp root", None, None)
        self.tsa_key, self.tsa = self.authority("timestamps", self.tsa_root_key, self.tsa_root, tsa=True)
        self.folder = None

    # --- certificates

    def authority(self, title, issuer_key, issuer, tsa=False):
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (x509.CertificateBuilder().subject_name(name(title))
                   .issuer_name(issuer.subject if issuer else name(title)).public_key(key.public_key())
                   .serial_number(x509.random_serial_number())
                   .not_valid_before(self.now - datetime.timedelta(days=365))
                   .not_valid_after(self.now + datetime.timedelta(days=3650))
                   .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False))
        if issuer:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
        if tsa:
            builder = (builder.add_extension(usage(digital_signature=True), True)
                       .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True))
        else:
            builder = (builder.add_extension(x509.BasicConstraints(True, 0 if issuer else 1), True)
                       .add_extension(usage(key_cert_sign=True, crl_sign=True), True))
        return key, builder.sign(issuer_key or key, hashes.SHA256())

    def certificate(self, key, identity, *, start=None, minutes=10, code_signing=True, is_ca=False, sct="good",
                    issuer=None, twice=False):
        issuer_key, issuer_certificate = issuer or (self.between_key, self.between)
        start = start or self.now - datetime.timedelta(minutes=1)
        uses = [ExtendedKeyUsageOID.CODE_SIGNING if code_signing else ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(issuer_certificate.subject)
                   .public_key(key.public_key()).serial_number(x509.random_serial_number())
                   .not_valid_before(start).not_valid_after(start + datetime.timedelta(minutes=minutes))
                   .add_extension(usage(digital_signature=True, key_cert_sign=is_ca), True)
                   .add_extension(x509.ExtendedKeyUsage(uses), False)
                   .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
                   .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
                   .add_extension(x509.SubjectAlternativeName(
                       [x509.UniformResourceIdentifier(identity.workflow)]), True))
        if is_ca:
            builder = builder.add_extension(x509.BasicConstraints(True, None), True)
        claims = {"1": identity.old_issuer.encode(), "8": der_text(identity.issuer), "9": der_text(identity.workflow),
                  "12": der_text(identity.repository), "13": der_text("0" * 40), "14": der_text(identity.ref)}
        for number, value in claims.items():
            builder = builder.add_extension(
                x509.UnrecognizedExtension(ObjectIdentifier(FULCIO + number), value), False)
        if sct != "none":
            timestamps = self.timestamp_list(builder.sign(issuer_key, hashes.SHA256()), issuer_key, sct, twice)
            builder = builder.add_extension(x509.UnrecognizedExtension(SCT_LIST, timestamps), False)
        return builder.sign(issuer_key, hashes.SHA256())

    def timestamp_list(self, precertificate, issuer_key, kind, twice):
        """What the certificate log answers: its signature over the certificate without this very answer."""
        tbs = precertificate.tbs_certificate_bytes
        when = struct.pack("!Q", int(self.now.timestamp() * 1000))
        entry = hashlib.sha256(spki(issuer_key)).digest() + struct.pack("!I", len(tbs))[1:] + tbs
        if kind == "other-entry":
            entry = entry[:-1] + b"\0"
        signed = b"\0\0" + when + struct.pack("!H", 1) + entry + struct.pack("!H", 0)
        key = ec.generate_private_key(ec.SECP256R1()) if kind == "other-log" else self.ct_key
        signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
        sct = (b"\0" + hashlib.sha256(spki(key)).digest() + when + struct.pack("!H", 0) + b"\x04\x03"
               + struct.pack("!H", len(signature)) + signature)
        one = struct.pack("!H", len(sct)) + sct
        whole = one + one if twice else one
        return octets(struct.pack("!H", len(whole)) + whole)

    # --- logs

    def entry(self, body, *, generation=1, when=None, index=7, log_key=None, kind=None):
        """A log entry for a body: proof in a tree of 11 leaves, checkpoint, and for the first generation a promise."""
        key = log_key or (self.rekor_key if generation == 1 else self.rekor2_key)
        log_id = hashlib.sha256(spki(key)).digest()
        when = int((when or self.now).timestamp())
        tree = MerkleLog([f"leaf {i}".encode() if i != index else body for i in range(11)])
        origin = "rekor.example - 4711" if generation == 1 else "log2.example"
        note = f"{origin}\n11\n{b64(tree.root())}\n"
        shown = origin.split(" - ")[0]
        entry = {
            "logIndex": str(index + (1000 if generation == 1 else 0)),
            "logId": {"keyId": b64(log_id)},
            "kindVersion": kind or {"kind": "hashedrekord", "version": f"0.0.{generation}"},
            "inclusionProof": {
                "logIndex": str(index), "rootHash": b64(tree.root()), "treeSize": "11",
                "hashes": [b64(value) for value in tree.proof(index)],
                "checkpoint": {"envelope": f"{note}\n— {shown} {b64(log_id[:4] + self.sign(key, note.encode()))}\n"}},
            "canonicalizedBody": b64(body)}
        if generation == 1:
            entry["integratedTime"] = str(when)
            entry["inclusionPromise"] = {"signedEntryTimestamp": b64(self.sign(key, self.promised(entry)))}
        return entry

    def renote(self, entry, note, key=None, shown="rekor.example", hint=None):
        """Puts another signed note under an entry."""
        key = key or self.rekor_key
        hint = hint or base64.b64decode(entry["logId"]["keyId"])[:4]
        entry["inclusionProof"]["checkpoint"]["envelope"] = (
            f"{note}\n— {shown} {b64(hint + self.sign(key, note.encode()))}\n")

    def repromise(self, entry, key=None):
        entry["inclusionPromise"]["signedEntryTimestamp"] = b64(self.sign(key or self.rekor_key, self.promised(entry)))

    @staticmethod
    def promised(entry):
        return json.dumps({"body": entry["canonicalizedBody"], "integratedTime": int(entry["integratedTime"]),
                           "logID": base64.b64decode(entry["logId"]["keyId"]).hex(),
                           "logIndex": int(entry["logIndex"])}, sort_keys=True, separators=(",", ":")).encode()

    @staticmethod
    def sign(key, data):
        return key.sign(data) if isinstance(key, ed25519.Ed25519PrivateKey) else key.sign(data, ec.ECDSA(hashes.SHA256()))

    @staticmethod
    def body(content, signature, certificate, generation=1, **changes):
        digest = hashlib.sha256(content)
        if generation == 1:
            pem = certificate.public_bytes(serialization.Encoding.PEM)
            body = {"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": digest.hexdigest()}},
                "signature": {"content": b64(signature), "publicKey": {"content": b64(pem)}}}}
        else:
            der = certificate.public_bytes(serialization.Encoding.DER)
            body = {"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": {"hashedRekordV002": {
                "data": {"algorithm": "SHA2_256", "digest": b64(digest.digest())},
                "signature": {"content": b64(signature), "verifier": {
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256", "x509Certificate": {"rawBytes": b64(der)}}}}}}
        body.update(changes)
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    # --- timestamps, by the `openssl` program: the one maker of RFC 3161 responses that is everywhere

    def timestamp(self, signature, other_authority=False):
        key, certificate, root = self.tsa_key, self.tsa, self.tsa_root
        if other_authority:
            root_key, root = self.authority("strange root", None, None)
            key, certificate = self.authority("strange timestamps", root_key, root, tsa=True)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder)
            pem = serialization.Encoding.PEM
            (path / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8,
                                                             serialization.NoEncryption()))
            (path / "tsa.pem").write_bytes(certificate.public_bytes(pem))
            (path / "data").write_bytes(signature)
            (path / "serial").write_text("01")
            (path / "tsa.cnf").write_text(
                "[tsa]\ndefault_tsa = one\n[one]\nserial = serial\nsigner_cert = tsa.pem\nsigner_key = key.pem\n"
                "signer_digest = sha256\ndefault_policy = 1.2.3.4\ndigests = sha256\ness_cert_id_alg = sha256\n")
            for command in ("ts -query -data data -sha256 -out query.tsq",
                            "ts -reply -config tsa.cnf -queryfile query.tsq -out reply.tsr"):
                subprocess.run(["openssl", *command.split()], cwd=path, check=True, capture_output=True)
            return (path / "reply.tsr").read_bytes()

    # --- bundles

    def sign_file(self, content, *, identity=None, generation=1, key=None, certificate=None, when=None, log_key=None,
                  media="application/vnd.dev.sigstore.bundle.v0.3+json", timestamps=None, body=None, kind=None,
                  logged=None, **certificate_options):
        """A bundle over `content`, as the builder's signing step makes it. `logged`: what the entry speaks of instead
        (content, signature, certificate)."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        certificate = certificate or self.certificate(key, identity or Identity(), **certificate_options)
        signature = key.sign(content, ec.ECDSA(hashes.SHA256()))
        parts = {"content": content, "signature": signature, "certificate": certificate, **(logged or {})}
        raw = body or self.body(parts["content"], parts["signature"], parts["certificate"], generation)
        der = certificate.public_bytes(serialization.Encoding.DER)
        material = {"tlogEntries": [self.entry(raw, generation=generation, when=when, log_key=log_key, kind=kind)]}
        if "v0.3" in media or media.endswith("0.3"):
            material["certificate"] = {"rawBytes": b64(der)}
        else:
            material["x509CertificateChain"] = {"certificates": [{"rawBytes": b64(der)}]}
        if timestamps is None:
            timestamps = [self.timestamp(signature)] if generation == 2 else []
        material["timestampVerificationData"] = {
            "rfc3161Timestamps": [{"signedTimestamp": b64(value)} for value in timestamps]}
        return {"mediaType": media, "verificationMaterial": material, "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": b64(hashlib.sha256(content).digest())},
            "signature": b64(signature)}}

    # --- what verifiers are given

    def trusted_root(self):
        start = (self.now - datetime.timedelta(days=300)).strftime("%Y-%m-%dT%H:%M:%SZ")

        def log(url, key, details):
            return {"baseUrl": url, "hashAlgorithm": "SHA2_256",
                    "publicKey": {"rawBytes": b64(spki(key)), "keyDetails": details, "validFor": {"start": start}},
                    "logId": {"keyId": b64(hashlib.sha256(spki(key)).digest())}}

        def authority(*chain):
            return {"subject": {"organization": "graft tests", "commonName": "tests"}, "uri": "https://ca.example",
                    "certChain": {"certificates": [
                        {"rawBytes": b64(one.public_bytes(serialization.Encoding.DER))} for one in chain]},
                    "validFor": {"start": start}}

        p256 = "PKIX_ECDSA_P256_SHA_256"
        return {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log("https://rekor.example", self.rekor_key, p256),
                          log("https://log2.example", self.rekor2_key, "PKIX_ED25519")],
                "certificateAuthorities": [authority(self.between, self.root)],
                "ctlogs": [log("https://ct.example", self.ct_key, p256)],
                "timestampAuthorities": [authority(self.tsa, self.tsa_root)]}


def python_verdict(root, content, text, any_signer=False):
    """What sigstore-python says: `accepted`, or why not. The signer must be the builder's workflow."""
    from sigstore.models import Bundle, TrustedRoot
    from sigstore.verify import Verifier, policy
    from sigstore_models.trustroot.v1 import TrustedRoot as Model

    rules = [policy.OIDCIssuer(GITHUB), policy.OIDCIssuerV2(GITHUB), policy.OIDCSourceRepositoryURI(REPOSITORY),
             policy.OIDCBuildSignerURI(WORKFLOW)]
    with contextlib.suppress(ImportError):
        import logging
        logging.getLogger("sigstore").setLevel(logging.CRITICAL)
    try:
        verifier = Verifier(trusted_root=TrustedRoot(Model.from_json(json.dumps(root))))
        wanted = policy.UnsafeNoOp() if any_signer else policy.AllOf(rules)
        verifier.verify_artifact(content, Bundle.from_json(text), wanted)
    except Exception as error:  # it knows no single base class for what a broken bundle raises
        return f"refused: {type(error).__name__}: {str(error)[:120]}"
    return "accepted"
