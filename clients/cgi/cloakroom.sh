# shellcheck shell=dash
# Cloakroom 0.1.0: sessions for CGI scripts in POSIX shell, on curl. MIT License.
#
#     . /usr/local/lib/cloakroom.sh
#     visits=$(session_increment visits)
#
# Call the functions before the head of the response: they set cookies, and if one fails, it responds instead of the
# script.

cloakroom_newline='
'

# A function in $(…) or in a pipeline cannot end the script, so it sends a signal. Standard output may be redirected
# when it arrives.
exec 9>&1
# A signal that was ignored when the script started cannot be trapped, and a script that fails would go on.
for cloakroom_signal in USR1 USR2 ALRM; do
  cloakroom_arrived=no
  trap 'cloakroom_arrived=yes' "$cloakroom_signal"
  kill -s "$cloakroom_signal" $$
  if [ $cloakroom_arrived = no ]; then
    printf 'cloakroom: SIG%s is ignored; start the web server without that\n' "$cloakroom_signal" >&2
    printf 'Status: 500 Internal Server Error\r\nContent-Type: text/plain\r\n\r\nInternal Server Error\n'
    exit 1
  fi
done
trap 'cloakroom_respond "503 Service Unavailable"' USR1
trap 'cloakroom_respond "500 Internal Server Error"' USR2
trap 'cloakroom_respond "403 Forbidden"' ALRM

# --- Values. KEY is any text, JSON any JSON value. ---

# Prints a value as JSON; returns 1 if there is none.
session_get() { # KEY
  cloakroom_call GET "/values/$(percent_encode "$1")" "$1"
}

# Prints the text of a JSON string; returns 1 if there is none.
session_text() { # KEY
  cloakroom_call GET "/values/$(percent_encode "$1")?text" "$1"
}

# Prints all values as one JSON object.
session_values() {
  cloakroom_call GET /values "" || printf '{}\n'
}

session_set() { # KEY JSON
  cloakroom_write PUT "/values/$(percent_encode "$1")" "$1" "$2"
}

session_set_text() { # KEY TEXT
  session_set "$1" "$(json_text "$2")"
}

session_remove() { # KEY
  cloakroom_write DELETE "/values/$(percent_encode "$1")?default=null" "$1"
}

# Removes a value and prints it as JSON; returns 1 if there is none.
session_pop() { # KEY
  cloakroom_call DELETE "/values/$(percent_encode "$1")" "$1"
}

# Adds to a number, which is 0 if missing, and prints it. Parallel requests all count.
session_increment() { # KEY [BY]
  cloakroom_call POST "/values/$(percent_encode "$1")/increment" "$1" "{\"by\": ${2:-1}}"
}

# Appends to a list, which is created if missing.
session_append() { # KEY JSON
  cloakroom_write POST "/values/$(percent_encode "$1")/append" "$1" "$2"
}

# Replaces members of an object, which is created if missing; a null removes one.
session_merge() { # KEY JSON
  cloakroom_write PATCH "" "$1" "{\"merge\": {$(json_text "$1"): $2}}"
}

# Applies any patch (docs/reference/session-api.md).
session_patch() { # JSON
  case $1 in
  *'"principal"'* | *'"destroy"'*) cloakroom_write PATCH "" log-in "$1" ;;
  *) cloakroom_write PATCH "" "" "$1" ;;
  esac
}

# --- The session ---

# Prints the id. A session that is new is kept, so that the next page has the same.
session_id() {
  cloakroom_member id "$(cloakroom_call PATCH "" "" "{}")"
}

# Prints the name of the user who is logged in; returns 1 if there is none.
session_principal() {
  cloakroom_member principal "$(cloakroom_call GET "" "")"
}

# Logs a user in, whose credentials were checked in this request.
session_login() { # NAME
  cloakroom_write PATCH "" log-in "{\"principal\": $(json_text "$1"), \"rotate\": \"id\"}"
}

# Logs the user out and removes all values; `keep` keeps them.
session_logout() { # [keep]
  if [ "${1-}" = keep ]; then cloakroom_write PATCH "" log-out '{"principal": null}'; else session_destroy; fi
}

# Gives the session another id, and keeps its values.
session_regenerate() {
  session_patch '{"rotate": "id"}'
}

session_destroy() {
  cloakroom_write PATCH "" log-out '{"destroy": true}'
}

# --- Text ---

