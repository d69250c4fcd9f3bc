"""A server over HTTP that answers paths with statuses, for whatever asks whether a server is well."""

import http.server
import threading
from contextlib import contextmanager


@contextmanager
def answering(statuses, context=None):
    """The port of a server that runs meanwhile; with TLS where a context is given. Other paths are answered 503."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(statuses.get(self.path, 503))
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()
