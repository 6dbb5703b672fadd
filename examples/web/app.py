"""A web application that remembers: a counter in its memory, a file on disk."""

import os
import pathlib

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
    return f"visit {visits}, {lines} in the file, process {os.getpid()}\n"
