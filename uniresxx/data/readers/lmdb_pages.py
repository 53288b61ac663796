"""How much of an LMDB file its content needs, read from its pages without mapping it.

LMDB maps its file and trusts it: to touch a page behind the end ends the process with a bus error. The end itself
says little, because the last pages may be unwritten where a transaction freed them again. So the tree of the main
database is walked (layout: LMDB's mdb.c, format 1; numbers little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from uniresxx.errors import InputError

HEADER = struct.Struct("<QHHHH")  # page number, padding, flags, end of the node list, start of the nodes
META = struct.Struct("<IIQQ")  # magic, version, address, size of the map
DATABASE = struct.Struct("<IHHQQQQQ")  # padding, flags, depth, branch, leaf and overflow pages, entries, root
NODE = struct.Struct(
    "<HHHH"
)  # size or child page (low, high), flags (of a branch: its highest bits), key size
MAGIC = 0xBEEFC0DE
BRANCH, LEAF = 0x01, 0x02  # flags of pages
BIG = 0x01  # flag of a node: its value lies in pages of its own
NO_PAGE = 2**64 - 1


def check_whole(file: Path) -> None:
    """InputError where the file lacks a page that its content needs, or is no LMDB."""
    status = file.stat()
    needed, size = _needed_bytes(file, status.st_size, status.st_mtime_ns), status.st_size
    if size < needed:
        raise InputError(f"{file}: is cut short: {size} bytes of {needed}; copy it again")


@lru_cache(maxsize=64)
def _needed_bytes(file: Path, size: int, _changed: int) -> int:
    """Bytes up to the end of the last page in use; the first missing page where the tree cannot be followed."""
    with file.open("rb") as stream:
        page_bytes, root = _root(stream, file)
        return page_bytes * max(_ends(stream, root, page_bytes, size, set()), default=2)


def _root(stream: BinaryIO, file: Path) -> tuple[int, int]:
    """(bytes of a page, root page of the main database) of the newer of the two meta pages."""
    found: list[tuple[int, int, int]] = []
    place = 0
    for _ in range(2):
        stream.seek(place)
        block = stream.read(HEADER.size + META.size + 2 * DATABASE.size + 16)
        if len(block) < HEADER.size + META.size + 2 * DATABASE.size + 16:
            raise InputError(f"{file}: is cut short: it has no LMDB header; copy it again")
        if META.unpack_from(block, HEADER.size)[0] != MAGIC:
            raise InputError(f"{file}: is no LMDB")
        start = HEADER.size + META.size
        page_bytes = DATABASE.unpack_from(block, start)[0]
        root = DATABASE.unpack_from(block, start + DATABASE.size)[-1]
        transaction = struct.unpack_from("<Q", block, start + 2 * DATABASE.size + 8)[0]
        found.append((transaction, page_bytes, root))
        place = page_bytes
    _, page_bytes, root = max(found)
    if page_bytes < 512:
        raise InputError(f"{file}: is no LMDB: pages of {page_bytes} bytes")
    return page_bytes, root


def _ends(stream: BinaryIO, page: int, page_bytes: int, size: int, seen: set[int]) -> Iterator[int]:
    """The number after the last page of everything below a page; a page that was seen is not walked again."""
    if page == NO_PAGE or page in seen:
        return
    seen.add(page)
    yield page + 1
    if (page + 1) * page_bytes > size:
        return
    stream.seek(page * page_bytes)
    block = stream.read(page_bytes)
    _, _, flags, lower, _ = HEADER.unpack_from(block)
    for at in range(HEADER.size, min(lower, page_bytes), 2):
        (node,) = struct.unpack_from("<H", block, at)
        if node + NODE.size > page_bytes:
            continue
        low, high, node_flags, key_bytes = NODE.unpack_from(block, node)
        if flags & BRANCH:
            yield from _ends(stream, low | high << 16 | node_flags << 32, page_bytes, size, seen)
        elif flags & LEAF and node_flags & BIG and node + NODE.size + key_bytes + 8 <= page_bytes:
            (first,) = struct.unpack_from("<Q", block, node + NODE.size + key_bytes)
            yield first - (-(HEADER.size + (low | high << 16)) // page_bytes)
