/* NAME.volumes: status, leases, slots, volume header. Included by diffnr_bridge.h. */
#ifndef DIFFNR_VOLUMES_H
#define DIFFNR_VOLUMES_H

#include "diffnr_bridge.h"

#define DNR_VOLUMES_MAGIC 0x31534c4f56524e44ULL /* "DNRVOLS1" */
#define DNR_VOLUMES_HEADER_BYTES 8192
#define DNR_LEASES_OFFSET 4096
#define DNR_LEASE_COUNT 64
#define DNR_LEASE_BYTES 64
#define DNR_VOLUME_HEADER_BYTES 1024
#define DNR_VOLUME_SLOT_HEADER_OFFSET DNR_CACHE_LINE
#define DNR_VOLUME_SLOT_PAYLOAD_OFFSET 4096
#define DNR_VOLUME_MISSING_RANGES 16
#define DNR_STATUS_MISSING_RANGES 32
#define DNR_STATUS_MESSAGE_BYTES 128

/* low byte of a volume slot's word; the generation is the rest */
enum { DNR_VOLUME_SLOT_EMPTY = 0, DNR_VOLUME_SLOT_WRITING = 1, DNR_VOLUME_SLOT_PUBLISHED = 2 };

/* dnr_volumes_header.state */
enum {
    DNR_STATE_STARTING = 1,
    DNR_STATE_READY = 2,
    DNR_STATE_RECEIVING = 3,
    DNR_STATE_RECONSTRUCTING = 4,
    DNR_STATE_DEGRADED = 5,
    DNR_STATE_STOPPING = 6,
    DNR_STATE_STOPPED = 7
};

/* dnr_volume_header.status */
enum {
    DNR_VOLUME_PREVIEW = 1,
    DNR_VOLUME_FULL = 2,
    DNR_VOLUME_DEGRADED = 4,
    DNR_VOLUME_PARTIAL = 8,
    DNR_VOLUME_STALE = 16
};

/* dnr_volume_header.method, dnr_volumes_header.method; 0 = not known (daemons of version 1.0) */
enum { DNR_METHOD_FDK = 1, DNR_METHOD_GAUSSIANS = 2, DNR_METHOD_FIELD = 3 };

/* One entry of the lease table. */
typedef struct dnr_lease_entry {
    DNR_ATOMIC_U64 word;                        /* Expiry in ms of CLOCK_MONOTONIC << 24 | nonce << 8 | (slot + 1);
                                                   low byte 0 = free */
    DNR_ATOMIC_U64 generation;                  /* Generation of the leased volume (for display; the word decides) */
    DNR_ATOMIC_U64 reader_pid;                  /* The reader's process id (for display) */
    DNR_ATOMIC_U64 taken_ns;                    /* When the lease was taken, CLOCK_MONOTONIC ns (for display) */
    uint64_t reserved[4];                       /* Zero */
} dnr_lease_entry;
DNR_ASSERT_OFFSET(dnr_lease_entry, word, 0);
DNR_ASSERT_OFFSET(dnr_lease_entry, generation, 8);
DNR_ASSERT_OFFSET(dnr_lease_entry, reader_pid, 16);
DNR_ASSERT_OFFSET(dnr_lease_entry, taken_ns, 24);
DNR_ASSERT_OFFSET(dnr_lease_entry, reserved, 32);
DNR_STATIC_ASSERT(sizeof(dnr_lease_entry) == DNR_LEASE_BYTES, "size");

