#!/bin/sh
# The same without any call: the route has header_exchange = true.
printf 'Content-Type: text/plain\nX-Session-Patch: {"increment": {"visits": 1}}\n\n'
printf 'The session was %s\n' "$HTTP_X_SESSION_DATA"
