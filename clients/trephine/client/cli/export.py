from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.cli.arguments import DetachOption, path_argument, path_option
from trephine.client.cli.certificate_text import (
    dtypes,
    figure_rows,
    gate_rows,
    show_main_figures,
    status_of,
    verdict_word,
)
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.plan import planned, show_plan
from trephine.client.cli.progress import ProgressView
from trephine.client.cli.quantised import GgufOption, show_quantised
from trephine.client.cli.removal import show_removal
from trephine.client.cli.texts import read_text
from trephine.client.downloads import require_absent, require_writable
from trephine.client.errors import ExportTargetExistsError, InvalidRequestError, LocalFileError
from trephine.client.export_names import export_id_for
from trephine.client.export_notices import reused
from trephine.client.terminal import printable
from trephine.client.types import Export, ExportVerdict, SignatureKind
from trephine.client.verification import NEXT_STEP, Verification, verify_folder

EXPORT_EXAMPLES = examples(
    "trephine export no-mary --out out/edited",
    "trephine export no-mary --plan",
    "trephine export quiet --out out/quiet --text texts/ours.txt",
    "trephine export quiet --out out/quiet --text texts/ours.txt --attack --attack-steps 200",
    "trephine export quiet --out out/quiet --gguf q8_0 --gguf q4_0",
    "trephine export quiet --out out/quiet --sigstore",
)


def export(
    context: typer.Context,
    edit: Annotated[str, typer.Argument(help="A stored edit: no-mary, or no-mary@2 for one version.")],
    out: Annotated[Path | None, path_option("--out", "Folder to make; it must not exist.")] = None,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Show what would be written and must be measured; write nothing. Not with --out."
        ),
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Compile from this model; unset: the edit's own.")
    ] = None,
    keep_rejected: Annotated[
        bool,
        typer.Option(
            "--keep-rejected", help="Keep a folder that misses a gate on the server, as NAME.rejected."
        ),
    ] = False,
    text: Annotated[
        Path | None,
        path_option(
            "--text",
            "Text file in which the edit acts, best some thousands of tokens; the first 9,216 are used. Of "
            "their windows of 128 tokens the last eight are measured, or a third of fewer than 24; grafts "
            "and fits are calibrated on those before. Unset: a built-in text for both.",
        ),
    ] = None,
    min_recovery: Annotated[
        float | None,
        typer.Option(
            help="Share of the edit's effect (KL) that fitted parts must carry, above 0; unset: 0.9."
        ),
    ] = None,
    keep_shapes: Annotated[
        bool,
        typer.Option("--keep-shapes", help="Fit features into the matrices that are there; add no neurons."),
    ] = False,
    attack: Annotated[
        bool,
        typer.Option(
            "--attack",
            help="Attack the result before it is signed: is the behaviour removed or suppressed? It takes "
            "minutes and more, and is given up after 30, or more by the model's size and --attack-steps.",
        ),
    ] = False,
    attack_steps: Annotated[
        int | None,
        typer.Option(help="Of the attack's training, benign and few-shot, 50 to 200; unset: 50."),
    ] = None,
    gguf: GgufOption = None,
    sigstore: Annotated[
        bool,
        typer.Option(
            "--sigstore",
            help="Sign with Sigstore in place of the server's key, as the identity that the server has: its "
            "CI job's, or the one of its --sigstore-token-file. It needs a network.",
        ),
    ] = False,
    identity_token_file: Annotated[
        Path | None,
        path_option(
            "--identity-token-file", "Sign with Sigstore as whom the OpenID Connect token in this file names."
        ),
    ] = None,
    detach: DetachOption = False,
) -> None:
    """Write an edit into the weights, certify the result in a clean process, and bring it here.

    The folder is a plain checkpoint that any stock tool loads; its README.md is the card, certificate.json
    what was measured. An export that exceeds a bound of --plan is refused, and nothing comes here; the server
    keeps it only with --keep-rejected. The same command again fetches what it made before, and says so. The
    exit status is 4 where the certificate is inconclusive: the folder is here, its edit is not certified.
    """
    given = invocation(context)
    content = None if text is None else read_text(text)
    how: dict[str, Any] = {"text": content, "min_recovery": min_recovery, "keep_shapes": keep_shapes}
    how["gguf"] = gguf or ()
    if plan or out is None:
        beyond = {"--out": out, "--attack": attack, "--attack-steps": attack_steps, "--sigstore": sigstore}
        beyond |= {"--identity-token-file": identity_token_file, "--keep-rejected": keep_rejected}
        beyond |= {"--detach": detach}
        named = [name for name, value in beyond.items() if value is not None and value is not False]
        _require_plan(plan=plan, beyond=named)
        with given.connect() as trephine:
            show_plan(given.output, planned(given, trephine, edit, model, **how))
        return
    require_absent(out)
    require_writable(out)
    how |= {"attack": attack, "attack_steps": attack_steps, "sigstore": sigstore}
    how["identity_token"] = None if identity_token_file is None else _token(identity_token_file)
    with given.connect() as trephine:
        stored = trephine.edits.get(edit)
        loaded = given.load(trephine, model or stored.made_for.model.removeprefix("models/"))
        chosen = export_id_for(out, stored, model=loaded.name, **how)
        made = trephine.exports.published(chosen, stored)
        if made is None:
            try:
                started = trephine.exports.start(
                    stored, chosen, model=loaded.name, keep_rejected=keep_rejected, **how
                )
                made = given.complete(trephine, started, f"export {stored.name}", detach=detach)
            except ExportTargetExistsError:
                made = trephine.exports.published(chosen, stored)  # the same command, given twice at once
                if made is None:
                    raise
                given.output.note(printable(reused(made)))
        else:
            given.output.note(printable(reused(made)))
        with ProgressView(given.output, f"export {stored.name}") as view:
            trephine.exports.download(made, out, on_bytes=view.bytes)
    show_export(given.output, made, out)
    raise typer.Exit(status_of(made.certificate.verdict))


