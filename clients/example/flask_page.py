"""python flask_page.py PORT"""

import html
import pathlib
import sys

from cloakroom.flask import Cloakroom
from flask import Flask, redirect, request, session

app = Flask(__name__)
Cloakroom(app)
PAGE = pathlib.Path(__file__).with_name("page.html").read_text()


@app.route("/flask/", methods=["GET", "POST"])
def basket():
    match request.args.get("do"):
        case "add":
            session.setdefault("basket", []).append(f"{request.form['item']} (Flask)")
        case "login":  # check the password first
            session.login(request.form["name"])
        case "logout":
            session.clear()
        case _:
            items = "".join(f"<li>{html.escape(item)}</li>" for item in session.get("basket", []))
            page = PAGE.replace("LANGUAGE", "Flask").replace("ITEMS", items)
            return page.replace("USER", html.escape(session.principal or "nobody"))
    return redirect("/flask/", 303)


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]))
