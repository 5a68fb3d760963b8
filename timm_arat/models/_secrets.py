"""What must not be read in a message or a file: the password of a server's address."""

import re


def without_password(text: str) -> str:
    """`text` with `NAME:PASSWORD@` left out of every address in it, such as an HF_ENDPOINT of a private mirror."""
    return re.sub(r"(\w+://)[^/\s]+@", r"\1", text)
