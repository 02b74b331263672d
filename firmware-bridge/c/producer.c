/*
 * The gantry's end of the ring; the twin of src/ring/machine.rs and src/ring/producer.rs, where the sync points are
 * numbered and model-checked. See PROTOCOL.md. No allocation, no mutable globals, no call that waits.
 */
#define _GNU_SOURCE /* flock, MAP_POPULATE */

#include "diffnr_producer.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static dnr_frames_header *header_of(dnr_producer *producer) {
    return (dnr_frames_header *)(void *)producer->base;
}

static unsigned char *slot_of(dnr_producer *producer, uint64_t index) {
    return producer->base + DNR_FRAMES_HEADER_BYTES + index * producer->slot_stride;
}

static _Atomic uint64_t *word_of(dnr_producer *producer, uint64_t index) {
    return &((dnr_frame_slot_control *)(void *)slot_of(producer, index))->word;
}

static uint64_t word(uint64_t ticket, uint64_t state) {
    return ticket << 8 | state;
}

static void count(_Atomic uint64_t *counter) {
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* The cursor never goes back, whoever is late. */
static void raise_cursor(_Atomic uint64_t *cursor, uint64_t to) {
    uint64_t now = atomic_load_explicit(cursor, memory_order_relaxed);
    while (now < to &&
           !atomic_compare_exchange_weak_explicit(cursor, &now, to, memory_order_release, memory_order_relaxed)) {
    }
}

uint64_t dnr_now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

uint32_t dnr_bytes_per_pixel(uint32_t kind) {
    switch (kind) {
    case DNR_KIND_LINE_INTEGRALS_F32: return 4;
    case DNR_KIND_COUNTS_U16:
    case DNR_KIND_DARK_U16:
    case DNR_KIND_FLAT_U16: return 2;
    default: return 0;
    }
}

void dnr_frame_header_seal(dnr_frame_header *header) {
    header->version_major = DNR_VERSION_MAJOR;
    header->version_minor = DNR_VERSION_MINOR;
    header->header_bytes = DNR_FRAME_HEADER_BYTES;
    header->header_crc32c = dnr_crc32c(0, header, offsetof(dnr_frame_header, header_crc32c));
}

/* Checks every number that offsets are computed from, and keeps copies. */
static int check_header(dnr_producer *producer, const dnr_frames_header *header) {
    /* SYNC POINT S1: the daemon stores the magic last, with Release. */
    uint64_t magic = atomic_load_explicit(&header->magic, memory_order_acquire);
    if (magic != DNR_FRAMES_MAGIC) {
        return magic == 0 ? DNR_ERROR_NOT_YET_FINALIZED : DNR_ERROR_WRONG_MAGIC;
    }
    if (header->version_major != DNR_VERSION_MAJOR) {
        return DNR_ERROR_VERSION_MISMATCH;
    }
    producer->slot_count = header->slot_count;
    producer->policy = header->policy;
    producer->max_columns = header->max_columns;
    producer->max_rows = header->max_rows;
    producer->slot_stride = header->slot_stride;
    producer->payload_capacity = header->payload_capacity;
    producer->instance_id = header->instance_id;
    if (producer->slot_count < 2 || producer->slot_count > 65536 || producer->policy > DNR_DROP_OLDEST ||
        producer->max_columns < 1 || producer->max_columns > 65536 || producer->max_rows < 1 ||
        producer->max_rows > 65536) {
        return DNR_ERROR_BAD_FIELD;
    }
    /* No overflow below: a payload is at most 2^34 bytes, a segment 2^51. */
    if (producer->payload_capacity < 1 ||
        producer->payload_capacity > (uint64_t)producer->max_columns * producer->max_rows * 4) {
        return DNR_ERROR_BAD_FIELD;
    }
    uint64_t stride = DNR_FRAME_SLOT_CONTROL_BYTES + DNR_FRAME_HEADER_BYTES + producer->payload_capacity;
    stride = (stride + DNR_CACHE_LINE - 1) / DNR_CACHE_LINE * DNR_CACHE_LINE;
    uint64_t bytes = DNR_FRAMES_HEADER_BYTES + stride * producer->slot_count;
    if (producer->slot_stride != stride || header->segment_bytes != bytes ||
        header->header_bytes != DNR_FRAMES_HEADER_BYTES || header->frame_header_bytes != DNR_FRAME_HEADER_BYTES ||
        header->slots_offset != DNR_FRAMES_HEADER_BYTES) {
        return DNR_ERROR_BAD_FIELD;
    }
    if (producer->bytes != bytes) {
        return DNR_ERROR_WRONG_SIZE;
    }
    if (atomic_load_explicit(&header->write_cursor, memory_order_acquire) >= (uint64_t)1 << 55) {
        return DNR_ERROR_BAD_FIELD; /* tickets have 56 bits: nonsense */
    }
    if (atomic_load_explicit(&header->retired, memory_order_acquire) != 0) {
        return DNR_ERROR_RETIRED;
    }
    return DNR_OK;
}

int dnr_producer_attach_memory(dnr_producer *producer, void *base, size_t bytes, uint32_t pid) {
    memset(producer, 0, sizeof *producer);
    producer->base = base;
    producer->bytes = bytes;
    producer->fd = -1;
    if (bytes < DNR_FRAMES_HEADER_BYTES) {
        return DNR_ERROR_WRONG_SIZE;
    }
    if ((uintptr_t)base % DNR_CACHE_LINE != 0) {
        return DNR_ERROR_BAD_FIELD; /* words would not be atomic */
    }
    dnr_frames_header *header = header_of(producer);
    int result = check_header(producer, header);
    if (result != DNR_OK) {
        return result;
    }
    producer->epoch = (uint32_t)(atomic_fetch_add_explicit(&header->epoch, 1, memory_order_acq_rel) + 1);
    /* Slots that a dead predecessor left WRITING become FREE; their tickets are never used again. */
    uint64_t next = atomic_load_explicit(&header->write_cursor, memory_order_acquire);
    for (uint64_t i = 0; i < producer->slot_count; i++) {
        uint64_t found = atomic_load_explicit(word_of(producer, i), memory_order_acquire);
        if (found != 0 && (found >> 8) + 1 > next) {
            next = (found >> 8) + 1;
        }
        uint64_t state = found & 0xff;
        if (state != DNR_SLOT_FREE && state != DNR_SLOT_FULL && state != DNR_SLOT_READING &&
            atomic_compare_exchange_strong_explicit(word_of(producer, i), &found, word(found >> 8, DNR_SLOT_FREE),
                                                    memory_order_acq_rel, memory_order_relaxed)) {
            count(&header->reclaimed_writing);
        }
    }
    raise_cursor(&header->write_cursor, next); /* SYNC POINT R4 */
    producer->ticket = next;
    atomic_store_explicit(&header->producer_pid, pid, memory_order_relaxed);
    atomic_store_explicit(&header->producer_heartbeat_ns, dnr_now_ns(), memory_order_relaxed);
    return DNR_OK;
}

int dnr_producer_attach(dnr_producer *producer, const char *path) {
    memset(producer, 0, sizeof *producer);
    producer->fd = -1;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return errno == ENOENT ? DNR_ERROR_NOT_FOUND : DNR_ERROR_SYSTEM;
    }
    int result = DNR_ERROR_SYSTEM;
    struct stat status;
    void *base = MAP_FAILED;
    size_t bytes = 0;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        result = errno == EWOULDBLOCK ? DNR_ERROR_PRODUCER_ALIVE : DNR_ERROR_SYSTEM;
    } else if (fstat(fd, &status) == 0) {
        bytes = (size_t)status.st_size;
        if (bytes < DNR_FRAMES_HEADER_BYTES) {
            result = bytes == 0 ? DNR_ERROR_NOT_YET_FINALIZED : DNR_ERROR_WRONG_SIZE;
        } else {
            /* Every page is there before the first frame: no fault on the frame path. */
            base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
            if (base != MAP_FAILED) {
                result = dnr_producer_attach_memory(producer, base, bytes, (uint32_t)getpid());
            }
        }
    }
    if (result == DNR_OK) {
        producer->fd = fd;
        return DNR_OK;
    }
    int saved = errno;
    if (base != MAP_FAILED) {
        munmap(base, bytes);
    }
    close(fd);
    memset(producer, 0, sizeof *producer);
    producer->fd = -1;
    errno = saved;
    return result;
}