def _token(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError as failure:
        why = f"{failure.strerror}. Write the OpenID Connect token there, or leave --identity-token-file out"
    except UnicodeDecodeError:
        why = "it is no text. Write the OpenID Connect token there alone, as it was issued"
    raise LocalFileError(f"cannot read the identity token {file}: {why}")


def _require_plan(*, plan: bool, beyond: Sequence[str]) -> None:
    """Refuse options that a plan would drop: whoever gives them expects more of it than it does."""
    if not plan:
        raise InvalidRequestError("say where to: --out FOLDER, or --plan to look first", field="out")
    if beyond:
        raise InvalidRequestError(
            f"--plan writes nothing: leave out what only an export takes ({', '.join(beyond)}), or "
            "leave --plan out to export",
            field="plan",
        )


VERIFY_EXAMPLES = examples(
    "trephine verify out/edited",
    "trephine verify out/edited --public-key STATE/signing.pub.pem",
    "trephine verify out/edited --identity me@example.org \\",
    "    --identity-provider https://accounts.google.com",
)


def verify(
    context: typer.Context,
    folder: Annotated[Path, path_argument("FOLDER", "A folder that `trephine export` made.")],
    public_key: Annotated[
        Path | None,
        path_option(
            "--public-key",
            "PEM file that you trust, to prove who made the folder; "
            "a server's is signing.pub.pem in its state folder.",
        ),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            help="Who must have signed the folder with Sigstore: an address, or the URI of a CI workflow."
        ),
    ] = None,
    identity_provider: Annotated[
        str | None,
        typer.Option(help="URL of who must have vouched for the identity; needed with --identity."),
    ] = None,
    sigstore_trust_config: Annotated[
        Path | None,
        path_option("--sigstore-trust-config", "JSON file of another Sigstore than the public one."),
    ] = None,
) -> None:
    """Check an exported folder without a server: every hash, the manifest, the certificate, its gates.

    Who made it is proved by a signature and what you know of the signer: --public-key for one made with a
    key, --identity for one made with Sigstore. The exit status is 3 where something does not hold, 4 where
    all of it does and the certificate itself is inconclusive, and 2 where a signature cannot be checked for
    want of a package: pip install 'trephine[verify]'.
    """
    output = invocation(context).output
    if not folder.is_dir():
        found = "is a file, and no folder: give" if folder.exists() else "is not there; give"
        raise LocalFileError(f"{folder} {found} the folder that `trephine export` made")
    outcome = verify_folder(
        folder,
        public_key=public_key,
        identity=identity,
        identity_provider=identity_provider,
        sigstore_trust_config=sigstore_trust_config,
    )
    if output.json:
        output.document(outcome.model_dump_json(indent=2))
    else:
        _show_verification(output, outcome, folder)
    raise typer.Exit(status_of(ExportVerdict(outcome.verdict)) if outcome.passed else ExitCode.FINDINGS)


def _show_verification(output: Output, outcome: Verification, folder: Path) -> None:
    for problem in outcome.problems:
        output.line(f"PROBLEM {printable(problem)}")
    for note in outcome.notes:
        output.note(f"note: {printable(note)}")
    state = "verified" if outcome.passed else "NOT VERIFIED"
    output.line(f"{folder}: {state}, {outcome.files} files")
    if outcome.passed:
        output.line(f"certificate: {printable(verdict_word(ExportVerdict(outcome.verdict), outcome.doubt))}")
        output.line(f"behaviour: {printable(outcome.behaviour)}")
    else:
        output.note(f"next: {NEXT_STEP}")


def show_export(output: Output, made: Export, folder: Path | None = None) -> None:
    """Print a certificate: its main figures and gates; every figure too, unless the folder lies here."""
    if output.json:
        output.document(made.to_json())
        return
    certificate = made.certificate
    output.facts(
        [
            *((("folder", str(folder)),) if folder is not None else ()),
            ("export", f"{made.name}, {len(made.files)} files"),
            ("verdict", verdict_word(certificate.verdict, certificate.doubt)),
            ("signed by", _signer(made)),
            *((("published", made.create_time),) if made.create_time else ()),
            ("edit", certificate.edit),
            *(("set", f"{one.name}, content {one.content_hash}") for one in certificate.sets),
            ("dtype", dtypes(certificate)),
            ("measured on", f"{certificate.n_tokens} tokens of {certificate.text}"),
            (
                "tensors",
                f"{len(certificate.changed_tensors)} changed, "
                f"{certificate.untouched_tensors_verified} verified untouched",
            ),
            *(("caveat", one) for one in certificate.caveats),
        ]
    )
    show_main_figures(output, certificate)
    if folder is None:
        output.table(("FIGURE", "VALUE", "UNIT"), figure_rows(certificate))
    output.table(("GATE", "MEASURED", "LIMIT", "UNIT", "HOLDS"), gate_rows(certificate))
    show_quantised(output, certificate)
    show_removal(output, certificate)
    if folder is not None:
        output.note(f"check it any time with: trephine verify {folder}{_asked(made)}")


def _signer(made: Export) -> str:
    if made.signed_by is not None:
        return str(made.signed_by)
    return "the server's key" if made.signed else "nobody"


def _asked(made: Export) -> str:
    """What `verify` must be asked, for it to prove who signed."""
    by = made.signed_by
    if by is None or by.kind is not SignatureKind.SIGSTORE:
        return ""
    return f" --identity {by.identity} --identity-provider {by.identity_provider}"
