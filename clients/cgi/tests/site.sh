#!/bin/sh
# A CGI site whose pages call one function each: /FUNCTION?ARGUMENT&ARGUMENT.
set -eu
. "${0%/*}/../cloakroom.sh"

arguments=$QUERY_STRING
set --
while [ -n "$arguments" ]; do
  set -- "$@" "$(percent_decode "${arguments%%&*}")"
  case $arguments in *"&"*) arguments=${arguments#*"&"} ;; *) break ;; esac
  [ -n "$arguments" ] || set -- "$@" ""
done

case $PATH_INFO in
/untouched) output= ;;
/body) # the value is the body of the request
  value=$(cat)
  output=$(session_set "$1" "$value")
  ;;
/slow) # reads, waits, then appends
  session_get list >/dev/null || true
  sleep 0.3
  output=$(session_append list "$1")
  ;;
/piped) output=$(session_values | cat) ;;
/plain) # not in a subshell
  session_set "$1" "$2" >/dev/null
  output=plain
  ;;
/both) # two calls of one request
  session_set "$1" "$2"
  output=$(session_get "$1")
  ;;
*) output=$("${PATH_INFO#/}" "$@") || output=MISSING ;;
esac
printf 'Content-Type: text/plain; charset=utf-8\n\n%s' "$output"
