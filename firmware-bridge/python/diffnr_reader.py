#!/usr/bin/env python3
"""Reads volumes and status of a running diffnr daemon: numpy and mmap, no build step.

    python diffnr_reader.py gantry                          # status
    python diffnr_reader.py gantry --save out.npy --json    # newest volume as .npy (attenuation in 1/mm), its header as JSON
    python diffnr_reader.py gantry --wait 10 --newer-than 3 # wait up to 10 s for a volume after number 3

    from diffnr_reader import Reader
    with Reader("gantry") as reader:
        header, values = reader.newest()                    # values: float32 [x, y, z]

This reader is *optimistic*: Python has no compare-and-swap, so it takes no lease. It maps the segment read-only, copies,
looks whether the slot still holds the same volume, and checks the CRC32C of the copy. A copy that the writer has
overwritten in between fails the check and is made again; a torn volume is never returned. It cannot disturb the daemon or
other readers in any way. Price: with many publications during one copy it may have to try again (three slots: a copy is
safe for at least one publication interval). Readers that must hold a volume use the Rust API.

See PROTOCOL.md for every offset. SPDX-License-Identifier: MIT OR Apache-2.0
"""

import argparse
import json
import mmap
import os
import struct
import sys
import time

import numpy as np

VOLUMES_MAGIC = int.from_bytes(b"DNRVOLS1", "little")
VERSION_MAJOR = 1
SEGMENT_HEADER_BYTES = 8192
VOLUME_HEADER_BYTES = 1024
SLOT_HEADER_OFFSET = 128
SLOT_PAYLOAD_OFFSET = 4096
PUBLISHED = 2
STATES = {1: "starting", 2: "ready", 3: "receiving", 4: "reconstructing", 5: "degraded", 6: "stopping", 7: "stopped"}
STATUS_BITS = {1: "PREVIEW", 2: "FULL", 4: "DEGRADED", 8: "PARTIAL", 16: "STALE"}
METHODS = {1: "fdk", 2: "gaussians", 3: "field"}
STATUS_FIELDS = (
    "state daemon_pid heartbeat_ns attachments published publish_skipped leases_revoked reclaimed_writing "
    "frames_accepted frames_rejected frames_missing epoch last_sequence last_frame_ns scan_frames scan_views "
    "method iteration iterations_planned residual_1e9 method_ns"
).split()


class SegmentError(Exception):
    """The segment cannot be used; the message says why and what to do."""


class NotYetFinalized(SegmentError):
    """The daemon is just making the segment: try again."""


class VersionMismatch(SegmentError):
    """Another major version of the protocol."""


class WrongSize(SegmentError):
    """Truncated, or longer than its header says."""


class Retired(SegmentError):
    """A restarted daemon has replaced the segment: open it again."""


class NothingPublished(Exception):
    """No volume yet."""


class Contended(Exception):
    """Volumes were published faster than one could be copied."""


# --- CRC32C ---------------------------------------------------------------------------------------------------------------

_POLYNOMIAL = 0x82F63B78
_LANES = 4096  # streams that numpy advances side by side


def _step_table():
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1).astype(np.uint32)
    return table


def _word_tables(byte_table):
    """[k][v]: effect of the 16-bit value v followed by 2k zero bytes, for k = 3 ... 0 (first to last of a 64-bit word)."""
    value = np.arange(65536, dtype=np.uint32)
    table = value
    for _ in range(2):
        table = (table >> 8) ^ byte_table[table & 0xFF]
    tables = [table]
    for _ in range(3):
        for _ in range(2):
            table = (table >> 8) ^ byte_table[table & 0xFF]
        tables.append(table)
    return tables[::-1]


_BYTES = _step_table()
_WORDS = _word_tables(_BYTES)


def _zeros_operator(count):
    """Columns of the 32 x 32 bit matrix that advances a CRC register over `count` zero bytes."""
    result = None
    power = (np.uint32(1) << np.arange(32, dtype=np.uint32)).astype(np.uint32)
    power = (power >> 8) ^ _BYTES[power & 0xFF]  # one zero byte
    while count:
        if count & 1:
            result = power if result is None else _apply(power, result)
        power = _apply(power, power)
        count >>= 1
    return result


