"""Tries the description of the REST interface on a running node with schemathesis: arguments are URL, token and a directory
for what it writes. The node leads a cluster of its own, with the channel, tables, user and subscription of `KNOWN`.

Every answer must be one that the description has: its status, its type, its fields; and no answer may be a 500, but for those
that say that another server does not answer (`ASKS_ANOTHER`). And every request of the description is made, but for those of
`LEFT_OUT`, and answered with a status that it lists itself. Exit code 0: so it is.

`PHASES` of the environment says how requests are made up: `examples,fuzzing` by chance, `EXAMPLES` of each; `coverage` by going
through what the description has of each parameter and each field: least and largest, left out, of another type, no member of its
list, unknown.
"""

import collections
import json
import os
import pathlib
import sys

import requests
import schemathesis
import yaml
from schemathesis.cli import schemathesis as command

SEED = 20260101
PHASES = os.environ.get("PHASES", "examples,fuzzing")
# Cases of each request that are made up by chance.
EXAMPLES = int(os.environ.get("EXAMPLES", "5"))
# Good cases of each request, and as many bad ones, that the phase `coverage` may have, which knows no bound itself. Of one kind in
# one place it has one, but of lists of values all.
BORDERS = int(os.environ.get("BORDERS", "20"))

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
# The same requests under another name, which is this and the name.
TWICE = ("/fact-finder", "/_db/{database}")

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


def checked(document):
    """That what is left out here is in the description, and that what is said twice is the same."""
    paths = document["paths"]
    gone = [f"{method} {path}" for method, path in LEFT_OUT if method.lower() not in paths.get(path, {})]
    for path, item in paths.items():
        for prefix in TWICE:
            if path.startswith(prefix):
                once = paths.get(path.removeprefix(prefix), {})
                gone += [f"{method} {path}" for method in METHODS if item.get(method) != once.get(method)]
    if gone:
        sys.exit(f"the description has not, or has otherwise: {', '.join(gone)}")


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
            request["x-own"] = [str(status) for status in request["responses"]]
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


def bounded():
    """Keeps the phase `coverage` from having more cases of a request than it may: it leaves out whatever comes later."""
    kinds, counts = set(), collections.Counter()

    @schemathesis.hook
    def filter_case(context, case):
        if case.meta is None or case.meta.phase.name != "coverage":
            return True
        what, of = case.meta.phase.data, (case.operation.label, case.meta.generation.mode)
        # It names the field, and what is done with it. That a field is there or not is tried once for all fields.
        about = "" if what.scenario == "object_required_and_optional" else what.description
        kind = (of, what.scenario, what.parameter_location, what.parameter, what.location, about)
        if counts[of] >= BORDERS or (kind in kinds and not about.endswith("Enum value")):
            return False
        kinds.add(kind)
        counts[of] += 1
        return True


def noted():
    """The statuses that each request was answered with, as they come."""
    answers = collections.defaultdict(collections.Counter)

    @schemathesis.hook
    def after_call(context, case, response):
        answers[case.operation.label][str(response.status_code)] += 1

    return answers


def untried(document, answers):
    """Requests that were never answered with a status that is listed with them, with the answers that there were: such a
    request may have been made, but nothing was done, or refused, that is its own."""
    for path, item in document["paths"].items():
        for method, request in item.items():
            label = f"{method.upper()} {path}"
            if not any(status in request["x-own"] for status in answers[label]):
                yield f"{label}: {dict(answers[label]) or 'not asked'}"


def main():
    url, token, directory = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    served = requests.get(f"{url}/openapi.yaml", timeout=30)
    served.raise_for_status()
    served = yaml.safe_load(served.text)
    checked(served)
    document = prepared(served)
    description, settings = directory / "openapi.json", directory / "schemathesis.toml"
    description.write_text(json.dumps(document))
    statuses = ["2xx", "3xx", "4xx", *NOT_A_FAULT]
    text = f"[checks.not_a_server_error]\nexpected-statuses = {json.dumps(statuses)}\n"
    # It would try methods that are not described with a good request, also those that are left out above.
    text += "\n[phases.coverage]\nunexpected-methods = []\n"
    for path in ASKS_ANOTHER:
        text += f"\n[[operations]]\ninclude-path = {json.dumps(path)}\n"
        text += f"checks.not_a_server_error.expected-statuses = {json.dumps([*statuses, '500'])}\n"
    settings.write_text(text)
    os.chdir(directory)
    bounded()
    answers = noted()
    sys.argv = [
        "schemathesis", "--config-file", str(settings), "run", str(description), "--url", url, "--no-color",
        "--header", f"Authorization: Bearer {token}", "--header", "Accept: application/json",
        "--phases", PHASES, "--seed", str(SEED), "--max-examples", str(EXAMPLES),
        "--request-timeout", "120", "--workers", "1", "--generation-database", "none",
        "--suppress-health-check", "all", "--warnings", "off", "--continue-on-failure",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
        "response_schema_conformance",
    ]  # fmt: skip
    code = None
    try:
        command()
    except SystemExit as ended:
        code = ended.code
    missing = list(untried(document, answers))
    if missing:
        print("Requests that were not tried:", *missing, sep="\n  ")
    print(f"{sum(map(collections.Counter.total, answers.values()))} requests")
    sys.exit(code or bool(missing))


main()
