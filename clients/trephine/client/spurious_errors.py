"""Why spurious features cannot be told apart, or figures on them would say nothing."""

from __future__ import annotations

from trephine.client.error_root import ErrorKind, TrephineError


class SplitLeakageError(TrephineError):
    """A text stands in two splits, or twice with different labels or attributes."""

    kind = ErrorKind.INVALID
    reason = "SPLIT_LEAKAGE"


class AttributeConfoundedError(TrephineError):
    """The attribute equals the label everywhere; the message says what data would help."""

    kind = ErrorKind.INVALID
    reason = "ATTRIBUTE_CONFOUNDED"


class EmptyGroupError(TrephineError):
    """A split has no text of a group that is needed."""

    kind = ErrorKind.INVALID
    reason = "EMPTY_GROUP"


class HeadNotStockError(TrephineError):
    """The head does not have the form of a stock `*ForSequenceClassification`."""

    kind = ErrorKind.PRECONDITION
    reason = "HEAD_NOT_STOCK"
