//! The schedule (what runs when) and the memory budget (every byte), fixed before "ready".
