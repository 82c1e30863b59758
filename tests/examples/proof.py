# Refuses requests that did not come through Cloakroom. In the site: `import proof`, `class Site(proof.Verified)`.
# CLIENT_SECRETS=client-secret python3 site.py 3000
import base64, hashlib, hmac, http.server, os, re, time

SIGNED = ["url", "token", "id", "next-id", "principal", "version", "data", "data-omitted", "error"]


def mac(path, text):
    with open(path, "rb") as file:
        secret = re.sub(rb"\r?\n\Z", b"", file.read())
    if len(secret) < 32:
        raise ValueError(f"{path} is too short")
    return base64.urlsafe_b64encode(hmac.digest(secret, text, hashlib.sha256)).rstrip(b"=").decode()


def is_proven(headers):
    proof, *more = headers.get_all("X-Session-Proof", [""])
    proof = re.fullmatch(r"v1 t=([0-9]{1,12}) m=([A-Za-z0-9_-]{43})", proof)
    found = {name: headers.get_all(f"X-Session-{name}", []) for name in SIGNED}
    if more or not proof or any(len(values) > 1 for values in found.values()):
        return False
    lines = [f"x-session-{name}:{values[0]}" for name, values in found.items() if values]
    text = "\n".join(["cloakroom-proof-v1", proof[1], *lines]).encode("latin-1")
    secrets = os.environ["CLIENT_SECRETS"].split(":")  # two, while the secret is changed
    is_right = any(hmac.compare_digest(mac(path, text), proof[2]) for path in secrets)
    return is_right and abs(time.time() - int(proof[1])) <= 300


class Verified(http.server.BaseHTTPRequestHandler):
    def parse_request(self):
        is_accepted = super().parse_request() and (is_proven(self.headers) or self.send_error(403))
        return bool(is_accepted)
