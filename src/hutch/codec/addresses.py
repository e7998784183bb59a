"""The types of `ipaddress` as ints, text and bytes. The module is imported only when a value needs it."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..errors import ValueTypeError

KINDS = ("address", "network", "interface")


@cache
def classes() -> dict[type, str]:
    """Return the six classes of `ipaddress`, each with its kind."""
    import ipaddress as ip

    return {
        **dict.fromkeys((ip.IPv4Address, ip.IPv6Address), "address"),
        **dict.fromkeys((ip.IPv4Network, ip.IPv6Network), "network"),
        **dict.fromkeys((ip.IPv4Interface, ip.IPv6Interface), "interface"),
    }


def parts_of(value: Any) -> list[Any]:
    """Return ``[kind, packed address, prefix length or None, zone of an IPv6 address or None]``."""
    kind = classes()[type(value)]
    address = value.network_address if kind == "network" else value
    prefix = None if kind == "address" else value.network.prefixlen if kind == "interface" else value.prefixlen
    zone = getattr(address, "scope_id", None)
    if zone is not None and zone.encode("utf-8", "replace").decode() != zone:
        raise ValueTypeError(f"an {type(value).__name__} whose zone has a lone surrogate. Convert it with str()")
    return [kind, address.packed, prefix, zone]


def from_parts(kind: object, packed: object, prefix: object, zone: object) -> Any:
    """Return the address, network or interface of four parts. Raises ValueError if `parts_of` returns no such parts."""
    import ipaddress as ip

    if type(packed) is not bytes or len(packed) not in (4, 16):
        raise ValueError("address")
    version = 4 if len(packed) == 4 else 6
    address: Any = ip.IPv4Address(packed) if version == 4 else ip.IPv6Address(packed)
    if zone is not None:
        if type(zone) is not str or version == 4:
            raise ValueError("zone")
        address = ip.IPv6Address(f"{address}%{zone}")
    if kind == "address" and prefix is None:
        return address
    if type(prefix) is not int:
        raise ValueError("prefix")
    if kind == "network":
        return (ip.IPv4Network if version == 4 else ip.IPv6Network)((str(address), prefix))
    if kind == "interface":
        return (ip.IPv4Interface if version == 4 else ip.IPv6Interface)((str(address), prefix))
    raise ValueError("kind")
