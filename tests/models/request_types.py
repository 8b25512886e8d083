"""Checks request bodies against the types of the vendors' own SDKs.

Reads lines of JSON, each {"name": ..., "path": ..., "body": ...}, and prints what does not fit, a line each. The SDKs
themselves take more than the APIs do: here a member that is not known is a mistake, and every list is looked through.
"""

import collections.abc
import json
import sys
import types
import typing

import typing_extensions
from anthropic.types import message_create_params as messages
from openai.types.chat import completion_create_params as completions
from openai.types.responses import response_create_params as responses

UNIONS = (typing.Union, types.UnionType)
LISTS = (list, collections.abc.Iterable, collections.abc.Sequence)

# The types of each endpoint: of a request for a whole answer, and of one for a stream.
ENDPOINTS = {
    "/v1/messages": (messages.MessageCreateParamsNonStreaming, messages.MessageCreateParamsStreaming),
    "/v1/chat/completions": (completions.CompletionCreateParamsNonStreaming, completions.CompletionCreateParamsStreaming),
    "/v1/responses": (responses.ResponseCreateParamsNonStreaming, responses.ResponseCreateParamsStreaming),
}
# The members that say which of several types is meant, the first of them that is there.
TAGS = ("type", "role")


def check(value, kind, path):
    """The mistakes of a value that should be of this type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing_extensions.Required, typing_extensions.NotRequired, typing.Annotated):
        return check(value, arguments[0], path)
    if kind in (typing.Any, object):
        return []
    if kind in (None, type(None)):
        return [] if value is None else [f"{path}: {short(value)} is not null"]
    if origin in UNIONS:
        return one_of(value, arguments, path)
    if origin is typing.Literal:
        return [] if value in arguments else [f"{path}: {short(value)} is none of {arguments}"]
    if typing_extensions.is_typeddict(kind):
        return members(value, kind, path)
    if origin in LISTS:
        if not isinstance(value, list):
            return [f"{path}: {short(value)} is no list"]
        return [mistake for at, item in enumerate(value) for mistake in check(item, arguments[0], f"{path}[{at}]")]
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            return [f"{path}: {short(value)} is no object"]
        return [mistake for name, item in value.items() for mistake in check(item, arguments[1], f"{path}.{name}")]
    if kind is float:
        kind = (int, float)
    if isinstance(value, bool) and kind is not bool:
        return [f"{path}: {value} is not of type {kind}"]
    try:
        fits = isinstance(value, kind)
    except TypeError:
        fits = False
    return [] if fits else [f"{path}: {short(value)} is not of type {kind}"]


def one_of(value, kinds, path):
    mistakes = [check(value, kind, path) for kind in kinds]
    if any(not found for found in mistakes):
        return []
    # What has the right tag, or is right as far as its parts, was meant; its mistakes say the most.
    name = next((name for name in TAGS if name in value), None) if isinstance(value, dict) else None
    same = [found for kind, found in zip(kinds, mistakes) if name and tag(kind, name) == value[name]]
    inside = [found for found in mistakes if not found[0].startswith(f"{path}:")]
    return min(same or inside or mistakes, key=len)


def tag(kind, name):
    if not typing_extensions.is_typeddict(kind):
        return None
    hint = typing_extensions.get_type_hints(kind, include_extras=True).get(name)
    if typing.get_origin(hint) is typing_extensions.Required:
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Literal else None


def members(value, kind, path):
    if not isinstance(value, dict):
        return [f"{path}: {short(value)} is no object"]
    hints = typing_extensions.get_type_hints(kind, include_extras=True)
    found = [f"{path}.{name}: extra inputs are not permitted" for name in value if name not in hints]
    for name, hint in hints.items():
        if name in value:
            found += check(value[name], hint, f"{path}.{name}")
        elif typing.get_origin(hint) is typing_extensions.Required:
            found.append(f"{path}.{name}: field required")
    return found


def short(value):
    return json.dumps(value, ensure_ascii=False)[:80]


def mistakes_of(path, body):
    whole, streams = ENDPOINTS[path]
    return check(body, streams if body.get("stream") else whole, "body")


def main():
    wrong = 0
    for line in sys.stdin:
        entry = json.loads(line)
        for mistake in mistakes_of(entry["path"], entry["body"]):
            wrong += 1
            print(f"{entry['name']}: {mistake}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
