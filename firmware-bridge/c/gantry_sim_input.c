/* gantry_sim: the command line, the recording, and the daemon's readiness. */
#define _GNU_SOURCE

#include "gantry_sim.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const char usage[] =
    "gantry_sim NAME RECORDING [switches]: plays a recording (diffnr replay SCAN --record FILE) into NAME.frames\n"
    "\n"
    "  NAME                 segment in /dev/shm, or a path prefix with a '/'\n"
    "  --fps F              frames per second (default 30; 0 = as fast as possible)\n"
    "  --loop N             play it N times; sequence numbers go on (default 1)\n"
    "  --drop A[-B][,...]   leave these frames out (counted from 0); their sequence numbers are missing\n"
    "  --drop-fraction P    leave each frame out with probability P\n"
    "  --duplicate P        send a frame twice with probability P\n"
    "  --reorder P          send a frame after its successor with probability P\n"
    "  --corrupt payload:P  turn one bit of a payload with probability P (its CRC stays that of the right bytes)\n"
    "  --corrupt header:P   the same in the header\n"
    "  --stall N:MS         wait MS milliseconds before frame N\n"
    "  --die-after N        kill -9 itself before frame N\n"
    "  --die-in-write N     kill -9 itself with half of frame N's payload written\n"
    "  --restart MS         after such a death, go on with a new process MS milliseconds later\n"
    "  --seed S             of all probabilities (default 1)\n"
    "  --timeout S          seconds to wait for the segment (default 10)\n"
    "  --wait-ready         begin when the daemon says that it is ready\n"
    "  --no-crc             send without payload CRCs\n"
    "  --json               print the summary as JSON\n"
    "\n"
    "exit codes: 0 played; 2 usage; 3 no segment in time; 4 segment refused; 5 bad recording; 6 frames larger than the\n"
    "ring's slots; 7 another producer is running; killed by signal 9 with --die-* and without --restart\n";

static int mistake(const char *name, const char *value) {
    fprintf(stderr, "gantry_sim: %s %s: not understood; see gantry_sim --help\n", name, value ? value : "(missing)");
    return EXIT_USAGE;
}

/* A finite number in [low, high] up to the character `end`; returns what follows it, NULL if it is none. */
static const char *number(const char *text, double low, double high, char end, double *to) {
    char *after;
    errno = 0;
    *to = strtod(text, &after);
    int good = after != text && errno == 0 && isfinite(*to) && *to >= low && *to <= high && *after == end;
    return good ? after + (end != '\0') : NULL;
}

static int parse_drop(const char *text, struct sim_options *options) {
    while (options->drop_count < SIM_DROP_RANGES) {
        char *after;
        uint64_t first = strtoull(text, &after, 10), last = first;
        if (after == text || *text == '-') {
            return 0;
        }
        if (*after == '-') {
            text = after + 1;
            last = strtoull(text, &after, 10);
            if (after == text || last < first) {
                return 0;
            }
        }
        options->drop[options->drop_count].first = first;
        options->drop[options->drop_count++].last = last;
        if (*after == '\0') {
            return 1;
        }
        if (*after != ',') {
            return 0;
        }
        text = after + 1;
    }
    return 0;
}