# Prints a text as a JSON string.
json_text() ( # TEXT
  rest=$1 quoted=
  while
    plain=${rest%%[\\\"[:cntrl:]]*}
    quoted=$quoted$plain rest=${rest#"$plain"}
    [ -n "$rest" ]
  do
    character=${rest%"${rest#?}"} rest=${rest#?}
    case $character in
    [\\\"]) quoted=$quoted\\$character ;;
    "$cloakroom_newline") quoted=$quoted\\n ;;
    *) quoted=$quoted$(printf '\\u%04x' "'$character") ;;
    esac
  done
  printf '"%s"\n' "$quoted"
)

# Prints a text for a path of a URL.
percent_encode() { # TEXT
  case $1 in
  *[!A-Za-z0-9_~.-]*) printf %s "$1" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g' ;;
  *) printf %s "$1" ;;
  esac
}

# Prints the text of a part of a URL, e.g. of a query, in which a `+` is a space.
percent_decode() { # TEXT
  # Octal escapes are those that every printf knows.
  printf %b "$(printf '%s\n' "$1" | sed 's/+/ /g; s/\\/\\0134/g' | awk '
    function digit(character) { return index("0123456789abcdef", tolower(character)) - 1 }
    {
      while (match($0, /%[0-9A-Fa-f][0-9A-Fa-f]/)) {
        code = digit(substr($0, RSTART + 1, 1)) * 16 + digit(substr($0, RSTART + 2, 1))
        printf "%s\\0%03o", substr($0, 1, RSTART - 1), code
        $0 = substr($0, RSTART + 3)
      }
      print
    }')"
}

# --- Inside ---

# Calls without printing the response.
cloakroom_write() ( # METHOD PATH KEY [BODY]
  # shellcheck disable=SC2030
  cloakroom_prefer=minimal
  cloakroom_call "$@" >/dev/null
)

# Calls the session of this request. Prints the body of a success; returns 1 if there is no value, or no session.
cloakroom_call() ( # METHOD PATH KEY [BODY]; KEY is for the log
  url=${CLOAKROOM_CLIENT_URL:-http://127.0.0.1:8081/_session}
  url=${url%/} method=$1 path=$2 key=$3 body=${4-}
  case ${HTTP_X_SESSION_TOKEN-} in
  '') cloakroom_fail USR2 "the request did not come through Cloakroom: it has no X-Session-Token" ;;
  *[!A-Za-z0-9_.~-]*) cloakroom_fail ALRM "the request did not come through Cloakroom: malformed X-Session-Token" ;;
  esac
  [ "${HTTP_X_SESSION_URL-}" = "$url" ] ||
    cloakroom_fail ALRM "the request did not come through Cloakroom: X-Session-Url is not $url"

  set -- --request "$method" ${4+--data-binary @-}
  case $url in
  http+unix://*)
    socket=${url#http+unix://}
    set -- "$@" --unix-socket "$(percent_decode "${socket%%/*}")" "http://localhost/${socket#*/}$path"
    ;;
  *) set -- "$@" "$url$path" ;;
  esac
  # The token is not in the command line, which all users of the machine can see. Settings of the user and of the
  # environment, such as http_proxy, do not apply.
  # shellcheck disable=SC2031
  response=$(
    printf %s "$body" | curl --disable --silent --globoff --noproxy '*' --connect-timeout 1 --max-time 10 \
      --fail-with-body --header @/dev/fd/3 "$@" 9>&- 3<<-headers
	X-Session-Token: $HTTP_X_SESSION_TOKEN
	Content-Type: application/json
	Prefer: return=${cloakroom_prefer:-representation}
	headers
  ) && result=0 || result=$?
  case $result in
  0)
    [ -z "$response" ] || printf '%s\n' "$response"
    return
    ;;
  22) ;; # a refusal
  *) cloakroom_fail USR1 "the session API does not answer: curl failed with $result" ;;
  esac

  code=$(printf '%s\n' "$response" | sed -n 's/.*"code": *"\([a-z_]*\)".*/\1/p')
  case $code in
  request_gone | session_rotated | session_gone)
    # A log-in must not seem to have happened, and neither must a log-out, unless the session is gone.
    case $key,$code in
    log-in,* | log-out,request_gone | log-out,session_rotated) cloakroom_fail USR1 "the $key was refused: $code" ;;
    esac
    cloakroom_log "$code: dropped a $method of '$key'"
    # A call that prints has nothing to print.
    [ -n "${cloakroom_prefer-}" ]
    ;;
  no_such_value | no_such_session) return 1 ;;
  request_token_*) cloakroom_fail ALRM "the request did not come through Cloakroom: $code" ;;
  store_* | outcome_unknown | too_many_new_sessions | internal_error | '')
    cloakroom_fail USR1 "the session API refused a $method of '$key': $response"
    ;;
  *) cloakroom_fail USR2 "'$key' was not written: $code: $response" ;;
  esac
)

# Prints a member of a session object that is a text, and comes before the values. It has no control characters.
cloakroom_member() ( # NAME SESSION
  text=$(printf '%s\n' "${2#*"\"$1\":"}" | sed -n 's/^ *"\([^"\\]*\(\\.[^"\\]*\)*\)".*/\1/p' | sed 's/\\\(.\)/\1/g')
  [ -n "$text" ] && printf '%s\n' "$text"
)

cloakroom_log() {
  printf 'cloakroom: %s\n' "$1" >&2
}

# Ends the script with the response of a signal, from a subshell, too.
cloakroom_fail() { # SIGNAL MESSAGE
  cloakroom_log "$2"
  kill -s "$1" $$
  exit 0 # `set -e` would end the script before its response
}

cloakroom_respond() { # STATUS
  printf 'Status: %s\r\nContent-Type: text/plain\r\n\r\n%s\n' "$1" "${1#* }" >&9
  exit 0
}