void dnr_producer_detach(dnr_producer *producer) {
    if (producer->base == NULL) {
        return;
    }
    dnr_producer_abandon(producer);
    atomic_store_explicit(&header_of(producer)->producer_pid, 0, memory_order_relaxed);
    if (producer->fd >= 0) {
        munmap(producer->base, producer->bytes);
        close(producer->fd); /* gives the lock back */
    }
    memset(producer, 0, sizeof *producer);
    producer->fd = -1;
}

int dnr_producer_begin(dnr_producer *producer, void **payload) {
    dnr_frames_header *header = header_of(producer);
    *payload = NULL;
    if (producer->claimed != 0) {
        return DNR_ERROR_NO_SLOT;
    }
    atomic_store_explicit(&header->producer_heartbeat_ns, dnr_now_ns(), memory_order_relaxed);
    if (atomic_load_explicit(&header->retired, memory_order_relaxed) != 0) {
        return DNR_ERROR_RETIRED;
    }
    uint64_t index = producer->ticket % producer->slot_count;
    _Atomic uint64_t *slot = word_of(producer, index);
    /* The consumer can change the word twice at most (take, release) while we look. */
    for (int attempt = 0; attempt < 3; attempt++) {
        /* SYNC POINT R1: Acquire, the consumer's reads of the old payload happen before our writes. */
        uint64_t found = atomic_load_explicit(slot, memory_order_acquire);
        uint64_t state = found & 0xff;
        int replaces = state == DNR_SLOT_FULL && producer->policy == DNR_DROP_OLDEST;
        if (state != DNR_SLOT_FREE && !replaces) {
            break;
        }
        if (atomic_compare_exchange_strong_explicit(slot, &found, word(producer->ticket, DNR_SLOT_WRITING),
                                                    memory_order_acquire, memory_order_relaxed)) {
            if (replaces) {
                count(&header->dropped_oldest);
            }
            producer->claimed = replaces ? 2 : 1;
            *payload = slot_of(producer, index) + DNR_FRAME_SLOT_CONTROL_BYTES + DNR_FRAME_HEADER_BYTES;
            return DNR_OK;
        }
    }
    count(&header->dropped_newest);
    return DNR_DROPPED;
}

