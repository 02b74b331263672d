/*
 * gantry_sim NAME RECORDING [switches]: plays a recording into NAME.frames as a gantry would, with faults on demand.
 * `gantry_sim --help` lists the switches and exit codes. The producer library stays out of its own way: all faults are
 * made here.
 */
#define _GNU_SOURCE /* clock_nanosleep, MAP_ANONYMOUS, kill */

#include "gantry_sim.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void sleep_until(uint64_t time_ns) {
    struct timespec until = {.tv_sec = (time_t)(time_ns / 1000000000u), .tv_nsec = (long)(time_ns % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
}

/* Counter-based: the same number for the same seed, frame and purpose, whatever happened before. In [0, 1). */
static double chance(uint64_t seed, uint64_t frame, uint64_t purpose) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + frame * 0xbf58476d1ce4e5b9u + purpose * 0x94d049bb133111ebu;
    for (int i = 0; i < 2; i++) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        z ^= z >> 31;
    }
    return (double)(z >> 11) / 9007199254740992.0;
}

static int attach(dnr_producer *producer, const struct sim_options *options) {
    uint64_t until = dnr_now_ns() + options->timeout_ns;
    for (;;) {
        int result = dnr_producer_attach(producer, options->frames_path);
        int wait = result == DNR_ERROR_NOT_FOUND || result == DNR_ERROR_NOT_YET_FINALIZED || result == DNR_ERROR_RETIRED;
        if (!wait || dnr_now_ns() >= until) {
            return result;
        }
        sleep_until(dnr_now_ns() + 5000000);
    }
}

static int exit_code_of(int result) {
    switch (result) {
    case DNR_ERROR_NOT_FOUND:
    case DNR_ERROR_NOT_YET_FINALIZED:
    case DNR_ERROR_RETIRED: return EXIT_NO_SEGMENT;
    case DNR_ERROR_PRODUCER_ALIVE: return EXIT_PRODUCER_ALIVE;
    case DNR_ERROR_TOO_LARGE: return EXIT_FRAME_TOO_LARGE;
    default: return EXIT_SEGMENT_REFUSED;
    }
}

static int complain(const struct sim_options *options, int result) {
    fprintf(stderr, "gantry_sim: %s: %s%s%s\n", options->frames_path, dnr_result_text(result),
            result == DNR_ERROR_SYSTEM ? ": " : "", result == DNR_ERROR_SYSTEM ? strerror(errno) : "");
    return exit_code_of(result);
}

/* One frame into the ring, with the faults that concern its bytes. Returns a DNR_* result. */
static int send_frame(dnr_producer *producer, const struct sim_options *options, struct sim_stats *stats,
                      uint64_t number, uint64_t sequence, const dnr_frame_header *recorded) {
    uint64_t start = dnr_now_ns();
    dnr_frame_header header = *recorded;
    header.sequence = sequence;
    header.timestamp_ns = start;
    if (options->no_crc) {
        header.flags &= ~(uint32_t)DNR_FRAME_PAYLOAD_CRC;
    }
    void *to;
    int result = dnr_producer_begin(producer, &to);
    if (result != DNR_OK) {
        stats->dropped_by_ring += result == DNR_DROPPED;
        return result;
    }
    if (header.payload_bytes > producer->payload_capacity) {
        dnr_producer_abandon(producer);
        return DNR_ERROR_TOO_LARGE;
    }
    int dies = options->die_in_write >= 0 && (uint64_t)options->die_in_write == number && !stats->has_died;
    memcpy(to, recorded + 1, (size_t)(dies ? header.payload_bytes / 2 : header.payload_bytes));
    if (dies) {
        stats->has_died = 1;
        kill(getpid(), SIGKILL); /* the slot stays WRITING, as after a power cut */
    }
    int payload_fault = chance(options->seed, number, 3) < options->corrupt_payload;
    int header_fault = chance(options->seed, number, 4) < options->corrupt_header;
    if (!payload_fault && !header_fault) {
        result = dnr_producer_commit(producer, &header);
    } else {
        /* The CRCs of the right bytes, then one bit turned: as a cable would. */
        int with_crc = (header.flags & DNR_FRAME_PAYLOAD_CRC) != 0;
        header.epoch = producer->epoch;
        header.payload_crc32c = with_crc ? dnr_crc32c(0, to, (size_t)header.payload_bytes) : 0;
        dnr_frame_header_seal(&header);
        if (payload_fault) {
            uint64_t at = (uint64_t)(chance(options->seed, number, 5) * (double)header.payload_bytes);
            ((unsigned char *)to)[at] ^= 0x10;
            stats->corrupted_payload++;
        }
        if (header_fault) {
            ((unsigned char *)&header)[(size_t)(chance(options->seed, number, 6) * DNR_FRAME_HEADER_BYTES)] ^= 0x04;
            stats->corrupted_header++;
        }
        result = dnr_producer_commit_raw(producer, &header);
    }
    if (result >= 0) {
        stats->written++;
        stats->replaced_in_ring += result == DNR_REPLACED;
    }
    uint64_t took = dnr_now_ns() - start;
    stats->longest_send_ns = took > stats->longest_send_ns ? took : stats->longest_send_ns;
    return result;
}

