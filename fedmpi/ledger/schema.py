"""What the ledger's columns are; docs/file_format.md is the same contract in words."""

from __future__ import annotations

import math
from typing import NamedTuple

LEDGER_NAME = "ledger.h5"
"""The file in a run's folder."""

FILETYPE = "fedmpi-ledger"
FORMAT_VERSION = 1
DIRECTIONS = ("down", "up")


class Column(NamedTuple):
    """One 1-D dataset.

    Attributes
    ----------
    name : str
        Name of the dataset in its group.
    dtype : str
        NumPy dtype string, always little-endian.
    unit : str
        Unit of a value: ``"B"``, ``"bit"``, ``"s"``, or ``"1"`` for counts, indices, codes and fractions.
    meaning : str
        One line for a reader.
    default : int or float, optional
        What every row reads as in a file that lacks the column, because it was written before the column was added,
        and what a row that does not name the column is written with. None: a file without the column is damaged.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    default: int | float | None = None


MESSAGE_COLUMNS = (
    Column("round_idx", "<i4", "1", "round, from 0"),
    Column("step", "<i4", "1", "number of the message within its conversation and direction, from 0"),
    Column("client_id", "<i4", "1", "virtual client"),
    Column("rank", "<i4", "1", "MPI rank that played the client"),
    Column("direction", "|u1", "1", "0 down (server to client), 1 up"),
    Column("kind", "<u2", "1", "what was sent: index into /names/kind"),
    Column("codec", "<u2", "1", "how it was coded: index into /names/codec"),
    Column("header_nbytes", "<u4", "B", "frame header and section table"),
    Column("payload_nbytes", "<u8", "B", "all behind the header"),
    Column("wire_nbytes", "<u8", "B", "header + payload: the length of the buffer handed to the communicator"),
    Column("index_nbytes", "<u8", "B", "part of the payload that says where, if the codec splits so, else 0"),
    Column("value_nbytes", "<u8", "B", "part of the payload that says what, if the codec splits so, else 0"),
    Column("dense_nbytes", "<u8", "B", "the same values as plain float32"),
    Column("bound_nbits", "<f8", "bit", "Shannon bound of what was sent"),
    Column("paper_nbits", "<f8", "bit", "what the paper's own accounting would say"),
    Column("num_params", "<u8", "1", "parameters that the message is about"),
    Column("num_kept", "<u8", "1", "parameters whose value was sent"),
    Column("encode_s", "<f4", "s", "time to encode, at the sender"),
    Column("decode_s", "<f4", "s", "time to decode, at the receiver"),
    Column("send_t", "<f8", "s", "when it was sent, since the run's start"),
    Column("recv_t", "<f8", "s", "when it was received, since the run's start"),
)

ROUND_COLUMNS = (
    Column("round_idx", "<i4", "1", "round, from 0"),
    Column("num_clients", "<i4", "1", "clients that took part"),
    Column("train_loss", "<f8", "1", "mean training loss of the round's clients"),
    Column("test_loss", "<f8", "1", "mean loss over the test set; NaN when not tested"),
    Column("test_accuracy", "<f8", "1", "fraction of the test set that is right, 0 to 1; NaN when not tested"),
    Column("down_nbytes", "<u8", "B", "sum of wire_nbytes down in this round"),
    Column("up_nbytes", "<u8", "B", "sum of wire_nbytes up in this round"),
    Column("cum_down_nbytes", "<u8", "B", "sum of wire_nbytes down up to and with this round"),
    Column("cum_up_nbytes", "<u8", "B", "sum of wire_nbytes up up to and with this round"),
    Column("wall_s", "<f8", "s", "duration of this round on the server"),
    Column("train_s", "<f8", "s", "local training, summed over ranks"),
    Column("encode_s", "<f8", "s", "encoding, summed over ranks"),
    Column("wait_s", "<f8", "s", "waiting for messages, summed over ranks"),
    Column("decode_s", "<f8", "s", "decoding, summed over ranks"),
    Column("aggregate_s", "<f8", "s", "aggregation, summed over ranks"),
    Column("evaluate_s", "<f8", "s", "test of the global model, summed over ranks"),
    Column("log_s", "<f8", "s", "writing the ledger"),
    Column("density", "<f8", "1", "kept / all parameters of the global model"),
    Column("num_faults", "<i4", "1", "clients whose reply was lost or refused; they stand in /faults", default=0),
    Column(
        "client_accuracy",
        "<f8",
        "1",
        "mean over clients of their accuracy on the test images of the classes that they train on; NaN without",
        default=math.nan,
    ),
    Column("client_accuracy_std", "<f8", "1", "standard deviation of it over clients; NaN without", default=math.nan),
    *(
        Column(f"virtual_{name}_s", "<f8", "s", f"virtual time of the round, {meaning}; NaN without", default=math.nan)
        for name, meaning in (
            ("sum", "turns one after the other, nothing overlaps"),
            ("mean", "mean over turns, nothing overlaps"),
            ("max", "the longest turn, nothing overlaps"),
            ("overlap_sum", "turns one after the other, with overlap in each"),
            ("overlap_mean", "mean over turns, with overlap in each"),
            ("overlap_max", "the longest turn, with overlap in it"),
        )
    ),
    Column("device_ops", "<f8", "1", "operations of the clients, summed; NaN without", default=math.nan),
    Column("server_ops", "<f8", "1", "operations of the server for clients, summed; NaN without", default=math.nan),
    Column("aggregate_ops", "<f8", "1", "operations of the server beside them; NaN without", default=math.nan),
)

# Files of before this table have no such group; without virtual time it has no rows.
TURN_COLUMNS = (
    Column("round_idx", "<i4", "1", "round, from 0"),
    Column("client_id", "<i4", "1", "virtual client"),
    Column("device_ops", "<f8", "1", "operations of the client"),
    Column("server_ops", "<f8", "1", "operations of the server for this client"),
)

# Files of before this table have no such group; of text it has no rows.
CLASS_TEST_COLUMNS = (
    Column("round_idx", "<i4", "1", "round whose model was tested, from 0"),
    Column("class_idx", "<i4", "1", "true class, from 0"),
    Column("num_correct", "<i8", "1", "test samples of the class that the model told rightly"),
    Column("num_tested", "<i8", "1", "test samples of the class"),
)

# Files of before this table have no such group, which reads as no fault.
FAULT_COLUMNS = (
    Column("round_idx", "<i4", "1", "round, from 0"),
    Column("client_id", "<i4", "1", "virtual client"),
    Column("rank", "<i4", "1", "MPI rank that played the client"),
    Column("fault", "<u2", "1", "what happened: index into /names/fault"),
)

# The string tables that codes in the columns of the same name index: ASCII, padded with zero bytes.
NAME_NBYTES = 64
NAME_COLUMNS = (
    Column("kind", f"|S{NAME_NBYTES}", "1", "names of the kinds of message"),
    Column("codec", f"|S{NAME_NBYTES}", "1", "names of the codecs"),
    Column("fault", f"|S{NAME_NBYTES}", "1", "names of the faults"),
)

# What `fedmpi.ledger.export` writes; here, because this module loads nothing.
EXPORTED_TABLES = ("messages", "rounds", "faults", "class_tests", "turns", "partition", "placement", "attributes")


def extra_round_column(name: str) -> Column:
    """Return the column of a scalar that the algorithm returned; rounds before the first have NaN."""
    return Column(name, "<f8", "1", "scalar returned by the algorithm; NaN in rounds without it")


class MessageRow(NamedTuple):
    """One message, in the order of `MESSAGE_COLUMNS`; ``direction`` is ``"down"`` or ``"up"``, names are plain."""

    round_idx: int
    step: int
    client_id: int
    rank: int
    direction: str
    kind: str
    codec: str
    header_nbytes: int
    payload_nbytes: int
    wire_nbytes: int
    index_nbytes: int
    value_nbytes: int
    dense_nbytes: int
    bound_nbits: float
    paper_nbits: float
    num_params: int
    num_kept: int
    encode_s: float
    decode_s: float
    send_t: float
    recv_t: float
