"""Bytes of the batch service that do not lie on its disk: asked for in pieces, each when the client
has taken the one before, so that nothing waits for a slow one but itself."""

from collections.abc import Iterator

from services.backends.http.private_client import ANSWER_MAX, Answer, ApiUnavailable, PrivateClient
from services.backends.identity import OPERATOR
from services.backends.job_wire import PIECE, STORED_HEADER, STORED_PATH


class StoredAnswer(Answer):
    """The answer that `found` has begun, with its body."""

    def __init__(self, client: PrivateClient, found: Answer) -> None:
        sha256, first, size = found.headers[STORED_HEADER].split(":")
        self.status = found.status
        self.headers = found.headers | {"content-length": size}
        self._client = client
        self._path = f"{STORED_PATH}/{sha256}"
        self._first, self._size = int(first), int(size)
        found.close()

    def body(self) -> bytes:
        if self._size > ANSWER_MAX:
            raise ApiUnavailable("the answer is larger than 64 MB")
        try:
            return b"".join(self.pieces())
        except OSError as ex:
            raise ApiUnavailable(str(ex)) from ex

    def pieces(self) -> Iterator[bytes]:
        end = self._first + self._size
        for at in range(self._first, end, PIECE):
            target = f"{self._path}?first={at}&size={min(PIECE, end - at)}"
            try:
                piece = self._client.call("GET", target, account_id=OPERATOR)
            except ApiUnavailable as ex:
                raise OSError(str(ex)) from ex
            if piece.status != 200:
                piece.close()
                raise OSError(f"the store answered {piece.status}")
            yield from piece.pieces()

    def close(self) -> None:
        """Nothing is open between two pieces."""
