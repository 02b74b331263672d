//! Frames out of the ring: sequence, epoch, gaps, CRC.
