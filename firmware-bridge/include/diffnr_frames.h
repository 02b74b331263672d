/* NAME.frames: header, slots, frame header; and the header of a recording. Included by diffnr_bridge.h. */
#ifndef DIFFNR_FRAMES_H
#define DIFFNR_FRAMES_H

#include "diffnr_bridge.h"

#define DNR_FRAMES_MAGIC 0x314d415246524e44ULL    /* "DNRFRAM1" */
#define DNR_RECORDING_MAGIC 0x3130434552524e44ULL /* "DNRREC01" */
#define DNR_FRAMES_HEADER_BYTES 1024
#define DNR_FRAME_HEADER_BYTES 256
#define DNR_FRAME_SLOT_CONTROL_BYTES DNR_CACHE_LINE
#define DNR_RECORDING_HEADER_BYTES 64
#define DNR_SEQUENCE_LIMIT (1ULL << 48) /* sequence numbers at or above are refused */

/* dnr_frames_header.policy */
enum { DNR_DROP_NEWEST = 0, DNR_DROP_OLDEST = 1 };

/* low byte of a slot's word; the ticket is the rest */
enum { DNR_SLOT_FREE = 0, DNR_SLOT_WRITING = 1, DNR_SLOT_FULL = 2, DNR_SLOT_READING = 3 };

/* dnr_frame_header.kind */
enum { DNR_KIND_COUNTS_U16 = 1, DNR_KIND_LINE_INTEGRALS_F32 = 2, DNR_KIND_DARK_U16 = 3, DNR_KIND_FLAT_U16 = 4 };

/* dnr_frame_header.flags */
enum { DNR_FRAME_FIRST = 1, DNR_FRAME_LAST = 2, DNR_FRAME_PAYLOAD_CRC = 4 };

