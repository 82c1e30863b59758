# python3 flask_site.py 3000
import sys

from flask import Flask, request
from werkzeug.middleware.proxy_fix import ProxyFix

app = Flask(__name__)
app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1, x_host=1)


@app.get("/")
def page():
    return request.scheme


app.run("127.0.0.1", int(sys.argv[1]))