void dnr_producer_abandon(dnr_producer *producer) {
    if (producer->claimed != 0) {
        uint64_t expected = word(producer->ticket, DNR_SLOT_WRITING);
        atomic_compare_exchange_strong_explicit(word_of(producer, producer->ticket % producer->slot_count), &expected,
                                                word(producer->ticket, DNR_SLOT_FREE), memory_order_release,
                                                memory_order_relaxed);
        producer->claimed = 0;
    }
}

int dnr_producer_commit_raw(dnr_producer *producer, const dnr_frame_header *header) {
    if (producer->claimed == 0) {
        return DNR_ERROR_NO_SLOT;
    }
    uint64_t index = producer->ticket % producer->slot_count;
    memcpy(slot_of(producer, index) + DNR_FRAME_SLOT_CONTROL_BYTES, header, sizeof *header);
    int replaced = producer->claimed == 2;
    producer->claimed = 0;
    uint64_t expected = word(producer->ticket, DNR_SLOT_WRITING);
    /* SYNC POINT R2: Release, header and payload are written before FULL is seen. */
    if (!atomic_compare_exchange_strong_explicit(word_of(producer, index), &expected,
                                                 word(producer->ticket, DNR_SLOT_FULL), memory_order_release,
                                                 memory_order_relaxed)) {
        return DNR_ERROR_SUPERSEDED;
    }
    producer->ticket++;
    raise_cursor(&header_of(producer)->write_cursor, producer->ticket); /* SYNC POINT R3 */
    count(&header_of(producer)->written);
    return replaced ? DNR_REPLACED : DNR_OK;
}

