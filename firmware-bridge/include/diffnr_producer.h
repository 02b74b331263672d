/*
 * The gantry's side of the ring: c/producer.c and c/crc32c.c (link both). No allocation, no mutable globals, no call that
 * waits. attach and detach make system calls (none blocks); begin, commit, send and check make none but clock_gettime.
 *
 *     dnr_producer producer;
 *     if (dnr_producer_attach(&producer, "/dev/shm/gantry.frames") == DNR_OK) {
 *         dnr_frame_header header = {0};       // fill in: sequence, kind, flags, columns, rows, pose, ...
 *         int result = dnr_producer_send(&producer, &header, pixels, bytes);  // DNR_OK or DNR_DROPPED: go on at once
 *         ...
 *         dnr_producer_detach(&producer);
 *     }
 *
 * One thread at a time per dnr_producer. SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef DIFFNR_PRODUCER_H
#define DIFFNR_PRODUCER_H

#include "diffnr_bridge.h"

/* Results: 0 and above: go on; below 0: errors. */
enum {
    DNR_OK = 0,
    DNR_DROPPED = 1,  /* ring full, the new frame was dropped and counted: go on */
    DNR_REPLACED = 2, /* written over the oldest unread frame, which was counted: go on */
    DNR_ERROR_NOT_FOUND = -1,         /* no such segment: the daemon has not made it yet */
    DNR_ERROR_NOT_YET_FINALIZED = -2, /* the daemon is just making it */
    DNR_ERROR_WRONG_MAGIC = -3,       /* not a frame segment */
    DNR_ERROR_VERSION_MISMATCH = -4,  /* another major version */
    DNR_ERROR_WRONG_SIZE = -5,        /* truncated, or longer than its header says */
    DNR_ERROR_BAD_FIELD = -6,         /* a header field is impossible */
    DNR_ERROR_RETIRED = -7,           /* replaced by a restarted daemon: detach, attach again */
    DNR_ERROR_PRODUCER_ALIVE = -8,    /* another producer holds the lock */
    DNR_ERROR_SYSTEM = -9,            /* a system call failed: see errno */
    DNR_ERROR_TOO_LARGE = -10,        /* payload larger than a slot, or header and payload disagree */
    DNR_ERROR_SUPERSEDED = -11,       /* another producer took the slot over: attach again */
    DNR_ERROR_CONSUMER_SILENT = -12,  /* from dnr_producer_check only: no sign of life from the daemon */
    DNR_ERROR_NO_SLOT = -13           /* commit without begin, or begin twice */
};

/* Filled by dnr_producer_attach; look, don't write. Sizes are this side's own copies, checked once. */
typedef struct dnr_producer {
    unsigned char *base;
    size_t bytes;
    int fd; /* holds the lock; -1 with dnr_producer_attach_memory */
    uint32_t slot_count;
    uint32_t policy;
    uint32_t max_columns;
    uint32_t max_rows;
    uint64_t slot_stride;
    uint64_t payload_capacity;
    uint64_t instance_id;
    uint64_t ticket;
    uint32_t epoch;
    uint32_t claimed; /* 0 no slot, 1 a slot, 2 a slot that held an unread frame */
} dnr_producer;

/* Opens, locks (without waiting), maps and checks the segment at `path`; becomes its producer: a new epoch. */
int dnr_producer_attach(dnr_producer *producer, const char *path);

/* The same on memory mapped by the caller, who sees to it that there is one producer only. 128-byte aligned. */
int dnr_producer_attach_memory(dnr_producer *producer, void *base, size_t bytes, uint32_t pid);

/* Claims a slot. DNR_OK: *payload points to payload_capacity bytes to fill. DNR_DROPPED: no room, *payload is NULL. */
int dnr_producer_begin(dnr_producer *producer, void **payload);

/*
 * Publishes the claimed slot. Fills in header->version_*, header_bytes, epoch, payload_crc32c (with DNR_FRAME_PAYLOAD_CRC,
 * else 0) and header_crc32c; payload_bytes must be set. DNR_OK or DNR_REPLACED; on an error the slot is given back.
 */
int dnr_producer_commit(dnr_producer *producer, dnr_frame_header *header);

/* Publishes the claimed slot with the header just as it is (tests of broken headers). */
int dnr_producer_commit_raw(dnr_producer *producer, const dnr_frame_header *header);

/* Gives the claimed slot back unused. */
void dnr_producer_abandon(dnr_producer *producer);

/* begin, copy, commit. DNR_OK, DNR_REPLACED, DNR_DROPPED or an error. Sets header->payload_bytes. */
int dnr_producer_send(dnr_producer *producer, dnr_frame_header *header, const void *payload, uint64_t payload_bytes);

/*
 * Sign of life without a frame, and a look at the daemon: DNR_OK, DNR_ERROR_RETIRED, or DNR_ERROR_CONSUMER_SILENT if its
 * heartbeat is older than `silent_after_ns`. Frames may be sent all the same: the ring's policy deals with them.
 */
int dnr_producer_check(dnr_producer *producer, uint64_t silent_after_ns);

/* Orderly end: unmaps, gives the lock back. */
void dnr_producer_detach(dnr_producer *producer);

/* What a result means, and what to do. */
const char *dnr_result_text(int result);

/* CLOCK_MONOTONIC, ns. */
uint64_t dnr_now_ns(void);

/* Continues a CRC32C over `bytes`; start with 0. Hardware instructions where the processor has them. */
uint32_t dnr_crc32c(uint32_t crc, const void *data, size_t bytes);

/* The same by look-up tables, for tests and benchmarks. */
uint32_t dnr_crc32c_portable(uint32_t crc, const void *data, size_t bytes);

/* Fills in version, size and header CRC of a header whose other fields are set. */
void dnr_frame_header_seal(dnr_frame_header *header);

/* Bytes of a pixel of this kind; 0 = no such kind. */
uint32_t dnr_bytes_per_pixel(uint32_t kind);

#endif /* DIFFNR_PRODUCER_H */
