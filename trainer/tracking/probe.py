"""Whether a server is there, asked before a library is that would wait for it for a minute and longer."""

import threading

from ...data.credentials import redact
from ...data.fetch.web import knock
from ..processes.ending import THREAD_NAME


def ask(address: str, seconds: float) -> None:
    """Ask whether there is a server, whatever it answers; proxies are taken from the environment.

    Args:
        address: of the server, http or https.
        seconds: that it has to answer, names and proxies included.

    Raises:
        OSError: There is none, or it does not answer in time.
    """
    found: list[Exception | None] = []

    def send() -> None:
        try:
            knock(address, seconds)
            found.append(None)
        except Exception as error:
            found.append(error)

    # Finding the address of a name knows no limit of time.
    thread = threading.Thread(target=send, name=f"{THREAD_NAME}probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise TimeoutError(f"{redact(address)} did not answer within {seconds:g} s")
    if found[0] is not None:
        raise OSError(f"{redact(address)}: {found[0]}") from found[0]
