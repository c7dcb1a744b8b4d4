"""Descriptions, rankings and indexes of features, printed for people."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.cli.highlight import show_tokens
from trephine.client.cli.output import Output
from trephine.client.types import (
    FeatureDescription,
    FeatureIndex,
    FeatureRef,
    FeatureStatistics,
    TokenWeight,
    TopFeatures,
)

_BLOCKS = " ▁▂▃▄▅▆▇█"


def show_description(output: Output, found: FeatureDescription, contexts: int) -> None:
    """Print everything that is known of a feature."""
    if output.json:
        output.document(found.to_json())
        return
    output.facts(_facts(found))
    for caveat in found.caveats:
        output.line(f"note: {caveat}")
    if found.statistics is not None:
        output.line()
        for context in found.statistics.contexts[:contexts]:
            peak = context.activations[context.peak]
            show_tokens(output, f"{peak:>9.3f}  ", context.tokens, context.activations, peak=peak)
    if found.neighbours:
        output.line()
        rows = [(str(one.feature), f"{one.cosine:+.3f}", one.label) for one in found.neighbours]
        output.table(("NEAREST DECODER", "COSINE", "LABEL"), rows)
    if found.statistics is not None and found.statistics.cofiring:
        output.line()
        output.table(("FIRES WITH", "FIRINGS", "JACCARD", "LABEL"), _partners(found.statistics))


def show_top(output: Output, found: TopFeatures, *, per_token: bool) -> None:
    """Print a ranking, or the strongest features of every token."""
    if output.json:
        output.document(found.to_json())
        return
    shown = [token.display for token in found.tokens]
    if not per_token:
        rows = [
            (
                str(one.feature),
                shown[one.position],
                str(one.position),
                f"{one.activation:+.3f}",
                f"{one.contribution:.3f}",
                one.label,
            )
            for one in found.features
        ]
        output.table(("FEATURE", "TOKEN", "POSITION", "ACTIVATION", "CONTRIBUTION", "LABEL"), rows)
        return
    by_position: dict[int, list[str]] = {position: [] for position in range(len(shown))}
    for one in found.features:
        name = f"{one.label} ({one.feature})" if one.label else str(one.feature)
        by_position[one.position].append(f"{name} {one.activation:+.2f}")
    rows_of_tokens = [(str(place), shown[place], "  ".join(listed)) for place, listed in by_position.items()]
    output.table(("POSITION", "TOKEN", "STRONGEST FEATURES"), rows_of_tokens)


def show_index(output: Output, index: FeatureIndex) -> None:
    """Print an index, or what building one would take."""
    if output.json:
        output.document(index.to_json())
        return
    output.facts(index_facts(index))


def index_facts(index: FeatureIndex) -> list[tuple[str, str]]:
    """What an index is, in lines."""
    facts = [
        ("index", index.name or "none yet: this is a prediction"),
        ("set", f"{index.replacement} of {index.version.model}"),
        ("corpus", index.corpus),
        ("layers", f"{len(index.layers)}, {index.features:,} features"),
        ("tokens", f"{index.tokens:,}"),
        ("size", _bytes(index.size_bytes)),
    ]
    if index.seconds is not None:
        return [*facts, ("time", _duration(index.seconds)), ("memory", _bytes(index.memory_bytes or 0))]
    facts[4] = ("tokens", f"{index.tokens:,} in {index.contexts:,} contexts of {index.documents:,} documents")
    fired = f"{index.fired:,} of {index.features:,} features"
    facts += [("fired", fired), ("a feature fires", index.rule), ("created", index.create_time)]
    return [*facts, ("degraded", "yes: the set failed admission")] if index.degraded else facts


def index_row(index: FeatureIndex) -> tuple[str, ...]:
    """An index as a row of a table."""
    return (
        index.name,
        index.replacement,
        index.version.model.removeprefix("models/"),
        index.corpus,
        f"{index.tokens:,}",
        _bytes(index.size_bytes),
        index.create_time,
    )


def named(feature: FeatureRef, label: str) -> str:
    """A feature with what somebody calls it."""
    return f"{feature} {label}" if label else str(feature)


def _facts(found: FeatureDescription) -> list[tuple[str, str]]:
    facts = [("feature", named(found.feature, found.label.text if found.label else ""))]
    if found.label is not None and found.label.author:
        facts.append(("labelled by", f"{found.label.author}, {found.label.create_time}"))
    facts.append(("decoder norm", f"{found.decoder_norm:.4g}"))
    if found.threshold is not None:
        facts.append(("threshold", f"{found.threshold:.4g}"))
    if found.promotes:
        facts += [("promotes", _tokens(found.promotes)), ("suppresses", _tokens(found.suppresses))]
    if found.excited_by:
        facts += [("excited by", _tokens(found.excited_by)), ("inhibited by", _tokens(found.inhibited_by))]
    statistics = found.statistics
    if statistics is None or found.index is None:
        return facts
    return [
        *facts,
        ("fires", f"at {statistics.count:,} of {found.index.tokens:,} positions ({statistics.density:.3%})"),
        ("activation", f"mean {statistics.mean:.4g}, largest {statistics.largest:.4g}"),
        ("histogram", _histogram(statistics)),
        ("fires on", "  ".join(f"{one.token.display!r} {one.weight:.0%}" for one in statistics.tokens)),
        ("index", f"{found.index.name}, {found.index.corpus}"),
    ]


def _tokens(weights: Sequence[TokenWeight]) -> str:
    return "  ".join(f"{one.token.display!r} {one.weight:+.2f}" for one in weights)


def _histogram(statistics: FeatureStatistics) -> str:
    counts, edges = statistics.histogram_counts, statistics.histogram_edges
    if not counts:
        return ""
    largest = max(counts)
    bars = "".join(_BLOCKS[-(-8 * count // largest)] for count in counts)
    return f"{edges[0]:.3g} {bars} {edges[-1]:.3g}"


def _partners(statistics: FeatureStatistics) -> list[tuple[str, ...]]:
    return [
        (str(one.feature), f"{one.count} of {one.of}", f"{one.jaccard:.3f}", one.label)
        for one in statistics.cofiring
    ]


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.0f} min"
