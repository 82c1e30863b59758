"""The Django site under WSGI."""

import os


def make(is_stock):
    prepare(is_stock)
    from django.core.wsgi import get_wsgi_application

    return get_wsgi_application()


def prepare(is_stock):
    os.environ["DJANGO_SETTINGS_MODULE"] = "django_settings"
    if is_stock:
        os.environ["STOCK"] = "1"
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