def _apply(operator, registers):
    out = np.zeros_like(registers)
    for bit in range(32):
        out ^= np.where((registers >> np.uint32(bit)) & np.uint32(1), operator[bit], np.uint32(0)).astype(np.uint32)
    return out


def crc32c(data):
    """CRC32C of a bytes-like object. About half a second for 64 MB: the bytes are cut into lanes that numpy advances together."""
    data = np.frombuffer(data, dtype=np.uint8)
    register = np.uint32(0xFFFFFFFF)
    lane_bytes = data.size // _LANES // 8 * 8
    if lane_bytes >= 8:
        whole = lane_bytes * _LANES
        words = data[:whole].view("<u2").reshape(_LANES, lane_bytes // 8, 4)
        lanes = np.zeros(_LANES, dtype=np.uint32)
        lanes[0] = register
        for step in range(lane_bytes // 8):
            word = words[:, step, :]
            lanes = (
                _WORDS[0][word[:, 0] ^ (lanes & 0xFFFF)]
                ^ _WORDS[1][word[:, 1] ^ (lanes >> 16)]
                ^ _WORDS[2][word[:, 2]]
                ^ _WORDS[3][word[:, 3]]
            )
        span = lane_bytes
        while lanes.size > 1:  # two neighbours become one: the left one is advanced over the right one's length
            lanes = _apply(_zeros_operator(span), lanes[0::2].copy()) ^ lanes[1::2]
            span *= 2
        register = lanes[0]
        data = data[whole:]
    register = int(register)
    table = _BYTES
    for byte in data.tolist():
        register = (register >> 8) ^ int(table[(register ^ byte) & 0xFF])
    return register ^ 0xFFFFFFFF


# --- The segment ----------------------------------------------------------------------------------------------------------


def _text(field):
    return field.split(b"\0", 1)[0].decode("utf-8", "replace")


def parse_volume_header(raw):
    """The 1024 bytes of a volume header as a dictionary; ValueError if a CRC or field is wrong."""
    if len(raw) != VOLUME_HEADER_BYTES:
        raise ValueError(f"a volume header has {VOLUME_HEADER_BYTES} bytes, not {len(raw)}")
    (stored,) = struct.unpack_from("<I", raw, 1020)
    if crc32c(raw[:1020]) != stored:
        raise ValueError("header CRC32C is wrong")
    u64 = lambda offset: struct.unpack_from("<Q", raw, offset)[0]
    u32 = lambda offset: struct.unpack_from("<I", raw, offset)[0]
    major, minor = struct.unpack_from("<HH", raw, 0)
    status, shape, missing_count = u32(36), list(struct.unpack_from("<3I", raw, 64)), u32(76)
    if major != VERSION_MAJOR:
        raise ValueError(f"version {major}, this reader speaks {VERSION_MAJOR}")
    if u32(312) != 1 or missing_count > 16 or u64(152) != shape[0] * shape[1] * shape[2] * 4:
        raise ValueError("impossible header: value_kind, missing_count or payload_bytes")
    return {
        "version": f"{major}.{minor}",
        "generation": u64(8),
        "instance_id": u64(16),
        "scan_id": u64(24),
        "epoch": u32(32),
        "status": [name for bit, name in STATUS_BITS.items() if status & bit],
        "first_sequence": u64(40),
        "last_sequence": u64(48),
        "frames_used": u32(56),
        "iteration": u32(60),
        "iterations_planned": u32(316),
        "method": METHODS.get(u32(576), "unknown"),
        "residual": struct.unpack_from("<f", raw, 580)[0],
        "method_ns": u64(584),
        "early_iterations": u32(592),
        "early_views": u32(596),
        "repairs": u32(600),
        "repairs_planned": u32(604),
        "repairs_failed": u32(608),
        "repair_ms": u32(612),
        "repair_model": _text(raw[616:648]),
        "repair_provider": _text(raw[648:680]),
        "shape": shape,
        "spacing_mm": list(struct.unpack_from("<3d", raw, 80)),
        "origin_mm": list(struct.unpack_from("<3d", raw, 104)),
        "mu_water_per_mm": struct.unpack_from("<f", raw, 128)[0],
        "value_scale": struct.unpack_from("<f", raw, 132)[0],
        "last_frame_ns": u64(136),
        "publish_ns": u64(144),
        "payload_bytes": u64(152),
        "missing_frames": u64(160),
        "settings_hash": raw[168:200].hex(),
        "model_hash": raw[200:232].hex(),
        "device": _text(raw[232:264]),
        "provider": _text(raw[264:296]),
        "precision": _text(raw[296:312]),
        "missing": [list(struct.unpack_from("<2Q", raw, 320 + 16 * i)) for i in range(missing_count)],
        "payload_crc32c": u32(1016),
    }


class Reader:
    """A read-only view of NAME.volumes (NAME as `diffnr serve` has it, or a path prefix with a '/')."""

    def __init__(self, name):
        self.path = (name if "/" in name else "/dev/shm/" + name) + ".volumes"
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise NotYetFinalized(f"{self.path}: empty: the daemon is just making it")
            if size < SEGMENT_HEADER_BYTES:
                raise WrongSize(f"{self.path}: {size} bytes, truncated")
            self._map = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(descriptor)
        # Aligned 8-byte words: numpy reads each by one load.
        self._words = np.frombuffer(self._map, dtype="<u8", count=size // 8)
        magic = self._word(0)
        if magic == 0:
            raise NotYetFinalized(f"{self.path}: not finalised yet: the daemon is just making it")
        if magic != VOLUMES_MAGIC:
            raise SegmentError(f"{self.path}: not a volume segment (magic {magic:#018x})")
        major, _minor, header_bytes = struct.unpack_from("<HHI", self._map, 8)
        if major != VERSION_MAJOR:
            raise VersionMismatch(f"{self.path}: protocol version {major}, this reader speaks {VERSION_MAJOR}")
        self._slot_count, _leases, volume_header_bytes = struct.unpack_from("<3I", self._map, 44)
        self._slot_stride, self._capacity = self._word(64), self._word(72)
        self.instance_id = self._word(24)
        stride = SLOT_PAYLOAD_OFFSET + (self._capacity + 4095) // 4096 * 4096
        sane = header_bytes == SEGMENT_HEADER_BYTES == self._word(56) and volume_header_bytes == VOLUME_HEADER_BYTES
        if not sane or not 3 <= self._slot_count <= 64 or self._slot_stride != stride:
            raise SegmentError(f"{self.path}: impossible segment header")
        if SEGMENT_HEADER_BYTES + stride * self._slot_count != size:
            raise WrongSize(f"{self.path}: {size} bytes, its header needs {SEGMENT_HEADER_BYTES + stride * self._slot_count}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Unmaps the segment."""
        self._words = None
        try:
            self._map.close()
        except BufferError:
            pass  # an exception in flight still holds a view; unmapped with it

    def _word(self, offset):
        return int(self._words[offset // 8])

    def _check_retired(self):
        if self._word(136):
            raise Retired(f"{self.path}: replaced by a restarted daemon: open it again")

    def newest_generation(self):
        """Number of the newest volume, 0 if there is none: cheap, for polling."""
        self._check_retired()
        return self._word(128) >> 8

    def status(self):
        """The daemon's status as a dictionary."""
        status = {name: self._word(256 + 8 * i) for i, name in enumerate(STATUS_FIELDS)}
        status["state"] = STATES.get(status["state"], "unknown")
        age = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - status["heartbeat_ns"]
        status["heartbeat_age_s"] = round(max(age, 0) / 1e9, 3) if status["heartbeat_ns"] else None
        for _ in range(100):  # message and ranges are of one moment if the version is even and the same before and after
            before = self._word(512)
            raw = self._map[520:1184]
            if before % 2 == 0 and self._word(512) == before:
                count, unlisted = struct.unpack_from("<2Q", raw, 0)
                status["message"] = _text(raw[24:152])
                status["missing"] = [list(struct.unpack_from("<2Q", raw, 152 + 16 * i)) for i in range(min(count, 32))]
                status["missing_unlisted"] = unlisted
                break
        return status

    def newest(self, attempts=20):
        """(header, values) of the newest volume; values are float32 [x, y, z] in 1/mm x value_scale."""
        self._check_retired()
        for _ in range(attempts):
            newest = self._word(128)
            number, generation = newest & 0xFF, newest >> 8
            if number == 0:
                raise NothingPublished(f"{self.path}: no volume has been published yet")
            if number > self._slot_count:
                raise SegmentError(f"{self.path}: impossible word 'newest'")
            slot = SEGMENT_HEADER_BYTES + (number - 1) * self._slot_stride
            wanted = generation << 8 | PUBLISHED
            if self._word(slot) != wanted:
                continue
            raw = self._map[slot + SLOT_HEADER_OFFSET : slot + SLOT_HEADER_OFFSET + VOLUME_HEADER_BYTES]
            try:
                header = parse_volume_header(raw)
            except ValueError as error:
                if self._word(slot) == wanted and self._word(128) == newest:
                    raise SegmentError(f"{self.path}: volume {generation}: {error}") from error
                continue
            if header["generation"] != generation or header["payload_bytes"] > self._capacity:
                continue
            start = (slot + SLOT_PAYLOAD_OFFSET) // 4
            values = np.frombuffer(self._map, "<f4", header["payload_bytes"] // 4, start * 4).copy()
            if self._word(slot) != wanted:
                continue  # overwritten while we copied
            if crc32c(values.view(np.uint8)) != header["payload_crc32c"]:
                # The processor may have let our look at the slot pass a load of the copy: the CRC has the last word.
                if self._word(slot) == wanted and self._word(128) == newest:
                    raise SegmentError(f"{self.path}: volume {generation}: payload CRC32C is wrong")
                continue
            return header, values.reshape(header["shape"])
        raise Contended(f"{self.path}: volumes are published faster than one can be copied")


def main():
    """The command line; exit codes: 0 done, 2 usage, 3 no segment or no volume in time, 4 segment refused."""
    parser = argparse.ArgumentParser(description="status and newest volume of a running diffnr daemon")
    parser.add_argument("name", help="segment name as in `diffnr serve`, or a path prefix with a '/'")
    parser.add_argument("--save", metavar="OUT.npy", help="save the newest volume: float32 [x, y, z], attenuation in 1/mm")
    parser.add_argument("--newer-than", type=int, default=0, metavar="N", help="want a volume with a number above N")
    parser.add_argument("--wait", type=float, default=0, metavar="S", help="wait up to S seconds for segment and volume")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    until = time.monotonic() + arguments.wait
    volume = None
    while True:
        try:
            with Reader(arguments.name) as reader:
                status = reader.status()
                if arguments.save:
                    if reader.newest_generation() <= arguments.newer_than:
                        raise NothingPublished(f"{reader.path}: no volume above number {arguments.newer_than} yet")
                    volume = reader.newest()
            break
        except (FileNotFoundError, NotYetFinalized, Retired, NothingPublished, Contended) as error:
            if time.monotonic() >= until:
                print(f"diffnr_reader: {error}", file=sys.stderr)
                return 3
            time.sleep(0.01)
        except SegmentError as error:
            print(f"diffnr_reader: {error}", file=sys.stderr)
            return 4
    result = {"status": status}
    if volume:
        header, values = volume
        np.save(arguments.save, values * np.float32(header["value_scale"]))
        result["volume"] = header
        result["saved"] = arguments.save
    if arguments.json:
        print(json.dumps(result))
    else:
        missing = "".join(f" {first}-{last}" for first, last in status.get("missing", []))
        age = status["heartbeat_age_s"]
        print(f"state {status['state']}, {status['published']} volumes published, {status['frames_accepted']} frames accepted, "
              f"{status['frames_rejected']} rejected, {status['frames_missing']} missing{missing}, "
              f"heartbeat {'never' if age is None else f'{age} s ago'}")
        if volume:
            print(f"volume {header['generation']} {header['shape']} {' '.join(header['status'])} -> {arguments.save}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
