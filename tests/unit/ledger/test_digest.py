"""The digests: recomputed from docs/file_format.md by hand, and blind to what may differ."""

import hashlib
import struct

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.ledger.digest import ledger_digest, model_digest
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import MESSAGE_COLUMNS, MessageRow
from fedmpi.ledger.writer import LedgerWriter


def make_rows(num_rounds: int = 3, num_clients: int = 4, num_steps: int = 2) -> list[MessageRow]:
    return [
        MessageRow(
            r, s, c, 1 + c % 2, d, f"kind_{d}", ("rice", "bitmask")[c % 2], 96, 10 * r + s, 10 * r + s + 96, c, s,
            2**33 + c, r / 3, s / 7, 100, 50, 0.1, 0.2, r + 0.5, r + 0.75,
        )
        for r in range(num_rounds) for c in range(num_clients) for s in range(num_steps) for d in ("up", "down")
    ]  # fmt: skip


def columns(rows: list[MessageRow]) -> dict[str, np.ndarray]:
    values = zip(*rows, strict=True) if rows else [[] for _ in MESSAGE_COLUMNS]
    return {
        column.name: np.array(v, str if column.name in ("direction", "kind", "codec") else column.dtype)
        for column, v in zip(MESSAGE_COLUMNS, values, strict=True)
    }


def by_hand(rows: list[MessageRow]) -> str:
    """Follow docs/file_format.md, with nothing of fedmpi.ledger."""
    code = {"down": 0, "up": 1}
    rows = sorted(rows, key=lambda row: (row.round_idx, row.client_id, row.step, code[row.direction]))
    data = struct.pack("<Q", len(rows))
    for name, letter in (("round_idx", "i"), ("step", "i"), ("client_id", "i")):
        data += b"".join(struct.pack("<" + letter, getattr(row, name)) for row in rows)
    data += bytes(code[row.direction] for row in rows)
    data += b"".join(row.kind.encode() + b"\x00" for row in rows)
    data += b"".join(row.codec.encode() + b"\x00" for row in rows)
    data += b"".join(struct.pack("<I", row.header_nbytes) for row in rows)
    for name in ("payload_nbytes", "wire_nbytes", "index_nbytes", "value_nbytes", "dense_nbytes"):
        data += b"".join(struct.pack("<Q", getattr(row, name)) for row in rows)
    for name in ("bound_nbits", "paper_nbits"):
        data += b"".join(struct.pack("<d", getattr(row, name)) for row in rows)
    for name in ("num_params", "num_kept"):
        data += b"".join(struct.pack("<Q", getattr(row, name)) for row in rows)
    return hashlib.sha256(data).hexdigest()


def test_by_hand():
    assert ledger_digest(columns(make_rows())) == by_hand(make_rows())
    assert ledger_digest(columns([])) == hashlib.sha256(bytes(8)).hexdigest()


@settings(max_examples=20, deadline=None)
@given(st.permutations(make_rows()))
def test_blind_to_the_order_of_rows(rows):
    assert ledger_digest(columns(rows)) == by_hand(make_rows())


def test_blind_to_times_and_ranks_only():
    rows = make_rows()
    want = ledger_digest(columns(rows))
    for field in MessageRow._fields:
        value = {"direction": "up", "kind": "other", "codec": "other"}.get(field, 9)
        changed = [*rows[:3], rows[3]._replace(**{field: value}), *rows[4:]]
        same = ledger_digest(columns(changed)) == want
        assert same == (field in ("rank", "encode_s", "decode_s", "send_t", "recv_t")), field


def test_blind_to_the_order_of_the_code_tables(tmp_path):
    rows = make_rows()
    digests, tables = [], []
    for name, order in (("a", rows), ("b", rows[::-1])):
        writer = LedgerWriter(tmp_path / name, attrs={}, config_yaml="", flush_s=1.0)
        for row in order:
            writer.add_message(row)
            writer.flush()  # a flush a row, so that names get their codes in the rows' order
        writer.finish("done", {})
        with Ledger(tmp_path / name) as ledger:
            digests.append(ledger.summary()["ledger_digest"])
            tables.append(ledger._file["names/kind"][:].tolist())
    assert tables[0] == tables[1][::-1]
    assert digests == [by_hand(rows)] * 2


def test_model_digest():
    state, ints = np.array([1.5, -2.0], np.float32), np.array([3], np.int64)
    want = hashlib.sha256(struct.pack("<ffq", 1.5, -2.0, 3)).hexdigest()
    assert model_digest(state, ints) == want
    assert model_digest(np.repeat(state, 2)[::2], ints) == want
    assert model_digest(state, np.array([4])) != want
    assert model_digest(state, np.zeros(0, np.int64)) == hashlib.sha256(struct.pack("<ff", 1.5, -2.0)).hexdigest()
