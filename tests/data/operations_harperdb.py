"""Drives the operations interface with the package harperdb as it is published. Arguments: the address of this cluster's
sidecar, user, password, and the name, host and port of another cluster. Prints what was answered, one JSON line a call.
"""

import json
import sys

import harperdb
from harperdb.exceptions import HarperDBError

url, user, password, name, host, port = sys.argv[1:]


def say(answer):
    print(json.dumps(answer), flush=True)


db = harperdb.HarperDB(url, user, password, timeout=60)
both = [{"channel": "dev:dog", "subscribe": True, "publish": True}]
say(db.cluster_status())
say(db.add_node(name, host, int(port), both))
say(db.update_node(name, host, int(port), [{"channel": "dev:dog", "subscribe": True, "publish": False}]))
say(db.cluster_status())
say(db.remove_node(name))
try:
    db.remove_node(name)
    say("no error")
except HarperDBError as error:
    say({"HarperDBError": str(error)})
try:
    harperdb.HarperDB(url, user, "another " + password, timeout=60).cluster_status()
    say("no error")
except HarperDBError as error:
    say({"HarperDBError": str(error)})
