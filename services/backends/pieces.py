"""How the edge gets large bytes that do not lie on the batch service's disk: the answer names them
in a header, and the edge asks for one piece after the other, as fast as its client takes them."""

from typing import Final

PIECE: Final = 4 * 1024 * 1024
STORED_HEADER: Final = "x-tollgate-stored"  # <sha256>:<first byte>:<how many>
STORED_PATH: Final = "/internal/stored"  # /<sha256>?first=&size=
