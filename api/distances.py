"""How far clusters are from where a customer wants to be near: measurements as rows, fitted into a map at intervals.

What agents measure places their clusters; what a customer measures places that customer alone, so that nobody's figures
move another. It measures nothing and places no run.
"""

import math
import re
from collections.abc import Mapping, Sequence
from threading import Lock
from urllib.parse import urlsplit

from sqlalchemy import delete, select
from sqlmodel import Session, col

from api.errors import did_you_mean
from api.placement_tables import LocationRow, RttRow
from api.schemas import RunRequest
from api.tables import ClusterRow, NodeRow
from fabric.placement.coordinates import NEIGHBOURS, PROBES, Estimate, RttMap, worth_probing
from fabric.wire.errors import InvalidRequest
from fabric.wire.link import CONTROL, Rtt

FIT_MS = 60_000
"""How often the map is fitted anew when there are new measurements."""
FRESH_MS = 600_000
"""How long what a customer's process measured counts; agents measure again so often."""
KEPT_MS = 3 * FRESH_MS
LANDMARKS = 8
"""Places that a customer who has measured nothing measures first, where more are eligible than can be probed."""

_KM_PER_RTT_MS = 100.0
"""Light in fibre covers 200 km in a millisecond, there and back."""
_EARTH_KM = 6371.0
_COORDINATES = re.compile(r"(-?\d{1,2}(?:\.\d+)?)\s*,\s*(-?\d{1,3}(?:\.\d+)?)")
_KNOWN_CALLERS = 1024


class Distances:
    """One process's map of the fabric. Safe for threads: a fit replaces the map."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._map = RttMap()
        self._tried_ms = -FIT_MS
        self._newest_ms = -1
        self._seen: dict[tuple[object, ...], list[Estimate | None]] = {}

    def refit(self, session: Session, now_ms: int) -> bool:
        """Fit the map anew if it is time and something was measured; whether it was."""
        with self._lock:
            if now_ms - self._tried_ms < FIT_MS:
                return False
            self._tried_ms = now_ms
        clusters = set(session.scalars(select(ClusterRow.id)))  # type: ignore[call-overload]
        rows = session.scalars(select(RttRow).where(col(RttRow.place).in_(clusters)).order_by(*_BY_NAME))
        measured = [row for row in rows if row.other in clusters or row.other == CONTROL]
        newest = max((row.measured_ms for row in measured), default=-1)
        if newest == self._newest_ms:
            return False
        fitted = RttMap()
        for row in measured:
            fitted.measured(row.place, row.other, row.rtt_us / 1000)
        fitted.fit()
        with self._lock:
            self._map, self._newest_ms = fitted, newest
            self._seen.clear()
        return True

    def rtts_ms(self, session: Session, run: RunRequest, now_ms: int) -> dict[str, float]:
        """Per cluster the round trip from where the run wants to be near; clusters of unknown distance are left out.

        An estimate counts with its error on top: `max_rtt_ms` is not promised on a guess, and a measured place goes
        before one that is only guessed to be as near.

        Raises:
            InvalidRequest: `near` names nothing that is known here.
        """
        if not (run.near or wants_near(run)):
            return {}
        clusters = list(session.scalars(select(ClusterRow).order_by(col(ClusterRow.id))))
        names = [row.id for row in clusters]
        if not run.near:
            found = self.from_caller(caller_rtts_ms(session, run.session, now_ms), names)
            return {name: one.rtt_ms + one.error_ms for name, one in zip(names, found, strict=True) if one}
        extra_ms, origins = _origins(session, run.near, clusters)
        rtts: dict[str, float] = {}
        for origin in origins:
            for name, one in zip(names, self._map.estimates(origin, names), strict=True):
                here = Estimate(0.0, 0.0, measured=True) if name == origin else one
                if here is not None:
                    rtts[name] = min(rtts.get(name, math.inf), here.rtt_ms + here.error_ms + extra_ms)
        return rtts

    def from_caller(self, measured: Mapping[str, float], clusters: Sequence[str]) -> list[Estimate | None]:
        """Round trips from a place that measured these."""
        key = (tuple(measured.items()), tuple(clusters), self._newest_ms)
        with self._lock:
            known = self._seen.get(key)
        if known is None:
            known = self._map.seen_from(measured, clusters)
            with self._lock:
                if len(self._seen) >= _KNOWN_CALLERS:
                    self._seen.clear()
                self._seen[key] = known
        return known

    def to_probe(self, caller: str, measured: Mapping[str, float], eligible: Sequence[str]) -> list[str]:
        """What a customer should measure next, among clusters that would do; empty when the choice is confirmed."""
        if len(eligible) <= PROBES:
            return [name for name in eligible if name not in measured]
        known = len([name for name in measured if name != CONTROL])
        if known < LANDMARKS:
            return RttMap().to_measure(caller, [name for name in eligible if name not in measured], LANDMARKS - known)
        estimates = self.from_caller(measured, eligible)
        picked = worth_probing(dict(zip(eligible, estimates, strict=True)))
        return [name for name in picked if name not in measured]


def wants_near(run: RunRequest) -> bool:
    """Whether where the customer is matters to this run."""
    return run.max_rtt_ms is not None or run.objective == "latency"


def neighbours(cluster: str, clusters: Sequence[str]) -> list[str]:
    """The other clusters that one measures again and again: few, the same ones, and others than its neighbour's."""
    return RttMap().to_measure(cluster, clusters, NEIGHBOURS)


