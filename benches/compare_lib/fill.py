"""Fills stores with sessions that no request names.

Creating a million by requests would take minutes, so Redis and SQLite get copies of a session that is there.
"""

import glob
import os
import sqlite3

from . import load, processes, tools

BATCH = 10_000

COPY = """
local session, left = redis.call('DUMP', KEYS[1]), redis.call('PTTL', KEYS[1])
for number = ARGV[1], ARGV[1] + ARGV[2] - 1 do
    redis.call('RESTORE', string.format('cloakroom:s:{copy%018d}', number), left, session)
end
return redis.call('DBSIZE')
"""


def redis(bed, target, count):
    key = target.redis.call("KEYS", "cloakroom:s:*").split()[2]
    for first in range(0, count, BATCH):
        reply = target.redis.call("EVAL", COPY, 1, key, first, min(BATCH, count - first))
        if not reply.startswith(":"):
            raise tools.Failed(f"Redis could not be filled: {reply.strip()}")


def sqlite(bed, target, count):
    [file] = glob.glob(os.path.join(bed.path(f"state-{target.port}"), "*.db"))
    database = sqlite3.connect(file, timeout=10)
    columns = [row[1] for row in database.execute("PRAGMA table_info(sessions)") if row[1] != "id"]
    listed = ", ".join(columns)
    for first in range(0, count, BATCH):
        with database:
            database.execute(f"""
                WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?)
                INSERT INTO sessions (id, {listed})
                SELECT randomblob(16), {listed} FROM number, (SELECT {listed} FROM sessions LIMIT 1)
                """, (min(BATCH, count - first),))
    database.close()


def memory(bed, target, count):
    created, rate = 0, 5_000
    while created < count:
        done = load.wrk(bed, f"http://127.0.0.1:{target.port}/begin", (), 32, min(10, 1 + (count - created) // rate))
        created, rate = created + done.requests, max(1, int(done.requests / done.seconds))


def cookies(bed, target, count):
    """Creates sessions until there are `count`, and returns the path of a file of their cookies."""
    known = [target.cookie or "a=b"]
    connection = processes.connect(target.port)
    while len(known) < count:
        known.append(processes.cookie(connection))
    return bed.write(f"cookies-{target.port}", "\n".join(known))