static int parse_one(const char *name, const char *value, struct sim_options *options) {
    double a = 0, b = 0;
    const double most = 9e15; /* whole numbers that a double holds */
    if (strcmp(name, "--fps") == 0) {
        return number(value, 0, 1e6, '\0', &options->fps) != NULL;
    } else if (strcmp(name, "--drop") == 0) {
        return parse_drop(value, options);
    } else if (strcmp(name, "--drop-fraction") == 0) {
        return number(value, 0, 1, '\0', &options->drop_fraction) != NULL;
    } else if (strcmp(name, "--duplicate") == 0) {
        return number(value, 0, 1, '\0', &options->duplicate) != NULL;
    } else if (strcmp(name, "--reorder") == 0) {
        return number(value, 0, 1, '\0', &options->reorder) != NULL;
    } else if (strcmp(name, "--corrupt") == 0) {
        if (strncmp(value, "payload:", 8) == 0) {
            return number(value + 8, 0, 1, '\0', &options->corrupt_payload) != NULL;
        }
        return strncmp(value, "header:", 7) == 0 && number(value + 7, 0, 1, '\0', &options->corrupt_header) != NULL;
    } else if (strcmp(name, "--stall") == 0) {
        const char *rest = number(value, 0, most, ':', &a);
        if (rest == NULL || number(rest, 0, 1e9, '\0', &b) == NULL) {
            return 0;
        }
        options->stall_at = (uint64_t)a;
        options->stall_ns = (uint64_t)(b * 1e6);
        return 1;
    }
    if (number(value, 0, most, '\0', &a) == NULL) {
        return 0;
    }
    if (strcmp(name, "--die-after") == 0) {
        options->die_after = (int64_t)a;
    } else if (strcmp(name, "--die-in-write") == 0) {
        options->die_in_write = (int64_t)a;
    } else if (strcmp(name, "--restart") == 0 && a <= 1e9) {
        options->restarts = 1;
        options->restart_ns = (uint64_t)(a * 1e6);
    } else if (strcmp(name, "--loop") == 0 && a >= 1 && a <= 1e9) {
        options->loops = (uint64_t)a;
    } else if (strcmp(name, "--seed") == 0) {
        options->seed = (uint64_t)a;
    } else if (strcmp(name, "--timeout") == 0 && a <= 1e9) {
        options->timeout_ns = (uint64_t)(a * 1e9);
    } else {
        return 0;
    }
    return 1;
}

int parse_options(int argc, char **argv, struct sim_options *options) {
    memset(options, 0, sizeof *options);
    options->fps = 30;
    options->die_after = options->die_in_write = -1;
    options->loops = 1;
    options->seed = 1;
    options->timeout_ns = 10000000000u;
    const char *name = NULL;
    for (int i = 1; i < argc; i++) {
        const char *argument = argv[i];
        if (strcmp(argument, "--help") == 0) {
            fputs(usage, stdout);
            return EXIT_PLAYED;
        } else if (strcmp(argument, "--json") == 0) {
            options->json = 1;
        } else if (strcmp(argument, "--wait-ready") == 0) {
            options->wait_ready = 1;
        } else if (strcmp(argument, "--no-crc") == 0) {
            options->no_crc = 1;
        } else if (strncmp(argument, "--", 2) == 0) {
            const char *value = i + 1 < argc ? argv[++i] : NULL;
            if (value == NULL || !parse_one(argument, value, options)) {
                return mistake(argument, value);
            }
        } else if (name == NULL) {
            name = argument;
        } else if (options->recording_path == NULL) {
            options->recording_path = argument;
        } else {
            return mistake(argument, "");
        }
    }
    if (options->recording_path == NULL) {
        fputs(usage, stderr);
        return EXIT_USAGE;
    }
    const char *folder = strchr(name, '/') ? "" : "/dev/shm/";
    size_t room = sizeof options->frames_path;
    int length = snprintf(options->frames_path, room, "%s%s.frames", folder, name);
    int other = snprintf(options->volumes_path, room, "%s%s.volumes", folder, name);
    if (length < 0 || other < 0 || (size_t)length >= room || (size_t)other >= room) {
        return mistake("NAME", name);
    }
    return -1;
}

int in_list(const struct sim_options *options, uint64_t number_of_frame) {
    for (int i = 0; i < options->drop_count; i++) {
        if (options->drop[i].first <= number_of_frame && number_of_frame <= options->drop[i].last) {
            return 1;
        }
    }
    return 0;
}

const dnr_frame_header *recording_frame(const struct recording *recording, uint64_t index) {
    return (const dnr_frame_header *)(const void *)(recording->base + recording->offsets[index]);
}