def write_rtts(session: Session, place: str, rtts: Sequence[Rtt], known: set[str], now_ms: int) -> None:
    """Keep what a place measured; what is not one of the `known` places, or itself, is left out."""
    for one in rtts:
        if (one.place in known or one.place == CONTROL) and one.place != place:
            row = session.get(RttRow, (place, one.place))
            row = row or RttRow(place=place, other=one.place, rtt_us=0, measured_ms=0)
            row.rtt_us, row.measured_ms = one.rtt_us, now_ms
            session.add(row)
    session.flush()


def write_location(session: Session, cluster: str, location: str) -> None:
    """Keep where a cluster stands; "" for unknown.

    Raises:
        ValueError: it is no place on earth.
    """
    known = session.get(LocationRow, cluster)
    if not location:
        if known is not None:
            session.delete(known)
        return
    latitude, longitude = coordinates_of(location)
    row = known or LocationRow(cluster=cluster, latitude_e6=0, longitude_e6=0)
    row.latitude_e6, row.longitude_e6 = round(latitude * 1e6), round(longitude * 1e6)
    session.add(row)


def coordinates_of(text: str) -> tuple[float, float]:
    """Latitude and longitude in degrees.

    Raises:
        ValueError: it is no place on earth.
    """
    match = _COORDINATES.fullmatch(text.strip())
    latitude, longitude = (float(match[1]), float(match[2])) if match else (math.inf, math.inf)
    if abs(latitude) > 90 or abs(longitude) > 180:
        raise ValueError(f"{text!r} is not latitude,longitude in degrees, such as 52.5,13.4")
    return latitude, longitude


def caller_rtts_ms(session: Session, caller: str, now_ms: int) -> dict[str, float]:
    """What a customer's process measured lately, in ms."""
    rows = session.scalars(
        select(RttRow)
        .where(col(RttRow.place) == caller, col(RttRow.measured_ms) > now_ms - FRESH_MS)
        .order_by(*_BY_NAME)
    )
    return {row.other: row.rtt_us / 1000 for row in rows}


def forget_old(session: Session, now_ms: int) -> None:
    """Drop what was not measured again for long."""
    session.execute(delete(RttRow).where(col(RttRow.measured_ms) < now_ms - KEPT_MS))


def _origins(session: Session, near: str, clusters: Sequence[ClusterRow]) -> tuple[float, list[str]]:
    """The clusters that stand for a region, a gateway's host or a place on earth; and the ms from there to them."""
    if _COORDINATES.fullmatch(near.strip()):
        return _closest(session, near)
    by_host = [row.id for row in clusters if urlsplit(row.gateway).hostname == near.lower()]
    regions = select(NodeRow.region, NodeRow.cluster).distinct().where(col(NodeRow.present))  # type: ignore[call-overload]
    by_region: dict[str, list[str]] = {}
    for region, cluster in session.execute(regions):
        by_region.setdefault(region, []).append(cluster)
    found = by_host or sorted(by_region.get(near, []))
    if not found:
        raise InvalidRequest(
            f"near={near!r} is neither a region of this fabric, nor a gateway's host, nor latitude,longitude; "
            + did_you_mean(near, [name for name in by_region if name])
        )
    return 0.0, found


def _closest(session: Session, near: str) -> tuple[float, list[str]]:
    try:
        here = coordinates_of(near)
    except ValueError as error:
        raise InvalidRequest(f"near={error}") from None
    places = list(session.scalars(select(LocationRow).order_by(col(LocationRow.cluster))))
    if not places:
        raise InvalidRequest(f"near={near!r}: no operator here says where its cluster stands; name a region")
    away = {row.cluster: _km(here, (row.latitude_e6 / 1e6, row.longitude_e6 / 1e6)) for row in places}
    nearest = min(away, key=lambda cluster: away[cluster])
    return away[nearest] / _KM_PER_RTT_MS, [nearest]


def _km(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Great-circle distance (haversine)."""
    (lat, lon), (lat2, lon2) = ((math.radians(a), math.radians(b)) for a, b in (one, other))
    half = math.sin((lat2 - lat) / 2) ** 2 + math.cos(lat) * math.cos(lat2) * math.sin((lon2 - lon) / 2) ** 2
    return 2 * _EARTH_KM * math.asin(math.sqrt(min(1.0, half)))


_BY_NAME = (col(RttRow.place), col(RttRow.other))
