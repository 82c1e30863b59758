"""python django_page.py PORT"""

import html
import pathlib
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="example",
    SESSION_ENGINE="cloakroom.django",
    MIDDLEWARE=["cloakroom.django.SessionMiddleware"],
)
PAGE = pathlib.Path(__file__).with_name("page.html").read_text()


def basket(request):
    session = request.session
    match request.GET.get("do"):
        case "add":
            session["basket"] = [*session.get("basket", []), f"{request.POST['item']} (Django)"]
        case "login":  # check the password first
            session.login(request.POST["name"])
        case "logout":
            session.flush()
        case _:
            items = "".join(f"<li>{html.escape(item)}</li>" for item in session.get("basket", []))
            page = PAGE.replace("LANGUAGE", "Django").replace("ITEMS", items)
            return HttpResponse(page.replace("USER", html.escape(session.principal or "nobody")))
    return HttpResponseRedirect("/django/")


urlpatterns = [path("django/", basket)]

if __name__ == "__main__":
    execute_from_command_line([__file__, "runserver", "--noreload", "--skip-checks", sys.argv[1]])
