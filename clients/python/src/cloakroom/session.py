"""The session of one request."""

from __future__ import annotations

import functools
import json
import time
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Callable, Optional

from . import values
from .errors import CloakroomError, RejectedValue, SessionLost, Unavailable, logger

if TYPE_CHECKING:
    from .client import Client

MAX_HEADER_BYTES = 65536
MAX_KEY_BYTES = 256
RETRY_AFTER = 10.0
UNCHANGED: Any = object()
# In the dict as long as values are missing there. Without it, json.dumps() would take it for empty: it looks at the
# length of the dict itself, and calls items() only if that is not 0.
INCOMPLETE: Any = object()


class Session(dict):  # type: ignore[type-arg]
    """The session of one request, a dict that is loaded when it is first used.

    What was changed is written when the head of the response leaves: by a response header if the values came by
    header, else by a call. Changes inside of values need no mark.
    """

    def __init__(
        self,
        client: Client,
        token: str = "",
        headers: Callable[[str], Optional[str]] = lambda name: None,
        is_trusted: bool = False,
        fault: Optional[CloakroomError] = None,
    ) -> None:
        super().__init__()
        self._client, self._token = client, token
        self._fault = fault
        self._has_session = headers("x-session-id") is not None
        self._id = headers("x-session-id") if is_trusted else None
        self._next_id = headers("x-session-next-id") if is_trusted else None
        name = headers("x-session-principal") if is_trusted else None
        self._principal = None if name is None else urllib.parse.unquote(name)
        self._data = headers("x-session-data") if is_trusted else None
        omitted = headers("x-session-data-omitted") if is_trusted else None
        self._by_header = self._data is not None or omitted is not None
        self._knows_head = is_trusted or not self._has_session
        self._omitted = set(map(urllib.parse.unquote, omitted.split(","))) if omitted and self._data else set()
        self._old: dict[str, Any] = {}
        self._is_loaded = False
        self._is_destroyed = self._is_rotated = self._is_wanted = False
        self._change_principal: Any = UNCHANGED
        self._login_keys: tuple[str, ...] = ()
        self._new: tuple[dict[str, Any], list[str]] = ({}, [])
        dict.__setitem__(self, INCOMPLETE, None)
        self._has_failed_to_write = False
        self._unknown_write: Optional[Unavailable] = None
        self._retry_at = 0.0
        self.failure: Optional[CloakroomError] = None
        """The error that the request fails with, for frameworks that catch it themselves."""

    # What a framework or a site asks for.

    @property
    def id(self) -> Optional[str]:
        """The id. A visitor without a session gets one, which is created with the response."""
        if not self._has_session or self._is_destroyed:
            self._is_wanted = True
        return self.key

    @property
    def key(self) -> Optional[str]:
        """The id, or None for a visitor without a session. Unlike `id` it does not create one."""
        if self._is_destroyed and not self._is_wanted:
            return None
        if self._is_destroyed or (self._is_rotated and self._has_session):
            self.save()  # the new id is not known before
        if self._has_session:
            if self._id is None:
                self._fetch()
            return self._id
        if not self._is_wanted:
            self._raise_fault()
            return None
        if self._next_id is None:
            self._fetch()
        if self._next_id is None:
            self.save()
            return self._id
        return self._next_id

    @property
    def cache_key(self) -> Optional[str]:
        """A text that only requests of this session and its principal have, or None for a visitor without a session.

        Without trust it is the token, which differs by request: the id could be that of another visitor.
        """
        if self._fault or not self._has_session:
            return None
        return f"{self._id} {self._principal or ''}" if self._id is not None else f"token {self._token}"

    def create(self) -> None:
        """Creates the session with the response, even if it has no values."""
        self._is_wanted = True

    @property
    def is_new(self) -> bool:
        """Whether the visitor has no session yet."""
        self._raise_fault()
        return not self._has_session

    @property
    def is_empty(self) -> bool:
        """Whether there is no session, and nothing to create one for. Reads nothing."""
        return (not self._has_session or self._is_destroyed) and not self._is_wanted and not self._present()

    @property
    def is_worth_creating(self) -> bool:
        """Whether a visitor without a session gets one by an explicit save: not for empty values alone."""
        found = self._present().values()
        return not found or not all(map(values.is_empty, found))

    def _present(self) -> dict[Any, Any]:
        """Returns the values that are there without a call."""
        return {key: value for key, value in dict.items(self) if key is not INCOMPLETE}

    @property
    def is_complete(self) -> bool:
        """Whether all values are there without a call."""
        return not self._omitted and (self._is_loaded or self._data is not None or not self._has_session)

    def had(self, key: str) -> bool:
        """Whether a value was there when the session was read."""
        return key in self._old

    def load(self) -> None:
        """Reads all values."""
        self._load_all()

    def reload(self) -> dict[str, Any]:
        """Returns the values as they are stored now."""
        return {key: self._read(key, value) for key, value in self._fetch().items()}

    @property
    def principal(self) -> Optional[str]:
        """The name of the user that has logged in, in any site behind this Cloakroom."""
        self._raise_fault()
        if self._change_principal is not UNCHANGED:
            return self._change_principal  # type: ignore[no-any-return]
        if self._is_destroyed:
            return None
        if not self._knows_head:
            self._fetch()
        return self._principal

    def login(self, name: str, keys: Iterable[str] = ()) -> None:
        """Makes a user the principal of the session. Call it only when credentials were checked in this request.

        The session gets a new token and id. If it belonged to another principal, the stored values are removed; those
        that this request has changed are the new one's, and those of `keys`, which belong to the log-in.
        """
        self._raise_fault()
        self._login_keys = tuple(keys)
        self._change_principal = name
        self._is_rotated = True

    def logout(self) -> None:
        """Removes the principal and keeps the values."""
        self._raise_fault()
        self._change_principal = None

    def regenerate(self) -> None:
        """Gives the session another token and id, and keeps its values."""
        self._raise_fault()
        self._is_rotated = True

    def destroy(self) -> None:
        """Ends the session. What is stored afterwards is in a new one."""
        self._raise_fault()
        if self._has_session:
            self._is_destroyed = True
        self._old, self._omitted, self._is_loaded = {}, set(), True
        self._is_rotated = self._is_wanted = False
        self._change_principal = UNCHANGED
        self._principal, self._knows_head = None, True
        super().clear()

    def save(self) -> None:
        """Writes what was changed by a call, at once."""
        patch = self.patch()
        if patch is not None:
            self.send(patch)

    # The loaded values.

    def _raise_fault(self) -> None:
        if self._fault:
            raise self._fail(self._fault)

    def _fail(self, error: CloakroomError) -> CloakroomError:
        if self.failure is None or self.failure.args != error.args:
            logger.error("%s", error)
        error.is_logged = True
        self.failure = error
        return error

    def _call(self, method: str, path: str, patch: Optional[Mapping[str, Any]] = None, missing: Any = None) -> Any:
        """Returns the JSON of an answer, or `missing`."""
        if patch is not None:
            self._raise_unknown_write()
        if isinstance(self.failure, Unavailable) and time.monotonic() < self._retry_at:
            raise self.failure  # a page that asks often would wait for each call
        try:
            answer = self._client.call(method, path, self._token, patch)
            return answer.json() if answer.status == 200 else missing
        except SessionLost:
            raise
        except CloakroomError as error:
            if isinstance(error, Unavailable):
                self._retry_at = time.monotonic() + RETRY_AFTER
                self._fail(error)
                if patch is not None:
                    self._unknown_write = error
            self.failure = error
            self._has_failed_to_write |= patch is not None
            raise

    def _raise_unknown_write(self) -> None:
        """Fails if an earlier write of this request may have happened: what it wrote must not be written twice."""
        if self._unknown_write:
            raise self._unknown_write

    def _fetch(self) -> dict[str, Any]:
        """Reads the session by a call, and returns its values."""
        self._raise_fault()
        try:
            found = self._call("GET", "")
        except SessionLost as error:
            logger.warning("the session has ended; going on without it: %s", error)
            found = None
        found = found or {}
        self._take_head(found)
        self._has_session = self._id is not None
        loaded: dict[str, Any] = found.get("values") or {}
        if not self._is_loaded:
            self._take_values(loaded)
        return loaded

    def _take_head(self, found: Mapping[str, Any]) -> None:
        self._id, self._principal = found.get("id"), found.get("principal")
        self._next_id = found.get("next_id")
        self._knows_head = True

    def _take_values(self, loaded: dict[str, Any]) -> None:
        self._old = loaded
        # A copy of each value, so that changes inside of it are seen.
        for key, value in json.loads(json.dumps(loaded)).items():
            dict.__setitem__(self, key, self._read(key, value))
        self._is_loaded = True
        self._mark()

    def _mark(self) -> None:
        if not self._omitted:
            dict.pop(self, INCOMPLETE, None)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._raise_fault()
        if self._data is not None:
            self._take_values(json.loads(self._data))
        elif self._has_session:
            self._fetch()
        else:
            self._take_values({})

    def _load_key(self, key: Any) -> None:
        self._load()
        if key in self._omitted:
            try:
                found = self._call("GET", "/values/" + urllib.parse.quote(key, safe=""), missing=values.UNKNOWN)
            except SessionLost as error:
                logger.warning("the session has ended; going on without it: %s", error)
                found = values.UNKNOWN
            self._omitted.discard(key)
            self._take_values_of({} if found is values.UNKNOWN else {key: found})

    def _load_all(self) -> None:
        self._load()
        if self._omitted:
            found = self._fetch()
            omitted, self._omitted = self._omitted, set()
            self._take_values_of({key: found[key] for key in omitted if key in found})

    def _take_values_of(self, loaded: dict[str, Any]) -> None:
        old = self._old
        self._take_values(loaded)
        self._old = {**old, **loaded}

    def to_json(self, value: Any, key: str = "") -> Any:
        """Returns the JSON form of a value. Frameworks with a serializer replace it."""
        return values.to_json(value)

    def from_json(self, value: Any, key: str = "") -> Any:
        """Returns the value of a JSON form."""
        return values.from_json(value)

    def _read(self, key: str, value: Any) -> Any:
        """Returns the value of a JSON form, or the form itself if it cannot be read: other sites write values, too."""
        try:
            return self.from_json(value, key)
        except Exception as error:
            logger.warning("the session value of %r cannot be read: %s: %s", key, type(error).__name__, error)
            return values.Tagged(value) if isinstance(value, dict) else value

    # What is written.

    def _changed(self, stored: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Returns the values that differ from the stored ones, as JSON, and the keys that are missing."""
        if not self._is_loaded:
            return {}, []
        changed, kept = {}, set()
        for key, value in self._present().items():
            name = key if isinstance(key, str) else _json_key(key)
            kept.add(name)
            form = self.to_json(value, name)
            old = stored.get(name, values.UNKNOWN)
            is_same = name in stored and old is not values.UNKNOWN and _dumps_any(form) == _dumps_any(old)
            if not is_same:
                try:
                    changed[name] = _strict(name, form)
                except RejectedValue as error:
                    self._has_failed_to_write = True
                    raise self._fail(error) from None
        return changed, [key for key in stored if key not in kept and key not in self._omitted]

    def patch(self) -> Optional[dict[str, Any]]:
        """Returns what has to be written, or None."""
        if self._fault:
            return None
        changed, missing = self._changed(self._old)
        principal = self._change_principal
        if principal is UNCHANGED:
            principal = self._principal_in_values(changed, missing)
        self._new = changed, missing
        if isinstance(principal, str) and self._principal not in (None, principal):
            # The API removes the values of another principal. What this request has changed is the new one's.
            kept = {key: self._old[key] for key in self._login_keys if key in self and key in self._old}
            changed = {**kept, **changed}
            self._new, missing = (changed, missing), []
        patch: dict[str, Any] = {}
        if not self._has_session and not self._is_destroyed:
            is_worth_it = self._is_wanted or any(not values.is_empty(value) for value in changed.values())
            if not is_worth_it and principal in (UNCHANGED, None):
                return None
            missing = []
        if self._is_destroyed:
            patch["destroy"] = True
            is_worth_it = self._is_wanted or any(not values.is_empty(value) for value in changed.values())
            if is_worth_it or isinstance(principal, str):
                patch["set"] = changed
        else:
            # With a log-in, values are whole: an append or a merge would be lost if the API removes the old ones.
            is_whole = isinstance(principal, str)
            names = missing if is_whole else {*changed, *missing}
            old = {key: self._old[key] for key in names if key in self._old}
            patch.update(values.changes(old, changed, is_whole))
        if (expiry := self.expiry_change(changed, missing)) is not UNCHANGED:
            patch["expiry"] = expiry
        if principal is not UNCHANGED and (principal is not None or (self._has_session and not self._is_destroyed)):
            patch["principal"] = principal
        if self._is_rotated and self._has_session and not self._is_destroyed:
            patch["rotate"] = "id"
        if not patch and not (self._is_wanted and not self._has_session):
            return None
        if not {"destroy", "principal", "rotate"} & patch.keys():
            patch["if_lost"] = "drop"
        return patch

    def expiry_change(self, changed: Mapping[str, Any], missing: Iterable[str]) -> Any:
        """Returns the `expiry` of the patch, or `UNCHANGED`. Frameworks that have one replace it."""
        return UNCHANGED

    def _principal_in_values(self, changed: Mapping[str, Any], missing: Iterable[str]) -> Any:
        """Returns the principal that the values have, if it is another than before."""
        path = self._client.settings.principal
        if not path:
            return UNCHANGED
        top, *rest = path.split(".")
        if top not in changed and top not in missing:
            return UNCHANGED
        before, after = (_member(found.get(top), rest) for found in (self._old, changed))
        if self._old.get(top) is values.UNKNOWN:
            before = self._principal  # the value was replaced without being read
        return UNCHANGED if before == after else after

    def header(self, patch: Mapping[str, Any], status: int) -> Optional[str]:
        """Returns the value of `X-Session-Patch`, or None if the patch has to be sent by a call."""
        self._raise_unknown_write()
        if not self._by_header or status >= 500:
            return None
        text = values.dumps(patch)
        if len(text) >= MAX_HEADER_BYTES:
            return None
        self._has_written(patch)
        return text

    def send(self, patch: Mapping[str, Any], drop: bool = True) -> None:
        """Writes a patch by a call. If the session is lost, it is dropped, unless the caller wants to know."""
        earlier = self._unknown_write
        try:
            found = self._call("PATCH", "", patch)
        except SessionLost as error:
            if not self._may_drop(error, patch):
                raise self._fail(Unavailable(f"a log-in or log-out was refused: {error}")) from None
            logger.warning("%s; dropped the change of %s", error, self._named() or "the session")
            if not drop:
                raise
            found = None
        except Unavailable as error:
            if (names := self._named()) and error is not earlier:
                logger.error("the change of %s is lost", names)
            raise
        except RejectedValue as error:
            raise self._fail(RejectedValue(f"{error}; changed: {self._named() or 'no value'}")) from None
        self._has_written(patch)
        if found and "id" in found:
            self._take_head(found)

    @staticmethod
    def _may_drop(error: SessionLost, patch: Mapping[str, Any]) -> bool:
        """Whether a page may go out without a write to a session that has ended.

        A log-in must not seem to have happened, and neither must a log-out, unless the session is gone.
        """
        if isinstance(patch.get("principal"), str):
            return False
        is_log_out = "principal" in patch or "destroy" in patch
        return not is_log_out or "session_gone" in str(error)

    def commit(self, status: int) -> Optional[str]:
        """Writes what was changed; returns the value of `X-Session-Patch` if the response has to carry it."""
        patch = self.patch()
        header = None if patch is None else self.header(patch, status)
        if patch is not None and header is None:
            self.send(patch)
        return header

    def finish(self) -> None:
        """Writes what was changed after the head of the response has left; errors are logged."""
        if self._has_failed_to_write:
            return  # a write whose fate is not known is never repeated
        try:
            self.save()
        except Unavailable:
            pass  # logged where it was raised
        except CloakroomError as error:
            logger.error("the change of %s after the response head is lost: %s", self._named(), error)

    def _named(self) -> str:
        """Returns the keys that were to be written, the largest values first."""
        sizes = {key: len(values.dumps(value)) for key, value in self._new[0].items()}
        largest = sorted(sizes, key=lambda key: -sizes[key])
        names = [f"{key!r} ({sizes[key]} bytes)" for key in largest] + [f"{key!r} (removed)" for key in self._new[1]]
        return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")

    def _has_written(self, patch: Mapping[str, Any]) -> None:
        changed, missing = self._new
        self._old.update(changed)
        for key in missing:
            self._old.pop(key, None)
        creates = bool(patch.keys() - {"destroy", "remove", "if_lost"}) or not patch.keys() - {"if_lost"}
        if self._is_destroyed:
            self._id = self._next_id = None
        if self._is_destroyed or not self._has_session:
            self._has_session = creates
            self._id = self._id or (self._next_id if creates else None)
        if "principal" in patch:
            self._principal, self._knows_head = patch["principal"], True
        self._change_principal = UNCHANGED
        self._is_destroyed = self._is_rotated = self._is_wanted = False

    # The dict.

    def __getitem__(self, key: Any) -> Any:
        self._load_key(key)
        return super().__getitem__(key)

    def __contains__(self, key: Any) -> bool:
        self._load_key(key)
        return super().__contains__(key)

    def get(self, key: Any, default: Any = None) -> Any:
        self._load_key(key)
        return super().get(key, default)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._load()
        self._forget(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self._load_key(key)
        super().__delitem__(key)

    def _forget(self, key: Any) -> None:
        """Notes that an omitted value is written without being read."""
        if key in self._omitted:
            self._omitted.discard(key)
            self._old[key] = values.UNKNOWN
            self._mark()

    def pop(self, key: Any, *default: Any) -> Any:
        self._load_key(key)
        return super().pop(key, *default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        self._load_key(key)
        return super().setdefault(key, default)

    def update(self, *args: Any, **kwargs: Any) -> None:
        for key, value in dict(*args, **kwargs).items():
            self[key] = value

    def __ior__(self, other: Any) -> Session:  # type: ignore[misc]
        self.update(other)
        return self

    def clear(self) -> None:
        self._load()
        for key in list(self._omitted):
            self._forget(key)
        super().clear()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)  # for copy.deepcopy() and pickle

    def copy(self) -> dict[Any, Any]:
        self._load_all()
        return dict(self.items())


def _loading(name: str) -> Callable[..., Any]:
    method = getattr(dict, name)

    @functools.wraps(method)
    def load_and_call(self: Session, *args: Any) -> Any:
        self._load_all()
        return method(self, *args)

    return load_and_call


# Without these, a dict that is not yet loaded would look empty.
for _name in (
    "__iter__", "__reversed__", "__len__", "__eq__", "__ne__", "__or__", "__ror__", "__repr__", "keys", "values",
    "items", "popitem",
):  # fmt: skip
    setattr(Session, _name, _loading(_name))


def _json_key(key: Any) -> str:
    """Returns a key as JSON writes it: 1 is "1"."""
    return str(next(iter(json.loads(json.dumps({key: None})))))


def _dumps_any(value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return ""


def _strict(key: str, form: Any) -> Any:
    """Returns a value as it comes back from JSON; raises `RejectedValue` if it cannot be stored."""
    if not 0 < len(key.encode("utf-8", "surrogatepass")) <= MAX_KEY_BYTES:
        raise RejectedValue(f"the session key {key[:40]!r} must have 1 to {MAX_KEY_BYTES} bytes")
    try:
        text = json.dumps(form, allow_nan=False, ensure_ascii=False)
        (key + text).encode()  # no lone surrogates
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise RejectedValue(f"the session value of {key!r} is not JSON: {error}") from None


def _member(value: Any, path: Iterable[str]) -> Optional[str]:
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None
