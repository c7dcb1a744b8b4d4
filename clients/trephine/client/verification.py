"""Offline verification of an exported folder: hashes, manifest, certificate, gates, signature.

Needs neither a server nor torch. What it proves: no byte differs from what was certified, the gates are
those of the plan and hold, and every tensor is its parent's unless the plan names it. Who made the folder
is proved by a signature and a public key that you got by another way, or by an identity that Sigstore vouches
for, and by nothing else. Checking a signature takes `pip install 'trephine[verify]'`; without it no signed
folder passes.

    python -m trephine.client.verification FOLDER [--json] [--public-key PEM]
        [--identity NAME --identity-provider URL [--sigstore-trust-config FILE]]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trephine.client.digests import file_digest, listed_digests, tensor_digests
from trephine.client.errors import SignatureUncheckedError, TrephineError
from trephine.client.export_records import CertificateRecord, FileRecord, ManifestRecord
from trephine.client.folder_contents import contents_of, printable_path
from trephine.client.plain_json import parse_json
from trephine.client.signatures import SIGNATURE, SUMS, Trust, check_signature, require_kind
from trephine.client.terminal import printable
from trephine.client.types.removal import word_as_text

CERTIFICATE = "certificate.json"
MANIFEST = "edit_manifest.json"
INDEX = "model.safetensors.index.json"
NEXT_STEP = (
    "fetch the folder again and verify the copy; if that fails as well, ask whoever published it, "
    "and do not load it"
)
"""What to do with a folder that does not verify."""
_MISSING = "{}: missing"


class Verification(BaseModel):
    """The outcome of checking a folder."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    problems: tuple[str, ...] = ()
    """What does not hold, each naming a file, tensor or gate."""
    files: int = 0
    """Files that were read."""
    removal: str | None = None
    """What the certificate says of the ablated behaviour: `removed`, `suppressed`, `inconclusive`; None: it
    cannot be read, or was written before the word, and nobody attacked it."""
    reason: str = ""
    """Why, where no attack decided: `not attacked`."""
    verdict: str = "unspecified"
    """What the certificate comes to: `passed`, `inconclusive`, `failed`; `unspecified`: it cannot be read.
    `passed` above says that the folder is what was certified; this, what was."""
    doubt: str = ""
    """Why it is inconclusive."""
    notes: tuple[str, ...] = ()
    """What could not be checked here, or what a check does not prove."""

    @property
    def behaviour(self) -> str:
        """The word as text: `suppressed (not attacked)`, `inconclusive (counts as suppressed)`."""
        return word_as_text(self.removal or "unknown", self.reason)


def verify_folder(
    folder: str | Path,
    *,
    public_key: str | Path | None = None,
    identity: str | None = None,
    identity_provider: str | None = None,
    sigstore_trust_config: str | Path | None = None,
) -> Verification:
    """Check a folder that was exported by Trephine.

    Args:
        folder: The folder.
        public_key: A PEM file that you trust. None uses the one inside the folder, which proves that the
            folder is whole, not who made it. A server's lies in its state folder, `signing.pub.pem`.
        identity: Who must have signed with Sigstore: an address, or the URI of a workflow.
        identity_provider: URL of who must have vouched for the identity; needed with it.
        sigstore_trust_config: JSON file of another Sigstore than the public one.

    Raises:
        LocalFileError: If `public_key` is no PEM file of a public key.
        InvalidRequestError: If half of an identity is given, or both an identity and a key.
        SignatureKindError: If a folder signed with a key is asked for an identity, or the reverse.
        SigstoreUnreachableError: If an identity is asked for and no trust root is to be had.
        SignatureUncheckedError: If the folder is signed, nothing else is amiss, and the package that checks
            signatures is not installed; the message says what to install. Never a pass.
    """
    trust = Trust(
        public_key=None if public_key is None else Path(public_key),
        identity=identity,
        identity_provider=identity_provider,
        trust_config=None if sigstore_trust_config is None else Path(sigstore_trust_config),
    )
    trust.require_usable()
    root, notes = Path(folder), list[str]()
    if not root.is_dir():
        return Verification(passed=False, problems=(f"{printable_path(root)} is no folder",))
    names, strange = contents_of(root)
    if strange:
        return Verification(passed=False, problems=(*_missing(names), *strange), files=len(names))
    require_kind(root, trust)
    problems = tuple(dict.fromkeys(_found(root, names, notes, trust)))
    certificate = _certificate(root)
    fate = None if certificate is None else certificate.word
    return Verification(
        passed=not problems,
        problems=problems,
        files=len(names),
        removal=None if fate is None else fate.verdict,
        reason="" if fate is None else fate.reason,
        verdict="unspecified" if certificate is None else certificate.due_verdict,
        doubt="" if certificate is None else certificate.doubt,
        notes=tuple(notes),
    )