void close_recording(struct recording *recording) {
    free(recording->offsets);
    if (recording->base != NULL) {
        munmap((void *)(uintptr_t)recording->base, (size_t)recording->bytes);
    }
    memset(recording, 0, sizeof *recording);
}

static int refuse(const char *path, const char *what) {
    fprintf(stderr, "gantry_sim: %s: %s\n", path, what);
    return 0;
}

int open_recording(struct recording *recording, const char *path) {
    memset(recording, 0, sizeof *recording);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) {
        return refuse(path, strerror(errno));
    }
    recording->bytes = (uint64_t)status.st_size;
    if (recording->bytes < DNR_RECORDING_HEADER_BYTES) {
        return refuse(path, "not a recording: shorter than its header");
    }
    void *base = mmap(NULL, (size_t)recording->bytes, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    close(fd);
    if (base == MAP_FAILED) {
        return refuse(path, strerror(errno));
    }
    recording->base = base;
    const dnr_recording_header *header = base;
    if (header->magic != DNR_RECORDING_MAGIC) {
        return refuse(path, header->magic == 0 ? "the recording was not finished" : "not a recording: wrong magic");
    }
    if (header->version_major != DNR_VERSION_MAJOR || header->header_bytes != DNR_RECORDING_HEADER_BYTES) {
        return refuse(path, "a recording of another version");
    }
    if (header->header_crc32c != dnr_crc32c(0, header, offsetof(dnr_recording_header, header_crc32c))) {
        return refuse(path, "header CRC is wrong: the file is damaged");
    }
    recording->frame_count = header->frame_count;
    if (header->frame_count == 0 || header->frame_count > recording->bytes / DNR_FRAME_HEADER_BYTES) {
        return refuse(path, header->frame_count == 0 ? "holds no frames" : "truncated");
    }
    uint64_t *offsets = malloc((size_t)header->frame_count * sizeof *offsets);
    recording->offsets = offsets;
    if (offsets == NULL) {
        return refuse(path, "out of memory");
    }
    uint64_t at = DNR_RECORDING_HEADER_BYTES;
    for (uint64_t i = 0; i < header->frame_count; i++) {
        if (recording->bytes - at < DNR_FRAME_HEADER_BYTES) {
            return refuse(path, "truncated");
        }
        const dnr_frame_header *frame = (const dnr_frame_header *)(const void *)(recording->base + at);
        uint64_t bytes = (uint64_t)frame->columns * frame->rows * dnr_bytes_per_pixel(frame->kind);
        if (frame->header_crc32c != dnr_crc32c(0, frame, offsetof(dnr_frame_header, header_crc32c)) ||
            frame->columns > 65536 || frame->rows > 65536 || bytes == 0 || frame->payload_bytes != bytes) {
            return refuse(path, "a frame header is damaged");
        }
        offsets[i] = at;
        at += DNR_FRAME_HEADER_BYTES;
        if (recording->bytes - at < (bytes + 7) / 8 * 8) {
            return refuse(path, "truncated");
        }
        if ((frame->flags & DNR_FRAME_PAYLOAD_CRC) != 0 &&
            frame->payload_crc32c != dnr_crc32c(0, recording->base + at, (size_t)bytes)) {
            return refuse(path, "a frame's payload is damaged");
        }
        at += (bytes + 7) / 8 * 8;
    }
    return 1;
}

int wait_until_ready(const struct sim_options *options) {
    uint64_t until = dnr_now_ns() + options->timeout_ns;
    do {
        int fd = open(options->volumes_path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            uint64_t state = 0;
            /* Eight bytes at an aligned offset of a file in memory: read whole. */
            ssize_t bytes = pread(fd, &state, sizeof state, offsetof(dnr_volumes_header, state));
            close(fd);
            if (bytes == (ssize_t)sizeof state && state >= DNR_STATE_READY && state <= DNR_STATE_DEGRADED) {
                return 1;
            }
        }
        struct timespec pause = {.tv_sec = 0, .tv_nsec = 5000000};
        nanosleep(&pause, NULL);
    } while (dnr_now_ns() < until);
    return 0;
}