int dnr_producer_commit(dnr_producer *producer, dnr_frame_header *header) {
    if (producer->claimed == 0) {
        return DNR_ERROR_NO_SLOT;
    }
    uint64_t expected = (uint64_t)header->columns * header->rows * dnr_bytes_per_pixel(header->kind);
    if (header->columns > producer->max_columns || header->rows > producer->max_rows || expected == 0 ||
        header->payload_bytes != expected || expected > producer->payload_capacity) {
        dnr_producer_abandon(producer);
        return DNR_ERROR_TOO_LARGE;
    }
    const unsigned char *payload = slot_of(producer, producer->ticket % producer->slot_count) +
                                   DNR_FRAME_SLOT_CONTROL_BYTES + DNR_FRAME_HEADER_BYTES;
    int with_crc = (header->flags & DNR_FRAME_PAYLOAD_CRC) != 0;
    header->epoch = producer->epoch;
    header->payload_crc32c = with_crc ? dnr_crc32c(0, payload, (size_t)expected) : 0;
    dnr_frame_header_seal(header);
    return dnr_producer_commit_raw(producer, header);
}

int dnr_producer_send(dnr_producer *producer, dnr_frame_header *header, const void *payload, uint64_t payload_bytes) {
    if (payload_bytes > producer->payload_capacity) {
        return DNR_ERROR_TOO_LARGE;
    }
    void *to;
    int result = dnr_producer_begin(producer, &to);
    if (result != DNR_OK) {
        return result;
    }
    memcpy(to, payload, (size_t)payload_bytes);
    header->payload_bytes = payload_bytes;
    return dnr_producer_commit(producer, header);
}

int dnr_producer_check(dnr_producer *producer, uint64_t silent_after_ns) {
    dnr_frames_header *header = header_of(producer);
    uint64_t now = dnr_now_ns();
    atomic_store_explicit(&header->producer_heartbeat_ns, now, memory_order_relaxed);
    if (atomic_load_explicit(&header->retired, memory_order_acquire) != 0) {
        return DNR_ERROR_RETIRED;
    }
    uint64_t heartbeat = atomic_load_explicit(&header->consumer_heartbeat_ns, memory_order_relaxed);
    int silent = heartbeat == 0 || (now > heartbeat && now - heartbeat > silent_after_ns);
    return silent ? DNR_ERROR_CONSUMER_SILENT : DNR_OK;
}

const char *dnr_result_text(int result) {
    switch (result) {
    case DNR_OK: return "ok";
    case DNR_DROPPED: return "ring full, frame dropped and counted";
    case DNR_REPLACED: return "written over the oldest unread frame";
    case DNR_ERROR_NOT_FOUND: return "no such segment: start the daemon first, or check the name";
    case DNR_ERROR_NOT_YET_FINALIZED: return "the segment is not finalised yet: try again";
    case DNR_ERROR_WRONG_MAGIC: return "not a frame segment: check the path";
    case DNR_ERROR_VERSION_MISMATCH: return "another protocol version: use the same release on both sides";
    case DNR_ERROR_WRONG_SIZE: return "truncated segment, or longer than its header says";
    case DNR_ERROR_BAD_FIELD: return "impossible segment header";
    case DNR_ERROR_RETIRED: return "segment replaced by a restarted daemon: attach again";
    case DNR_ERROR_PRODUCER_ALIVE: return "another producer is running: stop it first";
    case DNR_ERROR_SYSTEM: return "a system call failed: see errno";
    case DNR_ERROR_TOO_LARGE: return "frame larger than a slot, or payload_bytes is not columns x rows x bytes of a pixel";
    case DNR_ERROR_SUPERSEDED: return "another producer took the slot over: attach again";
    case DNR_ERROR_CONSUMER_SILENT: return "no sign of life from the daemon";
    case DNR_ERROR_NO_SLOT: return "begin and commit do not alternate";
    default: return "unknown result";
    }
}
