"""`trephine circuits pin|unpin|label|group|annotations`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.circuit import Circuit
from trephine.client.cli.arguments import path_option
from trephine.client.cli.circuit_nodes import NodeArgument, NodesArgument, node_indices
from trephine.client.cli.circuit_queries import NameArgument
from trephine.client.cli.feature_labels import AuthorOption, whoami
from trephine.client.cli.group_scores import show_scores
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.downloads import write_file
from trephine.client.errors import InvalidRequestError
from trephine.client.node_addresses import address
from trephine.client.types import CircuitAnnotations


def pin(
    context: typer.Context, name: NameArgument, nodes: NodesArgument, author: AuthorOption = None
) -> None:
    """Pin nodes: pruning and exports keep them."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        now = circuit.pin(*node_indices(circuit, nodes), author=_author(author))
        _show(given.output, circuit, now)


def unpin(context: typer.Context, name: NameArgument, nodes: NodesArgument) -> None:
    """Take pins off."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        _show(given.output, circuit, circuit.unpin(*node_indices(circuit, nodes)))


def label(
    context: typer.Context,
    name: NameArgument,
    node: NodeArgument,
    text: Annotated[str, typer.Argument(help="What to call it; empty takes the label off.")],
    author: AuthorOption = None,
) -> None:
    """Call a node something."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        index = node_indices(circuit, [node])[0]
        now = circuit.label(index, text, author=_author(author)) if text else circuit.unlabel(index)
        _show(given.output, circuit, now)


def group(
    context: typer.Context,
    name: NameArgument,
    group_name: Annotated[
        str | None, typer.Argument(metavar="[GROUP]", help="Its name; unset with --auto.")
    ] = None,
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="[NODE...]", help="As `circuits pin` takes them.")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Find groups of features that are alike.")] = False,
    by: Annotated[str, typer.Option(help="With --auto: `directions` or `edges`.")] = "directions",
    min_similarity: Annotated[float | None, typer.Option(help="With --auto: unset 0.5.")] = None,
    min_shown: Annotated[
        float | None,
        typer.Option(help="Instead: the share of path mass that groups must leave in sight, as 0.8."),
    ] = None,
    layers_apart: Annotated[int | None, typer.Option(help="With --auto: at most; unset 3.")] = None,
    positions_apart: Annotated[int | None, typer.Option(help="With --auto: at most; unset 0.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Dissolve the group.")] = False,
    author: AuthorOption = None,
) -> None:
    """Group nodes into a concept, by hand or by likeness; what is found is scored.

    A group that has the name already is made anew of the nodes given; nodes leave the groups they were in.
    """
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        if auto:
            if group_name is not None:
                raise InvalidRequestError("--auto names the groups itself: leave GROUP and NODEs out")
            now = circuit.group_automatically(
                by=by,
                min_similarity=min_similarity,
                min_shown=min_shown,
                max_layers_apart=layers_apart,
                max_positions_apart=positions_apart,
                author=_author(author),
            )
        elif group_name is None:
            raise InvalidRequestError("name the group and its nodes, or use --auto")
        elif remove:
            now = circuit.ungroup(group_name)
        else:
            members = node_indices(circuit, nodes or [])
            now = circuit.group(group_name, *members, author=_author(author))
        _show(given.output, circuit, now)
        if now.scores is not None and not given.output.json:
            given.output.line()
            show_scores(given.output, now.scores)
        if now.not_scored:
            given.output.note(f"not scored: {now.not_scored}")


def said(
    context: typer.Context,
    name: NameArgument,
    out: Annotated[
        Path | None, path_option("--out", "Write pins, labels and groups into this JSON file.")
    ] = None,
    read: Annotated[
        Path | None, path_option("--import", "Add those of such a file, or of a graph file.")
    ] = None,
    author: AuthorOption = None,
) -> None:
    """Print what was said about a circuit's nodes; bring it in, take it out."""
    given = invocation(context)
    with given.connect() as trephine:
        circuit = trephine.circuits.get(name)
        if read is not None:
            _, skipped = circuit.import_annotations(read.expanduser(), author=_author(author))
            if skipped:
                shown = ", ".join(skipped[:5])
                given.output.note(f"{len(skipped)} ids are not in this circuit and were skipped: {shown}")
        if out is not None:
            document = json.dumps(circuit.export_annotations(), indent=1, ensure_ascii=False)
            given.output.line(str(write_file(out, document.encode())))
        else:
            _show(given.output, circuit, circuit.annotations())


def _show(output: Output, circuit: Circuit, said: CircuitAnnotations) -> None:
    if output.json:
        output.document(said.to_json())
        return
    named = {node.index: address(node, circuit.info.set_names) for node in circuit.nodes()}
    rows = [("pin", named[one.node], "", one.author, one.create_time) for one in said.pins]
    rows += [("label", named[one.node], one.text, one.author, one.create_time) for one in said.labels]
    for one in said.groups:
        members = " ".join(named[node] for node in one.nodes)
        # Of a group that lost nodes no similarity is known, and what was found was found of more than these.
        how = f" ({one.how})" if one.how else ""
        found = how if one.cohesion is None else f" (alike {one.cohesion:.2f})"
        rows.append(("group", members, f"{one.name}{found}", one.author, one.create_time))
    output.table(("WHAT", "NODES", "CALLED", "AUTHOR", "CHANGED"), rows)


def _author(given: str | None) -> str:
    return whoami() if given is None else given
