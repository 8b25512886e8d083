"""A server over stdio that breaks the protocol in the way its first argument names; no package needed.

Everything it reads goes into the file `LOG` of the environment, if there is one.
"""

import json
import os
import signal
import subprocess
import sys
import time

mode = sys.argv[1]
out = sys.stdout.buffer

# Of the kinds that the protocol has, those that no SDK's server of the tests shows, and one that it does not have.
BLOCKS = [
    {"type": "resource_link", "uri": "file:///a b", "name": "a", "size": 12345678901234567890, "_meta": {"x": 1.0}},
    {"type": "resource", "resource": {"uri": "u:1", "mimeType": "text/plain", "text": "größe"}, "annotations": {}},
    {"type": "resource", "resource": {"uri": "u:2", "blob": "AAEC"}},
    {"type": "hologram", "depth": 3},
]


def raw(data):
    out.write(data)
    out.flush()


def send(message):
    raw(json.dumps(message).encode() + b"\n")


def answer(request, result):
    send({"jsonrpc": "2.0", "id": request["id"], "result": result})


def text(value):
    return {"content": [{"type": "text", "text": value}]}


def tool(name):
    return {"name": name, "inputSchema": {"type": "object"}}


def noise():
    raw(b"\n\r\n   \nloading the model ...\n\xff\xfe\xfd\n{\"jsonrpc\":\n[1, 2]\nnull\n{}\n")
    send({"jsonrpc": "2.0", "id": 987654321, "result": {}})
    send({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "what?"}})
    send({"jsonrpc": "2.0", "error": {"code": -32700, "message": "what?"}})
    send({"jsonrpc": "2.0", "id": "server-error", "error": {"code": -32600, "message": "what?"}})
    send({"jsonrpc": "2.0", "method": "notifications/unheard-of", "params": None})
    send({"jsonrpc": "2.0", "id": "p-1", "method": "ping"})
    send({"jsonrpc": "2.0", "id": -7, "method": "sampling/createMessage", "params": {}})


def initialize(request):
    if mode == "mute":
        return
    if mode == "noise":
        noise()
    version = "1999-01-01" if mode == "unknown-version" else "2024-11-05"
    result = {
        "protocolVersion": version,
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "hostile", "version": "1"},
    }
    answer(request, "nonsense" if mode == "nonsense" else result)
    if mode == "flood":
        line = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}\n'
        for _ in range(100):
            raw(line * 1000)


def list_tools(request):
    cursor = request["params"].get("cursor")
    if mode == "pages":
        pages = {None: (["a", "b"], ""), "": (["c"], "last"), "last": (["d", "a"], None)}
        names, following = pages[cursor]
        page = {"tools": [tool(name) for name in names]}
        if cursor == "last":
            page["tools"] += [{"name": 5}, {"inputSchema": {}}, {"name": "odd", "inputSchema": True}]
        if following is not None:
            page["nextCursor"] = following
        answer(request, page)
    elif mode == "cursor-loop":
        answer(request, {"tools": [tool(str(cursor))], "nextCursor": "b" if cursor == "a" else "a"})
    elif mode == "recursive":
        deep = {"type": "string"}
        for _ in range(100):
            deep = {"type": "array", "items": deep}
        tree = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}
        defs = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
        schemas = {
            "itself": {"$ref": "#"},
            "circle": {"$ref": "#/$defs/a", "$defs": defs},
            "tree": tree,
            "deep": deep,
            "elsewhere": {"$ref": "http://127.0.0.1:1/schema.json"},
        }
        tools = [{"name": name, "inputSchema": schema, "outputSchema": schema} for name, schema in schemas.items()]
        answer(request, {"tools": tools})
    elif mode == "many":
        number = int(cursor or 0)
        names = (f"tool-{number}-{index}" for index in range(1000))
        page = {"tools": [tool(name) for name in names], "nextCursor": str((number + 1) % 10)}
        answer(request, page)
    elif mode == "endless-list":
        number = int(cursor or 0)
        names = (f"tool-{number}-{index}" for index in range(1000))
        answer(request, {"tools": [tool(name) for name in names], "nextCursor": str(number + 1)})
    else:
        names = "echo gigabyte huge silent close-output half-an-answer no-object ask-more odd-result"
        answer(request, {"tools": [tool(name) for name in names.split()]})


def call_tool(request):
    name = request["params"]["name"]
    if name == "pids":
        answer(request, {"structuredContent": [os.getpid(), grandchild.pid]})
    elif name == "huge":
        raw(b'{"result":{"content":[{"type":"text","text":"')
        for _ in range(40):
            raw(b"x" * (1024 * 1024))
        raw(b'"}]},"jsonrpc":"2.0","id":%d}\n' % request["id"])
    elif name == "gigabyte":
        raw(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"' % request["id"])
        for _ in range(1024):
            raw(b"x" * (1024 * 1024))
        raw(b'"}]}}\n')
    elif name == "silent":
        pass
    elif name == "deaf":
        time.sleep(600)
    elif name == "close-output":
        os.close(1)
    elif name == "half-an-answer":
        raw(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[]' % request["id"])
        os._exit(0)
    elif name == "no-object":
        answer(request, [1, 2])
    elif name == "odd-result":
        answer(request, {"content": BLOCKS, "structuredContent": [1], "isError": None})
    elif name == "ask-more":
        answer(request, {"resultType": "input_required", "requestState": "x"})
    else:
        answer(request, text(name))
        if mode == "noise":
            answer(request, text("a second answer"))
            noise()


if mode == "dies":
    print("cannot open the database with key", os.environ.get("KEY"), file=sys.stderr)
    sys.exit(7)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])

log = open(os.environ["LOG"], "a") if "LOG" in os.environ else None
for line in sys.stdin.buffer:
    if log:
        log.write(line.decode())
        log.flush()
    message = json.loads(line)
    method = message.get("method")
    if method == "server/discover":
        if mode == "shy":
            sys.exit(0)
        if mode != "mute":
            send({"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": "what?"}})
    elif method == "initialize":
        initialize(message)
    elif method == "tools/list":
        list_tools(message)
    elif method == "tools/call":
        call_tool(message)
if mode == "stubborn":
    while True:
        signal.pause()
