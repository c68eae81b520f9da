"""Policies of queues and buckets as IAM decides them: who, what, on what, and in which circumstances."""

from __future__ import annotations

from fnmatch import fnmatchcase


def allows(document: dict, principal: str, action: str, resource: str, circumstances: dict[str, str]) -> bool:
    """Tell whether a policy itself lets a principal in: one statement allows it, and none denies it."""
    effects = effects_of(document, principal, action, resource, circumstances)
    return effects == {"Allow"}


def denies(document: dict, principal: str, action: str, resource: str, circumstances: dict[str, str]) -> bool:
    """Tell whether a policy keeps out a principal who is let in elsewhere, as by a role."""
    return "Deny" in effects_of(document, principal, action, resource, circumstances)


def effects_of(document: dict, principal: str, action: str, resource: str, circumstances: dict[str, str]) -> set[str]:
    """Return the effects of the statements that apply."""
    return {
        statement["Effect"]
        for statement in document["Statement"]
        if _is_meant(statement["Principal"], principal)
        and _is_like(_list(statement["Action"]), action)
        and _is_like(_list(statement["Resource"]), resource)
        and _holds(statement.get("Condition", {}), circumstances)
    }


def _is_meant(meant: str | dict, principal: str) -> bool:
    return meant == "*" or principal in _list(meant.get("Service", [])) + _list(meant.get("AWS", []))


def _is_like(patterns: list[str], text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _holds(condition: dict, circumstances: dict[str, str]) -> bool:
    """Tell whether all of a condition holds; a circumstance that is not known fulfils none."""
    return all(
        key in circumstances and OPERATORS[operator](_list(wanted), circumstances[key])
        for operator, keys in condition.items()
        for key, wanted in keys.items()
    )


OPERATORS = {
    "StringEquals": lambda wanted, found: found in wanted,
    "Bool": lambda wanted, found: found in wanted,
    "ArnEquals": _is_like,  # which takes wildcards, as ArnLike does
    "ArnLike": _is_like,
}


def _list(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]