/* Header of the segment NAME.volumes. */
typedef struct dnr_volumes_header {
    DNR_ATOMIC_U64 magic;                       /* DNR_VOLUMES_MAGIC, stored last with Release; 0 while the daemon is
                                                   still initialising */
    uint16_t version_major;                     /* Protocol major version */
    uint16_t version_minor;                     /* Protocol minor version */
    uint32_t header_bytes;                      /* Bytes before the first slot */
    uint64_t segment_bytes;                     /* Bytes of the whole segment */
    uint64_t instance_id;                       /* Random number of this segment's creation */
    uint64_t created_ns;                        /* CLOCK_MONOTONIC at creation, ns */
    uint32_t creator_pid;                       /* Process that created the segment */
    uint32_t slot_count;                        /* Number of slots, at least 3 */
    uint32_t lease_count;                       /* Entries of the lease table */
    uint32_t volume_header_bytes;               /* Bytes of a volume header */
    uint64_t slots_offset;                      /* Offset of slot 0 */
    uint64_t slot_stride;                       /* Bytes from one slot to the next */
    uint64_t payload_capacity;                  /* Largest payload of a slot, bytes */
    uint64_t leases_offset;                     /* Offset of the lease table */
    uint64_t reserved0[5];                      /* Zero */
    DNR_ATOMIC_U64 newest;                      /* Generation << 8 | (slot + 1) of the newest volume; 0 = none yet */
    DNR_ATOMIC_U64 retired;                     /* 1 once the daemon has replaced this segment by a new one: re-
                                                   attach */
    uint64_t reserved1[14];                     /* Zero */
    DNR_ATOMIC_U64 state;                       /* DNR_STATE_* as a number */
    DNR_ATOMIC_U64 daemon_pid;                  /* The daemon's process id, 0 after an orderly stop */
    DNR_ATOMIC_U64 heartbeat_ns;                /* The daemon's CLOCK_MONOTONIC at its last sign of life, ns */
    DNR_ATOMIC_U64 attachments;                 /* Daemon attachments to this segment */
    DNR_ATOMIC_U64 published;                   /* Volumes published */
    DNR_ATOMIC_U64 publish_skipped;             /* Publications skipped because every slot was leased */
    DNR_ATOMIC_U64 leases_revoked;              /* Expired leases revoked */
    DNR_ATOMIC_U64 reclaimed_writing;           /* Slots found WRITING by an attaching daemon */
    DNR_ATOMIC_U64 frames_accepted;             /* Frames accepted since the daemon started */
    DNR_ATOMIC_U64 frames_rejected;             /* Frames rejected (CRC, header, duplicate) */
    DNR_ATOMIC_U64 frames_missing;              /* Sequence numbers missing in the current scan */
    DNR_ATOMIC_U64 epoch;                       /* Epoch of the last frame */
    DNR_ATOMIC_U64 last_sequence;               /* Sequence number of the last frame */
    DNR_ATOMIC_U64 last_frame_ns;               /* Arrival of the last frame, CLOCK_MONOTONIC ns */
    DNR_ATOMIC_U64 scan_frames;                 /* Frames of the current scan in the running reconstruction */
    DNR_ATOMIC_U64 scan_views;                  /* Views that the current scan announced; 0 = not known */
    DNR_ATOMIC_U64 method;                      /* DNR_METHOD_* that works on the scan; 0 = not known (version 1.0) */
    DNR_ATOMIC_U64 iteration;                   /* Iterations done of the scan that is being optimised, or was last */
    DNR_ATOMIC_U64 iterations_planned;          /* Iterations planned for it; 0 for analytic methods */
    DNR_ATOMIC_U64 residual_1e9;                /* Root of the mean squared difference of its line integrals at the
                                                   last iteration, times 1e9 */
    DNR_ATOMIC_U64 method_ns;                   /* Time that the method has worked on it, ns */
    uint64_t reserved2[11];                     /* Zero */
    DNR_ATOMIC_U64 detail_version;              /* Counts up before and after each change of the detail below: odd =
                                                   being changed */
    DNR_ATOMIC_U64 missing_count;               /* Entries of missing in use */
    DNR_ATOMIC_U64 missing_unlisted;            /* Missing ranges that did not fit into missing */
    DNR_ATOMIC_U64 reserved3;                   /* Zero */
    uint8_t message[DNR_STATUS_MESSAGE_BYTES];  /* UTF-8, zero-padded */
    dnr_sequence_range missing[DNR_STATUS_MISSING_RANGES];/* Missing sequence numbers of the current scan */
    uint64_t reserved4[364];                    /* Zero */
    dnr_lease_entry leases[DNR_LEASE_COUNT];    /* Lease table */
} dnr_volumes_header;
DNR_ASSERT_OFFSET(dnr_volumes_header, magic, 0);
DNR_ASSERT_OFFSET(dnr_volumes_header, version_major, 8);
DNR_ASSERT_OFFSET(dnr_volumes_header, version_minor, 10);
DNR_ASSERT_OFFSET(dnr_volumes_header, header_bytes, 12);
DNR_ASSERT_OFFSET(dnr_volumes_header, segment_bytes, 16);
DNR_ASSERT_OFFSET(dnr_volumes_header, instance_id, 24);
DNR_ASSERT_OFFSET(dnr_volumes_header, created_ns, 32);
DNR_ASSERT_OFFSET(dnr_volumes_header, creator_pid, 40);
DNR_ASSERT_OFFSET(dnr_volumes_header, slot_count, 44);
DNR_ASSERT_OFFSET(dnr_volumes_header, lease_count, 48);
DNR_ASSERT_OFFSET(dnr_volumes_header, volume_header_bytes, 52);
DNR_ASSERT_OFFSET(dnr_volumes_header, slots_offset, 56);
DNR_ASSERT_OFFSET(dnr_volumes_header, slot_stride, 64);
DNR_ASSERT_OFFSET(dnr_volumes_header, payload_capacity, 72);
DNR_ASSERT_OFFSET(dnr_volumes_header, leases_offset, 80);
DNR_ASSERT_OFFSET(dnr_volumes_header, reserved0, 88);
DNR_ASSERT_OFFSET(dnr_volumes_header, newest, 128);
DNR_ASSERT_OFFSET(dnr_volumes_header, retired, 136);
DNR_ASSERT_OFFSET(dnr_volumes_header, reserved1, 144);
DNR_ASSERT_OFFSET(dnr_volumes_header, state, 256);
DNR_ASSERT_OFFSET(dnr_volumes_header, daemon_pid, 264);
DNR_ASSERT_OFFSET(dnr_volumes_header, heartbeat_ns, 272);
DNR_ASSERT_OFFSET(dnr_volumes_header, attachments, 280);
DNR_ASSERT_OFFSET(dnr_volumes_header, published, 288);
DNR_ASSERT_OFFSET(dnr_volumes_header, publish_skipped, 296);
DNR_ASSERT_OFFSET(dnr_volumes_header, leases_revoked, 304);
DNR_ASSERT_OFFSET(dnr_volumes_header, reclaimed_writing, 312);
DNR_ASSERT_OFFSET(dnr_volumes_header, frames_accepted, 320);
DNR_ASSERT_OFFSET(dnr_volumes_header, frames_rejected, 328);
DNR_ASSERT_OFFSET(dnr_volumes_header, frames_missing, 336);
DNR_ASSERT_OFFSET(dnr_volumes_header, epoch, 344);
DNR_ASSERT_OFFSET(dnr_volumes_header, last_sequence, 352);
DNR_ASSERT_OFFSET(dnr_volumes_header, last_frame_ns, 360);
DNR_ASSERT_OFFSET(dnr_volumes_header, scan_frames, 368);
DNR_ASSERT_OFFSET(dnr_volumes_header, scan_views, 376);
DNR_ASSERT_OFFSET(dnr_volumes_header, method, 384);
DNR_ASSERT_OFFSET(dnr_volumes_header, iteration, 392);
DNR_ASSERT_OFFSET(dnr_volumes_header, iterations_planned, 400);
DNR_ASSERT_OFFSET(dnr_volumes_header, residual_1e9, 408);
DNR_ASSERT_OFFSET(dnr_volumes_header, method_ns, 416);
DNR_ASSERT_OFFSET(dnr_volumes_header, reserved2, 424);
DNR_ASSERT_OFFSET(dnr_volumes_header, detail_version, 512);
DNR_ASSERT_OFFSET(dnr_volumes_header, missing_count, 520);
DNR_ASSERT_OFFSET(dnr_volumes_header, missing_unlisted, 528);
DNR_ASSERT_OFFSET(dnr_volumes_header, reserved3, 536);
DNR_ASSERT_OFFSET(dnr_volumes_header, message, 544);
DNR_ASSERT_OFFSET(dnr_volumes_header, missing, 672);
DNR_ASSERT_OFFSET(dnr_volumes_header, reserved4, 1184);
DNR_ASSERT_OFFSET(dnr_volumes_header, leases, 4096);
DNR_STATIC_ASSERT(sizeof(dnr_volumes_header) == DNR_VOLUMES_HEADER_BYTES, "size");

