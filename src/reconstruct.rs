//! Reconstruction methods, driven over a scan or frame by frame.