/* Sends a frame; a replaced segment is looked for again, and the frame goes into the new one. */
static int send_or_reattach(dnr_producer *producer, const struct sim_options *options, struct sim_stats *stats,
                            uint64_t number, const dnr_frame_header *recorded) {
    for (;;) {
        int result = send_frame(producer, options, stats, number, stats->sequence, recorded);
        if (result != DNR_ERROR_RETIRED && result != DNR_ERROR_SUPERSEDED) {
            return result;
        }
        dnr_producer_detach(producer);
        result = attach(producer, options);
        if (result != DNR_OK) {
            return result;
        }
        stats->epochs++;
        stats->reattached++;
        stats->sequence = 0; /* a new epoch counts from 0 */
    }
}

/* Plays from stats->number to the end. Returns an exit code. */
static int play(const struct sim_options *options, const struct recording *recording, struct sim_stats *stats) {
    dnr_producer producer;
    int result = attach(&producer, options);
    if (result != DNR_OK) {
        return complain(options, result);
    }
    stats->epochs++;
    stats->sequence = 0;
    if (options->wait_ready && !wait_until_ready(options)) {
        dnr_producer_detach(&producer);
        fprintf(stderr, "gantry_sim: %s: the daemon did not become ready in time\n", options->volumes_path);
        return EXIT_NO_SEGMENT;
    }
    uint64_t total = recording->frame_count * options->loops;
    uint64_t period = options->fps > 0 ? (uint64_t)(1e9 / options->fps) : 0;
    uint64_t due = dnr_now_ns();
    stats->started_ns = stats->started_ns ? stats->started_ns : due;
    const dnr_frame_header *held = NULL; /* with --reorder: waits until the next frame is out */
    uint64_t held_sequence = 0;
    while (stats->number < total && result >= 0) {
        uint64_t number = stats->number++;
        const dnr_frame_header *recorded = recording_frame(recording, number % recording->frame_count);
        if (options->die_after >= 0 && (uint64_t)options->die_after == number && !stats->has_died) {
            stats->has_died = 1;
            kill(getpid(), SIGKILL);
        }
        if (number == options->stall_at && options->stall_ns > 0) {
            sleep_until(dnr_now_ns() + options->stall_ns);
            due = dnr_now_ns();
        }
        if (period > 0) {
            sleep_until(due);
            uint64_t late = dnr_now_ns() - due;
            stats->latest_ns = late > stats->latest_ns ? late : stats->latest_ns;
            due += period;
        }
        if (in_list(options, number) || chance(options->seed, number, 1) < options->drop_fraction) {
            stats->left_out++;
            stats->sequence++; /* the exposure took place, the frame is lost on the way */
            continue;
        }
        if (held == NULL && number + 1 < total && chance(options->seed, number, 2) < options->reorder) {
            held = recorded;
            held_sequence = stats->sequence++;
            stats->reordered++;
            continue;
        }
        uint64_t sequence = stats->sequence;
        result = send_or_reattach(&producer, options, stats, number, recorded);
        int reattached = stats->sequence < sequence;
        if (result >= 0 && chance(options->seed, number, 7) < options->duplicate) {
            stats->duplicated++;
            result = send_or_reattach(&producer, options, stats, number, recorded);
        }
        stats->sequence++;
        if (held != NULL && result >= 0) {
            if (!reattached) { /* its number belongs to the epoch before */
                result = send_frame(&producer, options, stats, number, held_sequence, held);
                result = result == DNR_ERROR_RETIRED ? DNR_OK : result;
            }
            held = NULL;
        }
    }
    if (held != NULL && result >= 0) {
        result = send_frame(&producer, options, stats, total, held_sequence, held);
    }
    stats->ended_ns = dnr_now_ns();
    dnr_producer_detach(&producer);
    return result >= 0 ? EXIT_PLAYED : complain(options, result);
}

