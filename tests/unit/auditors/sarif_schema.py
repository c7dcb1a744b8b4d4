"""The rules of SARIF 2.1.0 for the parts that we write, as a JSON schema. Unknown properties are refused."""

from __future__ import annotations

from typing import Any


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def _many(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


_TEXT = {"type": "string"}
_MESSAGE = _object(["text"], text=_TEXT)
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}
_BAG = {"type": "object", "properties": {"tags": _many(_TEXT, uniqueItems=True)}}

_RULE = _object(
    ["id"],
    id=_TEXT,
    name=_TEXT,
    shortDescription=_MESSAGE,
    fullDescription=_MESSAGE,
    help=_MESSAGE,
    defaultConfiguration=_object([], level=_LEVEL),
    properties=_BAG,
)
_LOCATION = _object(
    [],
    physicalLocation=_object(
        ["artifactLocation"],
        artifactLocation=_object([], uri={"type": "string", "pattern": r"^[!-~]*$"}),
        region=_object([], startLine={"type": "integer", "minimum": 1}),
    ),
    logicalLocations=_many(_object([], name=_TEXT, kind=_TEXT)),
)
_RESULT = _object(
    ["message"],
    ruleId=_TEXT,
    ruleIndex={"type": "integer", "minimum": 0},
    kind={"enum": ["notApplicable", "pass", "fail", "review", "open", "informational"]},
    level=_LEVEL,
    message=_MESSAGE,
    locations=_many(_LOCATION),
    partialFingerprints={"type": "object", "additionalProperties": _TEXT},
    properties=_BAG,
) | {
    # 3.27.10: a level other than "none" needs the kind "fail".
    "if": {"properties": {"kind": {"not": {"const": "fail"}}}},
    "then": {"properties": {"level": {"const": "none"}}},
}
_INVOCATION = _object(
    ["executionSuccessful"],
    executionSuccessful={"type": "boolean"},
    endTimeUtc=_TIME,
    toolExecutionNotifications=_many(_object(["message"], level=_LEVEL, message=_MESSAGE)),
)
_RUN = _object(
    ["tool"],
    tool=_object(
        ["driver"],
        driver=_object(
            ["name"],
            name=_TEXT,
            version=_TEXT,
            fullName=_TEXT,
            rules=_many(_RULE, uniqueItems=True),
        ),
    ),
    automationDetails=_object([], id=_TEXT),
    invocations=_many(_INVOCATION),
    results=_many(_RESULT),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    properties=_BAG,
)

SARIF: dict[str, Any] = _object(
    ["version", "runs"],
    version={"const": "2.1.0"},
    runs=_many(_RUN),
) | {"$schema": "http://json-schema.org/draft-07/schema#"}
SARIF["properties"]["$schema"] = {"type": "string", "format": "uri"}
