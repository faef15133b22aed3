//! How a job looks: while it runs, and when it has ended.
//!
//! [`progress`] keeps what is known and draws nothing; [`live`] and [`plain`]
//! draw it; [`summary`] and [`json`] show the end.
pub mod audit;
pub mod json;
pub mod live;
pub mod names;
pub mod plain;
pub mod progress;
pub mod summary;
pub mod time;
