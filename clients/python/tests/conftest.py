import pytest
from support import MODES, Park, program, serve, settings


@pytest.fixture(params=list(MODES))
def mode(request):
    """Calls of the API, and header exchange."""
    return request.param


@pytest.fixture
def park(mode):
    """An upstream behind the program, of which a test handles the requests."""
    site = Park()
    with serve(site) as port, program(port, mode) as running, settings(**running.settings):
        site.program = running
        yield site
