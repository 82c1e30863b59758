"""The commands and snippets of the guides, with the package as it is built."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from support import BINARY, HERE, ROOT, kit, submit

GUIDES = ROOT / "docs" / "guides"
PAGES = [GUIDES / "django.md", GUIDES / "flask.md", GUIDES / "starlette.md", HERE.parent / "README.md"]


def blocks(page, language):
    return [
        "\n".join(line.removeprefix(indent) for line in text.splitlines()) + "\n"
        for indent, text in re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page.read_text(), re.DOTALL | re.MULTILINE)
    ]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The directory in which the built package is installed."""
    directory = tmp_path_factory.mktemp("package")
    source = shutil.copytree(HERE.parent, directory / "source", ignore=shutil.ignore_patterns("tests", ".*", "build"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", directory, source], check=True)
    [wheel] = directory.glob("cloakroom-*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", directory / "installed", wheel], check=True)
    return directory / "installed"


class Guide:
    """Runs the commands of a guide in a directory, on free ports."""

    def __init__(self, name, directory, package):
        self.page = GUIDES / name
        self.directory = directory
        self.site, self.public, self.api, self.admin = kit.free_ports(4)
        (directory / "bin").mkdir()
        (directory / "bin" / "cloakroom").symlink_to(pathlib.Path(BINARY).resolve())
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CLOAKROOM_", "DJANGO_"))}
        self.environment = {
            **kept,
            "PATH": f"{directory / 'bin'}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(package),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CLOAKROOM_API_ADDRESS": f"127.0.0.1:{self.api}",
            "CLOAKROOM_ADMIN_ADDRESS": f"127.0.0.1:{self.admin}",
            "CLOAKROOM_COOKIE_SECURE": "false",
            "CLOAKROOM_STORE_URL": f"sqlite:{directory}/cloakroom.db",
            "CLOAKROOM_CLIENT_URL": f"http://127.0.0.1:{self.api}/_session",
            "XDG_STATE_HOME": str(directory),
            "STATE_DIRECTORY": str(directory),
        }

    def write_snippets(self):
        """Writes the snippets that begin with the name of a file, at its end."""
        for text in blocks(self.page, "python"):
            if match := re.match(r"# (\S+\.py)\n", text):
                with open(self.directory / match[1], "a") as file:
                    file.write(text)

    def commands(self, number):
        """Returns the commands of a block, without those that install packages."""
        lines = blocks(self.page, "sh")[number].splitlines()
        text = "\n".join(line for line in lines if not line.startswith(("pip ", "python3 -m venv", ". venv")))
        for old, new in [(8000, self.site), (8080, self.public)]:
            text = re.sub(rf"\b{old}\b", str(new), text)
        return text

    def find(self, part):
        """Returns the number of the first block of commands that has a text."""
        return next(number for number, text in enumerate(blocks(self.page, "sh")) if part in text)

    def make_secret(self, directory="."):
        """Makes the secret and the configuration as the guide says."""
        self.run(self.find("generate-key"), directory)
        text = blocks(self.page, "toml")[0].replace("8000", str(self.site))
        assert "client_secret" in text
        (self.directory / directory / "cloakroom.toml").write_text(text)
        assert (self.directory / directory / "client-secret").stat().st_mode & 0o077 == 0

    def run(self, number, directory="."):
        """Runs the commands of a block before `cloakroom run`, and returns what they print."""
        command = ["sh", "-ec", self.commands(number).partition("cloakroom run")[0]]
        return subprocess.run(
            command, cwd=self.directory / directory, env=self.environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    @contextlib.contextmanager
    def start(self, number, directory="."):
        """Starts the `cloakroom run …` of a block."""
        before, run, command = self.commands(number).rpartition("\n")[2].partition("cloakroom run")
        file = command.split()[0] if ".toml" in command.split()[0] else ""
        command = f"{before}exec {run} {file} --listen 127.0.0.1:{self.public}{command.replace(file, '', 1)}"
        log = open(self.directory / "log", "ab")  # noqa: SIM115
        # The site listens after Cloakroom does.
        with kit.process(
            ["sh", "-ec", command], self.site, cwd=self.directory / directory, env=self.environment,
            stdout=log, stderr=log,
        ) as server:  # fmt: skip
            kit.wait_for(self.public, server)
            yield


@pytest.mark.parametrize("name", ["flask.md", "starlette.md"])
def test_guide(name, tmp_path, package):
    guide = Guide(name, tmp_path, package)
    guide.write_snippets()
    visitor = kit.Visitor(guide.public)
    with guide.start(1):
        assert visitor.send("GET", "/").text == "Hello stranger, visit 1\n"
        assert visitor.send("GET", "/").text == "Hello stranger, visit 2\n"
        assert list(visitor.jar) == ["id"]
    with guide.start(1):
        assert visitor.send("GET", "/").text == "Hello stranger, visit 3\n"
        visitor.send("POST", "/login", name="ada", expects=303)
        assert visitor.send("GET", "/").text == "Hello ada, visit 4\n"
        visitor.send("POST", "/logout", expects=303)
        assert visitor.send("GET", "/").text == "Hello stranger, visit 1\n"
        pages = guide.run(guide.find("curl"))
        assert "Hello ada, visit 1\n" in pages
        assert "Hello stranger, visit 1\n" in pages
    guide.make_secret()
    with guide.start(guide.find("cloakroom.toml")):
        assert kit.Visitor(guide.public).send("GET", "/").text == "Hello stranger, visit 1\n"
        assert kit.fetch(guide.site, "GET", "/").status == 403
    assert "X-Session-Proof is missing, wrong or too old" in (tmp_path / "log").read_text()


def test_django(tmp_path, package):
    guide = Guide("django.md", tmp_path, package)
    guide.run(0)
    guide.write_snippets()
    guide.run(1)
    visitor = kit.Visitor(guide.public)
    with guide.start(1, "shop"):
        page = visitor.send("GET", "/admin/login/").text
        form = {"username": "ada", "password": "cloakroom", "next": "/admin/"}
        assert submit(visitor, "/admin/login/", page, form).status == 302
        assert "Site administration" in visitor.send("GET", "/admin/").text
        assert sorted(visitor.jar) == ["csrftoken", "id"]
    guide.make_secret("shop")
    with guide.start(guide.find("cloakroom.toml"), "shop"):
        assert "Site administration" in visitor.send("GET", "/admin/").text
        assert kit.fetch(guide.site, "GET", "/admin/").status == 403


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_are_python(page):
    found = blocks(page, "python")
    assert found
    for text in found:
        compile(text, page.name, "exec", flags=0x2000)  # top-level await
