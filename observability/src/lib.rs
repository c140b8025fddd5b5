//! What can be seen from outside: metrics as fields of typed structs, and the timeline.