/*
 * Control line of a volume slot; the volume header follows it, the payload starts at
 * VOLUME_SLOT_PAYLOAD_OFFSET.
 */
typedef struct dnr_volume_slot_control {
    DNR_ATOMIC_U64 word;                        /* Generation << 8 | state (0 EMPTY, 1 WRITING, 2 PUBLISHED) */
    uint64_t reserved[15];                      /* Zero */
} dnr_volume_slot_control;
DNR_ASSERT_OFFSET(dnr_volume_slot_control, word, 0);
DNR_ASSERT_OFFSET(dnr_volume_slot_control, reserved, 8);
DNR_STATIC_ASSERT(sizeof(dnr_volume_slot_control) == DNR_CACHE_LINE, "size");

/*
 * Header of one volume. The payload is f32 [x][y][z], z fastest; attenuation in 1/mm is value x
 * value_scale.
 */
typedef struct dnr_volume_header {
    uint16_t version_major;                     /* Protocol major version */
    uint16_t version_minor;                     /* Protocol minor version */
    uint32_t header_bytes;                      /* Bytes of this header (1024) */
    uint64_t generation;                        /* Number of the volume in this segment, from 1 */
    uint64_t instance_id;                       /* instance_id of the segment */
    uint64_t scan_id;                           /* Number of the scan, from its frames; 0 = none */
    uint32_t epoch;                             /* Epoch of its frames */
    uint32_t status;                            /* VOLUME_* bits */
    uint64_t first_sequence;                    /* First sequence number that went in */
    uint64_t last_sequence;                     /* Last sequence number that went in */
    uint32_t frames_used;                       /* How many frames went in */
    uint32_t iteration;                         /* Iteration of the reconstruction; 0 for analytic ones */
    uint32_t shape[3];                          /* Voxels along x, y, z */
    uint32_t missing_count;                     /* Entries of missing in use */
    double spacing_mm[3];                       /* Distance of voxel centres along x, y, z, mm */
    double origin_mm[3];                        /* Centre of voxel (0, 0, 0), mm */
    float mu_water_per_mm;                      /* Attenuation of water, for HU = 1000 (mu - mu_water) / mu_water;
                                                   1/mm */
    float value_scale;                          /* Attenuation in 1/mm of a stored 1.0 */
    uint64_t last_frame_ns;                     /* Arrival of the last frame that went in, CLOCK_MONOTONIC ns */
    uint64_t publish_ns;                        /* Publication, CLOCK_MONOTONIC ns */
    uint64_t payload_bytes;                     /* nx x ny x nz x 4 */
    uint64_t missing_frames;                    /* Sequence numbers missing in all (also those of unlisted ranges) */
    uint8_t settings_hash[32];                  /* SHA-256 of the settings */
    uint8_t model_hash[32];                     /* SHA-256 of the repair model, where repairs is above 0; zero = none */
    uint8_t device[32];                         /* Device that really ran, UTF-8, zero-padded */
    uint8_t provider[32];                       /* Execution provider or carrier that really ran, UTF-8, zero-padded */
    uint8_t precision[16];                      /* Precision that really ran, UTF-8, zero-padded */
    uint32_t value_kind;                        /* 1 = f32 */
    uint32_t iterations_planned;                /* Iterations planned: once iteration has come to it, no better volume of
                                                   the scan follows; 0 for analytic methods with nothing after them */
    dnr_sequence_range missing[DNR_VOLUME_MISSING_RANGES];/* Missing sequence numbers between first_sequence and last_sequence */
    uint32_t method;                            /* DNR_METHOD_* that made the volume; 0 = not known (version 1.0) */
    float residual;                             /* Root of the mean squared difference of the line integrals at that
                                                   iteration, dimensionless; 0 for analytic methods */
    uint64_t method_ns;                         /* Time that the method took up to this volume, ns, without what it did
                                                   before the last frame; 0 for analytic methods */
    uint32_t early_iterations;                  /* How many of the iterations were done while frames still came; 0: none */
    uint32_t early_views;                       /* From how many views these were: the first that came */
    uint32_t repairs;                           /* Repairs that the method was held to on its way to this volume */
    uint32_t repairs_planned;                   /* Repairs planned for the whole run; 0: none */
    uint32_t repairs_failed;                    /* Repairs that were late or whose output could not be taken: the method
                                                   went on without them */
    uint32_t repair_ms;                         /* Time in all of these, ms */
    uint8_t repair_model[32];                   /* Name of the repair model, where repairs is above 0; UTF-8, zero-padded */
    uint8_t repair_provider[32];                /* Execution provider that really ran it, UTF-8, zero-padded */
    uint64_t reserved1[42];                     /* Zero */
    uint32_t payload_crc32c;                    /* CRC32C of the payload */
    uint32_t header_crc32c;                     /* CRC32C of bytes 0 to 1019 of this header */
} dnr_volume_header;
DNR_ASSERT_OFFSET(dnr_volume_header, version_major, 0);
DNR_ASSERT_OFFSET(dnr_volume_header, version_minor, 2);
DNR_ASSERT_OFFSET(dnr_volume_header, header_bytes, 4);
DNR_ASSERT_OFFSET(dnr_volume_header, generation, 8);
DNR_ASSERT_OFFSET(dnr_volume_header, instance_id, 16);
DNR_ASSERT_OFFSET(dnr_volume_header, scan_id, 24);
DNR_ASSERT_OFFSET(dnr_volume_header, epoch, 32);
DNR_ASSERT_OFFSET(dnr_volume_header, status, 36);
DNR_ASSERT_OFFSET(dnr_volume_header, first_sequence, 40);
DNR_ASSERT_OFFSET(dnr_volume_header, last_sequence, 48);
DNR_ASSERT_OFFSET(dnr_volume_header, frames_used, 56);
DNR_ASSERT_OFFSET(dnr_volume_header, iteration, 60);
DNR_ASSERT_OFFSET(dnr_volume_header, shape, 64);
DNR_ASSERT_OFFSET(dnr_volume_header, missing_count, 76);
DNR_ASSERT_OFFSET(dnr_volume_header, spacing_mm, 80);
DNR_ASSERT_OFFSET(dnr_volume_header, origin_mm, 104);
DNR_ASSERT_OFFSET(dnr_volume_header, mu_water_per_mm, 128);
DNR_ASSERT_OFFSET(dnr_volume_header, value_scale, 132);
DNR_ASSERT_OFFSET(dnr_volume_header, last_frame_ns, 136);
DNR_ASSERT_OFFSET(dnr_volume_header, publish_ns, 144);
DNR_ASSERT_OFFSET(dnr_volume_header, payload_bytes, 152);
DNR_ASSERT_OFFSET(dnr_volume_header, missing_frames, 160);
DNR_ASSERT_OFFSET(dnr_volume_header, settings_hash, 168);
DNR_ASSERT_OFFSET(dnr_volume_header, model_hash, 200);
DNR_ASSERT_OFFSET(dnr_volume_header, device, 232);
DNR_ASSERT_OFFSET(dnr_volume_header, provider, 264);
DNR_ASSERT_OFFSET(dnr_volume_header, precision, 296);
DNR_ASSERT_OFFSET(dnr_volume_header, value_kind, 312);
DNR_ASSERT_OFFSET(dnr_volume_header, iterations_planned, 316);
DNR_ASSERT_OFFSET(dnr_volume_header, missing, 320);
DNR_ASSERT_OFFSET(dnr_volume_header, method, 576);
DNR_ASSERT_OFFSET(dnr_volume_header, residual, 580);
DNR_ASSERT_OFFSET(dnr_volume_header, method_ns, 584);
DNR_ASSERT_OFFSET(dnr_volume_header, early_iterations, 592);
DNR_ASSERT_OFFSET(dnr_volume_header, early_views, 596);
DNR_ASSERT_OFFSET(dnr_volume_header, repairs, 600);
DNR_ASSERT_OFFSET(dnr_volume_header, repairs_planned, 604);
DNR_ASSERT_OFFSET(dnr_volume_header, repairs_failed, 608);
DNR_ASSERT_OFFSET(dnr_volume_header, repair_ms, 612);
DNR_ASSERT_OFFSET(dnr_volume_header, repair_model, 616);
DNR_ASSERT_OFFSET(dnr_volume_header, repair_provider, 648);
DNR_ASSERT_OFFSET(dnr_volume_header, reserved1, 680);
DNR_ASSERT_OFFSET(dnr_volume_header, payload_crc32c, 1016);
DNR_ASSERT_OFFSET(dnr_volume_header, header_crc32c, 1020);
DNR_STATIC_ASSERT(sizeof(dnr_volume_header) == DNR_VOLUME_HEADER_BYTES, "size");

#endif /* DIFFNR_VOLUMES_H */
