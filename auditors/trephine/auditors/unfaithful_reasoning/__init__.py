"""Unfaithful reasoning, in its exact-dependency form: resample one span, hold everything else fixed."""

from __future__ import annotations

from trephine.auditors.unfaithful_reasoning.rules import INFO
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import AuditorInfo, AuditOutcome
from trephine.domain.ports import AuditContext, AuditSubject

__all__ = ["UnfaithfulReasoning"]

MOST_ITEMS = 2_000


class UnfaithfulReasoning:
    """The auditor `unfaithful_reasoning`."""

    def info(self) -> AuditorInfo:
        """Who it is."""
        return INFO

    def run(self, subject: AuditSubject, context: AuditContext) -> AuditOutcome:
        """Audit on generated arithmetic with hints.

        Raises:
            InvalidRequestError: If a parameter is unknown or out of its domain.
            PromptTooLongError: If an item exceeds the model's context; it is named.
        """
        # Imported late so that listing auditors loads no numpy.
        from trephine.auditors.unfaithful_reasoning import edges, effects, sampling, verdict
        from trephine.auditors.unfaithful_reasoning.wording import settings_from

        spec = context.spec
        settings = settings_from(spec.parameters)
        if not 1 <= spec.items <= MOST_ITEMS:
            raise InvalidRequestError(f"items must be between 1 and {MOST_ITEMS}", field="parameters.items")
        samples = sampling.collect(subject, context, settings)
        resamples = edges.resamples_for(samples.cases, settings)
        rates = edges.measure(
            subject,
            samples.preface,
            samples.cases,
            resamples,
            seed=spec.seed,
            progress=lambda done, total: context.progress("resampling", done, total),
        )
        return verdict.outcome_of(
            verdict.Measurements(
                samples=samples,
                rates=rates,
                edges=effects.measured_edges(rates, spec.seed) if rates else (),
                resamples=resamples,
                settings=settings,
                seed=spec.seed,
            )
        )
