"""What a removal was asked for, on the wire."""

from __future__ import annotations

from trephine.domain.spurious_removal import RemovalOptions
from trephine.rpc.wire.fields import clean
from trephine.v1 import spurious_removal_pb2 as pb


def options_to_wire(options: RemovalOptions) -> pb.RemovalOptions:
    """Write options, every default spelled out."""
    rules, budget = options.judging, options.budget
    return pb.RemovalOptions(
        layers=options.layers or (),
        steps=options.steps,
        judging=pb.JudgingRules(
            spurious_above=rules.spurious_above,
            task_below=rules.task_below,
            false_discoveries=rules.false_discoveries,
            clusters=rules.clusters,
        ),
        budget=pb.RemovalBudget(
            candidates=budget.candidates,
            exact=budget.exact,
            counts=budget.counts,
            effect_texts=budget.effect_texts,
            fit_texts=budget.fit_texts,
            random_sets=budget.random_sets,
        ),
        without_refit=not options.refit,
        without_erasure=not options.erase,
        neutral_examples=options.neutral_examples,
        attribute_name=clean(options.attribute_name),
        swaps=[pb.WordSwap(first=clean(one.first), second=clean(one.second)) for one in options.swaps],
        resamples=options.resamples,
        texts_sha256=options.texts_sha256,
    )
