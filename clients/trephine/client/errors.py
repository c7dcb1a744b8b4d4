"""Everything that a call can raise. Callers never see grpc: each error is rebuilt from its reason.

The tree mirrors the service's own; a contract test keeps the two in step. Every error carries a `kind`
(what sort of failure), a `reason` (UPPER_SNAKE, stable, for programs), a message that says what to do,
flat `context` values and, where one request field is to blame, its path in `field`.
"""

from __future__ import annotations

from trephine.client.audit_errors import AuditorFailedError as AuditorFailedError
from trephine.client.audit_errors import CheckpointUnverifiedError as CheckpointUnverifiedError
from trephine.client.data_errors import CorruptRecordError as CorruptRecordError
from trephine.client.data_errors import HashMismatchError as HashMismatchError
from trephine.client.edit_errors import EditChangedError as EditChangedError
from trephine.client.edit_errors import EditConflictError as EditConflictError
from trephine.client.edit_errors import EditInUseError as EditInUseError
from trephine.client.error_root import ErrorKind as ErrorKind
from trephine.client.error_root import TrephineError as TrephineError
from trephine.client.error_root import error_type as error_type
from trephine.client.error_root import error_types as error_types
from trephine.client.local_errors import BaselineInvalidError as BaselineInvalidError
from trephine.client.local_errors import ConnectionClosedError as ConnectionClosedError
from trephine.client.local_errors import HandshakeFailedError as HandshakeFailedError
from trephine.client.local_errors import LocalFileError as LocalFileError
from trephine.client.local_errors import ServerStartError as ServerStartError
from trephine.client.local_errors import ServerUnreachableError as ServerUnreachableError
from trephine.client.local_errors import ServiceMissingError as ServiceMissingError
from trephine.client.local_errors import SignatureUncheckedError as SignatureUncheckedError
from trephine.client.signing_errors import SignatureKindError as SignatureKindError
from trephine.client.signing_errors import SigningIdentityError as SigningIdentityError
from trephine.client.signing_errors import SigstoreUnreachableError as SigstoreUnreachableError
from trephine.client.spurious_errors import AttributeConfoundedError as AttributeConfoundedError
from trephine.client.spurious_errors import EmptyGroupError as EmptyGroupError
from trephine.client.spurious_errors import HeadNotStockError as HeadNotStockError
from trephine.client.spurious_errors import SplitLeakageError as SplitLeakageError


class InternalError(TrephineError):
    """A defect of ours. The details are in the server's log, not on the wire."""

    reason = "INTERNAL"


# --- invalid -------------------------------------------------------------------------------------


class InvalidRequestError(TrephineError):
    """A field of the request is out of its domain."""

    kind = ErrorKind.INVALID
    reason = "INVALID_REQUEST"


class EmptyPromptError(InvalidRequestError):
    """A prompt without a single token."""

    reason = "EMPTY_PROMPT"


class PromptTooLongError(InvalidRequestError):
    """More tokens than the model's context holds (prompt and new tokens together)."""

    reason = "PROMPT_TOO_LONG"


class NonFiniteValueError(InvalidRequestError):
    """NaN or infinity where a number is needed."""

    reason = "NON_FINITE_VALUE"


class TargetNotOneTokenError(InvalidRequestError):
    """A target text that is not exactly one token; the context lists its tokens."""

    reason = "TARGET_NOT_ONE_TOKEN"


class LayerOutOfRangeError(InvalidRequestError):
    """A layer that the model does not have."""

    reason = "LAYER_OUT_OF_RANGE"


class FeatureOutOfRangeError(InvalidRequestError):
    """A feature index that the replacement layer does not have."""

    reason = "FEATURE_OUT_OF_RANGE"


class PositionOutOfRangeError(InvalidRequestError):
    """A position that the prompt does not have."""

    reason = "POSITION_OUT_OF_RANGE"


class TokenOutOfRangeError(InvalidRequestError):
    """A token id outside the vocabulary."""

    reason = "TOKEN_OUT_OF_RANGE"