/* With --restart: the gantry is a child process; when it has killed itself, another one goes on where it died. */
static int play_with_restarts(const struct sim_options *options, const struct recording *recording,
                              struct sim_stats *stats) {
    for (;;) {
        fflush(NULL);
        pid_t child = fork();
        if (child < 0) {
            fprintf(stderr, "gantry_sim: fork: %s\n", strerror(errno));
            return EXIT_SEGMENT_REFUSED;
        }
        if (child == 0) {
            _exit(play(options, recording, stats));
        }
        int status = 0;
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL || stats->deaths++ > 0) {
            return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_SEGMENT_REFUSED;
        }
        sleep_until(dnr_now_ns() + options->restart_ns);
    }
}

static void report(const struct sim_options *options, const struct sim_stats *stats) {
    double seconds = stats->ended_ns > stats->started_ns ? (double)(stats->ended_ns - stats->started_ns) / 1e9 : 0;
    const char *format =
        options->json
            ? "{\"frames\": %llu, \"written\": %llu, \"left_out\": %llu, \"dropped_by_ring\": %llu, "
              "\"replaced_in_ring\": %llu, \"duplicated\": %llu, \"reordered\": %llu, \"corrupted_payload\": %llu, "
              "\"corrupted_header\": %llu, \"epochs\": %llu, \"reattached\": %llu, \"seconds\": %.6f, "
              "\"latest_ms\": %.3f, \"longest_send_us\": %.1f}\n"
            : "gantry_sim: %llu frames, %llu written, %llu left out, %llu dropped by the ring, %llu replaced in it, "
              "%llu duplicated, %llu reordered, %llu corrupted payloads, %llu corrupted headers, %llu epochs, "
              "%llu re-attachments, %.3f s, latest start %.3f ms, longest send %.1f us\n";
    typedef unsigned long long ull;
    printf(format, (ull)stats->number, (ull)stats->written, (ull)stats->left_out, (ull)stats->dropped_by_ring,
           (ull)stats->replaced_in_ring, (ull)stats->duplicated, (ull)stats->reordered, (ull)stats->corrupted_payload,
           (ull)stats->corrupted_header, (ull)stats->epochs, (ull)stats->reattached, seconds,
           (double)stats->latest_ns / 1e6, (double)stats->longest_send_ns / 1e3);
}

int main(int argc, char **argv) {
    struct sim_options options;
    int parsed = parse_options(argc, argv, &options);
    if (parsed >= 0) {
        return parsed;
    }
    struct recording recording;
    if (!open_recording(&recording, options.recording_path)) {
        close_recording(&recording);
        return EXIT_BAD_RECORDING;
    }
    /* Shared with the child of --restart. */
    struct sim_stats *stats =
        mmap(NULL, sizeof *stats, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (stats == MAP_FAILED) {
        fprintf(stderr, "gantry_sim: mmap: %s\n", strerror(errno));
        return EXIT_SEGMENT_REFUSED;
    }
    int code = options.restarts ? play_with_restarts(&options, &recording, stats) : play(&options, &recording, stats);
    if (code == EXIT_PLAYED) {
        report(&options, stats);
    }
    close_recording(&recording);
    return code;
}
