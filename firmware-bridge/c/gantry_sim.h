/* What the parts of gantry_sim share: options, recording, statistics. */
#ifndef GANTRY_SIM_H
#define GANTRY_SIM_H

#include "diffnr_producer.h"

enum {
    EXIT_PLAYED = 0,
    EXIT_USAGE = 2,
    EXIT_NO_SEGMENT = 3,      /* no (ready) segment within --timeout */
    EXIT_SEGMENT_REFUSED = 4, /* version, size, header, or a system call */
    EXIT_BAD_RECORDING = 5,
    EXIT_FRAME_TOO_LARGE = 6, /* the recording's frames do not fit the ring */
    EXIT_PRODUCER_ALIVE = 7
};

#define SIM_DROP_RANGES 32

struct sim_options {
    char frames_path[512];
    char volumes_path[512];
    const char *recording_path;
    double fps; /* 0 = as fast as possible */
    struct {
        uint64_t first, last;
    } drop[SIM_DROP_RANGES];
    int drop_count;
    double drop_fraction, duplicate, reorder, corrupt_payload, corrupt_header;
    uint64_t stall_at, stall_ns;
    int64_t die_after, die_in_write; /* -1 = live */
    int restarts;
    uint64_t restart_ns;
    uint64_t loops;
    uint64_t seed;
    uint64_t timeout_ns;
    int wait_ready, no_crc, json;
};

struct sim_stats {
    uint64_t number;   /* frames of the recording dealt with */
    uint64_t sequence; /* next sequence number of this epoch */
    uint64_t written, left_out, dropped_by_ring, replaced_in_ring, duplicated, reordered;
    uint64_t corrupted_payload, corrupted_header, epochs, reattached, deaths, has_died;
    uint64_t started_ns, ended_ns, latest_ns, longest_send_ns;
};

struct recording {
    const unsigned char *base;
    uint64_t bytes;
    uint64_t frame_count;
    uint64_t *offsets; /* of each frame header */
};

/* Returns -1, or the exit code if there is nothing to play (--help, a mistake). */
int parse_options(int argc, char **argv, struct sim_options *options);

/* Whether frame `number` is named by --drop. */
int in_list(const struct sim_options *options, uint64_t number);

/* Maps a recording and checks every frame's header and CRCs. 0: complained on stderr. */
int open_recording(struct recording *recording, const char *path);

/* Gives back what it holds, also after a failed open. */
void close_recording(struct recording *recording);

/* Header of frame `index`; the payload follows it. */
const dnr_frame_header *recording_frame(const struct recording *recording, uint64_t index);

/* Waits for the daemon's state READY or beyond in NAME.volumes. 0: not within --timeout. */
int wait_until_ready(const struct sim_options *options);

#endif
