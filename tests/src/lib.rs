//! The world that the actors run in: every claim that the repository makes is a test here.

pub mod frail;
pub mod strangers;
