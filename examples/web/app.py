"""A web application that remembers: a counter in its memory, a file on disk."""

import pathlib
import socket

from flask import Flask

app = Flask(__name__)
journal = pathlib.Path("/var/lib/visits.txt")
visits = 0


@app.get("/")
def visit():
    global visits
    visits += 1
    with journal.open("a") as file:
        print("visit", visits, file=file)
    lines = len(journal.read_text().splitlines())
    return f"visit {visits}, {lines} in the file, on {socket.gethostname()}\n"


@app.get("/health")
def health():
    """Answers when all of the application is loaded; no visit."""
    return "well\n"
