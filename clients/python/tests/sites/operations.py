"""What requests do to a session, in terms of a dict."""


def value_of(session, operation):
    """Returns the key of an operation and its new value."""
    name, key, *rest = operation
    if name == "set":
        return key, rest[0]
    if name == "append":
        return key, [*session.get(key, []), rest[0]]
    if name == "member":
        return key, {**session.get(key, {}), rest[0]: rest[1]}
    assert name == "add"
    return key, session.get(key, 0) + rest[0]


def apply(session, operations):
    for operation in operations:
        if operation[0] == "remove":
            session.pop(operation[1], None)
        elif operation[0] in ("append", "member") and operation[1] in session:
            # In place: a client has to see changes inside of a value.
            found = session[operation[1]]
            found.append(operation[2]) if operation[0] == "append" else found.update({operation[2]: operation[3]})
        else:
            key, value = value_of(session, operation)
            session[key] = value


def shown(session, private):
    return {"values": {key: session[key] for key in list(session.keys()) if key not in private}}


def one(session, key):
    return {"has": True, "value": session[key]} if key in session else {"has": False}
