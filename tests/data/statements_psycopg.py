"""Runs statements through psycopg 3: arguments are a connection string and a way, standard input is a JSON array of
[statement with %s, [values], times]. Prints the version on standard output.

Ways: `plain` (extended protocol, never prepared), `prepared` (prepared at the first call), `client` (values are written into
the text), `pipeline` (prepared, several statements on their way at once).
"""

import json
import sys

import psycopg

dsn, way = sys.argv[1:]
statements = json.load(sys.stdin)
with psycopg.connect(dsn, autocommit=True) as connection:
    if way == "client":
        connection.cursor_factory = psycopg.ClientCursor
    prepare = way in ("prepared", "pipeline")

    def run():
        for statement, values, times in statements:
            for _ in range(times):
                if way == "client":
                    connection.execute(statement, values)
                else:
                    connection.execute(statement, values, prepare=prepare)

    if way == "pipeline":
        with connection.pipeline():
            run()
    else:
        run()
print(psycopg.__version__)
