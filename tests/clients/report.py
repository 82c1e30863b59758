"""Writes docs/explanation/clients.md from the rows that `tests/clients/run` has collected."""

import json
import os
import platform
import subprocess
import sys

import kit

PAGE = kit.HERE.parent.parent / "docs/explanation/clients.md"
INTRODUCTION = """# Clients: what was tried

Written by `tests/clients/run`, which runs the clients of [clients/](../../clients/README.md) with real frameworks and
applications behind the program.
"""
COLUMNS = {
    "suites": ("Test suites of frameworks", {"client": "client", "suite": "suite", "result": "result"}),
    "applications": (
        "Applications",
        {"application": "application", "how": "how", "clicked": "what was clicked", "result": "result"},
    ),
    "updates": (
        "Lost updates",
        {"site": "site", "sessions": "sessions", "keys": "own keys", "members": "members of one value",
         "elements": "elements of a list", "counter": "counter"},
    ),
    "costs": (
        "Size and cost",
        {"client": "client", "lines": "lines", "dependencies": "dependencies", "with": "pages/s",
         "stock": "pages/s with stock sessions in Redis"},
    ),
}  # fmt: skip
NOTES = {
    "suites": "The frameworks' own tests of sessions, unchanged, with the client in place of their sessions.",
    "applications": (
        "Each application is unpacked or installed as it is, and visited twice with the same clicks: with its framework's "
        "own sessions, and with the client behind the program. The pages, redirects and cookies are compared, without "
        "what differs from visit to visit (tokens, dates) and without the session's own cookie."
    ),
    "updates": (
        f"How many of 50 parallel changes by one visitor are there afterwards. Each request reads its session, takes "
        "20 ms, and changes it. The counter of a client runs with `one_at_a_time`."
    ),
    "costs": "The same page, which increments a counter in the session, by eight visitors in turn with both in one run. "
    "With the client, each page also passes through the proxy, on the same two CPUs; the stock sessions have none. PHP has opcache.",
}


def table(rows, columns):
    lines = [f"| {' | '.join(columns.values())} |", f"| {' | '.join('---' for _ in columns)} |"]
    for row in rows:
        cells = [str(row.get(name, "")).replace("|", "\\|").replace("\n", " ") for name in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    with open(os.environ["CLIENT_ROWS"]) as file:
        # Each once: some tests run in several event loops.
        rows = [json.loads(line) for line in dict.fromkeys(file)]
    parts = [INTRODUCTION]
    for name, (title, columns) in COLUMNS.items():
        of_table = [row for row in rows if row["table"] == name]
        # Sites run in parallel.
        of_table.sort(key=lambda row: row.get("site", ""))
        if of_table:
            parts.append(f"## {title}\n\n{NOTES[name]}\n\n{table(of_table, columns)}\n")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=kit.HERE)
    versions = [subprocess.run([*words, "--version"], capture_output=True, text=True).stdout for words in (["php"], ["node"])]
    php, node = (text.split("(")[0].strip() for text in versions)
    python = platform.python_version()
    parts.append(f"Commit {commit.stdout.strip()}; {php}; Node {node}; Python {python}.\n")
    PAGE.write_text("\n".join(parts))
    print(f"written: {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
