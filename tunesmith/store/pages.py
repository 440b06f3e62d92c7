"""Pages of a list, by cursor: the id of the last item seen. Knows no particular table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Row, Table, select, tuple_

from tunesmith.errors import InvalidRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some items of a list in its order, and whether there are more after them."""

    items: tuple[T, ...]
    has_more: bool


def fetch(
    conn: Connection,
    table: Table,
    build: Callable[[Row[Any]], T],
    *,
    order: Sequence[Column[Any]],
    after: str | None,
    limit: int,
    scope: Sequence[ColumnElement[bool]] = (),
    filters: Sequence[ColumnElement[bool]] = (),
    ascending: bool = False,
) -> Page[T]:
    """Return at most `limit` rows of `scope` that pass `filters` and come after the row with id `after`.

    `order` must be unique together. Rows that arrive meanwhile neither repeat nor hide others.
    Raises: InvalidRequest when `scope` has no row of that id.
    """
    query = select(table).where(*scope, *filters)
    if after is not None:
        cursor = conn.execute(select(*order).where(*scope, table.c.id == after)).one_or_none()
        if cursor is None:
            raise InvalidRequest(f"Invalid value for 'after': {after!r}. Expected the id of an item of this list.", param="after")
        here, there = tuple_(*order), tuple_(*cursor)
        query = query.where(here > there if ascending else here < there)
    query = query.order_by(*(column.asc() if ascending else column.desc() for column in order))
    rows = conn.execute(query.limit(limit + 1)).all()
    return Page(tuple(build(row) for row in rows[:limit]), len(rows) > limit)
