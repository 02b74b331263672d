//! Volumes out: shared-memory slots, leases, headers.