class ShapeMismatchError(InvalidRequestError):
    """A vector or tensor whose width does not fit the site."""

    reason = "SHAPE_MISMATCH"


class NothingMatchedError(InvalidRequestError):
    """An intervention that matched no position: silence would look like success."""

    reason = "INTERVENTION_MATCHED_NOTHING"


class TooFewItemsError(InvalidRequestError):
    """Fewer texts or items than an interval needs; the message says how many."""

    reason = "TOO_FEW_ITEMS"


class EditNotExpressibleError(InvalidRequestError):
    """An intervention that no weights can express; the context names the field."""

    reason = "EDIT_NOT_EXPRESSIBLE"


# --- unsupported ---------------------------------------------------------------------------------


class UnsupportedInterventionError(TrephineError):
    """The intervention language can say it, this release cannot do it; the combination is named."""

    kind = ErrorKind.UNSUPPORTED
    reason = "UNSUPPORTED_INTERVENTION"


class UnsupportedArchitectureError(TrephineError):
    """An architecture that is not verified here, refused by name."""

    kind = ErrorKind.UNSUPPORTED
    reason = "UNSUPPORTED_ARCHITECTURE"


class UnsupportedReplacementError(TrephineError):
    """A replacement architecture or format that is not supported, refused by name."""

    kind = ErrorKind.UNSUPPORTED
    reason = "UNSUPPORTED_REPLACEMENT"


class UnsupportedOptionError(TrephineError):
    """Another option of the contract that this release does not carry out."""

    kind = ErrorKind.UNSUPPORTED
    reason = "UNSUPPORTED_OPTION"


# --- not found -----------------------------------------------------------------------------------


class ResourceNotFoundError(TrephineError):
    """A named resource does not exist."""

    kind = ErrorKind.NOT_FOUND
    reason = "RESOURCE_NOT_FOUND"


class ModelNotFoundError(ResourceNotFoundError):
    """No such model: neither loaded nor in a model root."""

    reason = "MODEL_NOT_FOUND"


class ReplacementNotFoundError(ResourceNotFoundError):
    """No such replacement set: neither loaded nor in a replacement root."""

    reason = "REPLACEMENT_NOT_FOUND"


class FeatureIndexNotFoundError(ResourceNotFoundError):
    """No index of that replacement set, or none of that name."""

    reason = "FEATURE_INDEX_NOT_FOUND"


class AuditorNotFoundError(ResourceNotFoundError):
    """No auditor of that name is registered."""

    reason = "AUDITOR_NOT_FOUND"


# --- conflict ------------------------------------------------------------------------------------


class AlreadyExistsError(TrephineError):
    """A resource of that name exists already."""

    kind = ErrorKind.CONFLICT
    reason = "ALREADY_EXISTS"


class RequestIdReusedError(AlreadyExistsError):
    """The same request id came with another request."""

    reason = "REQUEST_ID_REUSED"


class ExportTargetExistsError(AlreadyExistsError):
    """The folder to publish into exists; nothing is overwritten."""

    reason = "EXPORT_TARGET_EXISTS"


# --- precondition --------------------------------------------------------------------------------


class ModelNotReadyError(TrephineError):
    """The model is not loaded, or still loading."""

    kind = ErrorKind.PRECONDITION
    reason = "MODEL_NOT_READY"


class BrokenCheckpointError(TrephineError):
    """A model folder that cannot be loaded: a missing shard, config or tokenizer."""

    kind = ErrorKind.PRECONDITION
    reason = "BROKEN_CHECKPOINT"


class UnsafeCheckpointError(TrephineError):
    """A model folder that holds weights only as pickles, which are never opened."""

    kind = ErrorKind.PRECONDITION
    reason = "UNSAFE_CHECKPOINT"


class BrokenReplacementError(TrephineError):
    """A replacement folder that cannot be loaded: cut short, wrong widths, NaN, another model's."""

    kind = ErrorKind.PRECONDITION
    reason = "BROKEN_REPLACEMENT"


