"""Tries the description of the REST interface on a running node with schemathesis: arguments are URL, token and a directory
for what it writes. The node leads a cluster of its own, with the channel, tables, user and subscription of `KNOWN`.

Every answer must be one that the description has: its status, its type, its fields; and no answer may be a 500, but for those
that say that another server does not answer (`ASKS_ANOTHER`). Exit code 0: so it is.
"""

import json
import os
import pathlib
import sys

import requests
import yaml
from schemathesis.cli import schemathesis

SEED = 20260101
# Cases of each request that are made up.
EXAMPLES = int(os.environ.get("EXAMPLES", "5"))

# Names that there are; others are made up, too.
KNOWN = {
    "channel": ["shop", "_logger"],
    "database": ["postgres", "_system"],
    "table": ["public.orders", "public.notes"],
    "tables": ["public.orders"],
    "collection": ["notes"],
    "follower": ["cache"],
    "name": ["mirror"],
    "user": ["bob"],
    "node": [1],
}
# What may be taken away, so that the others are there to the end.
SPARE = {"channel": ["spare"], "name": ["spare"], "user": ["spare"], "table": ["public.spare"], "follower": ["spare"]}
# What comes after it finds nothing to do.
LAST = "/_api/replication/logger-stop"

# Requests that would end what is tried, or the trial. Each with its reason.
LEFT_OUT = [
    # Members and settings that this cluster of one node cannot bear: it would wait for nodes that there are not, or be left
    # without a leader.
    ("POST", "/node"),
    ("PATCH", "/node/{node}"),
    ("DELETE", "/node/{node}"),
    ("POST", "/node-down/{node}"),
    ("POST", "/config"),
    # The server refuses values for which it would have to be restarted first, and then is not what it was.
    ("PATCH", "/db-config"),
    ("POST", "/db-config"),
    # Its answer does not end.
    ("GET", "/channels/{channel}/stream"),
]
# What bodies say that name another server: one where nobody is, and which is not asked for long.
NOBODY = {
    "endpoint": {"enum": ["tcp://127.0.0.1:1"]},
    "requestTimeout": {"enum": [1]},
    "connectTimeout": {"enum": [1]},
    "initialSyncMaxWaitTime": {"enum": [1]},
    "maxConnectRetries": {"enum": [1]},
    "connectionRetryWaitTime": {"enum": [1]},
}
OF_A_REMOTE = [
    "/_api/replication/applier-config",
    "/_api/replication/make-follower",
    "/_api/replication/make-slave",
    "/_api/replication/sync",
]
# Their protocols say with a 500 that another server does not answer. The words of it that are no fault here.
NO_ANSWER = {"required": ["errorNum"], "properties": {"errorNum": {"enum": [1400]}}}
NO_DIRECTOR = {"required": ["error"], "properties": {"error": {"enum": ["DirectorFailed", "TimedOut", "Busy"]}}}
ASKS_ANOTHER = {
    "/_api/replication/make-follower": NO_ANSWER,
    "/_api/replication/make-slave": NO_ANSWER,
    "/_api/replication/sync": NO_ANSWER,
    "/rest/v5/cluster/database/sync/full": NO_DIRECTOR,
    "/rest/v5/cluster/{channel}/database/sync": NO_DIRECTOR,
}
# The same requests under another name.
TWICE = ("/fact-finder/", "/_db/")

# Statuses from 500 on that say something else than that there is a fault in the program.
NOT_A_FAULT = ["501", "503", "504", "530", "531"]
LINES = "application/x-arango-dump"
METHODS = ["get", "put", "post", "delete", "patch"]


def failure(path):
    """How the interface that a path belongs to says that something cannot be done."""
    if path == "/":
        return {"type": "object", "required": ["error"]}
    if path.startswith("/_"):
        return {"$ref": "#/components/schemas/ReplicationFailure"}
    if path.startswith(("/rest/", "/oauth/")):
        return {"$ref": "#/components/schemas/ApiError"}
    if path.startswith(("/itResources", "/cluster/")):
        return {"$ref": "#/components/schemas/RegistryRefusal"}
    return {"$ref": "#/components/schemas/Refusal"}


def prepared(document):
    """The description, without what is left out, and with what it says once for all requests in each of them."""
    paths = {}
    for path, item in document["paths"].items():
        if path.startswith(TWICE):
            continue
        requests_of_path = {}
        for method in METHODS:
            if method not in item or (method.upper(), path) in LEFT_OUT:
                continue
            # A copy: in the text one answer stands for many.
            request = json.loads(json.dumps(item[method]))
            request["parameters"] = json.loads(json.dumps(item.get("parameters", []))) + request.get("parameters", [])
            for parameter in request["parameters"]:
                parameter["schema"] = with_known(method, parameter)
            content = request.get("requestBody", {}).get("content", {})
            if LINES in content:
                # The name that texts go by there.
                content["text/plain"] = content.pop(LINES)
            if method == "put" and path in OF_A_REMOTE:
                body = {"type": "object", "required": list(NOBODY), "properties": NOBODY}
                request["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
            if path in ASKS_ANOTHER:
                content = {"application/json": {"schema": {"type": "object", **ASKS_ANOTHER[path]}}}
                request["responses"]["500"] = {"description": "nobody answers there", "content": content}
            for status in document["info"]["x-everywhere"]:
                content = {"application/json": {"schema": failure(path)}}
                request["responses"].setdefault(str(status), {"description": "see above", "content": content})
            requests_of_path[method] = request
        if requests_of_path:
            paths[path] = requests_of_path
    paths[LAST] = paths.pop(LAST)
    return {**document, "paths": paths}


def with_known(method, parameter):
    """The values that a parameter takes, names that there are among them."""
    name, schema = parameter["name"], parameter["schema"]
    if name == "wait":
        # Nobody waits for a minute here.
        return {"enum": ["0", "10ms", "x"]}
    known = SPARE.get(name) if method == "delete" else KNOWN.get(name)
    return {"anyOf": [{"enum": known}, schema]} if known else schema


def main():
    url, token, directory = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    served = requests.get(f"{url}/openapi.yaml", timeout=30)
    served.raise_for_status()
    document = prepared(yaml.safe_load(served.text))
    description, settings = directory / "openapi.json", directory / "schemathesis.toml"
    description.write_text(json.dumps(document))
    statuses = ["2xx", "3xx", "4xx", *NOT_A_FAULT]
    text = f"[checks.not_a_server_error]\nexpected-statuses = {json.dumps(statuses)}\n"
    for path in ASKS_ANOTHER:
        text += f"\n[[operations]]\ninclude-path = {json.dumps(path)}\n"
        text += f"checks.not_a_server_error.expected-statuses = {json.dumps([*statuses, '500'])}\n"
    settings.write_text(text)
    os.chdir(directory)
    sys.argv = [
        "schemathesis", "--config-file", str(settings), "run", str(description), "--url", url, "--no-color",
        "--header", f"Authorization: Bearer {token}", "--header", "Accept: application/json",
        "--phases", os.environ.get("PHASES", "examples,fuzzing"), "--seed", str(SEED), "--max-examples", str(EXAMPLES),
        "--request-timeout", "120", "--workers", "1", "--generation-database", "none",
        "--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
        "response_schema_conformance",
    ]  # fmt: skip
    schemathesis()


main()
