"""A pod's program: answers every HTTP request on PORT with its NAME and the client's address.

backend.py NAME PORT
"""

import http.server
import socket
import sys


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6  # and IPv4, by mapped addresses


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        client = self.client_address[0].removeprefix("::ffff:")
        body = f"{sys.argv[1]} {client}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


Server(("::", int(sys.argv[2])), Handler).serve_forever()
