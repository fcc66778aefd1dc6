"""The shared fault proxy, and one fault more: a cut that no length tells, because the reply states none.

    python tests/fault_proxy.py FAULTPROXY.py LISTEN_PORT TARGET_HOST:PORT

A rule of `../shared/tools/faultproxy.py` may say "nolength": true besides: its reply comes without Content-Length and
ends with the connection, so that only what was asked for tells that bytes are missing.
"""

import asyncio
import importlib.util
import re
import sys
from typing import Any


def with_missing_lengths(proxy_class: type[Any]) -> type[Any]:
    """Extend the shared proxy's class."""

    class LengthlessProxy(proxy_class):  # type: ignore[misc]
        """Remembers the rule of every connection's request until its reply's head is read."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self._rule: dict[Any, Any] = {}

        def fault(self, line: str) -> Any:
            """Choose the rule of a request."""
            self._rule[asyncio.current_task()] = rule = super().fault(line)
            return rule

        async def head(self, reader: Any) -> Any:
            """Read a request's or a reply's head; the body's length is still known to the proxy."""
            raw, line, fields = await proxy_class.head(reader)
            if line.startswith("HTTP/") and (self._rule.pop(asyncio.current_task(), None) or {}).get("nolength"):
                raw = re.sub(rb"(?i)\r\ncontent-length:[^\r]*", b"\r\nConnection: close", raw)
            return raw, line, fields

    return LengthlessProxy


def main() -> None:
    """Serve until the process is ended."""
    source, port, target = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("faultproxy", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["Proxy"] = with_missing_lengths(vars(module)["Proxy"])
    host, _, target_port = target.rpartition(":")
    asyncio.run(module.main(int(port), (host, int(target_port))))


if __name__ == "__main__":
    main()