def _missing(names: list[str]) -> Iterator[str]:
    """What no export is without."""
    if missing := [name for name in (SUMS, MANIFEST, CERTIFICATE) if name not in names]:
        yield f"{', '.join(missing)} missing: this is no folder that Trephine published"


def _found(root: Path, names: list[str], notes: list[str], trust: Trust) -> list[str]:
    """What does not hold; where something does not, a signature that could not be checked is but a note."""
    found = list[str]()
    try:
        for problem in _check(root, names, notes, trust):
            found.append(problem)
    except SignatureUncheckedError as unchecked:
        if not found:
            raise
        notes.append(unchecked.message)
    return found


def _certificate(root: Path) -> CertificateRecord | None:
    """Read the certificate; one that cannot be read is a problem already, and says nothing."""
    try:
        return CertificateRecord.model_validate_json((root / CERTIFICATE).read_bytes())
    except (OSError, ValidationError):
        return None


def _check(root: Path, names: list[str], notes: list[str], trust: Trust) -> Iterator[str]:
    if missing := (*_missing(names),):
        yield from missing
        return
    found = {name: FileRecord(path=name, size=0, sha256="") for name in names}
    for name in names:
        try:
            size, digest = file_digest(root / name)
        except OSError as error:
            yield f"{name}: cannot be read: {error.strerror}"
            return
        found[name] = FileRecord(path=name, size=size, sha256=digest)
    yield from _check_sums(root, found)
    try:
        raw = parse_json((root / MANIFEST).read_bytes())
        manifest = ManifestRecord.model_validate(raw)
        certificate = CertificateRecord.model_validate_json((root / CERTIFICATE).read_bytes())
    except (ValueError, ValidationError) as error:
        yield f"{MANIFEST} or {CERTIFICATE} cannot be read: {str(error).splitlines()[0]}"
        return
    yield from _check_files(manifest, found)
    yield from _check_tensors(root, manifest)
    yield from _check_chain(raw["plan"], manifest, certificate)
    yield from _check_sets(manifest, certificate, notes)
    yield from _check_gates(manifest, certificate)
    yield from check_signature(root, names, notes, trust)


def _check_sums(root: Path, found: dict[str, FileRecord]) -> Iterator[str]:
    """Hold the list of digests, byte for byte, against what it must be."""
    expected = listed_digests({name: file.sha256 for name, file in found.items()}, apart=SUMS)
    content = (root / SUMS).read_bytes()
    if content == expected.encode():
        return
    listed = dict(_listed(content.decode("utf-8", "replace")))
    wrong = [n for n in sorted(found) if n != SUMS and listed.get(n) != found[n].sha256]
    gone = [n for n in sorted(listed) if n not in found]
    yield from (_MISSING.format(name) for name in gone)
    if gone and not wrong:
        return
    for name in wrong or [SUMS]:
        yield f"{name}: differs from {SUMS}, or is not in both" if wrong else f"{SUMS}: altered"


