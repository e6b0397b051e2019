"""Addresses of machines: where one is, what reaches it, who has a port."""

import errno
import ipaddress
import re
import socket
from contextlib import closing, suppress
from dataclasses import dataclass

from lorafit.errors import UserError

_ELSEWHERE = "192.0.2.1"  # an address that nobody has (RFC 5737): what leads there leads out


@dataclass(frozen=True)
class Place:
    """Where the launchers of a job meet."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str, option: str) -> "Place":
        """UserError for what is not HOST:PORT."""
        match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", text)
        if match is None or not 0 < int(match[3]) < 65536:
            raise UserError(f"{text!r} is not HOST:PORT", option,
                            "write the name or address of the first machine and a free port of it: "
                            "node1:29400, 10.0.0.1:29400 or [fd00::1]:29400")
        return cls(match[1] or match[2], int(match[3]))

    def resolve(self, option: str) -> str:
        """The address of the host. UserError where there is none."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"this machine knows no host {self.host!r} ({why})", option,
                            "use its address, or add it to /etc/hosts of every machine") from None
        return str(found[0][4][0])


def interface_between_machines(address: str) -> str | None:
    """The network interface that other machines are reached by: the one towards `address`, or where
    that is this machine itself, under an address that others cannot reach, the one that leads out.
    None where that cannot be told.
    """
    for target in (address, _ELSEWHERE):
        source = source_towards(target)
        if source is not None and not is_loopback(source):
            return _interface_of(source)
    return None


def source_towards(address: str) -> str | None:
    """This machine's own address as `address` would see it. Nothing is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), closing(socket.socket(family, socket.SOCK_DGRAM)) as trial:
        trial.connect((address, 9))
        return str(trial.getsockname()[0])
    return None


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.split("%")[0]).is_loopback
    except ValueError:
        return False


def _interface_of(source: str) -> str | None:
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.split("%")[0] == source.split("%")[0] for each in addresses):
            return name
    return None


def listen(place: Place, option: str) -> socket.socket:
    """A socket that accepts connections at the port of a place, by all of this machine's addresses.

    UserError when the port is taken, with the name of who has it where the system tells.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        return socket.create_server(("", place.port), family=family, backlog=128,
                                    dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            who = _holder_of(place.port)
            raise UserError(f"port {place.port} of this machine is in use{who}", option,
                            "use another port, the same on every machine") from None
        raise UserError(f"port {place.port} cannot be listened on: {error.strerror}", option,
                        "use a port above 1023, the same on every machine") from None


def is_here(address: str) -> bool:
    """Whether an address is one of this machine's."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), closing(socket.socket(family, socket.SOCK_STREAM)) as trial:
        trial.bind((address, 0))
        return True
    return False


def _holder_of(port: int) -> str:
    """` by python (process 123)`, or nothing where the system does not tell."""
    import psutil

    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.pid \
                    and connection.laddr.port == port:
                name = psutil.Process(connection.pid).name()
                return f" by {name} (process {connection.pid})"
    return ""
