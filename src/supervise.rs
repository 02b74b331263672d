//! Status, counters, watchdog, logs.