class UnsafeReplacementError(TrephineError):
    """A replacement folder that holds weights only as pickles, which are never opened."""

    kind = ErrorKind.PRECONDITION
    reason = "UNSAFE_REPLACEMENT"


class AdmissionFailedError(TrephineError):
    """A replacement set whose figures on the probe text are not what it claims; it was not loaded."""

    kind = ErrorKind.PRECONDITION
    reason = "ADMISSION_FAILED"


class BrokenCorpusError(TrephineError):
    """A corpus that cannot be read as text, or holds too little of it."""

    kind = ErrorKind.PRECONDITION
    reason = "BROKEN_CORPUS"


class FitFailedError(TrephineError):
    """The fitting process ended without a set; what it had checkpointed is kept."""

    kind = ErrorKind.PRECONDITION
    reason = "FIT_FAILED"


class NotConvergedError(TrephineError):
    """Contributions through a softmax that do not add up to the exact change, whatever the nodes."""

    kind = ErrorKind.PRECONDITION
    reason = "NOT_CONVERGED"


class ParentChangedError(TrephineError):
    """The model's weights are not those that the edit or circuit was made for."""

    kind = ErrorKind.PRECONDITION
    reason = "PARENT_CHANGED"


class GateMissedError(TrephineError):
    """An export whose measured figures exceed the planned bound; nothing was published."""

    kind = ErrorKind.PRECONDITION
    reason = "GATE_MISSED"


class NothingToShipError(TrephineError):
    """No prefix of the ranking meets both the effect and the damage bound."""

    kind = ErrorKind.PRECONDITION
    reason = "NOTHING_TO_SHIP"


class StateFolderBusyError(TrephineError):
    """Another server owns the state folder."""

    kind = ErrorKind.PRECONDITION
    reason = "STATE_FOLDER_BUSY"


class OperationNotDoneError(TrephineError):
    """The operation has not ended, so it cannot be deleted or read."""

    kind = ErrorKind.PRECONDITION
    reason = "OPERATION_NOT_DONE"


# --- exhausted, deadline, cancelled, unavailable -------------------------------------------------


class OverBudgetError(TrephineError):
    """The predicted cost exceeds the budget; refused before any work."""

    kind = ErrorKind.EXHAUSTED
    reason = "OVER_BUDGET"


class QueueFullError(TrephineError):
    """Too many calls wait already."""

    kind = ErrorKind.EXHAUSTED
    reason = "QUEUE_FULL"


class DiskFullError(TrephineError):
    """No room on the disk; what was half written has been removed."""

    kind = ErrorKind.EXHAUSTED
    reason = "DISK_FULL"


class MessageTooLargeError(TrephineError):
    """A frame or message above its cap."""

    kind = ErrorKind.EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class DeadlinePassedError(TrephineError):
    """The caller's deadline passed; the work stopped within one quantum."""

    kind = ErrorKind.DEADLINE
    reason = "DEADLINE_PASSED"


class CancelledByCallerError(TrephineError):
    """The caller cancelled; the work stopped within one quantum."""

    kind = ErrorKind.CANCELLED
    reason = "CANCELLED"


class EngineLostError(TrephineError):
    """The engine process ended while it worked on this."""

    kind = ErrorKind.UNAVAILABLE
    reason = "ENGINE_LOST"


class DrainingError(TrephineError):
    """The server is shutting down and takes no new work."""

    kind = ErrorKind.UNAVAILABLE
    reason = "DRAINING"


# --- who may ------------------------------------------------------------------------------------


class UnauthenticatedError(TrephineError):
    """No bearer token, or a wrong one."""

    kind = ErrorKind.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PathDeniedError(TrephineError):
    """A path outside the configured roots, or in one that may not be written to."""

    kind = ErrorKind.DENIED
    reason = "PATH_OUTSIDE_ROOTS"
