"""What the template tells instances when they start, with all names filled in."""

from __future__ import annotations

import re
from pathlib import Path

from cfnlint.decode import decode

TEMPLATE = Path(__file__).parents[1] / "infra/stack.yaml"
NAMES = {
    "AWS::Region": "us-east-1",
    "LiveQueue": "https://sqs.us-east-1.amazonaws.com/000000000000/live",
    "BackfillQueue": "https://sqs.us-east-1.amazonaws.com/000000000000/more",
    "Bucket": "some-bucket",
    "ImageParameter": "/transcribe/ami/latest",
    "LogGroup": "/transcribe/some",
}


def text(names: dict[str, str], topic: str | None = None, attached: tuple[str, ...] = ()) -> str:
    """Return the user data as an instance gets it; every name must be among those given."""
    template, _ = decode(str(TEMPLATE))
    written, variables = template["Resources"]["LaunchTemplate"]["Properties"]["LaunchTemplateData"]["UserData"][
        "Fn::Base64"
    ]["Fn::Sub"]
    _, with_topic, without = variables["Notify"]["Fn::If"]
    filled = {**names, "Notify": with_topic["Fn::Sub"] if topic else without, "NotificationTopic": topic or ""}
    (buckets, more), own = _several(variables["Buckets"]["Fn::If"])
    filled |= {"Buckets": buckets if attached else own, "More": more.join(attached)}
    for _ in range(2):  # names stand in variables
        written = re.sub(r"\$\{([\w:]+)\}", lambda found: filled[found[1]], str(written))
    return written


def _several(chosen: list) -> tuple[tuple[str, str], str]:
    """Return how the template writes several buckets, what it puts between the attached ones, and how it writes one."""
    _, several, one = chosen
    written, variables = several["Fn::Sub"]
    return (str(written), str(variables["More"]["Fn::Join"][0])), f"${{{one['Ref']}}}"


def environment(lines: str) -> dict[str, str]:
    """Read an environment file as systemd does, of which we use lines of NAME=VALUE and comments."""
    pairs = [line.split("=", 1) for line in lines.splitlines() if line and not line.startswith("#")]
    return dict(pairs)