def _listed(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        yield name, digest


def _check_files(manifest: ManifestRecord, found: dict[str, FileRecord]) -> Iterator[str]:
    known = {file.path: file for file in manifest.files}
    for path, file in known.items():
        if path not in found:
            yield _MISSING.format(path)
        elif found[path] != file:
            yield f"{path}: its bytes are not those that were published"
    for path in found:
        if path not in known and path not in (MANIFEST, SUMS, SIGNATURE):
            yield f"{path}: was not published"


def _check_tensors(root: Path, manifest: ManifestRecord) -> Iterator[str]:
    """Recompute every tensor's digest; unplanned tensors must have their parent's.

    A shard may hold an older copy of a tensor that is published from another one. It does no harm where the
    index names that other one and stock transformers, which takes the last, loads it.

    A file that is missing (said by `_check_files`) or unreadable is one problem, not one per tensor.
    """
    planned, seen = set(manifest.plan.changed_tensors), set[str]()
    known_files = {file.path for file in manifest.files}
    unread, weight_map = set[str](), _weight_map(root)
    for file in sorted({tensor.file for tensor in manifest.tensors.values()} & known_files):
        if not (root / file).is_file():
            unread.add(file)
            continue
        try:
            for tensor in tensor_digests(root / file):
                known = manifest.tensors.get(tensor.name)
                if known is not None and file < known.file == weight_map.get(tensor.name):
                    continue
                seen.add(tensor.name)
                if known is None:
                    yield f"{file}: tensor {tensor.name} was not published"
                elif (tensor.dtype, tensor.shape, tensor.sha256) != (known.dtype, known.shape, known.after):
                    yield f"{file}: tensor {tensor.name} is not the one that was published"
        except (OSError, ValueError, KeyError, TypeError) as error:
            unread.add(file)
            yield f"{file}: no readable safetensors file ({error})"
    for name, known in manifest.tensors.items():
        if name not in seen and known.file not in unread:
            yield f"{known.file}: tensor {name} is missing"
        if (known.before != known.after) != (name in planned):
            yield f"{MANIFEST}: tensor {name} changed without being planned, or was planned and did not"


def _weight_map(root: Path) -> dict[str, Any]:
    """Which shard each tensor is in, as the folder's index has it; nothing where it has none."""
    try:
        found = parse_json((root / INDEX).read_bytes())["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_chain(
    plan: dict[str, Any], manifest: ManifestRecord, certificate: CertificateRecord
) -> Iterator[str]:
    """Follow the hashes from edit to plan to certificate."""
    fields = {key: value for key, value in plan.items() if key != "plan_hash"}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    if hashlib.sha256(canonical.encode()).hexdigest() != manifest.plan.plan_hash:
        yield f"{MANIFEST}: the plan is not the one that its hash names"
    if certificate.plan_hash != manifest.plan.plan_hash:
        yield f"{CERTIFICATE}: names another plan"
    if not certificate.edit_hash == manifest.plan.edit_hash == manifest.edit.content_hash:
        yield f"{CERTIFICATE}: edit, plan and certificate name different edits"
    if not certificate.parent_hash == manifest.plan.parent_hash == manifest.edit.weight_hash:
        yield f"{CERTIFICATE}: edit, plan and certificate name different parents"
    if sorted(certificate.changed_tensors) != sorted(manifest.plan.changed_tensors):
        yield f"{CERTIFICATE}: names other changed tensors than the plan"
    if certificate.untouched_tensors_verified != len(manifest.tensors) - len(manifest.plan.changed_tensors):
        yield f"{CERTIFICATE}: its count of untouched tensors is wrong"


def _check_sets(manifest: ManifestRecord, certificate: CertificateRecord, notes: list[str]) -> Iterator[str]:
    """Hold the sets that were loaded against those that the edit was made for."""
    if manifest.sets is None and certificate.sets is None:
        if manifest.edit.sets:
            notes.append(
                "published before the loaded sets went on record: whether the features are those of the edit "
                "was not checked"
            )
        return
    if manifest.sets != certificate.sets:
        yield f"{CERTIFICATE}: names other sets than {MANIFEST}"
    made_for = {one.name: one.content_hash for one in manifest.edit.sets}
    loaded = {one.name: one.content_hash for one in manifest.sets or ()}
    for name in sorted(made_for.keys() | loaded.keys()):
        if made_for.get(name) != loaded.get(name):
            yield f"{MANIFEST}: the set {name} that was loaded is not the one that the edit was made for"


def _check_gates(manifest: ManifestRecord, certificate: CertificateRecord) -> Iterator[str]:
    """Judge every gate again, with the limits of the plan."""
    if tuple(result.gate for result in certificate.gates) != manifest.plan.gates:
        yield f"{CERTIFICATE}: its gates are not those of the plan"
    measured = {m.name: m.value for m in certificate.measurements}
    for result in certificate.gates:
        holds = result.measured <= result.gate.limit
        if not holds:
            yield f"gate {result.gate.name}: {result.measured:g} is above the limit of {result.gate.limit:g}"
        if holds != result.passed:
            yield f"{CERTIFICATE}: gate {result.gate.name} is marked wrongly"
        if measured.get(result.gate.name) != result.measured:
            yield f"{CERTIFICATE}: gate {result.gate.name} does not show what was measured"
    if certificate.fate is not None and certificate.contradicts_attacks:
        yield f"{CERTIFICATE}: its word, {certificate.fate.verdict}, is not that of its attacks"
    if certificate.doubt != manifest.plan.doubt:
        yield f"{CERTIFICATE}: its doubt is not that of the plan"
    due = certificate.due_verdict
    if certificate.verdict not in (None, due) or certificate.passed != (due == "passed"):
        yield f"{CERTIFICATE}: its verdict is not that of its gates and its doubt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the folder named on the command line.

    Returns:
        0 if everything holds, 2 for a question that is wrong or, as a signature's without the package that
        checks it, cannot be answered here, 3 if something does not hold, 4 if everything does and the
        certificate is inconclusive.
    """
    given = _arguments().parse_args(arguments)
    try:
        outcome = verify_folder(
            given.folder,
            public_key=given.public_key,
            identity=given.identity,
            identity_provider=given.identity_provider,
            sigstore_trust_config=given.sigstore_trust_config,
        )
    except TrephineError as error:
        return _refused(error, as_json=given.json)
    if given.json:
        sys.stdout.write(outcome.model_dump_json() + "\n")
    else:
        lines = [*(f"PROBLEM {p}" for p in outcome.problems), *(f"note: {n}" for n in outcome.notes)]
        state = "verified" if outcome.passed else "NOT VERIFIED"
        lines += [f"{printable_path(given.folder)}: {state}, {outcome.files} files"]
        # What a folder says of itself that is not as it was published is not repeated.
        said = [f"certificate: {outcome.verdict}{outcome.doubt and ': '}{outcome.doubt}"]
        said += [f"behaviour: {outcome.behaviour}"]
        lines += said if outcome.passed else [f"next: {NEXT_STEP}"]
        sys.stdout.write("\n".join(map(printable, lines)) + "\n")
    if not outcome.passed:
        return 3
    return 0 if outcome.verdict == "passed" else 4


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="verification", description="Check an exported checkpoint folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--public-key", type=Path, help="PEM file of the key that you trust")
    parser.add_argument("--identity", help="who must have signed with Sigstore")
    parser.add_argument("--identity-provider", help="URL of who must have vouched for the identity")
    parser.add_argument("--sigstore-trust-config", type=Path, help="of another Sigstore than the public one")
    return parser


def _refused(error: TrephineError, *, as_json: bool) -> int:
    """Say why the question cannot be answered: on stderr, for programs on stdout."""
    if as_json:
        body = {"error": {"reason": error.reason, "message": error.message, "context": error.context}}
        sys.stdout.write(json.dumps(body) + "\n")
    sys.stderr.write(f"error: {error.message} [{error.reason}]\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
