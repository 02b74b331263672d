//! Settings: raw (as written in TOML and `DIFFNR_*`) and validated, two types.
