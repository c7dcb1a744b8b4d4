from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import DetachOption, path_option, require_waiting
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.downloads import require_absent
from trephine.client.labelled_files import TextColumns, read_texts

EXPORT_CLASSIFIER_EXAMPLES = examples(
    "trephine export-classifier REMOVAL professions --export no-gender-1a2b --texts balanced.jsonl \\",
    "    --label-column profession --out out/professions",
)


def export_classifier(
    context: typer.Context,
    removal: Annotated[str, typer.Argument(help="A report, as remove-spurious names it.")],
    name: Annotated[str, typer.Argument(help="Folder to publish in the server's export root.")],
    texts: Annotated[Path, path_option("--texts", "Texts on which the reloaded folder is compared.")],
    text_column: Annotated[str, typer.Option(help="Column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="Column with the label.")] = "label",
    export: Annotated[
        str | None, typer.Option(help="Published export of the report's edit; unset: nothing was removed.")
    ] = None,
    out: Annotated[
        Path | None, path_option("--out", "Folder to fetch the classifier into; must not exist.")
    ] = None,
    detach: DetachOption = False,
) -> None:
    """Publish a report's head on an export of its edit as a stock sequence classifier.

    The folder is reloaded by stock transformers in a clean process first, and must decide as was measured on
    95 % of the texts, of which 64, evenly over all, are compared.
    """
    given = invocation(context)
    require_waiting(out, detach=detach)
    if out is not None:
        require_absent(out)
    read = read_texts(texts, TextColumns(text=text_column, label=label_column))
    with given.connect() as trephine:
        started = trephine.spurious_removals.start_export_classifier(
            removal, name, [one.text for one in read], export=export
        )
        found = given.complete(trephine, started, "export the classifier", detach=detach)
        if out is not None:
            given.output.note(f"wrote {trephine.spurious_removals.download_classifier(found, out)}")
    if given.output.json:
        given.output.document(found.to_json())
        return
    decides = " and ".join(found.labels)
    if found.threshold is not None:
        below, above = found.labels
        decides = f"one reward: above {found.threshold:.7g} {above}, else {below}"
    given.output.facts(
        [
            ("published", f"{found.name}, {found.architecture} of {decides}"),
            ("reloaded", f"{found.agreeing} of {found.checked_texts} decisions agree"),
            ("logits", f"differ by at most {found.largest_difference:.2g}"),
            ("files", ", ".join(sorted(found.files))),
        ]
    )
