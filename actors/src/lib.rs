//! Who runs the stages, and when.
