"""Bundles that are right, and bundles that are broken in one way each, with the code that graft answers."""

import base64
import copy
import datetime
import hashlib
import json

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sigstore_instance import REPOSITORY, Identity, Instance, b64

CONTENT = json.dumps({
    "name": "demo", "id": "_demo_cpu_0123abc", "version": 1, "license": "apache-2.0", "python-depends": [],
    "backend": {"type": "cpu"},
    "digest": {"algorithm": "sha256", "files": {"__init__.py": b64(hashlib.sha256(b"").digest())}}}, indent=2).encode()

OLD = "application/vnd.dev.sigstore.bundle+json;version=0."
ACCEPTED = "accepted"


def compact(bundle):
    return json.dumps(bundle, ensure_ascii=False, separators=(",", ":"))


def material(bundle):
    return bundle["verificationMaterial"]


def entry(bundle):
    return material(bundle)["tlogEntries"][0]


def proof(bundle):
    return entry(bundle)["inclusionProof"]


def flipped(text):
    """Base64 of the same bytes with one bit turned."""
    data = bytearray(base64.b64decode(text))
    data[len(data) // 2] ^= 1
    return b64(data)


class Cases:
    def __init__(self, instance):
        self.instance = instance
        self.root = instance.trusted_root()
        self.stranger = Instance(instance.now)
        self.found = []

    def add(self, name, bundle, expected, root=None, content=CONTENT):
        text = bundle if isinstance(bundle, str) else compact(bundle)
        self.found.append({"name": name, "bundle": text, "root": root or self.root, "content": content,
                           "expected": expected})

    def changed(self, name, change, expected, base=None):
        bundle = copy.deepcopy(base or self.good)
        change(bundle)
        self.add(name, bundle, expected)

    def all(self):
        self.good = self.instance.sign_file(CONTENT)
        self.right()
        self.certificates()
        self.logs()
        self.entries()
        self.timestamps()
        self.documents()
        self.roots()
        self.signers()
        return self.found

    def right(self):
        sign = self.instance.sign_file
        self.add("format-0.3", self.good, ACCEPTED)
        self.add("format-0.3-old-name", sign(CONTENT, media=OLD + "3"), ACCEPTED)
        self.add("format-0.2", sign(CONTENT, media=OLD + "2"), ACCEPTED)
        self.add("format-0.1", sign(CONTENT, media=OLD + "1"), ACCEPTED)
        self.second = sign(CONTENT, generation=2)
        self.add("second-generation-log-with-timestamp", self.second, ACCEPTED)
        self.changed("without-message-digest", lambda b: b["messageSignature"].pop("messageDigest"), ACCEPTED)
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self.instance.certificate(key, Identity())
        both = sign(CONTENT, key=key, certificate=cert)
        both_time = self.instance.timestamp(base64.b64decode(both["messageSignature"]["signature"]))
        material(both)["timestampVerificationData"] = {"rfc3161Timestamps": [{"signedTimestamp": b64(both_time)}]}
        self.add("promise-and-timestamp", both, ACCEPTED)
        chained = sign(CONTENT, media=OLD + "2")
        between = self.instance.between.public_bytes(serialization.Encoding.DER)
        material(chained)["x509CertificateChain"]["certificates"].append({"rawBytes": b64(between)})
        self.add("intermediate-certificate-beside", chained, ACCEPTED)

    def certificates(self):
        sign, now = self.instance.sign_file, self.instance.now
        self.add("other-authority", sign(CONTENT, issuer=(self.stranger.between_key, self.stranger.between)),
                 "trust.signature.chain")
        self.add("authority-of-the-same-name", sign(CONTENT, issuer=(self.stranger.between_key, self.instance.between)),
                 "trust.signature.chain")
        hour = datetime.timedelta(hours=1)
        self.add("certificate-expired-when-logged", sign(CONTENT, start=now - hour), "trust.signature.chain")
        self.add("certificate-not-yet-valid-when-logged", sign(CONTENT, start=now + hour), "trust.signature.chain")
        self.add("certificate-for-other-uses", sign(CONTENT, code_signing=False), "trust.signature.usage")
        self.add("certificate-of-an-authority", sign(CONTENT, is_ca=True), "trust.signature.usage")
        self.add("certificate-never-logged", sign(CONTENT, sct="none"), "trust.signature.certificate-log")
        self.add("certificate-in-another-log", sign(CONTENT, sct="other-log"), "trust.signature.certificate-log")
        self.add("certificate-logged-otherwise", sign(CONTENT, sct="other-entry"), "trust.signature.certificate-log")
        self.add("certificate-logged-twice", sign(CONTENT, twice=True), "trust.signature.certificate-log")
        rooted = sign(CONTENT, media=OLD + "2")
        root = self.instance.root.public_bytes(serialization.Encoding.DER)
        material(rooted)["x509CertificateChain"]["certificates"].append({"rawBytes": b64(root)})
        self.add("root-certificate-beside", rooted, "trust.signature.chain")
        self.changed("certificate-flipped",
                     lambda b: material(b)["certificate"].update(rawBytes=flipped(material(b)["certificate"]["rawBytes"])),
                     "trust.signature.chain")
        self.changed("certificate-is-none", lambda b: material(b)["certificate"].update(rawBytes=b64(b"none")),
                     "trust.signature.chain")

    def logs(self):
        instance, sign = self.instance, self.instance.sign_file
        self.add("other-log", sign(CONTENT, log_key=self.stranger.rekor_key), "trust.signature.log")
        self.changed("root-hash-flipped", lambda b: proof(b).update(rootHash=flipped(proof(b)["rootHash"])),
                     "trust.signature.inclusion")
        self.changed("proof-hash-flipped",
                     lambda b: proof(b)["hashes"].__setitem__(1, flipped(proof(b)["hashes"][1])),
                     "trust.signature.inclusion")
        self.changed("proof-too-short", lambda b: proof(b)["hashes"].pop(), "trust.signature.inclusion")
        self.changed("proof-too-long", lambda b: proof(b)["hashes"].append(proof(b)["hashes"][0]),
                     "trust.signature.inclusion")
        self.changed("proof-at-another-place", lambda b: proof(b).update(logIndex="6"), "trust.signature.inclusion")
        self.changed("proof-outside-the-tree", lambda b: proof(b).update(logIndex="11"), "trust.bundle.proof")
        self.changed("tree-size-lies", lambda b: proof(b).update(treeSize="12"), "trust.signature.checkpoint")
        self.changed("no-checkpoint", lambda b: proof(b).pop("checkpoint"), "trust.bundle.missing-key")
        note = f"rekor.example - 4711\n11\n{proof(self.good)['rootHash']}\n"
        for name, change in {
                "checkpoint-by-another-key": lambda b: instance.renote(entry(b), note, key=self.stranger.rekor_key),
                "checkpoint-with-another-hint": lambda b: instance.renote(entry(b), note, hint=b"\0\1\2\3"),
                "checkpoint-of-another-log": lambda b: instance.renote(entry(b), note, shown="other.example"),
                "checkpoint-of-another-tree":
                    lambda b: instance.renote(entry(b), note.replace(proof(b)["rootHash"], flipped(proof(b)["rootHash"]))),
                "checkpoint-of-another-size": lambda b: instance.renote(entry(b), note.replace("\n11\n", "\n12\n")),
                "checkpoint-without-size": lambda b: instance.renote(entry(b), note.replace("\n11\n", "\n")),
                "checkpoint-unsigned": lambda b: proof(b)["checkpoint"].update(envelope=note + "\n"),
                "checkpoint-without-blank-line": lambda b: proof(b)["checkpoint"].update(envelope=note),
        }.items():
            self.changed(name, change, "trust.signature.checkpoint")
        self.changed("promise-flipped", lambda b: entry(b)["inclusionPromise"].update(
            signedEntryTimestamp=flipped(entry(b)["inclusionPromise"]["signedEntryTimestamp"])), "trust.signature.promise")
        self.changed("promise-by-another-key", lambda b: instance.repromise(entry(b), self.stranger.rekor_key),
                     "trust.signature.promise")
        self.changed("time-moved", lambda b: entry(b).update(integratedTime=str(int(entry(b)["integratedTime"]) + 1)),
                     "trust.signature.promise")
        self.changed("index-moved", lambda b: entry(b).update(logIndex="1008"), "trust.signature.promise")
        self.changed("time-without-promise", lambda b: entry(b).pop("inclusionPromise"), "trust.bundle.time")
        self.changed("promise-without-time", lambda b: entry(b).pop("integratedTime"), "trust.signature.time")

    def entries(self):
        sign = self.instance.sign_file
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.instance.certificate(key, Identity())
        other = key.sign(b"other", ec.ECDSA(hashes.SHA256()))
        same = {"key": key, "certificate": certificate}
        self.add("other-file", self.good, "trust.signature.content", content=CONTENT + b" ")
        self.add("signature-by-another-key",
                 sign(CONTENT, key=ec.generate_private_key(ec.SECP256R1()), certificate=certificate),
                 "trust.signature.content")
        self.changed("signature-flipped", lambda b: b["messageSignature"].update(
            signature=flipped(b["messageSignature"]["signature"])), "trust.signature.content")
        self.changed("message-digest-of-another-file", lambda b: b["messageSignature"]["messageDigest"].update(
            digest=b64(hashlib.sha256(b"other").digest())), "trust.signature.content")
        self.changed("message-digest-by-another-hash", lambda b: b["messageSignature"]["messageDigest"].update(
            algorithm="SHA3_256"), "trust.bundle.digest")
        self.add("entry-of-another-file", sign(CONTENT, logged={"content": b"other"}, **same), "trust.signature.entry")
        self.add("entry-of-another-signature", sign(CONTENT, logged={"signature": other}, **same),
                 "trust.signature.entry")
        self.add("entry-of-another-certificate",
                 sign(CONTENT, logged={"certificate": self.instance.certificate(key, Identity())}, **same),
                 "trust.signature.entry")
        self.add("second-generation-entry-of-another-file",
                 sign(CONTENT, generation=2, logged={"content": b"other"}, **same), "trust.signature.entry")
        self.add("entry-of-another-kind", sign(CONTENT, kind={"kind": "dsse", "version": "0.0.1"}, **same),
                 "trust.signature.entry")
        self.add("entry-of-an-unknown-version", sign(CONTENT, kind={"kind": "hashedrekord", "version": "0.0.3"}, **same),
                 "trust.signature.time")
        self.add("entry-body-is-no-json", sign(CONTENT, body=b"{", **same), "trust.log-entry.json")
        self.add("entry-body-with-more", sign(CONTENT, body=b'{"apiVersion":"0.0.1","kind":"hashedrekord","more":1}',
                                             **same), "trust.log-entry.unknown-key")

    def timestamps(self):
        sign = self.instance.sign_file
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.instance.certificate(key, Identity())
        same = {"key": key, "certificate": certificate, "generation": 2}
        self.add("timestamp-of-another-signature", sign(CONTENT, timestamps=[self.instance.timestamp(b"other")], **same),
                 "trust.signature.timestamp")
        self.add("timestamp-is-none", sign(CONTENT, timestamps=[b"none"], **same), "trust.signature.timestamp")
        stranger = sign(CONTENT, timestamps=[b""], **same)
        signature = base64.b64decode(stranger["messageSignature"]["signature"])
        material(stranger)["timestampVerificationData"]["rfc3161Timestamps"] = [
            {"signedTimestamp": b64(self.instance.timestamp(signature, other_authority=True))}]
        self.add("timestamp-by-another-authority", stranger, "trust.signature.timestamp")
        self.add("second-generation-without-timestamp", sign(CONTENT, timestamps=[], **same), "trust.bundle.time")
        self.changed("second-generation-index-moved", lambda b: entry(b).update(logIndex="8"),
                     "trust.signature.inclusion", base=self.second)

    def documents(self):
        text = compact(self.good)
        self.add("truncated", text[:-1], "trust.bundle.json")
        self.add("array", "[]", "trust.bundle.type")
        self.add("empty", "", "trust.bundle.json")
        self.add("key-twice", text[:-1] + ',"mediaType":"' + self.good["mediaType"] + '"}', "trust.bundle.duplicate-key")
        self.add("nested-too-deep", "[" * 5000 + "]" * 5000, "trust.bundle.json-limits")
        self.changed("more-keys", lambda b: b.update(more=1), "trust.bundle.unknown-key")
        self.changed("unknown-format", lambda b: b.update(mediaType=OLD + "4"), "trust.bundle.media-type")
        self.changed("two-entries", lambda b: material(b)["tlogEntries"].append(entry(b)), "trust.bundle.entries")
        self.changed("no-entries", lambda b: material(b).update(tlogEntries=[]), "trust.bundle.entries")
        self.changed("bare-key", lambda b: material(b).update(publicKey={"hint": "x"}), "trust.bundle.public-key")
        self.changed("chain-in-new-format",
                     lambda b: material(b).update(x509CertificateChain={"certificates": [material(b).pop("certificate")]}),
                     "trust.bundle.missing-key")
        self.changed("empty-chain", lambda b: material(b)["x509CertificateChain"].update(certificates=[]),
                     "trust.bundle.chain", base=self.instance.sign_file(CONTENT, media=OLD + "2"))
        self.changed("envelope", lambda b: b.update(dsseEnvelope={}), "trust.bundle.envelope")
        self.changed("no-signature", lambda b: b.pop("messageSignature"), "trust.bundle.missing-key")
        self.changed("base64-with-space", lambda b: b["messageSignature"].update(
            signature=" " + b["messageSignature"]["signature"]), "trust.bundle.value")
        self.changed("negative-index", lambda b: entry(b).update(logIndex="-1"), "trust.bundle.value")
        self.changed("huge-index", lambda b: entry(b).update(logIndex="9" * 40), "trust.bundle.value")
        self.changed("index-with-zero", lambda b: entry(b).update(logIndex="01007"), "trust.bundle.value")
        self.changed("index-as-number", lambda b: entry(b).update(logIndex=1007), "trust.bundle.type")
        self.changed("time-in-the-far-future", lambda b: entry(b).update(integratedTime="9000000000"),
                     "trust.signature.chain")
        self.changed("too-many-hashes", lambda b: proof(b).update(hashes=proof(b)["hashes"] * 30), "trust.bundle.proof")
        self.changed("short-hash", lambda b: proof(b).update(rootHash=b64(b"short")), "trust.bundle.proof")

    def roots(self):
        now = self.instance.now

        def root(change):
            changed = copy.deepcopy(self.root)
            change(changed)
            return changed

        def until(when):
            return when.strftime("%Y-%m-%dT%H:%M:%SZ")

        day = datetime.timedelta(days=1)
        self.add("root-of-another-instance", self.good, "trust.signature.chain", root=self.stranger.trusted_root())
        self.add("root-expired", self.good, "trust.signature.chain",
                 root=root(lambda r: r["certificateAuthorities"][0]["validFor"].update(end=until(now - day))))
        self.add("log-retired", self.good, "trust.signature.log-time",
                 root=root(lambda r: r["tlogs"][0]["publicKey"]["validFor"].update(end=until(now - day))))
        self.add("log-retired-that-second", self.good, ACCEPTED,
                 root=root(lambda r: r["tlogs"][0]["publicKey"]["validFor"].update(end=until(now))))
        self.add("certificate-log-retired", self.good, "trust.signature.certificate-log",
                 root=root(lambda r: r["ctlogs"][0]["publicKey"]["validFor"].update(end=until(now - day))))
        self.add("timestamp-authority-retired", self.second, "trust.signature.timestamp",
                 root=root(lambda r: r["timestampAuthorities"][0]["validFor"].update(end=until(now - day))))
        self.add("no-timestamp-authority", self.second, "trust.signature.timestamp",
                 root=root(lambda r: r.update(timestampAuthorities=[])))
        self.add("root-of-unknown-format", self.good, "trust.root.media-type", root=root(lambda r: r.update(mediaType="x")))

    def signers(self):
        """Right bundles by others: what the policy has to refuse."""
        def sign(**changes):
            return self.instance.sign_file(CONTENT, identity=Identity(**changes))

        other = REPOSITORY.replace("huggingface", "somebody")
        self.add("signer-of-another-repository", sign(
            repository=other, workflow=f"{other}/.github/workflows/build.yaml@refs/heads/main"), "wrong-signer")
        self.add("signer-of-another-source", sign(repository=other), "wrong-signer")
        self.add("signer-by-another-workflow", sign(
            workflow=f"{REPOSITORY}/.github/workflows/other.yaml@refs/heads/main"), "wrong-signer")
        self.add("signer-on-another-branch", sign(
            workflow=f"{REPOSITORY}/.github/workflows/build.yaml@refs/heads/dev", ref="refs/heads/dev"), "wrong-signer")
        self.add("signer-of-another-issuer", sign(issuer="https://accounts.example", old_issuer="https://accounts.example"),
                 "wrong-signer")
        self.add("issuers-that-differ", sign(old_issuer="https://accounts.example"), "trust.signature.identity")
