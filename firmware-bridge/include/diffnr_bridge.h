/*
 * diffnr firmware bridge, protocol version 1.2: what gantry, daemon and readers share. See PROTOCOL.md.
 *
 *   diffnr_bridge.h    this file: version, conventions
 *   diffnr_frames.h    NAME.frames: the ring, the frame header, recordings
 *   diffnr_volumes.h   NAME.volumes: status, leases, volume slots, the volume header
 *   diffnr_producer.h  the functions of c/producer.c
 *
 * Little-endian, natural alignment, fixed widths, no packed structs. C11 (atomics) or C++ (layout only).
 * SPDX-License-Identifier: MIT OR Apache-2.0
 */
#ifndef DIFFNR_BRIDGE_H
#define DIFFNR_BRIDGE_H

#include <stddef.h>
#include <stdint.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the protocol is little-endian and is shared in place"
#endif

#ifdef __cplusplus
#define DNR_ATOMIC_U64 uint64_t /* use std::atomic_ref, or leave the atomics to c/producer.c */
#define DNR_STATIC_ASSERT static_assert
#else
#include <stdatomic.h>
#define DNR_ATOMIC_U64 _Atomic uint64_t
#define DNR_STATIC_ASSERT _Static_assert
_Static_assert(sizeof(_Atomic uint64_t) == 8 && _Alignof(_Atomic uint64_t) == 8, "atomic u64 is a plain word");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free: locks are not shared between processes");
#endif

#define DNR_ASSERT_OFFSET(type, field, offset) DNR_STATIC_ASSERT(offsetof(type, field) == (offset), #type "." #field)

#define DNR_VERSION_MAJOR 1 /* another major is refused: offsets or meanings changed */
#define DNR_VERSION_MINOR 2 /* a higher minor only gives meaning to reserved fields */
#define DNR_CACHE_LINE 128  /* words that different processes write lie on lines of this size */

/* An inclusive range of sequence numbers. */
typedef struct dnr_sequence_range {
    uint64_t first;                             /* First number of the range */
    uint64_t last;                              /* Last number of the range (included) */
} dnr_sequence_range;

DNR_ASSERT_OFFSET(dnr_sequence_range, first, 0);
DNR_ASSERT_OFFSET(dnr_sequence_range, last, 8);
DNR_STATIC_ASSERT(sizeof(dnr_sequence_range) == 16, "size");

#include "diffnr_frames.h"
#include "diffnr_volumes.h"

#endif /* DIFFNR_BRIDGE_H */