/* Header of the segment NAME.frames. */
typedef struct dnr_frames_header {
    DNR_ATOMIC_U64 magic;                       /* DNR_FRAMES_MAGIC, stored last with Release; 0 while the daemon is
                                                   still initialising */
    uint16_t version_major;                     /* Protocol major version */
    uint16_t version_minor;                     /* Protocol minor version */
    uint32_t header_bytes;                      /* Bytes before the first slot */
    uint64_t segment_bytes;                     /* Bytes of the whole segment */
    uint64_t instance_id;                       /* Random number of this segment's creation; a re-created segment has
                                                   another one */
    uint64_t created_ns;                        /* CLOCK_MONOTONIC at creation, ns */
    uint32_t creator_pid;                       /* Process that created the segment */
    uint32_t policy;                            /* 0 = DROP_NEWEST, 1 = DROP_OLDEST */
    uint32_t slot_count;                        /* Number of slots */
    uint32_t frame_header_bytes;                /* Bytes of a frame header */
    uint64_t slots_offset;                      /* Offset of slot 0 from the segment's start */
    uint64_t slot_stride;                       /* Bytes from one slot to the next */
    uint64_t payload_capacity;                  /* Largest payload of a slot, bytes */
    uint32_t max_columns;                       /* Largest number of detector columns (u) */
    uint32_t max_rows;                          /* Largest number of detector rows (v) */
    uint64_t reserved0[5];                      /* Zero */
    DNR_ATOMIC_U64 write_cursor;                /* Producer line: ticket that will be published next */
    DNR_ATOMIC_U64 epoch;                       /* Number of producer attachments so far; the current producer's
                                                   epoch */
    DNR_ATOMIC_U64 producer_heartbeat_ns;       /* The producer's CLOCK_MONOTONIC at its last call, ns */
    DNR_ATOMIC_U64 producer_pid;                /* The producer's process id, 0 after an orderly detach */
    uint64_t reserved1[12];                     /* Zero */
    DNR_ATOMIC_U64 written;                     /* Frames published */
    DNR_ATOMIC_U64 dropped_newest;              /* New frames dropped because the ring was full */
    DNR_ATOMIC_U64 dropped_oldest;              /* Unread frames overwritten (DROP_OLDEST) */
    DNR_ATOMIC_U64 reclaimed_writing;           /* Slots found WRITING by an attaching producer (its predecessor died
                                                   in mid-write) */
    uint64_t reserved2[12];                     /* Zero */
    DNR_ATOMIC_U64 read_cursor;                 /* Consumer line: ticket the consumer looks at next (for display) */
    DNR_ATOMIC_U64 consumer_heartbeat_ns;       /* The daemon's CLOCK_MONOTONIC at its last poll, ns */
    DNR_ATOMIC_U64 consumer_pid;                /* The daemon's process id, 0 after an orderly detach */
    DNR_ATOMIC_U64 retired;                     /* 1 once the daemon has replaced this segment by a new one: re-
                                                   attach */
    uint64_t reserved3[12];                     /* Zero */
    DNR_ATOMIC_U64 consumed;                    /* Frames taken out of the ring, good or bad */
    DNR_ATOMIC_U64 crc_errors_header;           /* Frames whose header CRC was wrong */
    DNR_ATOMIC_U64 crc_errors_payload;          /* Frames whose payload CRC was wrong */
    DNR_ATOMIC_U64 invalid_headers;             /* Frames whose header has a right CRC and impossible contents */
    DNR_ATOMIC_U64 duplicates;                  /* Frames seen before */
    DNR_ATOMIC_U64 late;                        /* Frames that arrived after a later one */
    DNR_ATOMIC_U64 gaps;                        /* Ranges of missing sequence numbers opened */
    DNR_ATOMIC_U64 missing_frames;              /* Sequence numbers missing now (late arrivals subtract) */
    DNR_ATOMIC_U64 epoch_changes;               /* Times that the epoch changed between two frames */
    DNR_ATOMIC_U64 reclaimed_reading;           /* Slots found READING by an attaching consumer (its predecessor died
                                                   holding them) */
    DNR_ATOMIC_U64 consumer_attachments;        /* Consumer attachments */
    uint64_t reserved4[53];                     /* Zero */
} dnr_frames_header;
DNR_ASSERT_OFFSET(dnr_frames_header, magic, 0);
DNR_ASSERT_OFFSET(dnr_frames_header, version_major, 8);
DNR_ASSERT_OFFSET(dnr_frames_header, version_minor, 10);
DNR_ASSERT_OFFSET(dnr_frames_header, header_bytes, 12);
DNR_ASSERT_OFFSET(dnr_frames_header, segment_bytes, 16);
DNR_ASSERT_OFFSET(dnr_frames_header, instance_id, 24);
DNR_ASSERT_OFFSET(dnr_frames_header, created_ns, 32);
DNR_ASSERT_OFFSET(dnr_frames_header, creator_pid, 40);
DNR_ASSERT_OFFSET(dnr_frames_header, policy, 44);
DNR_ASSERT_OFFSET(dnr_frames_header, slot_count, 48);
DNR_ASSERT_OFFSET(dnr_frames_header, frame_header_bytes, 52);
DNR_ASSERT_OFFSET(dnr_frames_header, slots_offset, 56);
DNR_ASSERT_OFFSET(dnr_frames_header, slot_stride, 64);
DNR_ASSERT_OFFSET(dnr_frames_header, payload_capacity, 72);
DNR_ASSERT_OFFSET(dnr_frames_header, max_columns, 80);
DNR_ASSERT_OFFSET(dnr_frames_header, max_rows, 84);
DNR_ASSERT_OFFSET(dnr_frames_header, reserved0, 88);
DNR_ASSERT_OFFSET(dnr_frames_header, write_cursor, 128);
DNR_ASSERT_OFFSET(dnr_frames_header, epoch, 136);
DNR_ASSERT_OFFSET(dnr_frames_header, producer_heartbeat_ns, 144);
DNR_ASSERT_OFFSET(dnr_frames_header, producer_pid, 152);
DNR_ASSERT_OFFSET(dnr_frames_header, reserved1, 160);
DNR_ASSERT_OFFSET(dnr_frames_header, written, 256);
DNR_ASSERT_OFFSET(dnr_frames_header, dropped_newest, 264);
DNR_ASSERT_OFFSET(dnr_frames_header, dropped_oldest, 272);
DNR_ASSERT_OFFSET(dnr_frames_header, reclaimed_writing, 280);
DNR_ASSERT_OFFSET(dnr_frames_header, reserved2, 288);
DNR_ASSERT_OFFSET(dnr_frames_header, read_cursor, 384);
DNR_ASSERT_OFFSET(dnr_frames_header, consumer_heartbeat_ns, 392);
DNR_ASSERT_OFFSET(dnr_frames_header, consumer_pid, 400);
DNR_ASSERT_OFFSET(dnr_frames_header, retired, 408);
DNR_ASSERT_OFFSET(dnr_frames_header, reserved3, 416);
DNR_ASSERT_OFFSET(dnr_frames_header, consumed, 512);
DNR_ASSERT_OFFSET(dnr_frames_header, crc_errors_header, 520);
DNR_ASSERT_OFFSET(dnr_frames_header, crc_errors_payload, 528);
DNR_ASSERT_OFFSET(dnr_frames_header, invalid_headers, 536);
DNR_ASSERT_OFFSET(dnr_frames_header, duplicates, 544);
DNR_ASSERT_OFFSET(dnr_frames_header, late, 552);
DNR_ASSERT_OFFSET(dnr_frames_header, gaps, 560);
DNR_ASSERT_OFFSET(dnr_frames_header, missing_frames, 568);
DNR_ASSERT_OFFSET(dnr_frames_header, epoch_changes, 576);
DNR_ASSERT_OFFSET(dnr_frames_header, reclaimed_reading, 584);
DNR_ASSERT_OFFSET(dnr_frames_header, consumer_attachments, 592);
DNR_ASSERT_OFFSET(dnr_frames_header, reserved4, 600);
DNR_STATIC_ASSERT(sizeof(dnr_frames_header) == DNR_FRAMES_HEADER_BYTES, "size");

