#!/bin/sh
# A CGI script on curl.

session() { # METHOD PATH [BODY]
  curl --silent --fail --request "$1" --header "X-Session-Token: $HTTP_X_SESSION_TOKEN" \
    ${3:+--data-raw "$3"} "$HTTP_X_SESSION_URL$2"
}

decode() { # %-ENCODED
  env printf %b "$(printf %s "$1" | sed 's/\\/\\\\/g; s/%/\\x/g')"
}

case "$PATH_INFO" in
/login) # check the password first
  name=$(decode "${QUERY_STRING#name=}" | tr -d '"\\') # what would end the text in JSON
  session PATCH "" "{\"principal\": \"$name\"}" >/dev/null
  printf 'Status: 303 See Other\nLocation: /\n\n'
  ;;
/logout)
  session DELETE ""
  printf 'Status: 303 See Other\nLocation: /\n\n'
  ;;
*)
  visits=$(session POST /values/visits/increment)
  name=$(decode "${HTTP_X_SESSION_PRINCIPAL:-stranger}")
  printf 'Content-Type: text/plain; charset=utf-8\n\nHello %s, visit %s\n' "$name" "$visits"
  ;;
esac
