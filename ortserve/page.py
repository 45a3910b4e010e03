"""The page at `/`: Swagger UI over `/docs.json`, from the files that BentoML carries; nothing is loaded from another host.

BentoML's own page reports every visit to Google Tag Manager and shows no error where the network is closed.
"""

from __future__ import annotations

import base64
import hashlib
import html

from ortserve.edge import Handler, Request
from ortserve.replies import Reply

_SCRIPT = 'SwaggerUIBundle({url: "./docs.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true, validatorUrl: null})'
_PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width">
    <title>{title}</title>
    <link rel="stylesheet" href="./static_content/swagger-ui.css">
    <link rel="icon" type="image/png" href="./static_content/favicon-light-32x32.png">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="./static_content/swagger-ui-bundle.js"></script>
    <script>{script}</script>
  </body>
</html>
"""


def page(title: str) -> Handler:
    """The handler of `/`."""
    body = _PAGE.format(title=html.escape(title), script=_SCRIPT).encode()
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    # Swagger UI styles its elements inline and draws its icons from data: addresses.
    policy = f"default-src 'self'; script-src 'self' 'sha256-{digest}'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
    headers = [(b"content-security-policy", policy.encode())]

    async def handler(_: Request) -> Reply:
        return Reply(200, body, b"text/html; charset=utf-8", headers)

    return handler