/* Control line of a frame slot; the frame header and the payload follow it. */
typedef struct dnr_frame_slot_control {
    DNR_ATOMIC_U64 word;                        /* Ticket << 8 | state (0 FREE, 1 WRITING, 2 FULL, 3 READING) */
    uint64_t reserved[15];                      /* Zero */
} dnr_frame_slot_control;
DNR_ASSERT_OFFSET(dnr_frame_slot_control, word, 0);
DNR_ASSERT_OFFSET(dnr_frame_slot_control, reserved, 8);
DNR_STATIC_ASSERT(sizeof(dnr_frame_slot_control) == DNR_FRAME_SLOT_CONTROL_BYTES, "size");

/*
 * Header of one frame, in the ring and in a recording.  World frame: isocentre at 0, z the rotation axis,
 * mm. The centre of pixel (row i, column j) lies at detector_origin_mm + j * column_step_mm + i *
 * row_step_mm. The payload is [row v][column u], u fastest.
 */
typedef struct dnr_frame_header {
    uint16_t version_major;                     /* Protocol major version */
    uint16_t version_minor;                     /* Protocol minor version */
    uint32_t header_bytes;                      /* Bytes of this header (256) */
    uint64_t sequence;                          /* Number of the frame in its epoch, from 0, without holes: what the
                                                   receiver counts gaps by */
    uint64_t timestamp_ns;                      /* CLOCK_MONOTONIC when the exposure ended, ns */
    uint32_t epoch;                             /* Epoch of the producer that wrote it */
    uint32_t kind;                              /* DNR_KIND_* as a number */
    uint32_t flags;                             /* FRAME_* bits; unknown bits are ignored */
    uint32_t view_index;                        /* View of the scan, from 0 (calibration frames: number of the
                                                   repetition) */
    uint32_t total_views;                       /* Views of the scan; 0 = not known */
    uint32_t columns;                           /* Detector columns (u) */
    uint32_t rows;                              /* Detector rows (v) */
    float relative_exposure;                    /* Exposure of this frame relative to that of the flat frames (1 =
                                                   same tube output and time) */
    uint64_t payload_bytes;                     /* columns x rows x bytes of a pixel */
    double source_mm[3];                        /* X-ray source, mm */
    double detector_origin_mm[3];               /* Centre of pixel (row 0, column 0), mm */
    double column_step_mm[3];                   /* From one column's centre to the next, mm */
    double row_step_mm[3];                      /* From one row's centre to the next, mm */
    uint64_t scan_id;                           /* Free number of the scan; 0 = none */
    float i0_counts;                            /* Counts of an unattenuated pixel, for scans without flat frames; 0
                                                   = not known */
    uint32_t reserved0;                         /* Zero */
    uint64_t reserved1[9];                      /* Zero */
    uint32_t payload_crc32c;                    /* CRC32C of the payload, with flag PAYLOAD_CRC; else 0 */
    uint32_t header_crc32c;                     /* CRC32C of bytes 0 to 251 of this header */
} dnr_frame_header;
DNR_ASSERT_OFFSET(dnr_frame_header, version_major, 0);
DNR_ASSERT_OFFSET(dnr_frame_header, version_minor, 2);
DNR_ASSERT_OFFSET(dnr_frame_header, header_bytes, 4);
DNR_ASSERT_OFFSET(dnr_frame_header, sequence, 8);
DNR_ASSERT_OFFSET(dnr_frame_header, timestamp_ns, 16);
DNR_ASSERT_OFFSET(dnr_frame_header, epoch, 24);
DNR_ASSERT_OFFSET(dnr_frame_header, kind, 28);
DNR_ASSERT_OFFSET(dnr_frame_header, flags, 32);
DNR_ASSERT_OFFSET(dnr_frame_header, view_index, 36);
DNR_ASSERT_OFFSET(dnr_frame_header, total_views, 40);
DNR_ASSERT_OFFSET(dnr_frame_header, columns, 44);
DNR_ASSERT_OFFSET(dnr_frame_header, rows, 48);
DNR_ASSERT_OFFSET(dnr_frame_header, relative_exposure, 52);
DNR_ASSERT_OFFSET(dnr_frame_header, payload_bytes, 56);
DNR_ASSERT_OFFSET(dnr_frame_header, source_mm, 64);
DNR_ASSERT_OFFSET(dnr_frame_header, detector_origin_mm, 88);
DNR_ASSERT_OFFSET(dnr_frame_header, column_step_mm, 112);
DNR_ASSERT_OFFSET(dnr_frame_header, row_step_mm, 136);
DNR_ASSERT_OFFSET(dnr_frame_header, scan_id, 160);
DNR_ASSERT_OFFSET(dnr_frame_header, i0_counts, 168);
DNR_ASSERT_OFFSET(dnr_frame_header, reserved0, 172);
DNR_ASSERT_OFFSET(dnr_frame_header, reserved1, 176);
DNR_ASSERT_OFFSET(dnr_frame_header, payload_crc32c, 248);
DNR_ASSERT_OFFSET(dnr_frame_header, header_crc32c, 252);
DNR_STATIC_ASSERT(sizeof(dnr_frame_header) == DNR_FRAME_HEADER_BYTES, "size");

