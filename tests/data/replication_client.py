"""Reads a database through python-arango: arguments are URL, way to log in (`basic`, `jwt`), name and password. The
collection `users` has at least 100 documents. Then database `mirror` of the same cluster is made to follow it. Prints `done`
at the end.
"""

import sys
import time

import arango
from arango.exceptions import (
    ReplicationApplierConfigSetError,
    ReplicationApplierStartError,
    ReplicationDumpBatchExtendError,
    ReplicationDumpError,
)

url, way, name, password = sys.argv[1:]
client = arango.ArangoClient(hosts=url)
db = client.db("_system", username=name, password=password, auth_method=way, verify=True)
assert db.version() == "3.11.0", db.version()
users = [one for one in db.collections() if one["name"] == "users"]
assert len(users) == 1 and users[0]["type"] == "document", users

replication = db.replication
assert int(replication.server_id()) > 0
batch = replication.create_dump_batch(ttl=100)
assert int(batch["last_tick"]) > 0, batch
assert replication.extend_dump_batch(batch["id"], ttl=1000)
inventory = replication.inventory(batch["id"], include_system=True, all_databases=False)
collections = {one["parameters"]["name"]: one for one in inventory["collections"]}
assert collections["users"]["indexes"][0]["fields"] == ["name"], collections
assert inventory["state"]["running"] is True and int(inventory["tick"]) > 0, inventory
assert replication.cluster_inventory(include_system=False)["collections"][0]["is_ready"] is True

everything = replication.inventory(batch["id"], all_databases=True)
names = [one["parameters"]["name"] for one in everything["databases"]["_system"]["collections"]]
assert "users" in names and "collections" not in everything, everything

documents = {}
while True:
    dump = replication.dump(collection="users", batch_id=batch["id"], chunk_size=1000, deserialize=True)
    for line in dump["content"][0]:
        documents[line["key"]] = line["data"]
    if not dump["check_more"]:
        break
assert len(documents) >= 100 and documents["17"]["name"] == "user 17", len(documents)
assert replication.dump(collection="users", batch_id=batch["id"], chunk_size=0)["last_included"] == "0"
assert replication.delete_dump_batch(batch["id"])
for wrong in (
    lambda: replication.extend_dump_batch(batch["id"], ttl=1),
    lambda: replication.dump(collection="users", batch_id=batch["id"]),
):
    try:
        wrong()
        raise AssertionError("the batch is still there")
    except (ReplicationDumpBatchExtendError, ReplicationDumpError) as error:
        assert error.http_code == 404, error

state = replication.logger_state()
assert state["state"]["running"] is True and state["server"]["server_id"] == replication.server_id(), state
assert int(replication.logger_first_tick()) <= int(state["state"]["last_log_tick"])

ticks = db.wal.tick_ranges()
assert int(ticks["tick_min"]) <= int(ticks["tick_max"]) and ticks["server"]["version"] == "3.11.0", ticks
assert int(db.wal.last_tick()["tick"]) >= int(ticks["tick_max"])
assert db.wal.flush() is True
assert db.wal.transactions()["count"] >= 0 and db.wal.properties()["historic_logs"] >= 1
tail = db.wal.tail(lower="0", last_scanned="0", all_databases=False, chunk_size=0, syncer_id=1, server_id=2,
                   client_info="test", deserialize=True)
assert tail["from_present"] is True and tail["content"], tail
assert int(tail["last_included"]) <= int(tail["last_tick"]), tail
assert any(one.get("clientInfo") == "test" for one in replication.logger_state()["clients"])

# The applier of another database.
mirror = client.db("mirror", username=name, password=password, auth_method=way, verify=True).replication
remote = {"endpoint": url.replace("http://", "tcp://"), "database": "_system", "username": name, "password": password}
mirror.stop_applier()
synced = mirror.synchronize(include_system=False, incremental=True, restrict_type="include",
                            restrict_collections=["users"], initial_sync_wait_time=600, **remote)
assert [one["name"] for one in synced["collections"]] == ["users"] and int(synced["last_log_tick"]) > 0, synced
settings = {
    "max_connect_retries": 120, "connect_timeout": 15, "request_timeout": 615, "chunk_size": 0, "auto_start": True,
    "adaptive_polling": False, "include_system": True, "auto_resync": True, "auto_resync_retries": 3,
    "initial_sync_max_wait_time": 0, "connection_retry_wait_time": 0, "idle_min_wait_time": 0, "idle_max_wait_time": 0,
    "require_from_present": False, "verbose": True, "restrict_type": "exclude", "restrict_collections": ["students"],
}
config = mirror.set_applier_config(**remote, **settings)
for setting, value in settings.items():
    assert config[setting] == value, (setting, config)
assert config["endpoint"] == remote["endpoint"] and "password" not in config, config
assert mirror.applier_config() == config, mirror.applier_config()
started = mirror.start_applier(last_tick=synced["last_log_tick"])
assert started["state"]["running"] is True and started["endpoint"] == remote["endpoint"], started
try:
    mirror.set_applier_config(remote["endpoint"])
    raise AssertionError("the applier is running")
except ReplicationApplierConfigSetError as error:
    assert (error.http_code, error.error_code) == (400, 1411), error
for _ in range(2400):
    state = mirror.applier_state()
    if state["state"]["phase"] == "running":
        break
    time.sleep(0.05)
assert state["state"]["phase"] == "running", state
stopped = mirror.stop_applier()
assert stopped["state"]["running"] is False and stopped["server"]["server_id"] == replication.server_id(), stopped
followed = mirror.make_slave(restrict_type="include", restrict_collections=["users"], include_system=False,
                             max_connect_retries=1, auto_resync=False, require_from_present=True, **remote)
assert followed["state"]["running"] is True and int(followed["state"]["last_applied_continuous_tick"]) > 0, followed
mirror.stop_applier()
try:
    db.replication.start_applier()
    raise AssertionError("this database has no remote")
except ReplicationApplierStartError as error:
    assert (error.http_code, error.error_code) == (400, 1410), error
print("done")
