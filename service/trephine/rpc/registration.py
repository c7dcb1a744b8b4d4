"""Putting every servicer on a server, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.longrunning.operations_pb2_grpc import add_OperationsServicer_to_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from trephine.app.service import Service
from trephine.rpc.artifact_servicer import ArtifactServicer
from trephine.rpc.audit_servicer import AuditServicer
from trephine.rpc.circuit_servicer import CircuitServicer
from trephine.rpc.edit_servicer import EditServicer
from trephine.rpc.feature_servicer import FeatureServicer
from trephine.rpc.generation_servicer import GenerationServicer
from trephine.rpc.intervention_servicer import InterventionServicer
from trephine.rpc.model_servicer import ModelServicer
from trephine.rpc.operation_servicer import LongrunningServicer, OperationServicer
from trephine.rpc.replacement_servicer import ReplacementServicer
from trephine.rpc.results import OperationWriter
from trephine.v1 import artifact_service_pb2_grpc as artifacts
from trephine.v1 import audit_service_pb2_grpc as audits
from trephine.v1 import circuit_service_pb2_grpc as circuits
from trephine.v1 import edit_service_pb2_grpc as edits
from trephine.v1 import feature_service_pb2_grpc as features
from trephine.v1 import generation_service_pb2_grpc as generation
from trephine.v1 import intervention_service_pb2_grpc as interventions
from trephine.v1 import model_service_pb2_grpc as models
from trephine.v1 import operation_service_pb2_grpc as operations
from trephine.v1 import replacement_service_pb2_grpc as replacements

TOPICS = (
    "Model",
    "Replacement",
    "Feature",
    "Generation",
    "Intervention",
    "Circuit",
    "Edit",
    "Audit",
    "Artifact",
    "Operation",
)
SERVICES = (*(f"trephine.v1.{topic}Service" for topic in TOPICS), "google.longrunning.Operations")
"""Full names of everything served beside health and reflection."""


def register(server: grpc.aio.Server, service: Service) -> health.HealthServicer:
    """Add every servicer, health and reflection; health says SERVING from `announce` on."""
    writer = OperationWriter(service)
    additions: tuple[tuple[Callable[[Any, Any], Any], Any], ...] = (
        (models.add_ModelServiceServicer_to_server, ModelServicer(service, writer)),
        (features.add_FeatureServiceServicer_to_server, FeatureServicer(service, writer)),
        (generation.add_GenerationServiceServicer_to_server, GenerationServicer(service)),
        (interventions.add_InterventionServiceServicer_to_server, InterventionServicer(service)),
        (circuits.add_CircuitServiceServicer_to_server, CircuitServicer(service, writer)),
        (replacements.add_ReplacementServiceServicer_to_server, ReplacementServicer(service, writer)),
        (edits.add_EditServiceServicer_to_server, EditServicer(service, writer)),
        (audits.add_AuditServiceServicer_to_server, AuditServicer(service, writer)),
        (artifacts.add_ArtifactServiceServicer_to_server, ArtifactServicer(service)),
        (operations.add_OperationServiceServicer_to_server, OperationServicer(service, writer)),
        (add_OperationsServicer_to_server, LongrunningServicer(service, writer)),
    )
    for add, servicer in additions:
        add(servicer, server)
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    reflection.enable_server_reflection((*SERVICES, HEALTH_NAME, reflection.SERVICE_NAME), server)
    return status


async def announce(status: health.HealthServicer) -> None:
    """Say that the server (the empty name) and every service is serving."""
    for name in ("", *SERVICES):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