/*
 * First bytes of a recording; frame_count records (frame header, payload, zero bytes up to a multiple of
 * 8) follow.
 */
typedef struct dnr_recording_header {
    uint64_t magic;                             /* DNR_RECORDING_MAGIC */
    uint16_t version_major;                     /* Protocol major version */
    uint16_t version_minor;                     /* Protocol minor version */
    uint32_t header_bytes;                      /* Bytes of this header (64) */
    uint64_t frame_count;                       /* Number of frames; 0 while being written */
    uint64_t max_payload_bytes;                 /* Largest payload of a frame, bytes */
    uint32_t max_columns;                       /* Largest number of columns */
    uint32_t max_rows;                          /* Largest number of rows */
    uint64_t reserved[2];                       /* Zero */
    uint32_t reserved_last;                     /* Zero */
    uint32_t header_crc32c;                     /* CRC32C of bytes 0 to 59 */
} dnr_recording_header;
DNR_ASSERT_OFFSET(dnr_recording_header, magic, 0);
DNR_ASSERT_OFFSET(dnr_recording_header, version_major, 8);
DNR_ASSERT_OFFSET(dnr_recording_header, version_minor, 10);
DNR_ASSERT_OFFSET(dnr_recording_header, header_bytes, 12);
DNR_ASSERT_OFFSET(dnr_recording_header, frame_count, 16);
DNR_ASSERT_OFFSET(dnr_recording_header, max_payload_bytes, 24);
DNR_ASSERT_OFFSET(dnr_recording_header, max_columns, 32);
DNR_ASSERT_OFFSET(dnr_recording_header, max_rows, 36);
DNR_ASSERT_OFFSET(dnr_recording_header, reserved, 40);
DNR_ASSERT_OFFSET(dnr_recording_header, reserved_last, 56);
DNR_ASSERT_OFFSET(dnr_recording_header, header_crc32c, 60);
DNR_STATIC_ASSERT(sizeof(dnr_recording_header) == DNR_RECORDING_HEADER_BYTES, "size");

#endif /* DIFFNR_FRAMES_H */
